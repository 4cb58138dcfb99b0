"""What stages are expected to take on a laptop, one GPU, eight GPUs and vLLM servers, by a model of their cost.

A training or scoring pass takes its products with the base weights (2 operations a weight and token, the LM head at
predicting tokens alone; backward to the activations as much again, checkpointing the forward once more) over the share
of the device's peak that such a pass reaches; a step of writing reads all weights, or computes its rows, whichever is
slower. The CPU's shares were measured (docs/performance.md, "The machine's limits"), those of GPUs are assumed: the
goals of `gpu_check.py`. `--check` measures the shares of SmolLM2 on this machine, one thread, and holds what they
foretell of a random Llama of a third of its layers' weights against what that takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

CALL_S = 0.65e-3  # that a search computes for a call, on one core


@dataclass(frozen=True)
class Shape:
    """Weights of a model's layers and of its LM head."""

    layers: float
    head: float

    def flops(self, predicting: float) -> float:
        """Of a forward pass, for a token; `predicting` is the share of tokens that go through the head."""
        return 2 * (self.layers + predicting * self.head)


@dataclass(frozen=True)
class Machine:
    """Operations and bytes a second of a device, and which share of them training, scoring and writing reach."""

    name: str
    peak: float
    memory: float
    training: float
    scoring: float
    writing: float
    devices: int = 1
    checkpointing: bool = False

    def pass_s(self, tokens: float, flops: float, passes: float, share: float) -> float:
        return tokens * flops * passes / (self.peak * share * self.devices)

    def train_s(self, shape: Shape, tokens: float, predicting: float, *, reference: bool) -> float:
        """LoRA: forward and backward to the activations; `reference`: one more forward pass without gradients."""
        passes = 2 + self.checkpointing + reference
        return self.pass_s(tokens, shape.flops(predicting), passes, self.training)

    def write_s(self, shape: Shape, tokens: float, at_once: int) -> float:
        step = max(2 * (shape.layers + shape.head) / self.memory, at_once * shape.flops(1) / self.peak) / self.writing
        return tokens / at_once * step / self.devices


OTHER = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
SMOLLM2, LLAMA_8B = Shape(106.2e6, 28.3e6), Shape(6.98e9, 0.525e9)
CORE = Machine("one core", 217e9, 19.5e9, 0.47, 0.62, 0.14)
GPU = Machine("H100", 989e12, 3.35e12, 0.35, 0.4, 0.5, checkpointing=True)
NODE = Machine("8 x H100", 989e12, 3.35e12, 0.32, 0.4, 0.5, devices=8, checkpointing=True)

# Tokens of 3 epochs of ESConv's 910 training dialogues (1,065 each); of 10,000 pairs (trees of 8 turns and 3 rejected
# replies: 68 tokens a pair); of an evaluation of 195 dialogues, every strategy scored at every turn, and of 2,000
# replies of 48 tokens; of 100,000 calls of a search that read 400 tokens which no earlier one had, and write 40.
WORK: dict[str, Callable[[Machine, Shape], float]] = {
    "SFT, 3 epochs of ESConv": lambda machine, shape: machine.train_s(shape, 2.9e6, 0.45, reference=False),
    "CSO, an epoch of 10,000 pairs": lambda machine, shape: machine.train_s(shape, 6.8e5, 0.69, reference=True),
    "evaluation of 195 dialogues": lambda machine, shape: (
        machine.pass_s(195 * 1065 * 2.0, shape.flops(0.5), 1, machine.scoring)
        + machine.write_s(shape, 2000 * 48, 16 if machine is CORE else 64)
    ),
    "search, 100,000 calls": lambda machine, shape: max(
        100_000 * CALL_S,
        machine.pass_s(100_000 * 400, shape.flops(0.0), 1, machine.scoring)
        + machine.write_s(shape, 100_000 * 40, 16 if machine is CORE else 64),
    ),
}
PLACES = {
    "a laptop's core, SmolLM2": (CORE, SMOLLM2), "one GPU, 8B": (GPU, LLAMA_8B), "8 GPUs, 8B": (NODE, LLAMA_8B),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="measure, and compare what is foretold (minutes)")
    if parser.parse_args().check:
        check()
        return
    table = Table("", *PLACES)
    for name, seconds in WORK.items():
        table.add_row(name, *(describe(seconds(machine, shape)) for machine, shape in PLACES.values()))
    Console(width=140).print(table)


def describe(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def check() -> None:
    """Shares by SmolLM2, then the other's times."""
    import torch
    from _gpu_training import Scale, random_llama
    from _tree_cost import CACHE
    from _trl_dpo import model_settings
    from limits import fastest, passes, products_per_second, weight_bytes

    from esc_lab.models.forward import base_model
    from esc_lab.models.load import load_model

    torch.set_num_threads(1)
    shares: dict[str, float] = {}
    settings = model_settings("smollm2_135m", "bfloat16")
    for first, loaded in ((True, load_model(settings, CACHE)), (False, random_llama(Scale(OTHER)))):
        config = base_model(loaded.model).config.get_text_config()
        head = float(config.vocab_size * config.hidden_size)
        shape = Shape(weight_bytes(loaded) / 2 - head, head)  # embedding and head are one
        peak = products_per_second(config, torch.bfloat16)
        for work, (run, without, tokens) in passes(loaded, settings).items():
            seconds = fastest(run, 1) - (fastest(without, 1) if without else 0.0)
            ideal = take_s(work, Machine("here", peak, 1e12, 1.0, 1.0, 1.0), shape, tokens)
            share = shares.setdefault(work, ideal / seconds)
            ratio = f"{ideal / share:.1f} s foretold, {seconds:.1f} s measured: {ideal / share / seconds:.2f}"
            own = f"{seconds:.1f} s, share {share:.2f} of {peak / 1e9:.0f} GFLOP/s"
            print(f"SmolLM2, {work}: {own}" if first else f"expected_times_{work}: {ratio}", flush=True)


def take_s(work: str, machine: Machine, shape: Shape, tokens: int) -> float:
    """Of what `limits.py` measures."""
    if work in ("sft", "cso"):
        return machine.train_s(shape, tokens, 0.45 if work == "sft" else 0.69, reference=work == "cso")
    return machine.pass_s(tokens, shape.flops(0.5), 1, 1.0) if work == "scoring" else machine.write_s(shape, tokens, 16)


if __name__ == "__main__":
    main()
