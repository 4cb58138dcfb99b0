"""What the site has besides the pages of this directory: README as its first page, and what is generated from the code.

A page says where something generated goes: `<!-- generated: NAME -->`, with one of `GENERATED`.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File
from omegaconf import OmegaConf

from esc_lab.artifacts import read_yaml
from esc_lab.cli.compositions import compose_config, groups
from esc_lab.cli.help import describe_option, show_default
from esc_lab.cli.multirun import JOB_NOTES
from esc_lab.config import STAGES, Key, keys
from esc_lab.evaluation.reward_check import CONTROL_NOTES, STRATEGY_NOTES
from esc_lab.evaluation.summary import COLUMN_NOTES
from esc_lab.judge_check.check import JudgeCheck
from esc_lab.judge_check.planted import TalkCheck
from esc_lab.judging import files as judgement_files
from esc_lab.judging import survey_files, talk_files, talk_pair_files
from esc_lab.metrics.metric import Metric
from esc_lab.metrics.records import METRICS, SURVEY, find_metric
from esc_lab.metrics.talks import JUDGED
from esc_lab.report import attention_files, data_page, sra_columns
from esc_lab.scorers.classifier_training import NOTES as CLASSIFIER_NOTES
from esc_lab.search import continuation_card, forecast, seeker_texts, statistics
from esc_lab.search.work_results import EVENTS
from esc_lab.stages import cards, chat, converse, convert, export, planted_preference

ROOT = Path(__file__).parents[1]
# Pages of the repository that are no pages of this directory, and their names in the site.
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
NOTEBOOK = "tour.ipynb"
_BASE = "sft"  # defaults are those of a run of this stage


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie elsewhere."""
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    page = write_notebook(json.loads((ROOT / "docs" / NOTEBOOK).read_text(encoding="utf-8")))
    files.append(File.generated(config, f"{Path(NOTEBOOK).stem}.md", content=page))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is generated, and have links lead to pages of the site."""
    at_root = page.file.src_uri in OUTSIDE.values()
    text = re.sub(r"<!-- generated: (\w+) -->", lambda match: GENERATED[match[1]](), markdown)
    return re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", lambda match: _link(match, at_root), text)


def _link(match: re.Match[str], at_root: bool) -> str:
    """A link to a page or picture by its place in the site; of one to another file its words."""
    words, target = match.groups()
    path, hash_, anchor = target.partition("#")
    if "://" in path or not path:
        return match[0]
    if at_root and not path.startswith("docs/") and path not in OUTSIDE:
        return words.strip("![]")
    name = path.removeprefix("docs/") if at_root else path.removeprefix("../")
    return f"{words}({OUTSIDE.get(name, name).replace(NOTEBOOK, 'tour.md')}{hash_}{anchor})"


# --- the configuration


def list_keys() -> str:
    """Every key, by section, with its type, default, choices and doc; before them the options of a section's group."""
    default, others = _compose(_BASE), {name: _compose(name) for name in _stages_with_defaults()}
    sections: dict[str, list[Key]] = {}
    for key in keys():
        sections.setdefault(key.name.split(".")[0] if "." in key.name else "", []).append(key)
    for group in groups():
        sections.setdefault(group, [])
    parts = []
    for name, members in sorted(sections.items()):
        options = groups().get(name, {})
        parts.append(f"## {name or 'Keys of no section'}")
        parts += [_list_options(name, options)] if options else []
        parts += [_define_key(key, default, others) for key in members]
    return "\n\n".join(parts)


def _stages_with_defaults() -> list[str]:
    """Stages whose files set more than which stage it is."""
    files = groups()["stage"]
    return [name for name, file in files.items() if name != _BASE and read_yaml(file).keys() != {"stage"}]


def _compose(stage: str) -> Mapping[str, Any]:
    cfg: Any = OmegaConf.to_container(compose_config(f"stage={stage}").cfg, throw_on_missing=False)
    return cfg


def _list_options(group: str, options: Mapping[str, Path]) -> str:
    told = {name: STAGES[name] if group == "stage" else describe_option(file) for name, file in options.items()}
    lines = [f"`{group}={name}`{f': {_text(doc)}' if doc else ''}" for name, doc in told.items()]
    return "\n".join(f"- {line}" for line in lines)


def _define_key(key: Key, default: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> str:
    shown = None if key.name == "stage" else show_default(key, default)  # the stage is what the defaults are told of
    facts = [key.type, "required" if shown is None else f"default {_code(shown)}"]
    if key.name != "stage":
        differing = {stage: show_default(key, cfg) for stage, cfg in others.items()}
        facts += [f"stage={stage}: {_code(str(value))}" for stage, value in differing.items() if value != shown]
    facts += [f"one of {', '.join(map(_code, key.choices))}"] if key.choices else []
    low, high = key.within
    bounds = [
        f"at least {low:.10g}" if low > float("-inf") else "",
        f"at most {high:.10g}" if high < float("inf") else "",
    ]
    facts += [" and ".join(filter(None, bounds))] if any(bounds) else []
    facts = [_text(facts[0]), *facts[1:]]
    return f"`{key.name}` {{ #{key.name} }}\n:   {_text(key.doc)}  \n    <small>{'; '.join(facts)}</small>"


def _code(text: str) -> str:
    return f"<code>{html.escape(text if len(text) < 200 else f'{text[:200]}...', quote=False)}</code>"


def _text(text: str) -> str:
    """Plain text in Markdown."""
    return re.sub(r"([\\`*_{}|\[\]])", r"\\\1", html.escape(text, quote=False))


# --- the glossary


def list_metrics() -> str:
    """Every metric as a table's columns name it, those that are means of something before those that count."""
    shown = [metric for metric in METRICS.values() if metric.meaning]
    others = [metric for metric in METRICS.values() if not metric.meaning]
    asked = [find_metric(f"{group}QUESTION") for group in (JUDGED, SURVEY)]
    return "\n\n".join(map(_define_metric, [*shown, *asked, *others]))


def _define_metric(metric: Metric) -> str:
    facts = [f"<code>{metric.name}</code> in metrics.json"]
    facts += [f"{metric.decimals} decimals"] if metric.meaning else []
    if metric.count not in ("", metric.name):
        facts.append(f"of as many observations as <code>{metric.count}</code> says")
    facts += [f"no interval or test below {metric.min_count:,} of them"] if metric.min_count else []
    facts += ["not compared between models that split text differently"] if metric.by_tokens else []
    counts = metric.is_count and not metric.meaning
    head = " ".join(filter(None, (f"**{_text(metric.heading)}**", metric.arrow)))
    anchor = metric.name.replace("/", "-")
    meaning = "A number of observations." if counts else _text(metric.explanation)
    return f"{head} {{ #{anchor} }}\n:   {meaning}  \n    <small>{'; '.join(facts)}</small>"


def _list_notes(notes: Iterable[str]) -> str:
    """Notes as they stand below a table of the terminal."""
    return "\n".join(f"- {_text(note)}" for note in notes)


GENERATED: Mapping[str, Callable[[], str]] = {
    "keys": list_keys,
    "metrics": list_metrics,
    "stages": lambda: "\n".join(f"- `stage={name}`: {_text(doc)}" for name, doc in STAGES.items()),
    "strategies": lambda: _list_notes(COLUMN_NOTES),
    "search": lambda: _list_notes(statistics.NOTES),
    "forecast": lambda: _list_notes(forecast.NOTES),
    "classifier": lambda: _list_notes(CLASSIFIER_NOTES),
    "sra": lambda: _list_notes(f"{name}: {note}" for name, note in sra_columns.NOTES.items()),
    "attention": lambda: _list_notes(attention_files.STRATEGY_NOTES),
    "reading": lambda: _list_notes(
        f"{reason.replace('_', ' ')}: {note}" for reason, note in data_page.REASON_NOTES.items()
    ),
    "planted": lambda: _list_notes([*TalkCheck({}, "accuracy").column_notes(), *planted_preference.NOTES]),
    "judgements": lambda: _list_notes([f"Win rate: {judgement_files.PAIR_NOTE}"]),
    "talk_judges": lambda: _list_notes(talk_files.NOTES),
    "talk_pairs": lambda: _list_notes([*talk_pair_files.NOTES, *talk_pair_files.INTENSITY_NOTES]),
    "surveys": lambda: _list_notes(
        [*survey_files.NOTES, *survey_files.PAIR_NOTES, *survey_files.SRA_NOTES, *survey_files.JUDGE_NOTES]
    ),
    "seekers": lambda: _list_notes(seeker_texts.NOTES),
    "judges": lambda: _list_notes(JudgeCheck("rubric", {}, min_auc=0.5).column_notes()),
    "rewards": lambda: _list_notes([*CONTROL_NOTES, *STRATEGY_NOTES]),
    "data": lambda: _list_notes(
        [data_page.SPLIT_NOTE, data_page.LABEL_NOTE, data_page.STRATEGY_NOTE, data_page.LENGTH_NOTE]
    ),
    "convert": lambda: _list_notes(convert.LOST_NOTES),
    "export": lambda: _list_notes(f"{kind}: {note}" for kind, note in export.KIND_NOTES.items()),
    "extend": lambda: _list_notes([*continuation_card.NOTES, *continuation_card.STRATEGY_NOTES]),
    "talks": lambda: _list_notes([*converse.NOTES, *converse.STRATEGY_NOTES]),
    "cards": lambda: _list_notes([*cards.NOTES, *cards.PROBLEM_NOTES]),
    "answers": lambda: _list_notes(EVENTS.values()),
    "chat": lambda: _list_notes(chat.NOTES),
    "jobs": lambda: _list_notes(JOB_NOTES),
}


# --- the notebook


def write_notebook(notebook: Mapping[str, Any]) -> str:
    """A notebook as a page: its texts, its code, and what that printed."""
    return "\n\n".join(part for cell in notebook["cells"] for part in _write_cell(cell))


def _write_cell(cell: Mapping[str, Any]) -> Iterable[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield text
        return
    yield f"```python\n{text}\n```"
    for output in cell["outputs"]:
        printed = "".join(output.get("text") or output.get("data", {}).get("text/plain", ""))
        yield f"```text\n{printed.rstrip()}\n```"
