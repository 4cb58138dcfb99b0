"""What `python run.py --help` prints: stages, config groups with their options, commands worth copying."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from esc_lab.cli.compositions import groups
from esc_lab.config import STAGES, Key, keys
from esc_lab.config.files import CONF
from esc_lab.errors import UserError, nearest

_COMMANDS = (
    ("make demo, by hand", "python run.py stage=pipeline experiment=demo pairs=trained"),
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
    (
        "evaluate a model at an endpoint beside the others (OPENAI_API_KEY, or llm.openai.base_url=URL)",
        "python run.py stage=evaluate model=endpoint model.path=NAME data=esconv data.path=DIR",
    ),
    ("have a model talk with simulated seekers, whole conversations", "python run.py stage=converse cards.limit=8"),
    (
        "talk to two models yourself, side by side",
        "python run.py stage=chat checkpoint=DIR chat.against=base",
    ),
    ("where the model looks under seven prompt templates", "python run.py experiment=sra_templates"),
    (
        "compare prompt templates, two jobs at a time",
        "python run.py -m stage=evaluate prompt=cso,standard,c1_hf hydra.launcher.n_jobs=2",
    ),
)


def help_text(topics: Sequence[str] = ()) -> str:
    """The overview, or for groups or key prefixes their options and keys with type, default, allowed values and doc."""
    return "\n\n".join(map(_section, topics)) if topics else _overview()


def _overview() -> str:
    lines = ["esc-lab: strategy-aware emotional support conversation.", ""]
    lines += ["usage: python run.py stage=STAGE [group=option] [key=value] ...   (-m for a multirun)", "", "Stages"]
    lines += [stage_lines()]
    lines += ["", "Groups (`python run.py --help GROUP` shows options and keys; --config-dir DIR adds your own)"]
    for group, options in groups().items():
        if group != "stage":
            lines.append(f"  {group:<10} {', '.join(f'{name}{_origin(file)}' for name, file in options.items())}")
    further = sorted({key.name.split(".")[0] for key in keys()} - set(groups()))
    lines += ["", f"Other keys: {', '.join(further)}", "", "Commands to copy"]
    for purpose, command in _COMMANDS:
        lines += [f"  # {purpose}", f"  {command}"]
    lines += ["", "`--cfg job` prints the composed configuration, with -m that of each job."]
    lines += ["`hydra.verbose=true` shows tracebacks."]
    return "\n".join(lines)


def stage_lines() -> str:
    """The stages, one a line, with what they do."""
    width = max(map(len, STAGES))
    return "\n".join(f"  {name:<{width}} {doc}" for name, doc in STAGES.items())


def _origin(file: Path) -> str:
    """Where an option of the user's own comes from."""
    return "" if file.is_relative_to(CONF) else f" ({file.parents[1]})"


def describe_option(file: Path) -> str:
    """The first comment line of an option's file that is not a directive."""
    comments = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((line for line in comments if not line.startswith("@")), "")


def _section(topic: str) -> str:
    chosen = [key for key in keys() if key.name == topic or key.name.startswith(f"{topic}.")]
    options = groups().get(topic, {})
    if not chosen and not options:
        raise UserError(f"no help on '{topic}'{nearest(topic, {key.name for key in keys()} | set(groups()))}")
    lines = [f"{topic}=..."] if options else []
    for name, file in options.items():
        lines.append(f"  {name:<14} {STAGES[name] if topic == 'stage' else describe_option(file)}{_origin(file)}")
    return "\n".join([*lines, *([""] if options else []), *map(_key_line, chosen)])


def _key_line(key: Key) -> str:
    default = "required" if key.default == "???" else f"default {key.default!r}"
    choices = f"; one of {', '.join(key.choices)}" if key.choices else ""
    return f"  {key.name}  ({key.type}; {default}{choices})\n      {key.doc}"
