"""Settings of the prompts that a model is trained and evaluated with."""

from __future__ import annotations

from dataclasses import dataclass

from esc_lab.config.item import item, results, section

TEMPLATES = ("cso", "standard", "c1_hf", "c1_hl", "c3_hf", "c3_hl", "c5_hf", "c5_hl")


@dataclass
class TemplateConfig:
    template: str = item("cso", "prompt layout (docs/prompts.md)", choices=TEMPLATES)
    history_labels: bool = item(True, "show '(strategy)' before the supporter turns of the history")
    situation: bool = item(False, "show the seeker's situation in the system message")


@dataclass
class PromptConfig:
    train: TemplateConfig = section(TemplateConfig, results("sft", "cso"))
    eval: TemplateConfig = section(TemplateConfig, results("evaluate", "export"))
    inference: str = item(
        "direct",
        "prompting baseline used at evaluation",
        choices=("direct", "cot", "direct_refine", "self_refine", "with_example"),
        affects=results("evaluate"),
    )
