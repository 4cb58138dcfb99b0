"""Tree attention in bfloat16 on the CPU: two products against PyTorch's fused kernel, with freed memory kept or not.

A row of the sample corpus is scored (no gradient) and trained on (LoRA on the last ten layers), in turn under the four
combinations. What rounding costs is the mean distance of log-probabilities to those of the model in float32.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from pathlib import Path
from statistics import median

import torch
from _common import load_smollm2, sample_module

from esc_lab.config.training import AdapterConfig
from esc_lab.models import tree_attention
from esc_lab.models.load import add_adapter
from esc_lab.models.log_probs import reply_log_probs

DEFAULT, KEPT = 128 * 1024, 2**30  # bytes; glibc's default, and what load_model sets
WAYS = {(fused, kept): f"{'fused' if fused else 'products'}, {'kept' if kept else 'given back'}"
        for kept in (False, True) for fused in (True, False)}  # fmt: skip
UNFUSED_ROWS = tree_attention.UNFUSED_ROWS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each way, after one that is not counted")
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    exact = load_smollm2(Path(".cache"), "float32")[1]
    settings, loaded = load_smollm2(Path(".cache"), "bfloat16")
    data = sample_module(exact, row_tokens=options.tokens)
    data.setup("fit")
    rows = [row for numbers in data.steps.plan_epoch(0) for row in data.steps.step_batch(numbers).rows]
    row = max(rows, key=len)
    with torch.no_grad():
        expected = reply_log_probs(exact.model, row)
        for fused in (True, False):
            choose(fused, kept=True)
            distance = (reply_log_probs(loaded.model, row) - expected).abs().mean()
            print(f"{WAYS[fused, True].split(',')[0]}: mean distance of log-probabilities to float32 {distance:.4f}")
    model = add_adapter(loaded, AdapterConfig(layers=10), settings).model

    @torch.no_grad()
    def score() -> None:
        reply_log_probs(model, row)

    def train() -> None:
        (-reply_log_probs(model, row).mean()).backward()
        model.zero_grad()

    for name, work in (("scoring", score), ("training", train)):
        times: dict[tuple[bool, bool], list[float]] = {way: [] for way in WAYS}
        for run in range(options.runs + 1):
            for way in WAYS:
                choose(*way)
                started = time.perf_counter()
                work()
                if run:
                    times[way].append(time.perf_counter() - started)
        ratios = [a / b for a, b in zip(times[True, False], times[False, True], strict=True)]
        listed = "; ".join(f"{WAYS[way]} {median(found):.2f} s" for way, found in times.items())
        print(f"{name} {len(row)} tokens: {listed}")
        print(f"attention_{name}: {median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")


def choose(fused: bool, kept: bool) -> None:
    tree_attention.UNFUSED_ROWS = 10**9 if fused else UNFUSED_ROWS
    libc = ctypes.CDLL(None)
    for option in (-1, -3):
        libc.mallopt(option, KEPT if kept else DEFAULT)


if __name__ == "__main__":
    main()
