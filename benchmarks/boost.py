"""What boosting attention costs: generation with a boost beside the same generation without one, in one process.

SmolLM2, prompts of the sample corpus under the template `c1_hf`, eight strategies after one history, greedy, no stop
token. Each mode (`add`, `share`, `block`), in all heads and in 16 random ones, of the strategy's name, against plain
generation; sides run in turn, the order reversed every other time, and a ratio is the median over pairs of runs. Times
are CPU seconds of the process, in which other work on the cores hardly shows; on a GPU, wall time. A boost of 0 is
checked to write the same tokens, and `add` with dose 2 to write others.

`--quick` takes a shorter history and three rounds; `--modes add` measures that mode alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from _sra_prompts import strategy_prompts
from _sra_sides import NO_STOP, load
from _tree_cost import seconds_since
from rich.console import Console
from sra_vs_output_attentions import paired_ratio, show, titled
from transformers.utils.logging import disable_progress_bar

from esc_lab.models.attention_boost import AttentionBoost, BoostedSpan, mark
from esc_lab.models.generate import Sampling, generate

NEW_TOKENS = 32
GOAL = 1.1
AMOUNTS = {"add": 2.0, "share": 0.2, "block": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a shorter history and fewer rounds")
    parser.add_argument("--modes", nargs="+", default=[*AMOUNTS], choices=AMOUNTS)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args()
    disable_progress_bar()
    loaded = load(options.dtype)
    prompts = strategy_prompts(loaded.encoder, 256 if options.quick else 768)[:8]
    text = loaded.model.config.get_text_config()
    everywhere = torch.ones(text.num_hidden_layers, text.num_attention_heads, dtype=torch.bool)
    some = torch.zeros_like(everywhere)
    some.view(-1)[torch.randperm(some.numel(), generator=torch.Generator().manual_seed(0))[:16]] = True
    spans = [BoostedSpan(prompt.span, int(prompt.span[-1]) + 1) for prompt in prompts]
    boosts = {
        f"{mode}, {name}": AttentionBoost(mode, AMOUNTS[mode], heads)
        for mode in options.modes
        for name, heads in (("all heads", everywhere), ("16 heads", some))
    }

    def run(boost: AttentionBoost | None) -> list[list[int]]:
        ids = mark([prompt.input_ids for prompt in prompts], [None] * len(spans) if boost is None else spans)
        return generate(loaded.model, ids, NO_STOP, Sampling(NEW_TOKENS), [0] * len(ids), boost=boost)

    nothing, strong = (AttentionBoost("add", amount, everywhere) for amount in (0.0, 2.0))
    plain = run(None)
    if run(nothing) != plain or run(strong) == plain:
        raise SystemExit("a boost of 0 changes replies, or one of 2 does not")
    sides = [partial(run, None), *(partial(run, boost) for boost in boosts.values())]
    seconds = time_in_turn(sides, rounds=options.rounds or (3 if options.quick else 7))
    lengths = [len(prompt.input_ids) for prompt in prompts]
    title = f"{len(prompts)} prompts of {min(lengths)} to {max(lengths)} tokens, {NEW_TOKENS} new ones, {options.dtype}"
    table = titled(title, ["", "CPU seconds" if not torch.cuda.is_available() else "seconds", "ratio"])
    ratios = {name: paired_ratio(own, seconds[0]) for name, own in zip(boosts, seconds[1:], strict=True)}
    table.add_row("plain", f"{sorted(seconds[0])[len(seconds[0]) // 2]:.2f}", "")
    for (name, ratio), own in zip(ratios.items(), seconds[1:], strict=True):
        table.add_row(name, f"{sorted(own)[len(own) // 2]:.2f}", f"{ratio:.3f}")
    show(table, [])
    mode = options.modes[0]
    ratio = ratios[f"{mode}, all heads"]
    Console().print(f"generation boosted by {mode}: {ratio:.3f} x plain (goal <= {GOAL})", highlight=False)


def time_in_turn(sides: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each side in each round."""
    seconds: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        for side in sorted(range(len(sides)), reverse=number % 2 == 1):
            started, used = time.perf_counter(), time.process_time()
            sides[side]()
            wall = seconds_since(started)
            seconds[side].append(wall if torch.cuda.is_available() else time.process_time() - used)
    return seconds


if __name__ == "__main__":
    main()
