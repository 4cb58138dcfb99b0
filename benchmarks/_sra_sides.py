"""The sides of `sra_vs_output_attentions.py`, and their memory.

A side continues a prompt greedily by a fixed number of tokens, with no stop token:

- `plain`, `probe`: `esc_lab.models.generate`, without and with an `AttentionProbe` on the strategy's name.
- `eager`, `attentions`: `model.generate` of transformers on the same weights with eager attention, without and with
  `output_attentions`, from which SRA is computed afterwards as the paper's published code does.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import load_smollm2
from _sra_prompts import SpanPrompt, prompt_of_length
from _trl_dpo import peak_memory
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import GenerationConfig
from transformers.utils.logging import disable_progress_bar

from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.load import LoadedModel
from esc_lab.models.span_attention import head_attention
from esc_lab.models.tree_attention import IMPLEMENTATION

CACHE = Path(".cache")
NO_STOP = frozenset({-1})

# Per generated token: SRA as the paper defines it and as its published code computes it, float64.
Sra = tuple[Tensor, Tensor]
# New tokens, and their SRA where the side measures attention.
Generated = tuple[list[int], Sra | None]
OnStep = Callable[[int], None]


def load(dtype: str) -> LoadedModel:
    """SmolLM2, usable on both sides."""
    loaded = load_smollm2(CACHE, dtype)[1]
    loaded.model.generation_config = GenerationConfig(pad_token_id=0)  # no end-of-sequence token: nothing stops early
    return loaded


def run_side(side: str, model: Any, prompt: SpanPrompt, new_tokens: int, on_step: OnStep | None = None) -> Generated:
    """All of a side's work: the new tokens and their SRA. `on_step` is called by esc-lab's sides alone."""
    if side in ("plain", "probe"):
        model.set_attn_implementation(IMPLEMENTATION)
        probe = AttentionProbe([[prompt.span]]) if side == "probe" else None
        (reply,) = generate(model, [prompt.input_ids], NO_STOP, Sampling(new_tokens), [0], on_step, probe)
        return reply, None if probe is None else probe_sra(probe)
    model.set_attn_implementation("eager")
    ids = torch.from_numpy(prompt.input_ids)[None].to(model.device)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False,
        return_dict_in_generate=True, output_attentions=side == "attentions",
    )  # fmt: skip
    reply, attentions = output.sequences[0, ids.shape[1] :].tolist(), output.attentions
    return reply, None if attentions is None else attention_sra(attentions, torch.from_numpy(prompt.span))


def probe_sra(probe: AttentionProbe) -> Sra:
    found = probe.result()
    paper, reference = (head_attention(found, name).mean(dim=(0, 1))[:, 0] for name in ("paper", "reference"))
    return paper, reference


def attention_sra(attentions: Sequence[Sequence[Tensor]], span: Tensor) -> Sra:
    """From what `model.generate` returns: for each new token and layer [1, heads, queries, keys], the last query."""
    paper, reference = [], []
    for step in attentions:
        heads_mean = torch.stack([layer[0, :, -1].double().mean(dim=0) for layer in step]).cpu()
        paper.append(heads_mean[:, span].mean())
        heads_mean[:, 0] = 0
        reference.append((heads_mean / heads_mean.sum(dim=1, keepdim=True))[:, span].mean())
    return torch.stack(paper), torch.stack(reference)


def peak_in_child(side: str, dtype: str, lengths: Sequence[int], new_tokens: int) -> dict[int, int]:
    """Bytes of a new process (resident set) or of the GPU (allocated) at most, for each prompt length, ascending.

    The process's malloc gives every block from 64 KiB on back to the system when it is freed. With the usual sliding
    threshold the resident set would hold what earlier blocks left behind, which differs from process to process.
    """
    spec = {"side": side, "dtype": dtype, "lengths": sorted(lengths), "new_tokens": new_tokens}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"the measurement of memory failed:\n{done.stderr[-4000:]}")
    return {int(length): peak for length, peak in json.loads(done.stdout.splitlines()[-1]).items()}


def peaks(side: str, dtype: str, lengths: Sequence[int], new_tokens: int) -> dict[int, int]:
    """`peak_in_child` in this process."""
    loaded = load(dtype)
    prompts = {length: prompt_of_length(loaded.encoder, length) for length in lengths}
    return {
        length: peak_memory(partial(run_side, side, loaded.model, prompt, new_tokens))[2]
        for length, prompt in prompts.items()
    }


def tensor_bytes(run: Callable[[OnStep], object]) -> tuple[int, int]:
    """Bytes of tensors more than before `run`, at most at one time: from its start on, and from its first step on."""
    gc.collect()
    if torch.cuda.is_available():
        return _allocated_on_gpu(run)

    def on_step(_: int) -> None:
        with record_function("step"):
            pass

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run(on_step)
    with tempfile.TemporaryDirectory() as folder:
        trace.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    steps = [event["ts"] for event in events if event["name"] == "step"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
    changes.sort(key=lambda change: change[0])
    live = np.cumsum([change for _, change in changes])
    first = np.searchsorted([ts for ts, _ in changes], min(steps, default=0.0))
    return int(live.max()), int(live[first:].max())


def _allocated_on_gpu(run: Callable[[OnStep], object]) -> tuple[int, int]:
    before = torch.cuda.memory_allocated()
    peaks: list[int] = []

    def on_step(_: int) -> None:
        peaks.append(torch.cuda.max_memory_allocated() - before)
        torch.cuda.reset_peak_memory_stats()

    torch.cuda.reset_peak_memory_stats()
    run(on_step)
    peaks.append(torch.cuda.max_memory_allocated() - before)
    return max(peaks), max(peaks[1:] or peaks)


if __name__ == "__main__":
    disable_progress_bar()
    print(json.dumps(peaks(**json.loads(sys.argv[1]))))
