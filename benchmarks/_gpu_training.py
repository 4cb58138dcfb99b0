"""Steps of a random model in any Llama's shape, and what they take: time, FLOPs, memory, compilations, waits."""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from _tree_cost import CACHE
from _trl_dpo import model_settings
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, LlamaConfig

from esc_lab.config.training import AdapterConfig
from esc_lab.models.devices import find_device
from esc_lab.models.forward import base_model
from esc_lab.models.load import LoadedModel, add_adapter, load_encoder
from esc_lab.models.tree_attention import IMPLEMENTATION
from esc_lab.training.module import TrainingModule

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}  # dense bfloat16, by the vendor


@dataclass(frozen=True)
class Scale:
    """Sizes of the check.

    Attributes:
        shape: of the random Llama; `layers_4bit` of it are loaded in 4 bits.
        rows: tokens of the trees that CSO is timed on.
        row_tokens, step_dialogues: of SFT and CSO; a step of CSO has about half as many dialogues, with their pairs.
        steps: of each training; the first two and the last are not timed.
    """

    shape: Mapping[str, int]
    dtype: torch.dtype = torch.bfloat16
    families: tuple[str, ...] = ("llama", "qwen2", "gemma2", "gemma3")
    rows: tuple[int, ...] = (1024, 4096, 16384)
    row_tokens: int = 8192
    step_dialogues: int = 8
    steps: int = 6
    layers_4bit: int = 8


def random_llama(scale: Scale) -> LoadedModel:
    """Random weights on the device, with the tokenizer of SmolLM2."""
    encoder = load_encoder(model_settings("smollm2_135m", "bfloat16"), CACHE)
    with torch.device(find_device()):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**scale.shape), dtype=scale.dtype)
    model.set_attn_implementation(IMPLEMENTATION)
    return LoadedModel(model.eval(), encoder, scale.shape["max_position_embeddings"])


def adapt(loaded: LoadedModel) -> Any:
    """A trainable adapter with random weights on both sides, so that no gradient is zero, and checkpointing."""
    model: Any = add_adapter(loaded, AdapterConfig(), model_settings("smollm2_135m", "bfloat16")).model
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.normal_(std=0.01)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    return model.train()


@dataclass
class Watch(pl.Callback):
    """What the steps of a training take: `seconds`, new `graphs` of the compiler, `syncs` of the last, `losses`."""

    steps: int
    seconds: list[float] = field(default_factory=list)
    graphs: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    syncs: int = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
        self._last = number + 1 == self.steps
        self._graphs = counters["stats"]["unique_graphs"]
        self._caught = warnings.catch_warnings(record=True)
        self._warnings = self._caught.__enter__()
        warnings.simplefilter("always")
        synchronize()
        if self._last and torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
        synchronize()
        self.seconds.append(time.perf_counter() - self._started)
        self._caught.__exit__(None, None, None)
        self.syncs = sum("synchroniz" in str(warning.message) for warning in self._warnings)
        self.graphs.append(counters["stats"]["unique_graphs"] - self._graphs)
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def train(module: TrainingModule, data: pl.LightningDataModule, steps: int) -> Watch:
    watch = Watch(steps)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=steps, max_epochs=-1, devices=1, logger=False, enable_checkpointing=False, callbacks=[watch],
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, limit_val_batches=0,
            use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    if not all(map(math.isfinite, watch.losses)):
        raise RuntimeError(f"losses {watch.losses}")
    return watch


def peak_flops(scale: Scale) -> float:
    """Of the device: what the vendor says, or else what its matrix products reach."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    if known := next((peak for key, peak in PEAKS.items() if key in name), None):
        return known
    size = 8192 if name else 512
    left = torch.randn(size, size, dtype=scale.dtype, device=find_device())
    times = []
    for _ in range(5):
        synchronize()
        started = time.perf_counter()
        left @ left
        synchronize()
        times.append(time.perf_counter() - started)
    return float(2 * size**3 / min(times))


def model_flops(model: Any, rows: Sequence[Any], passes: int) -> float:
    """Of products with the base weights: `passes` of 2 FLOPs a weight and token, the LM head at predicting nodes alone.

    Training of an adapter is two passes: forward, and backward to the activations. Recomputed activations, attention
    and the adapter itself are not counted.
    """
    inner = base_model(model)
    decoder = inner.get_decoder().layers.named_parameters()
    layers = sum(count_weights(weight) for name, weight in decoder if weight.ndim == 2 and "lora" not in name)
    tokens, heads = sum(map(len, rows)), sum(len(np.unique(row.query)) for row in rows)
    return 2.0 * passes * (layers * tokens + inner.get_output_embeddings().weight.numel() * heads)


def count_weights(weight: Any) -> int:
    """Of a matrix; one of 4 bits holds two in a byte, and beside them the shape that they had."""
    quantized = getattr(weight, "quant_state", None)
    return math.prod(quantized.shape if quantized is not None else weight.shape)


def describe(model: Any, scale: Scale, watch: Watch, rows: Sequence[Sequence[Any]]) -> dict[str, float]:
    """Of all steps but the first two, of which a kernel may be compiled in each, and the last, which was watched."""
    timed = range(2, len(watch.seconds) - 1)
    seconds = sum(watch.seconds[step] for step in timed)
    flops = sum(model_flops(model, rows[step], 2) for step in timed)
    return {
        "mfu": flops / seconds / peak_flops(scale),
        "tokens_per_s": sum(len(row) for step in timed for row in rows[step]) / seconds,
        "peak_gb": peak_bytes() / 2**30, "recompiles": sum(watch.graphs[2:]), "syncs_of_a_step": watch.syncs,
        "first_step_s": watch.seconds[0], "loss_first": watch.losses[0], "loss_last": watch.losses[-1],
    }  # fmt: skip


def peak_bytes() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
