"""The card of trained weights: what they are and how they want to be asked, from the configuration of their training.

Licences are never guessed, and no place on the machine that trained them is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import build_inventory
from esc_lab.prompts import END, SeekerProfile, build_layout, build_prompt, seeker_messages
from esc_lab.prompts.trained import read_template
from esc_lab.runs.layout import Settings, find_run, read_config

NOT_STATED = "not stated"
_TRAININGS = {
    "sft": "supervised fine-tuning on the supporter's turns",
    "seeker": "supervised fine-tuning on the seeker's turns",
    "cso": "preference optimisation",
    "classifier": "a classifier of strategies",
    "reward": "a reward model of replies",
}
_MADE = {"search": "what a search made of", "extend": "replies that an extension wrote into"}
_SOMEBODY = SeekerProfile("...", "...", "...")
# Beginnings of the numbers of a training that another machine would have too.
_METRICS = ("val/loss", "train/loss", "train/steps", "train/parameters", "classifier/", "reward/", "kto/")


def hub_name(model: Mapping[str, Any]) -> str:
    """What others call a base model: its id on the hub where that is known, else its name here."""
    if model.get("hub_id"):
        return str(model["hub_id"])
    return str(model["path"] if model.get("source") == "hub" else model["name"])


def system_prompt(config: Settings) -> tuple[str, bool]:
    """The system message that a model was trained with, and whether it was the same in all prompts.

    If it was not, it is that of a prompt for the inventory's first strategy, without situation or quoted history.
    """
    if config["data"].get("side") == "seeker":
        return seeker_messages(config["prompt"]["seeker"], _SOMEBODY, ())[0].content, False
    settings = read_template(config)
    layout, inventory = build_layout(settings), build_inventory(config["inventory"])
    dialogue = Dialogue((Turn("seeker", Reply("...")),), inventory.name)
    prompt = build_prompt(
        layout, inventory, dialogue, 1, inventory.names[0], history_labels=settings.history_labels
    )  # fmt: skip
    shared = layout.chooses_strategy and layout.chat_messages is None and not settings.situation
    return prompt.messages[0].content, shared


def write_card(
    config: Settings, metrics: Mapping[str, float], *, run: Path | None, adapter: bool, licence: str | None = None
) -> str:
    """A model card in Markdown, with the metadata that the hub reads.

    Args:
        config: configuration of the training.
        metrics: of the training.
        run: its directory, beside which the runs that it goes on from are looked for.
        adapter: whether the weights are an adapter, or those of a whole model.
        licence: of the weights, as the hub calls it; None: not stated.
    """
    model, base = config["model"], hub_name(config["model"])
    named = "" if base == model["name"] else f"base_model: {base}\n"
    library = f"library_name: {'peft' if adapter else 'transformers'}\n"
    terms = f"license: {licence}\n" if licence else ""
    origin = (
        f" Trained on its weights in the Python package `{model['path']}`, dequantised: not quite those on the hub."
    )
    rows = [f"| {name} | {_format(value)} |" for name, value in sorted(metrics.items()) if name.startswith(_METRICS)]
    return "\n\n".join(
        [
            f"---\n{named}{library}{terms}tags: [emotional-support-conversation, esc-lab]\n---",
            f"# {model['name']}, trained for emotional support conversation",
            f"Base model: {base}; licence of its weights: {model.get('licence') or NOT_STATED}."
            + (origin if model["source"] == "gguf_wheel" else "")
            + (f" Licence of the weights here: {licence}." if licence else ""),
            "Trained with esc-lab:\n\n" + "\n".join(_trainings(config, run)),
            _use(config, adapter=adapter),
            *([] if config["stage"] in ("classifier", "reward") else [_prompts(config)]),
            "A research model: not a counsellor, and not to be used with people in crisis.",
            *(["\n".join(["| of the training | value |", "|---|---|", *rows])] if rows else []),
        ]
    )


def _format(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


def _trainings(config: Settings, run: Path | None) -> list[str]:
    """A line for each training behind the weights, the first one first, with its data and their licence."""
    origin, data, lines = config.get("init_from"), config["data"], []
    start = find_run(Path(origin), run) if origin else None
    if start:
        lines = _trainings(read_config(start), start)
    elif origin:
        lines = ["- an earlier training, whose run is gone"]
    what = _TRAININGS["seeker" if config["data"].get("side") == "seeker" else config["stage"]]
    if config["stage"] == "cso":
        objective = config["objective"]
        what += f" ({objective.get('title') or objective['name']})"
    source, corpus = find_source(data, run)
    licence = corpus.get("licence") or NOT_STATED
    return [*lines, f"- {what}, on {source}; licence of {corpus['name']}: {licence}"]


def find_source(data: Mapping[str, Any], run: Path | None) -> tuple[str, Mapping[str, Any]]:
    """What data are, in words, and the settings of the corpus that they go back to.

    Args:
        data: section of a configuration.
        run: directory of its run, beside which runs that were moved with it are looked for.
    """
    places = [Path(data["path"]), Path(data["path"]).parent] if data["path"] else []
    origins = [read_config(place) for path in places if (place := find_run(path, run))]
    made = next((origin for origin in origins if origin.get("stage") in _MADE), None)
    if made:
        return f"{_MADE[made['stage']]} {made['data']['name']}", made["data"]
    return str(data["name"]), data


def _use(config: Settings, *, adapter: bool) -> str:
    """How the weights are loaded."""
    if config["stage"] == "classifier":
        strategies = f"the strategies of `{config['inventory']['name']}`"
        return (
            f"It tells which of {strategies} a reply follows, read alone. esc-lab loads it with `evaluate.classifier=`."
        )
    if config["stage"] == "reward":
        return (
            "It scores a reply in its dialogue: an adapter, and a head on what it makes of the reply. esc-lab loads it "
            "with `esc_lab.scorers.reward_files.load_reward`."
        )
    if adapter:
        return (
            "An adapter: load the base model, then `PeftModel.from_pretrained(model, DIRECTORY)`; or let esc-lab merge "
            "it into a plain model with `stage=export checkpoint=RUN`."
        )
    return "Load it with `AutoModelForCausalLM.from_pretrained(DIRECTORY)`."


def _prompts(config: Settings) -> str:
    """How the model was asked, and so how it has to be asked."""
    if config["data"].get("side") == "seeker":
        return _seeker_prompts(config)
    train, inventory = config["prompt"]["train"], config["inventory"]
    text, shared = system_prompt(config)
    quoted = "\n".join(f"    {line}".rstrip() for line in text.splitlines())
    told = "the system message is" if shared else "the system message differs from prompt to prompt. One of them:"
    labels = " The supporter's earlier turns begin with their `(strategy)`." if train["history_labels"] else ""
    return (
        f"It was trained on prompts of the `{train['template']}` layout over the {len(inventory['strategies'])} "
        f"strategies of `{inventory['name']}`, and knows no others. The user is the seeker and begins, the assistant "
        f"is the supporter; they take turns.{labels} In these prompts {told}\n\n{quoted}"
    )


def _seeker_prompts(config: Settings) -> str:
    """How a model that plays seekers was asked."""
    text, _ = system_prompt(config)
    quoted = "\n".join(f"    {line}".rstrip() for line in text.splitlines())
    start = config["prompt"]["seeker"]["start"]
    return (
        "It plays seekers, for a simulation: the assistant is the seeker and the user the supporter; they take turns. "
        f"A talk that the seeker opens begins with the user message `{start}`. Where it ends the talk it writes "
        f"`{END}`, alone or after its last message. The system message says who it plays:\n\n{quoted}"
    )
