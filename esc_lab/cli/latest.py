"""`latest` and `latest:STAGE`: the newest run, wherever the command line names the directory of one."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from esc_lab.cli.compositions import quote
from esc_lab.config import STAGES, Config, keys
from esc_lab.errors import UserError, nearest
from esc_lab.runs.layout import CONFIG, MANIFEST, METRICS

MULTIRUN = "multirun"
_RESUME = "resume"
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
        UserError: there is no such run.
    """
    roots = [word.partition("=")[2].strip("'\"") for word in words if word.startswith("output_root=")]
    root = Path(roots[-1] if roots else Config().output_root)

    def name(word: str) -> str:
        key, equals, value = word.partition("=")
        if key.lstrip("+") not in run_keys():
            return word
        return key + equals + _LATEST.sub(lambda match: _find(match, root, key.lstrip("+")), value)

    return [name(word) for word in words]


def _find(match: re.Match[str], root: Path, key: str) -> str:
    if Path(match[0].strip("'\"")).exists():  # something that has this name
        return match[0]
    path = f"{find_latest(root, match['stage'], finished=key != _RESUME)}{match['file']}"
    print(f"{key}: {match[0]} is {path}", file=sys.stderr)
    return quote(path)


def find_latest(root: Path, stage: str | None = None, *, finished: bool = True) -> Path:
    """The run below `root` that was finished, or begun, last.

    Args:
        root: `output_root` of the runs.
        stage: of the run, which may be a step of a pipeline; or `multirun`; None = any single run.

    Raises:
        UserError: there is none, or no such stage.
    """
    where = f"latest:{stage}" if stage else "latest"
    if stage not in (None, MULTIRUN, *STAGES):
        raise UserError(f"no such stage{nearest(str(stage), STAGES)}", where=where, fix=", ".join(STAGES))
    name = MANIFEST if stage == MULTIRUN else METRICS if finished else CONFIG
    if stage is None:
        found = [*root.glob(f"*/*/{name}"), *root.glob(f"{MULTIRUN}/*/*/{name}")]
    else:
        wholes = ["pipeline/*", f"{MULTIRUN}/*/*"]  # whose steps are runs too
        places = [f"{stage}/*", *(f"{whole}/{step}" for whole in wholes for step in (stage, f"{stage}_*"))]
        found = [path for place in places for path in root.glob(f"{place}/{name}")]
        found += [path for path in root.glob(f"{MULTIRUN}/*/*/{name}") if _is_run_of(stage, path.parent)]
    if not found:
        kind = f"{'finished ' if finished else ''}run{f' of stage={stage}' if stage else ''}"
        raise UserError(f"no {kind} below {root}", where=where, fix="name its directory, or output_root=DIR")
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.parent.name)).parent


def _is_run_of(stage: str, directory: Path) -> bool:
    """Whether a job of a multirun, whose directory is named after its overrides, ran the stage."""
    try:
        lines = (directory / CONFIG).read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return f"stage: {stage}" in lines
