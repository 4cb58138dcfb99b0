"""What only a GPU can show, in less than 8 minutes: does everything compute what the CPU does, and how fast is it?

`python benchmarks/gpu_check.py --out gpu_check.json` on a machine with CUDA. Parts, each on its own, so that one that
fails does not hide the others: `families` (compiled FlexAttention, gradients, probe, boost and generation of the tiny
models against the CPU), `sft` and `cso` (steps of a random model in the shape of Llama 3.1 8B in bfloat16, LoRA,
gradient checkpointing), `trl` (CSO against TRL on trees of ESC-Pro's shape; needs `pip install esc-lab[bench]`),
`qlora` (4-bit weights; needs `esc-lab[quantization]`). `--shrunk` runs it with small shapes wherever it is, for tests;
on the CPU trees go through FlexAttention without compilation then, as far as that has no gradients.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _cso_pairs import esc_pro_shaped, pair_texts
from _gpu_families import compare_families
from _gpu_training import (
    Scale,
    adapt,
    describe,
    peak_bytes,
    random_llama,
    synchronize,
    train,
)  # fmt: skip
from _tree_cost import CACHE, trained
from _trl_dpo import model_settings, run_dpo
from transformers.utils.logging import disable_progress_bar

from esc_lab.artifacts import write_atomic
from esc_lab.config import DataConfig, PromptConfig
from esc_lab.config.evaluate import EvaluateConfig
from esc_lab.config.training import ObjectiveConfig, OptimizerConfig, SchedulerConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import load_inventory
from esc_lab.models.load import LoadedModel, load_model
from esc_lab.training.cso import CSOModule
from esc_lab.training.datamodule import ESCDataModule
from esc_lab.training.reference import score_replies
from esc_lab.training.sft import SFTModule

TRL_LIMIT_S = 200  # no further run of TRL begins after so many seconds
GOALS = {
    "families_tokens": "<= 0.02", "families": "<= 1e-3",
    "sft_mfu": ">= 0.35", "cso_mfu": ">= 0.35", "sft_recompiles": "<= 0",
    "cso_recompiles": "<= 0", "trl_loss_difference": "<= 1e-2", "trl_speedup": ">= 6", "trl_memory": "<= 0.5",
}  # fmt: skip
Values = dict[str, float]

FULL = Scale({
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
})  # fmt: skip
SHRUNK = Scale(
    {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
     "num_key_value_heads": 2, "vocab_size": 49152, "max_position_embeddings": 8192},
    torch.float32, ("gemma2",), (700, 1400), row_tokens=2048, step_dialogues=2, steps=4, layers_4bit=2,
)  # fmt: skip


def data_module(loaded: LoadedModel, dialogues: Sequence[Dialogue], scale: Scale, **options: Any) -> ESCDataModule:
    settings = DataConfig(row_tokens=scale.row_tokens, step_dialogues=scale.step_dialogues, step_pairs=10_000)
    data = ESCDataModule(
        {"train": list(dialogues)}, loaded.encoder, load_inventory("cso"), data=replace(settings, **options),
        prompt=PromptConfig(), evaluate=EvaluateConfig(), objective=ObjectiveConfig() if options else None,
    )  # fmt: skip
    data.setup("fit")
    return data


def sft_steps(scale: Scale, loaded: LoadedModel | None = None) -> Values:
    """Steps of dialogues of 3 to 8 turns, so that rows differ in length."""
    loaded = loaded or random_llama(scale)
    dialogues = [esc_pro_shaped(3 + seed % 6, 0, seed) for seed in range(scale.step_dialogues * scale.steps)]
    data, model = data_module(loaded, dialogues, scale), adapt(loaded)
    module = SFTModule(model, OptimizerConfig(lr=1e-4), SchedulerConfig("constant", warmup=0.0), 1.0, seed=1)
    watch = train(module, data, scale.steps)
    return describe(model, scale, watch, [data.steps.step_batch(step).rows for step in data.steps.plan_epoch(0)])


def cso_module(loaded: LoadedModel, data: ESCDataModule, passes: int = 1) -> tuple[CSOModule, float]:
    """With reference log-probabilities of the model as it is, and the seconds of the last pass for them."""
    split: Any = data.steps.preferences["train"]  # type: ignore[attr-defined]
    seconds = 0.0
    for _ in range(passes):
        synchronize()
        started = time.perf_counter()
        split.reference = score_replies(loaded.model, split, data.pass_tokens)
        synchronize()
        seconds = time.perf_counter() - started
    schedule = SchedulerConfig("constant", warmup=0.0)
    return CSOModule(adapt(loaded), ObjectiveConfig(), OptimizerConfig(lr=1e-4), schedule, 0.0, 1), seconds


def cso_steps(scale: Scale) -> Values:
    """Steps of dialogues of 4 to 8 turns with 3 rejected replies each."""
    loaded = random_llama(scale)
    dialogues = [esc_pro_shaped(4 + seed % 5, 3, seed) for seed in range(scale.step_dialogues * scale.steps // 2)]
    data = data_module(loaded, dialogues, scale, step_pairs=9 * scale.step_dialogues)
    module, _ = cso_module(loaded, data)
    watch = train(module, data, min(scale.steps, len(data.steps.plan_epoch(0))))
    batches = [data.steps.step_batch(step) for step in data.steps.plan_epoch(0)]
    return describe(module.model, scale, watch, [[row.row for row in batch.rows] for batch in batches])


def against_trl(scale: Scale) -> Values:
    """A step with all pairs of a row, reference included, on both sides: pairs/s, memory and loss, by the row's tokens.

    TRL's LM head runs on the replies' tokens alone on a GPU. It computes the reference with the adapter off. TRL 1.16
    takes `padding_free` and pads all the same.
    """
    loaded, values, begin = random_llama(scale), {}, time.perf_counter()
    dtype = str(scale.dtype).removeprefix("torch.")
    peers: dict[str, dict[str, Any]] = {"": {}, "_padding_free": {"padding_free": True}}
    if find_spec("liger_kernel"):
        peers["_liger"] = {"use_liger_kernel": True}
    for tokens in scale.rows:
        dialogues, longest = fill_row(loaded, tokens, scale)
        pairs = [pair for each in dialogues for pair in pair_texts(loaded.encoder, load_inventory("cso"), each)]
        data = data_module(loaded, dialogues, replace(scale, row_tokens=max(tokens, longest)), step_pairs=10_000)
        module, reference_s = cso_module(loaded, data, passes=2)  # the first may compile a kernel
        initial = {name: value.detach().cpu().clone() for name, value in trained(module.model).items()}
        watch = train(module, data, 4)
        ours, memory = median(watch.seconds[1:3]) + reference_s, peak_bytes()
        values |= {f"tree_pairs_per_s_{tokens}": len(pairs) / ours, f"tree_peak_gb_{tokens}": memory / 2**30}
        module.model.unload()
        del module
        for peer, extra in peers.items() if find_spec("trl") else ():
            if time.perf_counter() - begin > TRL_LIMIT_S:
                print(f"TRL{peer} at {tokens} tokens is left out: no time")
                continue
            with reported(f"TRL{peer} at {tokens} tokens"):
                run = run_dpo(
                    loaded, pairs, dtype=dtype, steps=2, pairs_per_step=len(pairs), lr=1e-4, initial=initial,
                    per_device=math.gcd(len(pairs), 4), gradient_checkpointing=True, extra=extra,
                )  # fmt: skip
                values[f"speedup{peer}_{tokens}"] = run.step_seconds[-1] / ours
                if memory:  # of the GPU
                    values[f"memory{peer}_{tokens}"] = memory / run.peak_bytes
                values[f"loss_difference{peer}_{tokens}"] = abs(run.losses[0] - watch.losses[0])
    if not find_spec("trl"):
        print("TRL is not installed (esc-lab[bench]): nothing to compare with")
    return values


def fill_row(loaded: LoadedModel, tokens: int, scale: Scale) -> tuple[list[Dialogue], int]:
    """Dialogues with 3 rejected replies a turn whose trees fill a row, one at least, and tokens of the largest tree."""
    turns, sizes, dialogues = 8 if tokens > 2048 else 4, list[int](), list[Dialogue]()
    while True:
        dialogue = esc_pro_shaped(turns, 3, seed=len(dialogues))
        batch = data_module(loaded, [dialogue], scale, step_pairs=10_000).steps.step_batch(range(3 * turns))
        size = sum(len(row.row) for row in batch.rows)
        if dialogues and sum(sizes) + size > tokens:
            return dialogues, max(sizes)
        dialogues.append(dialogue)
        sizes.append(size)


def qlora_steps(scale: Scale) -> Values:
    """SFT on 4-bit weights, of some layers: they are written and read first."""
    if not (torch.cuda.is_available() and find_spec("bitsandbytes")):
        print("no CUDA or no bitsandbytes (esc-lab[quantization]): nothing in 4 bits")
        return {}
    few = replace(scale, shape={**scale.shape, "num_hidden_layers": scale.layers_4bit})
    with tempfile.TemporaryDirectory() as folder:
        whole = random_llama(few)
        whole.model.save_pretrained(folder)
        whole.encoder.tokenizer.save_pretrained(folder)
        del whole
        loaded = load_model(replace(model_settings(folder, "bfloat16"), quantization="4bit"), CACHE)
    return sft_steps(few, loaded)


@contextmanager
def reported(what: str, errors: list[str] | None = None) -> Iterator[None]:
    """What fails is told, and what comes after it goes on."""
    try:
        yield
    except Exception as error:
        print(f"{what} failed: {error}\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        if errors is not None:
            errors.append(traceback.format_exc())
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


PARTS: dict[str, Callable[[Scale], Values]] = {
    "families": lambda scale: compare_families(scale.families), "sft": sft_steps, "cso": cso_steps,
    "trl": against_trl, "qlora": qlora_steps,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shrunk", action="store_true", help="small shapes, for tests")
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=[*PARTS])
    parser.add_argument("--out", type=Path, help="JSON for all numbers")
    options = parser.parse_args()
    disable_progress_bar()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if not (options.shrunk or torch.cuda.is_available()):
        print("there is no CUDA device here; --shrunk runs small shapes on the CPU")
        return
    cuda = torch.cuda.is_available()
    outcome: dict[str, Any] = {"device": torch.cuda.get_device_name() if cuda else "cpu", "torch": torch.__version__}
    for name in options.parts:
        started, errors, values = time.perf_counter(), [], {}
        with reported(name, errors):
            values = PARTS[name](SHRUNK if options.shrunk else FULL)
        outcome[name] = {"seconds": time.perf_counter() - started, "values": values, "error": "".join(errors) or None}
        print(f"{name}: {outcome[name]['seconds']:.0f} s{', failed' if errors else ''}", flush=True)
        if options.out:  # after each part: a later one may not come back
            write_atomic(options.out, json.dumps(outcome, indent=2))
    for part in options.parts:
        for key, value in outcome[part]["values"].items():
            goal = next((goal for start, goal in GOALS.items() if f"{part}_{key}".startswith(start)), None)
            print(f"{part}_{key}: {value:.4g}{f' (goal {goal})' if goal else ''}")
    sys.exit(any(outcome[part]["error"] for part in options.parts))


if __name__ == "__main__":
    main()
