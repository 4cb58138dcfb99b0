"""What `python run.py --help` prints: stages, config groups with their options, commands worth copying."""

from __future__ import annotations

from pathlib import Path

from esc_lab.config import STAGES, Key, keys
from esc_lab.errors import UserError, nearest

_COMMANDS = (
    ("make demo, by hand", "python run.py stage=pipeline experiment=demo"),
    (
        "fine-tune Llama-3.1-8B on ESConv",
        "python run.py stage=sft model=llama3_1_8b data=esconv data.path=DIR trainer.max_epochs=2",
    ),
    (
        "build preference data (ESC-Pro) from seed dialogues with an endpoint",
        "python run.py stage=search llm=openai llm.openai.model=NAME mcts.in_flight=4 data=esconv data.path=DIR",
    ),
    (
        "go on with CSO on ESC-Pro, three objectives",
        "python run.py -m stage=cso objective=cso,ipo,simpo data=esc_pro data.path=FILE inventory=cso init_from=DIR",
    ),
    ("where the model looks under seven prompt templates", "python run.py experiment=sra_templates"),
    (
        "compare prompt templates, two jobs at a time",
        "python run.py -m stage=evaluate prompt=cso,standard,c1_hf hydra.launcher.n_jobs=2",
    ),
)


def help_text(conf: Path, words: list[str]) -> str:
    """The overview, or for a group or key prefix its keys with type, default, allowed values and doc."""
    return "\n\n".join(_section(conf, word) for word in words) if words else _overview(conf)


def _overview(conf: Path) -> str:
    lines = ["esc-lab: strategy-aware emotional support conversation.", ""]
    lines += ["usage: python run.py stage=STAGE [group=option] [key=value] ...   (-m for a multirun)", "", "Stages"]
    lines += [stage_lines()]
    lines += ["", "Groups (`python run.py --help GROUP` shows options and keys)"]
    for folder in sorted(path for path in conf.iterdir() if path.is_dir() and path.name not in ("hydra", "stage")):
        options = ", ".join(_options(folder))
        lines.append(f"  {folder.name:<10} {options}")
    others = sorted({key.name.split(".")[0] for key in keys()} - {path.name for path in conf.iterdir()})
    lines += ["", f"Other keys: {', '.join(others)}", "", "Commands to copy"]
    for purpose, command in _COMMANDS:
        lines += [f"  # {purpose}", f"  {command}"]
    lines += ["", "`--cfg job` prints the composed configuration; `hydra.verbose=true` shows tracebacks."]
    return "\n".join(lines)


def stage_lines() -> str:
    """The stages, one a line, with what they do."""
    width = max(map(len, STAGES))
    return "\n".join(f"  {name:<{width}} {doc}" for name, doc in STAGES.items())


def _options(folder: Path) -> dict[str, str]:
    """Options of a group with the first comment line of their files that is not a directive."""
    docs = {}
    for file in sorted(folder.glob("*.yaml")):
        comments = [line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#")]
        docs[file.stem] = next((line for line in comments if not line.startswith("@")), "")
    return docs


def _section(conf: Path, word: str) -> str:
    chosen = [key for key in keys() if key.name == word or key.name.startswith(f"{word}.")]
    folder = conf / word
    if not chosen and not folder.is_dir():
        names = {key.name for key in keys()} | {path.name for path in conf.iterdir() if path.is_dir()}
        raise UserError(f"no help on '{word}'{nearest(word, names)}")
    lines = []
    if folder.is_dir():
        options = STAGES if word == "stage" else _options(folder)
        lines += [f"{word}=..."] + [f"  {name:<14} {doc}" for name, doc in options.items()] + [""]
    return "\n".join(lines + [_key_line(key) for key in chosen])


def _key_line(key: Key) -> str:
    default = "required" if key.default == "???" else f"default {key.default!r}"
    choices = f"; one of {', '.join(key.choices)}" if key.choices else ""
    return f"  {key.name}  ({key.type}; {default}{choices})\n      {key.doc}"
