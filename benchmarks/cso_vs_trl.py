"""CSO on one token tree against TRL's DPOTrainer on the same pairs: time, memory, and that both compute the same.

Same model, dtype, LoRA, pairs, pairs per step and learning rate; both sides run in processes of their own, in turn, and
count what they spend on the reference. Replies end with the end-of-turn token on both sides (TRL's own boundary takes
the template's newline too). On the CPU TRL runs the LM head on every token; `label_rows` is TRL made to run it on the
replies' tokens alone, as it does on a GPU. TRL is not a dependency: `pip install esc-lab[bench]`.

`--quick` takes a smaller dialogue and fewer runs (about 3 minutes on two cores; the whole takes about 15). On a GPU the
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
from statistics import median
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from _cso_pairs import esc_pro_shaped, lone_pair, pair_texts
from _trl_dpo import TrlRun, model_settings, peak_memory, read_run, run_in_child, write_run
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils.logging import disable_progress_bar

from esc_lab.config import AdapterConfig, ObjectiveConfig, OptimizerConfig, SchedulerConfig, TemplateConfig
from esc_lab.corpora import read_dialogues, write_dialogues
from esc_lab.cso import CSOModule
from esc_lab.cso_data import PreferenceSettings
from esc_lab.datamodule import ESCDataModule
from esc_lab.dialogue import Dialogue
from esc_lab.models.load import LoadedModel, add_adapter, load_encoder, load_model
from esc_lab.models.log_probs import reply_log_probs
from esc_lab.models.tree_attention import IMPLEMENTATION, base_model
from esc_lab.reference import label_and_text_log_probs
from esc_lab.strategies import INVENTORIES

ROW_TOKENS = 4096
CACHE = Path(".cache")


class InOrder(ESCDataModule):
    """Pairs in their order, epoch after epoch."""

    def plan_epoch(self, epoch: int) -> list[list[int]]:
        size = self.steps.settings.step_pairs
        pairs = list(range(len(self.steps.found["train"].comparisons)))
        return [pairs[start : start + size] for start in range(0, len(pairs), size)]


class Recording(CSOModule):
    """Writes log-probabilities, losses, first gradients and step times into `run`."""

    run: TrlRun

    def _compare(self, row: Any, scores: Any, kl: Tensor) -> Any:
        for first, second in zip(row.chosen, row.rejected, strict=True):
            self.run.policy.append((scores.policy[first].item(), scores.policy[second].item()))
            self.run.reference.append((scores.reference[first].item(), scores.reference[second].item()))
        return super()._compare(row, scores, kl)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        started = time.perf_counter()
        super().training_step(batch, batch_idx)
        self.run.step_seconds.append(seconds_since(started))
        self.run.losses.append(float(self.trainer.callback_metrics["train/loss"]))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if not self.run.gradients:
            self.run.gradients = {name: value.grad.clone() for name, value in trained(self.model).items()}


def seconds_since(started: float) -> float:
    """Wall time, the GPU's pending work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def tree_module(loaded: LoadedModel, dialogue: Dialogue, step_pairs: int) -> InOrder:
    """The dialogue as the only training data."""
    template = TemplateConfig()
    data = InOrder(
        {"train": [dialogue]},
        loaded.encoder,
        INVENTORIES["cso"],
        train_prompt=template,
        eval_prompt=template,
        row_tokens=ROW_TOKENS,
        preferences=PreferenceSettings(step_pairs=step_pairs),
    )
    data.setup("fit")
    return data


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
    data = tree_module(loaded, dialogue, pairs_per_step)
    split = data.steps.found["train"]
    run = TrlRun()

    def train() -> None:
        started = time.perf_counter()
        split.reference = label_and_text_log_probs(loaded.model, split, ROW_TOKENS)
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
    run.sequence_tokens = sum(len(row.row) for row in split.reference_rows(ROW_TOKENS))
    return run


def trained(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


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


def speed(name: str, dialogue: Dialogue, model: str, dtype: str, runs: int, goal: float, folder: Path) -> None:
    """Pairs per second of both sides on one step with all pairs of a dialogue, and their peak memory."""
    encoder = load_encoder(model_settings(model, dtype), CACHE)
    pairs = pair_texts(encoder, INVENTORIES["cso"], dialogue)
    initial = initial_adapter(model, dtype, trained_before=False)
    options = {"dtype": dtype, "steps": 1, "pairs_per_step": len(pairs), "lr": 1e-4}
    per_device = next(size for size in (4, 2, 1) if len(pairs) % size == 0)
    peers = {"trl": False} if torch.cuda.is_available() else {"trl": False, "label_rows": True}
    found: dict[str, list[TrlRun]] = {side: [] for side in ("tree", *peers)}
    for number in range(runs):
        found["tree"].append(tree_in_child(folder / f"{name}-tree{number}", model, dialogue, initial, **options))
        for side, label_rows_only in peers.items():
            out = folder / f"{name}-{side}{number}"
            found[side].append(
                run_in_child(
                    out,
                    model,
                    pairs,
                    initial=initial,
                    per_device=per_device,
                    label_rows_only=label_rows_only,
                    **options,
                )
            )
    seconds = {side: [sum(run.step_seconds) + run.reference_seconds for run in found[side]] for side in found}
    peaks = {side: median(run.peak_bytes for run in found[side]) for side in found}
    tokens = {side: found[side][0].sequence_tokens for side in ("tree", "trl")}
    print(f"\n{name}: {len(pairs)} pairs; {tokens['tree']} tokens as a tree, {tokens['trl']} as pairs")
    for side in found:
        spent = median(seconds[side])
        print(f"  {side:<10} {spent:7.1f} s {len(pairs) / spent:7.2f} pairs/s {peaks[side] / 2**30:6.2f} GB at most")
    for side in peers:
        ratio = median(peer / tree for tree, peer in zip(seconds["tree"], seconds[side], strict=True))
        goals = (f" (goal >= {goal:g})", " (goal <= 0.5)") if side == "trl" else ("", "")
        suffix = "" if side == "trl" else f"_{side}"
        print(f"cso_vs_trl{suffix}_{name}: {ratio:.1f}{goals[0]}")
        print(f"memory_vs_trl{suffix}_{name}: {peaks['tree'] / peaks[side]:.2f}{goals[1]}", flush=True)


def equality(dialogue: Dialogue, model: str, folder: Path, steps: int) -> None:
    """Log-probabilities, first gradients and losses of both sides in float32, 4 pairs a step."""
    encoder = load_encoder(model_settings(model, "float32"), CACHE)
    pairs = pair_texts(encoder, INVENTORIES["cso"], dialogue)
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


def growth(model: str, dtype: str, turns: int, counts: tuple[int, ...], runs: int) -> None:
    """Seconds of a step and unique tokens by number of rejected replies per turn, fewest first."""
    settings = model_settings(model, dtype)
    loaded = load_model(settings, CACHE)
    policy = add_adapter(loaded, AdapterConfig(), settings).model.train()
    steps = {}
    for count in counts:
        data = tree_module(loaded, esc_pro_shaped(turns, count), 10_000)
        steps[count] = data.step_batch(range(len(data.steps.found["train"].comparisons))).rows
    times: dict[int, list[float]] = {count: [] for count in counts}
    for run in range(runs + 1):
        for count, rows in steps.items():
            started = time.perf_counter()
            for row in rows:
                with torch.no_grad(), policy.disable_adapter():
                    reply_log_probs(policy, row.row)
                reply_log_probs(policy, row.row).mean().backward()
            if run:
                times[count].append(seconds_since(started))
            policy.zero_grad()
    print()
    for count, rows in steps.items():
        tokens = sum(len(row.row) for row in rows)
        seconds = median(times[count])
        print(
            f"{count} rejected: {tokens} tokens, {seconds:.2f} s, {1e3 * seconds / tokens:.2f} ms a token", flush=True
        )
        if count > counts[0]:
            grown = seconds / median(times[counts[0]]), tokens / sum(len(row.row) for row in steps[counts[0]])
            print(
                f"  {grown[0]:.2f} times the time, {grown[1]:.2f} times the tokens of {counts[0]} rejected", flush=True
            )
    print(f"cost_growth_over_token_growth: {grown[0] / grown[1]:.2f} (goal <= 1)")


def per_token(model: str, dtype: str, runs: int) -> None:
    """Time of a tree (policy forward + backward, reference forward) over that of plain causal sequences."""
    settings = model_settings(model, dtype)
    loaded = load_model(settings, CACHE)
    policy = add_adapter(loaded, AdapterConfig(), settings).model.train()
    inner = base_model(policy)

    def tree(row: Any) -> None:
        with torch.no_grad(), policy.disable_adapter():
            reply_log_probs(policy, row)
        reply_log_probs(policy, row).mean().backward()

    def forward(ids: Tensor, rows: Tensor) -> Tensor:
        hidden = inner.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        logits = inner.get_output_embeddings()(hidden[rows]).float()
        return torch.nn.functional.cross_entropy(logits, ids[0, rows + 1])

    def plain(ids: Tensor, rows: Tensor) -> None:
        with torch.no_grad(), policy.disable_adapter():
            forward(ids, rows)
        forward(ids, rows).backward()

    shapes = [(turns, rejected) for turns in range(3, 9) for rejected in (2, 3, 4, 5)]
    for wanted, goal in ((1024, 1.15), (2048, 1.3)):
        made = [tree_module(loaded, esc_pro_shaped(*shape), 10_000) for shape in shapes]
        batches = [data.step_batch(range(len(data.steps.found["train"].comparisons))) for data in made]
        row = min((batch.rows[0].row for batch in batches), key=lambda row: abs(len(row) - wanted))
        vocabulary = len(loaded.encoder.tokenizer)
        ids = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary, (1, len(row) + 1))).to(inner.device)
        rows = torch.from_numpy(np.unique(row.query)).to(inner.device)
        ratios = []
        for run in range(runs + 1):
            seconds = []
            for side in ("tree", "plain"):
                inner.set_attn_implementation(IMPLEMENTATION if side == "tree" else "sdpa")
                started = time.perf_counter()
                tree(row) if side == "tree" else plain(ids, rows)
                seconds.append(seconds_since(started))
                policy.zero_grad()
            if run:
                ratios.append(seconds[0] / seconds[1])
        print(f"time_per_unique_token_{len(row)}: {median(ratios):.2f} (goal <= {goal})", flush=True)


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
        dialogue, steps = (esc_pro_shaped(2, 4), 2) if options.quick else (esc_pro_shaped(4, 6), 6)
        equality(dialogue, options.model, folder, steps)
        timings(options.model, options.dtype, options.quick, folder)
        if torch.cuda.is_available():
            timings(llama_8b_shape(folder / "llama-8b-shape"), "bfloat16", options.quick, folder)


def timings(model: str, dtype: str, quick: bool, folder: Path) -> None:
    print(f"\n{model}, {dtype}")
    turns, runs = (4, 1) if quick else (8, 3)
    encoder = load_encoder(model_settings(model, dtype), CACHE)
    speed(f"{turns}_turns_3_rejected", esc_pro_shaped(turns, 3), model, dtype, 1, 15, folder)
    speed(f"{turns}_turns_1_rejected", esc_pro_shaped(turns, 1), model, dtype, 1, 5, folder)
    speed("lone_pair", lone_pair(encoder), model, dtype, runs, 1.5, folder)
    growth(model, dtype, 3 if quick else 8, (1, 2, 4) if quick else (1, 2, 4, 8), runs)
    per_token(model, dtype, runs)


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
