"""What `--help` prints: stages, config groups with their options, commands worth copying."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf

from esc_lab.cli.compositions import compose_config, groups
from esc_lab.config import STAGES, Key, keys
from esc_lab.config.files import COMMAND, CONF
from esc_lab.errors import UserError, list_names, nearest

SCREEN = 100  # characters of a line, of a wide screen too
_WIDTH = 100  # characters of a default that are shown
_COMMANDS = (
    ("the demo: train, search, optimise, compare", "stage=pipeline experiment=demo pairs=trained"),
    ("look at a corpus of your own before anything is trained on it", "stage=data data=file data.path=FILE"),
    (
        "fine-tune Llama-3.1-8B on ESConv",
        "stage=sft model=llama3_1_8b data=esconv data.path=DIR trainer.max_epochs=2",
    ),
    (
        "build preference data (ESC-Pro) from seed dialogues with an endpoint",
        "stage=search llm=openai llm.openai.model=NAME mcts.in_flight=4 data=esconv data.path=DIR",
    ),
    (
        "go on with CSO on ESC-Pro, three objectives",
        "-m stage=cso objective=cso,ipo,simpo data=esc_pro data.path=FILE inventory=cso init_from=DIR",
    ),
    (
        "evaluate a model at an endpoint beside the others (OPENAI_API_KEY, or llm.openai.base_url=URL)",
        "stage=evaluate model=endpoint model.path=NAME data=esconv data.path=DIR",
    ),
    ("have a model talk with simulated seekers, whole conversations", "stage=converse cards.limit=8"),
    (
        "talk to two models yourself, side by side",
        "stage=chat checkpoint=DIR chat.against=base",
    ),
    ("where the model looks under seven prompt templates", "experiment=sra_templates"),
    (
        "compare prompt templates, two jobs at a time",
        "-m stage=evaluate prompt=cso,standard,c1_hf hydra.launcher.n_jobs=2",
    ),
)


_WORDS = {  # of values, that no group, option or key is
    "latest": "latest  in place of a run directory: the newest finished run below output_root of a stage that fits the "
    "key; printed when it is looked up, and kept under its path\n"
    "  latest:STAGE       the newest of this stage, which may be a step of a pipeline: checkpoint=latest:cso\n"
    "  latest:multirun    the newest multirun: compare.runs=[latest:multirun]\n"
    "  latest:STAGE/FILE  a file or folder in it: data.path=latest:search/esc_pro (latest:search alone finds it too)\n"
    "  resume=latest      also a run that has not ended",
}


def help_text(words: Sequence[str] = (), width: int = sys.maxsize) -> str:
    """The overview; or on groups, beginnings of keys and options what they hold, each key with its type and doc.

    Args:
        width: of the screen; longer lines are broken, but for commands and files, which are to be copied.
        words: of the command line. Those without `=` are what is asked about, else the keys and groups of the others.
            Defaults are those of a run with these others, of stage=sft where they name none.

    Raises:
        UserError: there is nothing of a name. One of COMPOSITION_ERRORS: the overrides cannot be composed.
    """
    overrides = [word for word in words if "=" in word]
    named = [word for word in words if "=" not in word]
    topics = named or [word.partition("=")[0].strip("+~") for word in overrides if not word.startswith("config_dirs=")]
    if not topics:
        return _overview(width)
    for topic in topics:
        _check_topic(topic)
    if set(topics) <= set(_WORDS):
        return "\n\n".join(break_lines(_WORDS[topic], width) for topic in topics)
    from esc_lab.cli.overrides import lacks_stage  # which tells of the stages itself

    stage = ["stage=sft"] if lacks_stage(overrides) else []
    cfg = compose_config(*stage, *overrides).cfg
    values = OmegaConf.to_container(cfg, throw_on_missing=False)
    return "\n\n".join(_section(topic, values, width) for topic in topics)


def break_lines(text: str, width: int) -> str:
    """The text without lines that are wider; what goes on in the next line stands below the last column."""
    return "\n".join(_break_line(line, width) for line in text.splitlines())


def _break_line(line: str, width: int) -> str:
    indent = re.match(r" *(?:\S+ {2,})?", line)[0]  # type: ignore[index]
    indent = indent if len(indent) < width // 3 else " " * 6
    wrapped = textwrap.wrap(
        line, width, subsequent_indent=" " * len(indent), break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(wrapped) if len(line) > width else line


def _check_topic(topic: str) -> None:
    options = {option for each in groups().values() for option in each}
    sections = {key.name.rsplit(".", depth)[0] for key in keys() for depth in range(key.name.count(".") + 1)}
    known = sections | options | set(groups()) | set(_WORDS)
    if topic in known or _keys_named(topic):
        return
    what = f"no help on '{topic}': no group, option or key of this name"
    word = re.compile(rf"\b{re.escape(topic)}", re.IGNORECASE)
    if about := [key.name for key in keys() if word.search(f"{key.name} {key.doc}")]:
        raise UserError(f"{what}; keys whose description has it: {list_names(about, 12)}", fix=f"{COMMAND} --help KEY")
    last = {key.name.rpartition(".")[2] for key in keys()}
    fix = f"`{COMMAND} --help` lists stages, groups with their options, and keys"
    raise UserError(f"{what}{nearest(topic, known, 0.7) or nearest(topic, last, 0.7)}", fix=fix)


def _keys_named(topic: str) -> list[Key]:
    """Keys whose name begins so, else those that have it further on: `lr` is optimizer.lr."""
    begin = [key for key in keys() if key.name == topic or key.name.startswith(f"{topic}.")]
    return begin or [key for key in keys() if f".{topic}." in f"{key.name}."]


def _overview(width: int) -> str:
    lines = ["esc-lab: strategy-aware emotional support conversation.", ""]
    lines += [f"usage: {COMMAND} stage=STAGE [group=option] [key=value] ...   (-m for a multirun)"]
    lines += [f"       {COMMAND} init DIR   (begin a project of your own)", "", "Stages"]
    lines += stage_lines().splitlines()
    lines += [
        "",
        f"Groups (`{COMMAND} --help NAME` tells of a group, an option, a key; --config-dir DIR adds your own)",
    ]
    for group, options in groups().items():
        if group != "stage":
            lines.append(f"  {group:<11} {', '.join(f'{name}{_origin(file)}' for name, file in options.items())}")
    further = sorted({key.name.split(".")[0] for key in keys()} - set(groups()))
    lines += ["", f"Other keys: {', '.join(further)}", "", "Commands to copy"]
    for purpose, command in _COMMANDS:
        lines += [f"  # {purpose}", f"  {COMMAND} {command}"]
    lines += ["", "`--cfg job` prints the composed configuration, with -m that of each job."]
    lines += ["In place of a run directory, `latest` is the newest finished run that fits (`--help latest`)."]
    lines += ['`eval "$(esc-lab -sc install=bash)"` has the tab key complete what you type.']
    lines += ["`hydra.verbose=true` shows tracebacks, `--version` the version."]
    return "\n".join(line if line.startswith(f"  {COMMAND} ") else _break_line(line, width) for line in lines)


def stage_lines() -> str:
    """The stages, one a line, with what they do."""
    width = max(map(len, STAGES))
    return "\n".join(f"  {name:<{width}}  {doc}" for name, doc in STAGES.items())


def _origin(file: Path) -> str:
    """Where an option of the user's own comes from."""
    return "" if file.is_relative_to(CONF) else f" ({file.parents[1]})"


def describe_option(file: Path) -> str:
    """The first comment line of an option's file that is not a directive."""
    comments = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((line for line in comments if not line.startswith("@")), "")


def _section(topic: str, cfg: Any, width: int) -> str:
    """What a run of a stage of this name does, options, keys, and files of this name."""
    options = groups().get(topic, {})
    named = any(topic in files for files in groups().values())
    chosen = (
        [] if (options or named) and topic not in {key.name.split(".")[0] for key in keys()} else _keys_named(topic)
    )
    listed = [f"{topic}=...", *(f"  {name:<14}  {_tell_option(topic, file)}" for name, file in options.items())]
    blocks = [break_lines("\n".join(listed), width)] if options else []
    blocks += [break_lines("\n".join(_key_line(key, cfg) for key in chosen), width)] if chosen else []
    for group, files in groups().items():
        if topic in files:
            head = _break_line(f"{group}={topic}  {_tell_option(group, files[topic])}", width)
            lines = files[topic].read_text(encoding="utf-8").rstrip().splitlines()
            sets = [line for line in lines if line not in ("# @package _global_", f"stage: {topic}")]
            # A stage whose file chooses it, and no more, is told of first: it has keys of its name.
            if sets:
                blocks.append("\n".join([head, textwrap.indent("\n".join(lines), "  ")]))
            else:
                blocks.insert(0, head)
    return "\n\n".join(blocks)


def _tell_option(group: str, file: Path) -> str:
    """What an option of a group is."""
    return (STAGES[file.stem] if group == "stage" else describe_option(file)) + _origin(file)


def _key_line(key: Key, cfg: Any) -> str:
    text = show_default(key, cfg)
    default = "required" if text is None else f"default {text if len(text) <= _WIDTH else f'{text[:_WIDTH]}...'}"
    choices = f"; one of {', '.join(key.choices)}" if key.choices else ""
    return f"  {key.name}  ({key.type}; {default}{choices})\n      {key.doc}"


def show_default(key: Key, cfg: Any) -> str | None:
    """The value of a key as one writes it on the command line; None where it has none.

    Args:
        cfg: a composed configuration, as nested dictionaries.
    """
    for part in key.name.split("."):
        cfg = cfg[part]
    text = yaml.safe_dump(cfg, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()
    return None if cfg == MISSING else text
