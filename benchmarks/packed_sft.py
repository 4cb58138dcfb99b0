"""Time per unique token of packed SFT against a plain causal forward + backward of the same model.

Packed: one row of dialogues of the sample corpus, as `SFTModule` runs it. Plain: as many tokens in one causal sequence
through transformers' own SDPA path, LM head on as many rows, cross-entropy. The two are run in turn.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _common import load_smollm2, sample_module
from torch.nn.functional import cross_entropy

from esc_lab.config.training import AdapterConfig
from esc_lab.models.forward import base_model
from esc_lab.models.load import add_adapter
from esc_lab.models.log_probs import reply_log_probs
from esc_lab.models.tree_attention import IMPLEMENTATION

GOALS = {1024: 1.15, 2048: 1.30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each side, after one that is not counted")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args()
    settings, loaded = load_smollm2(Path(".cache"), options.dtype)
    model = add_adapter(loaded, AdapterConfig(), settings).model.train()
    inner = base_model(model)

    def packed(row) -> None:
        (-reply_log_probs(model, row).mean()).backward()

    def plain(ids: torch.Tensor, rows: torch.Tensor) -> None:
        hidden = inner.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        cross_entropy(inner.get_output_embeddings()(hidden[rows]).float(), ids[0, rows + 1]).backward()

    worst = 0.0
    for tokens, goal in GOALS.items():
        row = next(row for row in rows_of(loaded, tokens) if len(row) > 0.75 * tokens)
        ids = torch.from_numpy(np.random.default_rng(0).integers(0, 40_000, len(row)))[None]
        rows = torch.from_numpy(np.unique(row.query))
        times: dict[str, list[float]] = {"packed": [], "plain": []}
        for run in range(options.runs + 1):
            for name in times:
                inner.set_attn_implementation(IMPLEMENTATION if name == "packed" else "sdpa")
                started = time.perf_counter()
                packed(row) if name == "packed" else plain(ids, rows)
                if run:
                    times[name].append(time.perf_counter() - started)
                model.zero_grad()
        ratios = [a / b for a, b in zip(times["packed"], times["plain"], strict=True)]
        ratio = median(ratios)
        worst = max(worst, ratio / goal)
        print(
            f"{len(row)} tokens, {len(rows)} head rows: packed {median(times['packed']):.2f} s, "
            f"plain {median(times['plain']):.2f} s, "
            f"ratio {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}; goal <= {goal})"
        )
    print(f"packed_sft_time_over_goal: {worst:.2f} (goal <= 1.00 of the allowed ratio at both sizes)")


def rows_of(loaded, tokens: int):
    """Rows of up to `tokens` tokens from the training split."""
    data = sample_module(loaded, row_tokens=tokens)
    data.setup("fit")
    return [row for numbers in data.steps.plan_epoch(0) for row in data.steps.step_batch(numbers).rows]


if __name__ == "__main__":
    main()
