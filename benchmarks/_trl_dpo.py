"""The peer of `cso_vs_trl.py`: TRL's DPOTrainer with everything recorded.

TRL (1.16) is no dependency of esc-lab; it is imported where it is used. Where it lies in a folder of its own on
PYTHONPATH, that folder must be called `site-packages`: the `datasets` library cannot hash its tables otherwise.
`python benchmarks/_trl_dpo.py --spec SPEC.json --out DIR` runs it in a process of its own; `run_in_child` does that and
reads the result. Files are JSON and safetensors.

What the trainer does differently from esc-lab, and the arguments of `run_dpo` for it:

- A reply ends with everything that the chat template writes after it, so the newline after the end-of-turn token counts
  as a reply token (`reply_end="template"`). `"end_of_turn"` cuts it off.
- Only on CUDA and XPU does the LM head run on the reply tokens alone; on the CPU it runs on every token and most of the
  result is thrown away. `label_rows_only=True` makes it the reply tokens everywhere, which is much faster.
- By default it checkpoints gradients, autocasts to bfloat16 whatever the weights are, and cuts sequences to 1,024
  tokens. Here the first is a parameter, the second comes with bfloat16 weights only, and nothing is cut.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from _cso_pairs import Pair
from omegaconf import OmegaConf
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from esc_lab.config.model import ModelConfig
from esc_lab.models.load import LoadedModel, load_model
from esc_lab.models.tree_attention import IMPLEMENTATION

CONF = Path(__file__).parents[1] / "conf"

Result = TypeVar("Result")
ReplyEnd = Literal["template", "end_of_turn"]


@dataclass
class TrlRun:
    """What a run of the DPOTrainer did. Pairs are in the order of training, `steps * pairs_per_step` of them.

    Attributes:
        losses: mean loss of each step's pairs, before the step's update.
        step_seconds: wall time of each step: reference and policy, forward and backward, optimizer.
        train_seconds: all of `trainer.train()`.
        tokenize_seconds, reference_seconds: preparing the data; the reference pass, where it is run beforehand.
        sequence_tokens: tokens of all pairs' sequences, prompt and reply, without padding.
        reply_tokens: for each pair of the data, counted tokens of the chosen and of the rejected reply.
        policy, reference: summed log-probabilities of each trained pair's chosen and rejected reply.
        before_bytes, peak_bytes: `peak_memory` of tokenisation, reference pass and training.
        gradients: of the adapter in the first step, after clipping, by parameter name.
        weights: of the adapter after the last step.
    """

    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    reference_seconds: float = 0.0
    sequence_tokens: int = 0
    reply_tokens: list[tuple[int, int]] = field(default_factory=list)
    policy: list[tuple[float, float]] = field(default_factory=list)
    reference: list[tuple[float, float]] = field(default_factory=list)
    before_bytes: int = 0
    peak_bytes: int = 0
    gradients: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)


def peak_memory(run: Callable[[], Result]) -> tuple[Result, int, int]:
    """What `run` returns, and the bytes in use before it and at most while it runs: on the GPU, else of the process.

    Of the process it is the resident set, whose high-water mark is set back first (Linux). That of `getrusage` would
    not do: a child process starts with its parent's.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return run(), before, torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    return run(), before, _status_bytes("VmHWM")


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def model_settings(name: str, dtype: str) -> ModelConfig:
    """Settings in `conf/model/<name>.yaml`, or of the model in the directory `name`."""
    if Path(name).is_dir():
        return ModelConfig(name=Path(name).name, source="directory", path=name, dtype=dtype)
    file = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), file, {"dtype": dtype}))
    assert isinstance(settings, ModelConfig)
    return settings


def run_dpo(
    model: str | LoadedModel,
    pairs: Sequence[Pair],
    *,
    dtype: str,
    steps: int,
    pairs_per_step: int,
    per_device: int,
    lr: float = 1e-4,
    beta: float = 0.1,
    rank: int = 16,
    alpha: int = 32,
    clip: float = 0.0,
    reply_end: ReplyEnd = "end_of_turn",
    label_rows_only: bool = True,
    precompute_reference: bool = False,
    gradient_checkpointing: bool = False,
    initial: Mapping[str, Tensor] | None = None,
    cache: Path = Path(".cache"),
    extra: Mapping[str, Any] | None = None,
) -> TrlRun:
    """Train a new LoRA adapter on all linear layers with TRL's DPOTrainer, sigmoid loss, pairs in their order.

    Args:
        model: name of a file in `conf/model`, or a model directory, or a loaded one, which stays as it was.
        pairs_per_step: pairs of an optimizer step, run `per_device` at a time. Pairs start over when they run out.
        lr: constant; AdamW as esc-lab's default.
        clip: norm that gradients are clipped to; 0 = off.
        precompute_reference: run the reference over all pairs first, else with the adapter switched off in each step.
        initial: adapter weights to start from, by parameter name (`...lora_A.default.weight`).
        extra: more arguments of DPOConfig.

    Raises:
        ValueError: the numbers of pairs do not divide, or `initial` is of another adapter.
    """
    if pairs_per_step % per_device or len(pairs) % pairs_per_step:
        raise ValueError("per_device must divide pairs_per_step, and that the number of pairs")
    from datasets import Dataset
    from trl import DPOConfig
    from trl.kernels.chunked_logprob import _use_triton
    from trl.trainer import utils

    utils._use_triton = (lambda device: True) if label_rows_only else _use_triton
    cuda = torch.cuda.is_available()
    loaded = load_model(model_settings(model, dtype), cache) if isinstance(model, str) else model
    loaded.model.set_attn_implementation("sdpa")
    run = TrlRun()
    trainer_class = _recording_trainer(run, loaded.encoder.end_of_turn if reply_end == "end_of_turn" else None)

    def train(folder: str) -> None:
        arguments = DPOConfig(
            folder, max_steps=steps, per_device_train_batch_size=per_device,
            gradient_accumulation_steps=pairs_per_step // per_device, train_sampling_strategy="sequential",
            learning_rate=lr, lr_scheduler_type="constant", max_grad_norm=clip, beta=beta, loss_type="sigmoid",
            bf16=dtype == "bfloat16", gradient_checkpointing=gradient_checkpointing, max_length=None,
            precompute_ref_log_probs=precompute_reference, logging_strategy="no", save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=not cuda, dataloader_pin_memory=cuda,
            **extra or {},
        )  # fmt: skip
        lora = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules="all-linear")
        data = Dataset.from_list([asdict(pair) for pair in pairs])
        trainer = trainer_class(
            loaded.model, args=arguments, train_dataset=data, processing_class=loaded.encoder.tokenizer,
            peft_config=lora,
        )  # fmt: skip
        try:
            trainer.run(initial)
        finally:
            if not isinstance(model, str):
                trainer.model.unload()
                loaded.model.set_attn_implementation(IMPLEMENTATION)

    with tempfile.TemporaryDirectory() as folder:
        _, run.before_bytes, run.peak_bytes = peak_memory(lambda: train(folder))
    return run


class _Clock(TrainerCallback):
    """Writes the time of each step and the gradients of the first."""

    def __init__(self, record: TrlRun) -> None:
        self.record = record

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        if not self.record.gradients:
            self.record.gradients = {name: value.grad.clone() for name, value in _trained(model).items()}

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.record.step_seconds.append(time.perf_counter() - self.started)


def _cut(example: dict[str, list[int]], end_of_turn: int) -> dict[str, list[int]]:
    """The replies up to their last end-of-turn token."""
    for key in ("chosen_ids", "rejected_ids"):
        example[key] = example[key][: len(example[key]) - example[key][::-1].index(end_of_turn)]
    return example


def _recording_trainer(record: TrlRun, end_of_turn: int | None) -> Any:
    """A DPOTrainer class that computes as ever and writes into `record`; cuts replies after the token `end_of_turn`."""
    from trl import DPOTrainer

    class RecordingTrainer(DPOTrainer):
        def _send_telemetry(self) -> None:
            """Sends nothing."""

        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            data = super()._prepare_dataset(*args, **kwargs)
            if end_of_turn is not None:
                data = data.map(_cut, fn_kwargs={"end_of_turn": end_of_turn})
            record.tokenize_seconds = time.perf_counter() - started
            record.reply_tokens = [(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in data]
            prompts = 2 * sum(len(row["prompt_ids"]) for row in data)
            record.sequence_tokens = prompts + sum(map(sum, record.reply_tokens))
            return data

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            data = super()._precompute_ref_logps(*args, **kwargs)
            record.reference_seconds = time.perf_counter() - started
            return data

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            self.micro_losses.append(loss.item())
            if self.precompute_ref_logps:
                record.reference += _couples(torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]]))
            return loss

        def run(self, initial: Mapping[str, Tensor] | None) -> None:
            self.micro_losses: list[float] = []
            self.add_callback(_Clock(record))
            if initial is not None:
                _set_weights(self.model, initial)
            # The policy's forward pass has gradients, the reference's has none.
            self.model.register_forward_hook(
                lambda _, __, output: (record.policy if torch.is_grad_enabled() else record.reference).extend(
                    _couples(output.log_probs.detach().sum(dim=1))
                )
            )
            started = time.perf_counter()
            self.train()
            record.train_seconds = time.perf_counter() - started
            parts = self.args.gradient_accumulation_steps
            record.losses = torch.tensor(self.micro_losses).view(-1, parts).mean(dim=1).tolist()
            record.weights = {name: value.detach().clone() for name, value in _trained(self.model).items()}

    return RecordingTrainer


def _couples(log_probs: Tensor) -> list[tuple[float, float]]:
    """(chosen, rejected) of a batch [2 * pairs], chosen replies first."""
    chosen, rejected = log_probs.chunk(2)
    return list(zip(chosen.tolist(), rejected.tolist(), strict=True))


def _trained(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _set_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    trained = _trained(model)
    if trained.keys() != weights.keys():
        raise ValueError(f"weights of another adapter: {sorted(trained.keys() ^ weights.keys())[:2]}")
    for name, value in trained.items():
        value.data.copy_(weights[name])


def run_in_child(
    out: Path, model: str, pairs: Sequence[Pair], *, initial: Mapping[str, Tensor] | None = None, **options: Any
) -> TrlRun:
    """`run_dpo` in a process of its own, with files in the folder `out`. Options are those of `run_dpo`."""
    out.mkdir(parents=True, exist_ok=True)
    if initial is not None:
        save_file({name: value.contiguous() for name, value in initial.items()}, out / "initial.safetensors")
        options["initial"] = str(out / "initial.safetensors")
    spec = {"model": model, "pairs": [asdict(pair) for pair in pairs], **options}
    (out / "spec.json").write_text(json.dumps(spec, default=str))
    command = [sys.executable, __file__, "--spec", str(out / "spec.json"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise RuntimeError(f"the run of TRL failed:\n{done.stderr[-4000:]}")
    return read_run(out)


def write_run(run: TrlRun, out: Path) -> None:
    """Numbers as result.json, tensors as safetensors."""
    values = {name: value for name, value in vars(run).items() if name not in ("gradients", "weights")}
    (out / "result.json").write_text(json.dumps(values))
    save_file(run.gradients, out / "gradients.safetensors")
    save_file(run.weights, out / "weights.safetensors")


def read_run(out: Path) -> TrlRun:
    """What `write_run` wrote; couples come back as lists."""
    values: dict[str, Any] = json.loads((out / "result.json").read_text())
    for name in ("gradients", "weights"):
        values[name] = load_file(out / f"{name}.safetensors")
    return TrlRun(**values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spec", type=Path, required=True, help="JSON: arguments of run_dpo; `initial` is a file")
    parser.add_argument("--out", type=Path, required=True, help="folder for result.json and *.safetensors")
    options = parser.parse_args()
    spec = json.loads(options.spec.read_text())
    spec["pairs"] = [Pair(**pair) for pair in spec["pairs"]]
    spec["cache"] = Path(spec.get("cache", ".cache"))
    if "initial" in spec:
        spec["initial"] = load_file(spec["initial"])
    options.out.mkdir(parents=True, exist_ok=True)
    write_run(run_dpo(**spec), options.out)


if __name__ == "__main__":
    main()
