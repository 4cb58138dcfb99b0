"""Settings of the prompts that a model is trained and evaluated with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esc_lab.config.files import read_option
from esc_lab.config.item import LOOKS, item, results, section
from esc_lab.errors import UserError


@dataclass
class TemplateConfig:
    template: str = item("cso", "prompt layout: an option of group prompt (docs/prompts.md)")
    history_labels: bool = item(True, "show '(strategy)' before the supporter turns of the history")
    situation: bool = item(False, "show the seeker's situation in the system message")
    layout: dict[str, Any] = item({}, "the layout of this name with its wording; filled in when a run starts")


@dataclass
class PromptConfig:
    train: TemplateConfig = section(TemplateConfig, results("sft", "cso", "reward"))
    eval: TemplateConfig = section(TemplateConfig, results("evaluate", "converse", "chat"))
    inference: str = item(
        "direct",
        "prompting baseline used at evaluation and in talks: a key of prompt.baselines; or best_of_n, not in talks",
        affects=results("evaluate", "converse"),
    )
    seeker: dict[str, Any] = item(
        {},
        "data.side=seeker: words of the seeker's prompts, those of llm.wording; filled in when a run starts",
        affects=results("sft"),
        method=False,
    )
    # Results depend on these three by way of the layouts of both sides, which they are filled into.
    layouts: dict[str, Any] = item(
        {}, "layouts by name: {system: [parts], chat_messages: null = all, wording: {own texts}}", affects=LOOKS
    )
    wording: dict[str, Any] = item({}, "texts of the prompts, with {slots} (group wording)", affects=LOOKS)
    baselines: dict[str, Any] = item(
        {}, "prompting baselines by name: {system, follow_ups, reply_marker, example} (group wording)", affects=LOOKS
    )


def find_layout(
    name: str, config_dirs: Sequence[str | Path] = (), prompt: PromptConfig | None = None
) -> dict[str, Any]:
    """The layout of a name with its wording and baselines: of the configuration, else of the option's file.

    Raises:
        UserError: there is no such layout.
    """
    known = prompt.layouts if prompt else {}
    if name not in known:
        known = read_option("prompt", name, config_dirs).get("layouts") or {}
    if not isinstance(known, dict) or not isinstance(known.get(name), dict):
        fix = f"write layouts: {{{name}: {{system: [...]}}}} into it"
        raise UserError(f"prompt/{name}.yaml holds no layout of its name", where=f"template={name}", fix=fix)
    shared = vars(prompt) if prompt and prompt.wording else read_option("wording", "default", config_dirs)
    words = {**shared["wording"], **(known[name].get("wording") or {})}
    return {**known[name], "wording": words, "baselines": shared["baselines"]}


def use_template(prompt: PromptConfig, template: str, config_dirs: Sequence[str | Path] = ()) -> PromptConfig:
    """Training and evaluation under a template; supporter turns of the history do not carry their strategies there.

    Raises:
        UserError: there is no such layout.
    """
    train, shown = (replace(side, template=template, history_labels=False) for side in (prompt.train, prompt.eval))
    prompt = replace(prompt, train=train, eval=shown)
    fill_layouts(prompt, config_dirs)
    return prompt


SEEKER_TEXTS = ("seeker_system", "seeker_situation", "seeker_problem", "seeker_emotion")


def collect_seeker_words(prompt: PromptConfig, wording: Mapping[str, Any]) -> dict[str, Any]:
    """The words of a trained seeker's prompts.

    Args:
        wording: of the search's roles; empty for the shipped one.
    """
    words = wording or read_option("roles", "default")["wording"]
    start = prompt.wording or read_option("wording", "default")["wording"]
    return {**{name: words[name] for name in SEEKER_TEXTS if name in words}, "start": start["start"]}


def fill_layouts(prompt: PromptConfig, config_dirs: Sequence[str | Path] = ()) -> None:
    """Bring the layouts that both sides name into their sections (in place), so that a run keeps what it used.

    Raises:
        UserError: there is no such layout.
    """
    prompt.train.layout = find_layout(prompt.train.template, config_dirs, prompt) | {"baselines": {}}
    prompt.eval.layout = find_layout(prompt.eval.template, config_dirs, prompt)
