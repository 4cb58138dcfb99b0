"""Settings of stage `export`: what is written for other tools, and where on the Hugging Face hub it goes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig

from esc_lab.config.evaluation_checks import check_weights, refuse
from esc_lab.config.item import PLACE, item, looks

DATA_FORMS = ("trl", "datasets", "llama_factory", "openai")


@dataclass
class ExportConfig:
    directory: str | None = item(
        None, "where it goes; null = model, or with export.data data, in the run directory", affects=PLACE
    )
    data: str | None = item(
        None,
        "null: the model of checkpoint. Else the dialogues of data, for trainings of other tools: trl (chats with "
        "replies and with pairs), datasets (the same and the whole dialogues), llama_factory, openai",
        choices=DATA_FORMS,
    )
    system: bool = item(
        False,
        "begin each chat of export.data with the system message of prompt.train, as trainings here do; only where it "
        "is the same in all prompts",
    )
    safety: str | None = item(
        None,
        "safety report that the model card tells of: run directory of stage=judge rubric=safety over talks of this "
        "checkpoint with seekers in crises (stage=converse cards=crisis)",
        path=True,
    )
    gguf: bool = item(
        False,
        "also write the model as model.gguf, for llama.cpp and Ollama: Llama (3, SmolLM) and Qwen 2 shaped models, not "
        "quantised",
    )
    licence: str | None = item(
        None,
        "licence that the card gives what is exported, as the hub calls it: apache-2.0, cc-by-nc-4.0, other; null = "
        "not stated",
        affects=looks("export"),
    )
    push: str | None = item(
        None,
        "repository of the Hugging Face hub to push to, OWNER/NAME; the token is that of HF_TOKEN or of "
        "`hf auth login`",
        affects=PLACE,
    )
    public: bool = item(False, "let everybody see the repository; false = only its owner", affects=PLACE)
    update: bool = item(False, "push to a repository that is there already, as another commit", affects=PLACE)


def check_export(cfg: DictConfig) -> Iterator[str]:
    """What is wrong with the settings of an export."""
    export = cfg.export
    if export.data is None:
        yield from check_weights(cfg)
        if cfg.checkpoint is None:
            fix = "add checkpoint=<run directory of an sft run>, or export.data=trl for dialogues"
            yield f"stage=export needs a trained model. Fix: {fix}"
        if export.system:
            yield refuse(cfg, "export.system", "a model's chat template has it already", "leave it out")
    else:
        for key, value in (
            ("checkpoint", cfg.checkpoint), ("export.safety", export.safety), ("export.gguf", export.gguf or None),
        ):  # fmt: skip
            if value is not None:
                yield refuse(cfg, key, f"export.data={export.data} writes dialogues", "leave it or export.data out")
        if cfg.data.side == "seeker":
            yield refuse(cfg, "data.side", "the supporter's replies are written", "leave it out")
    yield from _check_push(cfg)


def _check_push(cfg: DictConfig) -> Iterator[str]:
    push, licence = cfg.export.push, cfg.export.licence
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        yield refuse(cfg, "export.licence", "not a licence as the hub calls it", "apache-2.0, cc-by-nc-4.0, other ...")
    if push is None:
        for name in ("public", "update"):
            if cfg.export[name]:
                yield refuse(cfg, f"export.{name}", "nothing is pushed", "add export.push=OWNER/NAME")
        return
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", push, re.ASCII):
        yield refuse(cfg, "export.push", "no repository", "give OWNER/NAME: your name on the hub, and one for it")
    if licence is None:
        yield refuse(
            cfg, "export.push", "what is pushed needs a licence", "export.licence=cc-by-nc-4.0, or another; never one "
            "that the licences of model and data do not allow"
        )  # fmt: skip
