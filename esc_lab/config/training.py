"""Settings of what is trained, on which loss, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from esc_lab.config.files import option_files
from esc_lab.config.item import COUNT, FROM_ZERO, LOOKS, SHARE, SPEED, TRAINING, item


@dataclass
class AdapterConfig:
    kind: str = item("lora", "train low-rank adapters, or all weights", choices=("lora", "full"))
    r: int = item(16, "LoRA rank", within=COUNT)
    alpha: int = item(32, "LoRA scaling numerator: updates are scaled by alpha / r", within=COUNT)
    dropout: float = item(0.0, "dropout on the adapter input, in [0, 1)", within=SHARE)
    target_modules: str = item("all-linear", "modules that get an adapter: all-linear, or names joined by commas")
    layers: int | None = item(None, "how many of the last layers get an adapter; null = all", within=COUNT)


@dataclass
class ObjectiveConfig:
    name: str = item(
        "cso",
        "loss of stage=cso (esc_lab/training/objectives.py has the formulas)",
        choices=tuple(option_files("objective")),
    )
    title: str | None = item(None, "what tables call it; null = its name in capitals", affects=LOOKS)
    beta: float = item(0.1, "scale of the reward: log-ratio to the reference, for simpo mean log-probability",
                       within=(1e-9, math.inf))  # fmt: skip
    peak_lr: float | None = item(None, "peak learning rate of cso; null = optimizer.lr", within=FROM_ZERO)
    updates: int | None = item(
        None,
        "optimizer steps of cso, and of extra_sft in a pipeline; null = by trainer.max_epochs and trainer.max_steps",
        within=COUNT,
    )
    label_smoothing: float = item(
        0.0, "cso, dpo, ld_dpo: probability that a pair is the wrong way round", within=(0, 0.499)
    )
    normalisation: str = item(
        "mean", "ipo, grpo: log-ratios (losses) summed over a reply's tokens or averaged", choices=("sum", "mean")
    )
    gamma: float = item(1.0, "simpo: target reward margin", within=FROM_ZERO)
    lambda_: float = item(
        0.1, "orpo: weight of the odds ratio; dpop: of a chosen reply's loss of probability", within=FROM_ZERO
    )
    desirable_weight: float | None = item(
        None, "kto: weight of preferred replies; null = that which makes both groups count alike", within=FROM_ZERO
    )
    undesirable_weight: float | None = item(
        None,
        "kto: weight of rejected replies; null = that which makes both groups count alike; where both are null the "
        "larger group has 1",
        within=FROM_ZERO,
    )
    excess_weight: float = item(
        0.5, "ld_dpo: weight of a reply's tokens past the length of the shorter one; 1 = dpo", within=(0, 1)
    )
    clip_range: float = item(
        0.2, "grpo: how far a token's ratio to the old policy may lie from 1", within=(1e-9, 0.999)
    )
    kl_weight: float = item(0.04, "grpo: weight of the KL divergence from the reference", within=FROM_ZERO)
    advantage: str = item(
        "mean_std",
        "grpo: a search value less the siblings' mean, divided by their standard deviation or not",
        choices=("mean_std", "mean"),
    )
    iterations: int = item(1, "grpo: optimizer steps in a row on the same trees", within=COUNT)
    value_margin: float = item(
        0.0, "cso, dpo, ld_dpo: reward margin per point of search value; 0 = off", within=FROM_ZERO
    )
    reward: str | None = item(
        None,
        "run of stage=reward whose scores of the replies take the place of their search values; null = those of the "
        "data",
        path=True,
    )
    strategy_weight: float = item(1.0, "weight of the strategy label's tokens against those of the text",
                                  within=FROM_ZERO)  # fmt: skip
    reference: str = item(
        "precomputed",
        "reference log-probabilities: computed once and stored for all runs that share model and data, or in each step",
        choices=("precomputed", "live"),
        method=False,
    )


@dataclass
class OptimizerConfig:
    name: str = item("adamw", "optimizer", choices=("adamw", "sgd"))
    lr: float = item(2e-4, "peak learning rate", within=FROM_ZERO)
    weight_decay: float = item(0.0, "decoupled weight decay", within=FROM_ZERO)
    betas: list[float] = item([0.9, 0.999], "AdamW moment decays")
    eps: float = item(1e-8, "AdamW denominator constant", within=FROM_ZERO)
    momentum: float = item(0.0, "SGD momentum", within=FROM_ZERO)


@dataclass
class SchedulerConfig:
    name: str = item("cosine", "shape of the learning rate over optimizer steps",
                     choices=("constant", "linear", "cosine", "cosine_restarts"))  # fmt: skip
    warmup: float = item(0.1, "share of all steps with a linearly rising learning rate", within=SHARE)
    cycles: int = item(
        5, "cosine_restarts: how often the cosine falls; it starts again after each", within=(2, math.inf)
    )


@dataclass
class TrainerConfig:
    max_epochs: int = item(
        3, "passes over the training dialogues; -1 = until max_steps", within=(-1, math.inf), affects=TRAINING
    )
    max_steps: int = item(
        -1, "stop after this many optimizer steps; -1 = no limit", within=(-1, math.inf), affects=TRAINING
    )
    precision: str = item("32-true", "Lightning precision: 32-true keeps model.dtype, bf16-mixed autocasts",
                          choices=("32-true", "bf16-mixed", "16-mixed"))  # fmt: skip
    accelerator: str = item("auto", "Lightning accelerator", affects=SPEED)
    devices: str = item("auto", "Lightning devices; auto in an evaluation, pipeline or multirun = 1", affects=SPEED)
    strategy: str = item(
        "auto",
        "how several devices share a training: ddp, each with the whole model, or fsdp2, each with a part of it; an "
        "evaluation takes ddp; auto = ddp",
        choices=("auto", "ddp", "fsdp2"),
        affects=SPEED,
    )
    gradient_clip: float = item(1.0, "clip the gradient's global norm; 0 = off", within=FROM_ZERO, affects=TRAINING)
    validate_every: float = item(
        1.0,
        "validation interval: share of an epoch (<= 1.0) or optimizer steps (> 1)",
        within=(1e-3, math.inf),
        affects=TRAINING,
    )
    patience: int = item(
        0,
        "early stopping after this many validations without a lower loss; 0 = off",
        within=FROM_ZERO,
        affects=TRAINING,
    )
    fast_dev_run: bool = item(
        False, "one training and one validation step, no logger, no checkpoints of the training", affects=TRAINING
    )
    log_every: int = item(1, "optimizer steps between logged values", within=COUNT, affects=SPEED)
    save_every: int = item(
        25,
        "optimizer steps between checkpoints that an interrupted training goes on from (resume=)",
        within=COUNT,
        affects=SPEED,
    )
    extra: dict[str, Any] = item({}, "more arguments of Lightning's Trainer, by their names there", affects=TRAINING)
    callbacks: dict[str, Any] = item(
        {}, "callbacks of a training, by a name of yours: {_target_: package.module.Class, argument: value}",
        affects=TRAINING,
    )  # fmt: skip
