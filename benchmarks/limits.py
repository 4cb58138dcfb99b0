"""How much of this machine's limits training, scoring and generation reach, and where the rest of their time goes.

1. The limits: products of matrices in the model's shapes (in bfloat16 and float32), and reading memory.
2. An SFT step, a CSO step (policy forward and backward, reference forward), scoring every strategy at every turn, and
   generation, each with SmolLM2: its products a second against what the machine does in the model's type, operations
   counted by torch. Generation reads all weights for each token of its branches, so it is also held against memory.
3. Shares of each one's time: products, attention's softmax, type casts, what goes element by element, the rest.

All with LoRA of rank 16 on all linear layers, as a checkpoint has it; seconds are those of the
cores, the fewest of a few runs. `--threads 1` for one core.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from _common import load_smollm2, sample_module
from _cso_pairs import esc_pro_shaped
from _tree_cost import tree_module
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from esc_lab.config.model import ModelConfig
from esc_lab.config.training import AdapterConfig
from esc_lab.data.strategies import load_inventory
from esc_lab.models.forward import base_model
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.load import LoadedModel, add_adapter
from esc_lab.models.log_probs import join_reply, reply_log_probs
from esc_lab.terminal import print_table
from esc_lab.tokens import PackedRow, encode_labels, pack_rows

ROWS = 1024  # of the products that the limit is measured with
BRANCHES, NEW_TOKENS = 16, 32  # replies that are generated together, and their length
KINDS = {
    "products": ("mm", "bmm", "addmm", "baddbmm", "_scaled_dot_product"),
    "softmax": ("_softmax", "_log_softmax", "logsumexp", "exp"),
    "casts and copies": ("copy", "cat", "index", "clone", "fill", "zero"),
    "by element": ("mul", "add", "sub", "div", "pow", "silu", "mean", "rsqrt", "neg", "sum", "where"),
    "rest": (),
}
Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each, after one that is not counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings, loaded = load_smollm2(Path(".cache"), options.dtype)
    config = base_model(loaded.model).config
    peaks = {dtype: products_per_second(config, getattr(torch, dtype)) for dtype in ("bfloat16", "float32")}
    memory = bytes_per_second()
    for dtype, peak in peaks.items():
        print(f"products in {dtype}: {peak / 1e9:.0f} GFLOP/s")
    print(f"memory: {memory / 1e9:.1f} GB/s read")
    rows = []
    for name, (work, without, tokens) in passes(loaded, settings).items():
        cost = measure(work, options.runs)
        if without:
            cost.subtract(measure(without, options.runs))
        total = sum(cost[kind] for kind in KINDS)
        share = cost["flops"] / cost["seconds"] / peaks[options.dtype]
        times = [f"{cost[kind] / total:.2f}" for kind in KINDS]
        rows.append([name, f"{tokens / cost['seconds']:.0f}", f"{share:.2f}", *times])
        print(f"limits_{name}_share_of_products: {share:.2f}")
        if name == "generation":
            read = NEW_TOKENS * weight_bytes(loaded) / cost["seconds"]
            print(f"limits_generation_share_of_memory: {read / memory:.2f}")
    print_table(
        f"SmolLM2, {options.dtype}, {options.threads} threads",
        ["", "tokens/s", "of the peak", *KINDS],
        rows,
        notes=["Of the peak: products a second, over what the machine does. Others: shares of the time on its cores."],
    )


def products_per_second(config, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a layer's products, each as often as a layer has it."""
    wide, narrow = config.hidden_size, config.intermediate_size
    keys = wide // config.num_attention_heads * config.num_key_value_heads
    shapes = Counter([(wide, wide)] * 2 + [(wide, keys)] * 2 + [(wide, narrow)] * 2 + [(narrow, wide)])
    seconds = flops = 0.0
    for (inputs, outputs), times in shapes.items():
        states, weight = torch.randn(ROWS, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
        seconds += times * fastest(partial(linear, states, weight), 20)
        flops += times * 2 * ROWS * inputs * outputs
    return flops / seconds


def bytes_per_second() -> float:
    """Of memory that is read once, far more than the caches hold."""
    numbers = torch.ones(2**27)  # 512 MB
    return numbers.nbytes / fastest(numbers.sum, 5)


def weight_bytes(loaded: LoadedModel) -> int:
    tensors = {parameter.data_ptr(): parameter.nbytes for parameter in base_model(loaded.model).parameters()}
    return sum(tensors.values())  # an LM head that is the embedding is read once


def passes(loaded: LoadedModel, settings: ModelConfig) -> dict[str, tuple[Work, Work | None, int]]:
    """What is measured, what of it is taken off again, and how many tokens the rest computes or generates."""
    model, data = loaded.model, sample_module(loaded, row_tokens=2048)
    data.setup("test")
    decisions = data.decisions[0]
    labels = encode_labels(loaded.encoder, load_inventory("esconv"), decisions[0].example.prompt)
    heads = [one.sequence.input_ids[: one.start] for one in decisions]
    sequences = [
        [join_reply(head, label, (number, choice)) for choice, label in enumerate(labels)]
        for number, head in enumerate(heads)
    ]
    (scored, *_) = pack_rows(sequences, 4096)
    prompts = [one.sequence.input_ids[: one.start] for batch in data.decisions for one in batch][:BRANCHES]
    policy = add_adapter(loaded, AdapterConfig(), settings).model
    data.setup("fit")
    row = data.steps.step_batch(data.steps.plan_epoch(0)[0]).rows[0]
    _, steps = tree_module(loaded, esc_pro_shaped(), 10_000)
    (pairs,) = steps.step_batch(range(len(steps.preferences["train"].comparisons))).rows

    def score() -> None:
        with torch.inference_mode():
            reply_log_probs(model, scored)

    def write(tokens: int) -> None:
        generate(model, prompts, frozenset(), Sampling(tokens, 0.0, 1.0), range(BRANCHES))

    def train(trained: PackedRow) -> None:
        policy.zero_grad()
        (-reply_log_probs(policy, trained).mean()).backward()

    def prefer() -> None:
        with torch.no_grad(), policy.disable_adapter():
            reply_log_probs(policy, pairs.row)
        train(pairs.row)

    return {
        "sft": (partial(train, row), None, len(row)),
        "cso": (prefer, None, len(pairs.row)),
        "scoring": (score, None, len(scored)),
        "generation": (partial(write, 1 + NEW_TOKENS), partial(write, 1), BRANCHES * NEW_TOKENS),
    }


def measure(work: Work, runs: int) -> Counter[str]:
    """Seconds of the fastest run, floating-point operations, and the profiled time of each kind of operation."""
    with FlopCounterMode(display=False) as counter:
        work()
    cost: Counter[str] = Counter(seconds=fastest(work, runs), flops=counter.get_total_flops())
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        work()
    for event in profiled.key_averages():
        name = event.key.removeprefix("aten::")
        cost[
            next(
                (kind for kind, names in KINDS.items() if any(f"{name}_".startswith(f"{each}_") for each in names)),
                "rest",
            )
        ] += event.self_cpu_time_total
    return cost


def fastest(work: Work, runs: int) -> float:
    """Seconds of the fastest run, of the cores: other work on them does not count."""
    work()
    times = []
    for _ in range(runs):
        started = time.process_time()
        work()
        times.append((time.process_time() - started) / torch.get_num_threads())
    return min(times)


if __name__ == "__main__":
    main()
