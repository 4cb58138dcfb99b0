"""SRA with the attention probe: its cost beside plain generation, and against `output_attentions` of transformers.

SmolLM2, prompts of the sample corpus under the template `c1_hf`, greedy, 32 new tokens (no stop token), one process:

1. `generate` of esc-lab with a probe on the strategy's name against the same generation without it.
2. The probe against the way of the published code: `model.generate` with eager attention and `output_attentions`, and
   SRA computed from what it returns. Extra memory is a side's peak minus that of its own generation without attention.
3. All 15 strategies after one history: one call, whose prompts share the history, against 15 calls.

Times are medians of runs in turn, the order reversed every other time; a ratio is the median over pairs of runs that
follow each other. Times and memory are those of `--dtype`; that both sides compute the same is checked in float32. In
bfloat16 the kernels round differently, so greedy replies may part where two tokens are nearly as likely. Peak memory is
the resident set of new processes that differ in the side alone (median of three with the probe and without it),
interpreter, libraries and weights included; the probe's tensors are also counted exactly, by torch's profiler. On a GPU
both are what torch allocated there.

`--quick` takes shorter prompts and fewer runs (about 3 minutes on two idle cores; the whole takes about 12). Other work
on the cores slows all of this down many times over, and not all sides alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, TypeVar

from _sra_prompts import SpanPrompt, prompt_of_length, strategy_prompts
from _sra_sides import NO_STOP, Generated, load, peak_in_child, probe_sra, run_side, tensor_bytes
from _tree_cost import seconds_since
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.load import LoadedModel
from esc_lab.models.tree_attention import IMPLEMENTATION
from esc_lab.tokens.trie import build_tree

NEW_TOKENS = 32
HISTORY_TOKENS = 1024
LENGTHS = (512, 1536, 3072)
QUICK_LENGTHS = (512, 1024)
FASTER_GOALS = {1536: 2.8, 3072: 4.0}
MIB = 2**20
# Bytes by side, then number of prompt tokens.
Peaks = dict[str, dict[int, float]]

Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter prompts, fewer runs and processes")
    parser.add_argument("--lengths", type=int, nargs="+", help="prompt tokens, ascending")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of times and memory")
    options = parser.parse_args()
    disable_progress_bar()
    lengths = options.lengths or (QUICK_LENGTHS if options.quick else LENGTHS)
    loaded = load(options.dtype)
    if lengths[-1] + NEW_TOKENS > loaded.context_tokens:
        parser.error(f"the model's context is {loaded.context_tokens} tokens")
    prompts = {length: prompt_of_length(loaded.encoder, length) for length in lengths}
    print(f"SmolLM2-135M, {options.dtype}, {loaded.model.device.type}, {NEW_TOKENS} new tokens")
    peak = peak_memories(options.dtype, lengths, processes=1 if options.quick else 3)
    probe_cost(loaded.model, prompts, peak, rounds=3 if options.quick else 5)
    attentions_time(loaded.model, prompts, rounds=3)
    attentions_memory(loaded.model, prompts, peak)
    strategies(loaded, rounds=1 if options.quick else 3)
    del loaded
    equality(lengths[: 1 if options.quick else 2])


def peak_memories(dtype: str, lengths: Sequence[int], processes: int) -> Peaks:
    """Peak memory of all sides. The eager sides differ by so much that one process is enough."""
    found: Peaks = {}
    for side, count in (("plain", processes), ("probe", processes), ("eager", 1), ("attentions", 1)):
        children = [peak_in_child(side, dtype, lengths, NEW_TOKENS) for _ in range(count)]
        found[side] = {length: median(child[length] for child in children) for length in lengths}
    return found


def probe_cost(model: Any, prompts: dict[int, SpanPrompt], peak: Peaks, rounds: int) -> None:
    """Part 1."""
    heads = ("prompt", "without\ns", "with\ns", "ratio", "without\nMiB", "with\nMiB", "ratio", "same\ntokens")
    table = titled("1. Generation with the probe and without: time, peak memory", heads)
    lines = []
    for length, prompt in prompts.items():
        run_side("probe", model, prompt, 2)
        seconds, found = interleaved([runner(side, model, prompt) for side in ("plain", "probe")], rounds)
        slower = paired_ratio(seconds[1], seconds[0])
        peaks = [peak[side][length] for side in ("plain", "probe")]
        more = peaks[1] / peaks[0]
        table.add_row(
            f"{length:,}", *(f"{median(side):.2f}" for side in seconds), f"{slower:.2f}",
            *(f"{size / MIB:.0f}" for size in peaks), f"{more:.3f}", same_tokens(*found),
        )  # fmt: skip
        lines.append(f"probe_time_{length}: {slower:.3f} (goal <= 1.10)")
        lines.append(f"probe_peak_memory_{length}: {more:.3f} (goal <= 1.05)")
    show(table, lines)


def attentions_time(model: Any, prompts: dict[int, SpanPrompt], rounds: int) -> None:
    """Part 2: time."""
    heads = ("prompt", "probe s", "output_attentions s", "faster", "same tokens")
    table = titled("2. SRA with the probe and from output_attentions: time", heads)
    lines = []
    run_side("attentions", model, next(iter(prompts.values())), 2)
    for length, prompt in prompts.items():
        seconds, found = interleaved([runner(side, model, prompt) for side in ("probe", "attentions")], rounds)
        faster = paired_ratio(seconds[1], seconds[0])
        times = [f"{median(side):.2f}" for side in seconds]
        table.add_row(f"{length:,}", *times, f"{faster:.1f}", same_tokens(*found))
        goal = f" (goal >= {FASTER_GOALS[length]})" if length in FASTER_GOALS else ""
        lines.append(f"sra_vs_output_attentions_{length}: {faster:.2f}{goal}")
    show(table, lines)


def attentions_memory(model: Any, prompts: dict[int, SpanPrompt], peak: Peaks) -> None:
    """Part 2: memory beyond that of generation without attention."""
    kinds = ("probe\npeak\nMiB", "probe\ntensors\nMiB", "theirs\npeak\nMiB")
    heads = ("prompt", *kinds, "share\n(peak)", "share\n(tensors)", "probe\nKiB a\ntoken", "theirs\nKiB a\ntoken")
    table = titled("   Extra memory of both: beyond generation without attention", heads)
    lines, extra = [], {}
    for length, prompt in prompts.items():
        ours, theirs = (peak[a][length] - peak[b][length] for a, b in (("probe", "plain"), ("attentions", "eager")))
        extra[length] = probe_tensors(model, prompt)
        shares = (ours / theirs, extra[length] / theirs)
        table.add_row(
            f"{length:,}", *(rounded(size / MIB) for size in (ours, extra[length], theirs)),
            *(f"{share:.4f}" for share in shares), *(rounded(size / length / 1024) for size in (extra[length], theirs)),
        )  # fmt: skip
        if length == LENGTHS[-1]:
            lines.append(f"extra_peak_memory_over_output_attentions_{length}: {shares[0]:.4f} (goal <= 0.05)")
            lines.append(f"extra_tensors_over_output_attentions_{length}: {shares[1]:.4f} (goal <= 0.05)")
    first, last = min(extra), max(extra)
    growth = f"probe_memory_growth_{first}_to_{last}: {extra[last] / extra[first]:.2f}"
    show(table, [*lines, f"{growth} (goal <= {last / first:.1f}, that of the prompt)"])


def probe_tensors(model: Any, prompt: SpanPrompt) -> int:
    """Bytes of tensors that generation with the probe has more than without, at most at one time.

    The larger of two differences: of the whole runs, whose peak is in the pass of the prompt, and from the first new
    token on, where no activations of the prompt hide what the probe holds.
    """
    plain, probe = (tensor_bytes(partial(run_side, side, model, prompt, NEW_TOKENS)) for side in ("plain", "probe"))
    return max(more - less for more, less in zip(probe, plain, strict=True))


def one_call(model: Any, prompts: Sequence[SpanPrompt], new_tokens: int) -> list[Generated]:
    """New tokens and SRA of each prompt, all in one call of `generate` with one probe."""
    model.set_attn_implementation(IMPLEMENTATION)
    probe = AttentionProbe([[prompt.span] for prompt in prompts])
    ids = [prompt.input_ids for prompt in prompts]
    replies = generate(model, ids, NO_STOP, Sampling(new_tokens), [0] * len(ids), probe=probe)
    paper, reference = probe_sra(probe)
    rows = [number * new_tokens for number in range(1, len(ids))]
    found = zip(paper.tensor_split(rows), reference.tensor_split(rows), strict=True)
    return list(zip(replies, found, strict=True))


def separate_calls(model: Any, prompts: Sequence[SpanPrompt], new_tokens: int) -> list[Generated]:
    return [run_side("probe", model, prompt, new_tokens) for prompt in prompts]


def strategies(loaded: LoadedModel, rounds: int) -> None:
    """Part 3."""
    prompts = strategy_prompts(loaded.encoder, HISTORY_TOKENS)
    tokens, unique = sum(len(prompt.input_ids) for prompt in prompts), len(build_tree([p.input_ids for p in prompts]))
    shared = int(prompts[0].span[0])
    title = f"3. {len(prompts)} strategies after {shared:,} tokens: {tokens:,} tokens, {unique:,} as one tree"
    table = titled(title, ("new tokens", "one call s", "separate calls s", "faster", "same replies"))
    lines = []
    for new_tokens in (NEW_TOKENS, 1):
        calls = (one_call, separate_calls)
        sides = [partial(call, loaded.model, prompts, new_tokens) for call in calls]
        seconds, (together, apart) = interleaved(sides, rounds)
        faster = paired_ratio(seconds[1], seconds[0])
        same = sum(one[0] == other[0] for one, other in zip(together, apart, strict=True))
        times = [f"{median(side):.2f}" for side in seconds]
        table.add_row(str(new_tokens), *times, f"{faster:.1f}", f"{same}/{len(prompts)}")
        lines.append(f"strategies_in_one_call_{new_tokens}: {faster:.2f} (goal >= 4)")
    show(table, lines)


def equality(lengths: Sequence[int]) -> None:
    """SRA of the replies in float32: the probe, `output_attentions`, and several strategies in one call."""
    loaded = load("float32")
    table = titled("SRA in float32, relative difference of the probe to", ("", "paper", "reference", "same tokens"))
    worst = []
    for length in lengths:
        prompt = prompt_of_length(loaded.encoder, length)
        ours, theirs = (run_side(side, loaded.model, prompt, NEW_TOKENS) for side in ("probe", "attentions"))
        worst.append(sra_difference(ours, theirs))
        table.add_row(f"output_attentions, {length:,}", *map("{:.1e}".format, worst[-1]), same_tokens(ours, theirs))
    prompts = strategy_prompts(loaded.encoder, HISTORY_TOKENS)[:3]
    sides = one_call(loaded.model, prompts, NEW_TOKENS), separate_calls(loaded.model, prompts, NEW_TOKENS)
    for prompt, together, apart in zip(prompts, *sides, strict=True):
        worst.append(sra_difference(together, apart))
        name = loaded.encoder.decode(prompt.input_ids[prompt.span].tolist())
        table.add_row(f"{name}, separately", *map("{:.1e}".format, worst[-1]), same_tokens(together, apart))
    show(table, [f"sra_relative_difference: {max(map(max, worst)):.1e} (goal <= 1e-5)"])


def sra_difference(ours: Generated, theirs: Generated) -> tuple[float, float]:
    """Relative difference of a reply's SRA by both definitions."""
    assert ours[1] is not None
    assert theirs[1] is not None
    first, second = (abs(float(a.mean() / b.mean()) - 1) for a, b in zip(ours[1], theirs[1], strict=True))
    return first, second


def runner(side: str, model: Any, prompt: SpanPrompt) -> Callable[[], Generated]:
    return partial(run_side, side, model, prompt, NEW_TOKENS)


def interleaved(sides: Sequence[Callable[[], Result]], rounds: int) -> tuple[list[list[float]], list[Result]]:
    """Seconds of each side in each round, and what each returned in the last."""
    seconds: list[list[float]] = [[] for _ in sides]
    found: dict[int, Result] = {}
    for number in range(rounds):
        for side in sorted(range(len(sides)), reverse=number % 2 == 1):
            started = time.perf_counter()
            found[side] = sides[side]()
            seconds[side].append(seconds_since(started))
    return seconds, [found[side] for side in range(len(sides))]


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median ratio of runs of the same round."""
    return median(a / b for a, b in zip(above, below, strict=True))


def same_tokens(one: Generated, other: Generated) -> str:
    """How many of the first new tokens are the same."""
    pairs = list(zip(one[0], other[0], strict=True))
    return f"{next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))}/{len(pairs)}"


def rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def titled(title: str, headings: Sequence[str]) -> Table:
    print(f"\n{title}", flush=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    return table


def show(table: Table, lines: Sequence[str]) -> None:
    Console().print(table)
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
