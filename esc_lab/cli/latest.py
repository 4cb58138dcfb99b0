"""`latest` and `latest:STAGE`: the newest run, wherever the command line names the directory of one."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from esc_lab.cli.compositions import quote
from esc_lab.config import STAGES, Config, keys
from esc_lab.config.search import ROLES
from esc_lab.errors import UserError, nearest
from esc_lab.runs.layout import CARDS_FILE, CONFIG, CONTINUATIONS, ESC_PRO, MANIFEST, METRICS, TALKS_FILE

MULTIRUN = "multirun"
POLICIES = ("sft", "cso")  # stages that leave a supporter
_RESUME = "resume"
_REPLIES = ("evaluate", "converse")
# Of which stages a run fits a key: plain `latest` is the newest of these; of any single run where nothing is said.
_FITTING: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("checkpoint", "init_from", "chat.against"), POLICIES),
    **dict.fromkeys(("arena.sft", "arena.steerable"), ("sft",)),
    "arena.cso": ("cso",),
    **{f"llm.{role}.checkpoint": (*POLICIES, *(("reward",) if role == "judge" else ())) for role in ROLES},
    **{f"llm.{role}.recording": ("converse", "cards", "judge") for role in ROLES},
    **dict.fromkeys(("evaluate.best_of.reward", "objective.reward"), ("reward",)),
    **dict.fromkeys(("evaluate.classifier", "extend.classifier"), ("classifier",)),
    **dict.fromkeys(("judge.runs", "judge.baseline"), _REPLIES),
    **dict.fromkeys(("survey.runs", "survey.baseline"), ("evaluate",)),
    **dict.fromkeys(("survey.judge", "export.safety"), ("judge",)),
    "compare.runs": (*_REPLIES, "pipeline", MULTIRUN),
    "evaluate.boost.study": ("sra",),
    "sra.talks": ("converse",),
    "survey.directory": ("survey",),
}
# Keys that name what a run has left in its directory, by the stages that leave it.
_LEFT: Mapping[str, Mapping[str, str]] = {
    "data.path": {"search": ESC_PRO, "extend": CONTINUATIONS, "converse": TALKS_FILE, "convert": "dialogues*"},
    "cards.path": {"cards": CARDS_FILE},
}
# What names runs besides the keys that are paths.
_RUNS = (
    "compare.runs", "judge.runs", "judge.baseline", "survey.runs", "survey.baseline", "chat.against",
    "evaluate.classifier", "extend.classifier", "sra.talks", _RESUME,
)  # fmt: skip
_LATEST = re.compile(r"""(?<![^\[,\s])(['"]?)latest(?::(?P<stage>\w+))?(?P<file>(?:/[\w.-]+)*)\1(?![^\],\s])""")


def run_keys() -> set[str]:
    """Keys whose values may name runs."""
    return {key.name for key in keys() if key.path} | {*_RUNS}


def name_latest_runs(words: Sequence[str]) -> list[str]:
    """The words with the paths of the runs that `latest`, `latest:STAGE` and `latest:STAGE/FILE` in them stand for.

    Raises:
        UserError: there is no such run, or it leaves nothing that the key could name.
    """
    root = _find_root(words)
    fitting = {**_FITTING, _RESUME: [stage for stage in STAGES if f"stage={stage}" in words]}

    def name(word: str) -> str:
        key, equals, value = word.partition("=")
        bare = key.lstrip("+")
        if bare not in run_keys():
            return word
        return key + equals + _LATEST.sub(lambda match: _find(match, root, bare, fitting.get(bare, ())), value)

    return [name(word) for word in words]


def complete_latest(line: str) -> list[str]:
    """What the last word of a command line may become, if that is the beginning of `latest` behind a key of runs.

    Stages are those of which there is a run that fits.
    """
    *words, last = line.split(" ")
    key, _, value = last.partition("=")
    start = value.lstrip("[")
    if not start or key.lstrip("+") not in run_keys():
        return []
    bare, root = key.lstrip("+"), _find_root(words)
    stages = list(_LEFT.get(bare) or _FITTING.get(bare) or [*STAGES, MULTIRUN])
    found = [stage for stage in stages if _list_runs(root, stage, finished=bare != _RESUME)]
    names = ["latest", *(f"latest:{stage}" for stage in found)] if found else []
    return [f"{last.removesuffix(start)}{name}" for name in names if name.startswith(start)]


def _find_root(words: Sequence[str]) -> Path:
    roots = [word.partition("=")[2].strip("'\"") for word in words if word.startswith("output_root=")]
    return Path(roots[-1] if roots else Config().output_root)


def _find(match: re.Match[str], root: Path, key: str, fitting: Sequence[str]) -> str:
    if Path(match[0].strip("'\"")).exists():  # something that has this name
        return match[0]
    left, stage = {} if match["file"] else _LEFT.get(key, {}), match["stage"]
    if left and stage in STAGES and stage not in left:
        fix = f"{key}=latest:STAGE with one of {', '.join(left)}, or latest:{stage}/FILE"
        raise UserError(f"a run of stage={stage} leaves nothing that {key} could name", where=match[0], fix=fix)
    run = find_latest(root, *([stage] if stage else left or fitting), finished=key != _RESUME)
    path = f"{run}{match['file']}"
    if left:
        files = [file for pattern in ([left[stage]] if stage else left.values()) for file in run.glob(pattern)]
        if not files:
            fix = f"name the file itself; `{key}=latest:STAGE/FILE` names any file of a run"
            raise UserError(f"{run} has none of {', '.join(left.values())}", where=match[0], fix=fix)
        path = str(files[0])
    print(f"{key}: {match[0]} is {path}", file=sys.stderr)
    return quote(path)


def find_latest(root: Path, *stages: str, finished: bool = True) -> Path:
    """The run below `root` that was finished, or begun, last.

    Args:
        root: `output_root` of the runs.
        stages: of one of them, where the run may be a step of a pipeline; or `multirun`; none = any single run.

    Raises:
        UserError: there is none, or no such stage.
    """
    where = f"latest:{stages[0]}" if len(stages) == 1 else "latest"
    for stage in stages:
        if stage not in (MULTIRUN, *STAGES):
            raise UserError(f"no such stage{nearest(stage, STAGES)}", where=where, fix=", ".join(STAGES))
    found = [path for stage in stages or (None,) for path in _list_runs(root, stage, finished=finished)]
    if not found:
        of_stage = f" of stage={' or '.join(stages)}" if stages else ""
        kind = f"{'finished ' if finished else ''}run{of_stage}"
        raise UserError(f"no {kind} below {root}", where=where, fix="name its directory, or output_root=DIR")
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.parent.name)).parent


def _list_runs(root: Path, stage: str | None, *, finished: bool) -> list[Path]:
    """A file of each run of the stage, whose time is that of the run."""
    name = MANIFEST if stage == MULTIRUN else METRICS if finished else CONFIG
    if stage is None:
        return [*root.glob(f"*/*/{name}"), *root.glob(f"{MULTIRUN}/*/*/{name}")]
    wholes = ["pipeline/*", f"{MULTIRUN}/*/*"]  # whose steps are runs too
    places = [f"{stage}/*", *(f"{whole}/{step}" for whole in wholes for step in (stage, f"{stage}_*"))]
    found = [path for place in places for path in root.glob(f"{place}/{name}")]
    return found + [path for path in root.glob(f"{MULTIRUN}/*/*/{name}") if _is_run_of(stage, path.parent)]


def _is_run_of(stage: str, directory: Path) -> bool:
    """Whether a job of a multirun, whose directory is named after its overrides, ran the stage."""
    try:
        lines = (directory / CONFIG).read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return f"stage: {stage}" in lines
