"""CSO on one token tree against TRL's DPOTrainer on the same pairs: time, memory, and that both compute the same.

Same model, dtype, LoRA, pairs, pairs per step and learning rate; both sides run in processes of their own, in turn, and
count what they spend on the reference. Replies end with the end-of-turn token on both sides (TRL's own boundary takes
the template's newline too). On the CPU TRL runs the LM head on every token; `label_rows` is TRL made to run it on the
replies' tokens alone, as it does on a GPU. TRL is not a dependency: `pip install 'esc-lab[bench]'`.

`--quick` takes a smaller dialogue and fewer runs (3 to 4 minutes on two cores; the whole takes 15 to 20). On a GPU the
timings are repeated with random weights in the shape of Llama-3.1-8B.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from _cso_pairs import esc_pro_shaped, lone_pair, pair_texts
from _tree_cost import CACHE, ROW_TOKENS, Passes, growth, per_token, seconds_since, trained, tree_module
from _trl_dpo import TrlRun, model_settings, peak_memory, read_run, run_in_child, write_run
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils.logging import disable_progress_bar

from esc_lab.config.training import AdapterConfig, ObjectiveConfig, OptimizerConfig, SchedulerConfig
from esc_lab.data.corpora import read_dialogues, write_dialogues
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import load_inventory
from esc_lab.models.load import add_adapter, load_encoder, load_model
from esc_lab.tokens import pack_rows
from esc_lab.training.cso import CSOModule
from esc_lab.training.reference import score_replies


class Recording(CSOModule):
    """Writes log-probabilities, losses, first gradients and step times into `run`."""

    run: TrlRun

    def _compare(self, row: Any, tokens: Any, kl: Tensor) -> Any:
        policy, _, reference = tokens.sums()
        for first, second in zip(row.chosen, row.rejected, strict=True):
            self.run.policy.append((policy[first].item(), policy[second].item()))
            self.run.reference.append((reference[first].item(), reference[second].item()))
        return super()._compare(row, tokens, kl)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        started = time.perf_counter()
        super().training_step(batch, batch_idx)
        self.run.step_seconds.append(seconds_since(started))
        self.run.losses.append(float(self.trainer.callback_metrics["train/loss"]))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if not self.run.gradients:
            self.run.gradients = {name: value.grad.clone() for name, value in trained(self.model).items()}


def run_tree(
    model: str,
    dialogue: Dialogue,
    *,
    dtype: str,
    steps: int,
    pairs_per_step: int,
    lr: float,
    initial: Mapping[str, Any],
) -> TrlRun:
    """The esc-lab side of `run_dpo`: reference log-probabilities first, then the steps."""
    settings = model_settings(model, dtype)
    loaded = load_model(settings, CACHE)
    data, in_order = tree_module(loaded, dialogue, pairs_per_step)
    split = in_order.preferences["train"]
    run = TrlRun()

    def train() -> None:
        started = time.perf_counter()
        split.reference = score_replies(loaded.model, split, ROW_TOKENS)
        run.reference_seconds = seconds_since(started)
        policy = add_adapter(loaded, AdapterConfig(), settings).model.train()
        for name, value in trained(policy).items():
            value.data.copy_(initial[name])
        module = Recording(
            policy, ObjectiveConfig(), OptimizerConfig(lr=lr), SchedulerConfig("constant", warmup=0.0), 0.0, 1
        )
        module.run = run
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                max_steps=steps, max_epochs=-1, devices=1, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, limit_val_batches=0,
                reload_dataloaders_every_n_epochs=0, use_distributed_sampler=False,
            )  # fmt: skip
            trainer.fit(module, datamodule=data)
        run.train_seconds = sum(run.step_seconds) + run.reference_seconds

    _, run.before_bytes, run.peak_bytes = peak_memory(train)
    run.sequence_tokens = sum(map(len, pack_rows([split.sequences], ROW_TOKENS)))
    return run


def tree_in_child(out: Path, model: str, dialogue: Dialogue, initial: Mapping[str, Tensor], **options: Any) -> TrlRun:
    """`run_tree` in a process of its own."""
    out.mkdir(parents=True, exist_ok=True)
    write_dialogues([dialogue], out / "dialogue.jsonl", "jsonl")
    save_file({name: value.contiguous() for name, value in initial.items()}, out / "initial.safetensors")
    (out / "spec.json").write_text(json.dumps({"model": model, **options}))
    done = subprocess.run([sys.executable, __file__, "--child", str(out)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return read_run(out)


def child(out: Path) -> None:
    (dialogue,) = read_dialogues(out / "dialogue.jsonl", "jsonl")
    options = json.loads((out / "spec.json").read_text())
    write_run(run_tree(dialogue=dialogue, initial=load_file(out / "initial.safetensors"), **options), out)


def initial_adapter(model: str, dtype: str, *, trained_before: bool) -> dict[str, Tensor]:
    """One LoRA adapter for both sides: new, or with a random B too, so that no gradient is zero."""
    settings = model_settings(model, dtype)
    torch.manual_seed(0)
    adapted = add_adapter(load_model(settings, CACHE), AdapterConfig(), settings).model
    weights = {name: value.detach().clone().cpu() for name, value in trained(adapted).items()}
    if trained_before:
        for name in weights:
            if "lora_B" in name:
                weights[name].normal_(std=0.01)
    return weights


def speed(
    name: str, dialogue: Dialogue, model: str, dtype: str, peers: Mapping[str, bool], goal: float | None, folder: Path
) -> None:
    """Pairs per second of both sides on one step with all pairs of a dialogue, and their peak memory.

    Args:
        peers: runs of TRL by name, and whether their LM head is to run on the replies' tokens alone.
    """
    encoder = load_encoder(model_settings(model, dtype), CACHE)
    pairs = pair_texts(encoder, load_inventory("cso"), dialogue)
    initial = initial_adapter(model, dtype, trained_before=False)
    options = {"dtype": dtype, "steps": 1, "pairs_per_step": len(pairs), "lr": 1e-4}
    per_device = next(size for size in (4, 2, 1) if len(pairs) % size == 0)
    found = {"tree": tree_in_child(folder / f"{name}-tree", model, dialogue, initial, **options)}
    for side, label_rows_only in peers.items():
        found[side] = run_in_child(
            folder / f"{name}-{side}", model, pairs, initial=initial, per_device=per_device,
            label_rows_only=label_rows_only, **options,
        )  # fmt: skip
    seconds = {side: sum(run.step_seconds) + run.reference_seconds for side, run in found.items()}
    tokens = {side: run.sequence_tokens for side, run in found.items()}
    print(f"\n{name}: {len(pairs)} pairs; {tokens['tree']} tokens as a tree, {tokens['trl']} as pairs")
    for side, run in found.items():
        rate = len(pairs) / seconds[side]
        print(f"  {side:<10} {seconds[side]:7.1f} s {rate:7.2f} pairs/s {run.peak_bytes / 2**30:6.2f} GB at most")
    for side in peers:
        goals = (f" (goal >= {goal:g})", " (goal <= 0.5)") if side == "trl" and goal else ("", "")
        suffix = "" if side == "trl" else f"_{side}"
        memory = found["tree"].peak_bytes / found[side].peak_bytes
        print(f"cso_vs_trl{suffix}_{name}: {seconds[side] / seconds['tree']:.1f}{goals[0]}")
        print(f"memory_vs_trl{suffix}_{name}: {memory:.2f}{goals[1]}", flush=True)


def equality(dialogue: Dialogue, model: str, folder: Path, steps: int) -> None:
    """Log-probabilities, first gradients and losses of both sides in float32, 4 pairs a step."""
    encoder = load_encoder(model_settings(model, "float32"), CACHE)
    pairs = pair_texts(encoder, load_inventory("cso"), dialogue)
    initial = initial_adapter(model, "float32", trained_before=True)
    options = {"dtype": "float32", "steps": steps, "pairs_per_step": 4, "lr": 1e-4}
    tree = tree_in_child(folder / "equal-tree", model, dialogue, initial, **options)
    trl = run_in_child(folder / "equal-trl", model, pairs, initial=initial, per_device=4, **options)
    first = np.abs(np.array(tree.policy[:4]) - np.array(trl.policy[:4])).max()
    reference = np.abs(np.array(tree.reference) - np.array(trl.reference)).max()
    gradients = torch.cat([(tree.gradients[name] - value).flatten() for name, value in trl.gradients.items()]).norm()
    norm = torch.cat([value.flatten() for value in trl.gradients.values()]).norm()
    losses = np.abs(np.array(tree.losses) - np.array(trl.losses)).max()
    print(f"log_prob_difference: {max(first, reference):.1e} (goal <= 1e-3)")
    print(f"first_gradient_relative_difference: {float(gradients / norm):.1e} (goal <= 1e-3)")
    print(f"loss_difference_over_{steps}_steps: {losses:.1e} (goal <= 1e-2)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller dialogue, one run of each side")
    parser.add_argument("--model", default="smollm2_135m", help="name of a file in conf/model")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the timings")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    disable_progress_bar()
    if options.child:
        child(options.child)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dialogue, steps = (esc_pro_shaped(2, 4), 2) if options.quick else (esc_pro_shaped(3, 8), 6)
        equality(dialogue, options.model, folder, steps)
        timings(options.model, options.dtype, options.quick, folder)
        if torch.cuda.is_available():
            timings(llama_8b_shape(folder / "llama-8b-shape"), "bfloat16", options.quick, folder)


def timings(model: str, dtype: str, quick: bool, folder: Path) -> None:
    print(f"\n{model}, {dtype}")
    encoder = load_encoder(model_settings(model, dtype), CACHE)
    turns = 2 if quick else 8
    peers = {"trl": False} if quick or torch.cuda.is_available() else {"trl": False, "label_rows": True}
    for name, dialogue, goal in (
        (f"{turns}_turns_3_rejected", esc_pro_shaped(turns, 3), None if quick else 20),
        (f"{turns}_turns_1_rejected", esc_pro_shaped(turns, 1), None if quick else 5),
        ("lone_pair", lone_pair(encoder), 1.5),
    ):
        speed(name, dialogue, model, dtype, peers, goal, folder)
    passes = Passes(model, dtype)
    growth(passes, turns, (1, 2, 4) if quick else (1, 2, 4, 8), 1 if quick else 2)
    per_token(passes, 1 if quick else 3)


def llama_8b_shape(target: Path) -> str:
    """Directory of a model in the shape of Llama-3.1-8B with random weights and the tokenizer of SmolLM2."""
    encoder = load_encoder(model_settings("smollm2_135m", "bfloat16"), CACHE)
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=131072,
    )  # fmt: skip
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(target)
    encoder.tokenizer.save_pretrained(target)
    return str(target)


if __name__ == "__main__":
    main()
