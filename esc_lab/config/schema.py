"""The schema of the whole configuration.

Each key is a dataclass field with type, default, unit and doc; `conf/` only composes values for it. Hydra checks types,
`esc_lab.config.checks` the rest. This module imports neither torch nor Hydra.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf

from esc_lab.config.evaluate import TEMPLATES, ClassifierConfig, EvaluateConfig, SRAStudyConfig
from esc_lab.config.item import COUNT, FROM_ZERO, item
from esc_lab.config.judge import JudgingConfig
from esc_lab.config.model import ModelConfig
from esc_lab.config.search import LLMConfig, MCTSConfig, SearchConfig
from esc_lab.config.training import AdapterConfig, ObjectiveConfig, OptimizerConfig, SchedulerConfig, TrainerConfig

STAGES: Mapping[str, str] = {
    "sft": "fine-tune a model on the supporter turns of the training dialogues",
    "cso": "optimise a model on preference pairs (Chain of Strategy Optimization, or another objective)",
    "evaluate": "score a model or run: strategy choice, preference bias, text overlap, perplexity",
    "judge": "have a language model judge the replies of evaluations: by a rubric, and in pairs against a baseline",
    "compare": "compare runs: one table with intervals and tests, figures, and a report (HTML)",
    "dashboard": "lay out the comparison of a W&B project's runs as a workspace",
    "export": "merge an adapter into a plain model directory with a model card",
    "search": "search for good strategies from seed dialogues (MCTS): builds preference data, ESC-Pro",
    "pipeline": "search, sft, cso: build preference data, train and evaluate, then compare",
    "classifier": "train a classifier that tells the strategy of a reply: the judge of strategy adherence",
    "sra": "studies of Strategy-Relevant Attention: evaluations side by side, their tables and figures",
    "planted_preference": "check that cso learns what its pairs say: dialogues with known strategy utilities",
}

TRAININGS = ("sft", "cso", "classifier")
RESUMED = (*TRAININGS, "pipeline", "search", "judge")  # stages that can go on where an earlier run of them ended

SPLITS = ("train", "val", "test")

# Keys that were renamed, old name -> new, and values of choices, `key=old` -> `key=new` (with the key's name of today).
# Configurations of older runs are read with it; on a command line an old name is refused with the new one as its hint.
RENAMED: Mapping[str, str] = {
    # data, prompt, inventory
    # training
    # evaluate, sra
    # mcts, search, llm
    # judge, compare
    # all others
}


@dataclass
class DataConfig:
    name: str = item(MISSING, "short name of the corpus, used in run names")
    path: str | None = item(
        MISSING, "file, or directory with train/valid/test files; null = the sample corpus", path=True
    )
    format: str = item(
        "auto",
        "record format; auto looks at the first record",
        choices=("auto", "esconv", "extes", "esc_pro", "jsonl"),
    )
    licence: str | None = item(None, "licence of the corpus, for data cards; null = not stated")
    merge: str = item("set", "join consecutive supporter turns: keep apart, label of the first, set of labels",
                      choices=("none", "first", "set"))  # fmt: skip
    split: str = item(
        "auto",
        "published = the files of a directory; proportion = by tree_id; auto = published for a directory",
        choices=("auto", "published", "proportion"),
    )
    proportions: dict[str, float] = item({"train": 0.8, "val": 0.1, "test": 0.1}, "share of the trees in each split")
    split_seed: int = item(0, "seed of the proportional split, apart from the run's seed")
    limit: dict[str, int] = item({}, "keep the first n dialogues of a split, e.g. {test: 20}")
    row_tokens: int = item(2048, "token budget of one packed row", within=(16, math.inf))
    step_dialogues: int = item(8, "dialogues in one optimizer step of sft", within=COUNT)
    step_pairs: int = item(32, "preference pairs (KTO: replies) in one optimizer step of cso", within=COUNT)
    seed_fraction: float = item(1.0, "share of the training trees that is used, nested: for scaling curves",
                                within=(1e-6, 1))  # fmt: skip
    negatives: str = item(
        "recorded",
        "rejected replies of cso: those of the records, or the model's own replies under its most probable wrong "
        "strategies (gold_contrast, no CSO) or under random other ones",
        choices=("recorded", "gold_contrast", "random"),
    )
    negatives_per_turn: int = item(3, "rejected replies that the model writes for each supporter turn", within=COUNT)
    negatives_tokens: int = item(64, "longest reply that the model writes, in tokens", within=COUNT)
    negatives_temperature: float = item(0.0, "sampling temperature of these replies; 0 = greedy", within=FROM_ZERO)
    strategy_weights: dict[str, float] = item({}, "loss weight of replies per strategy; 1 where not named")


@dataclass
class InventoryConfig:
    name: str = item("esconv", "strategies that are modelled; a corpus with other labels is mapped onto them",
                     choices=("esconv", "cso", "extes", "extes_sra"))  # fmt: skip


@dataclass
class TemplateConfig:
    template: str = item("cso", "prompt layout (docs/prompts.md)", choices=TEMPLATES)
    history_labels: bool = item(True, "show '(strategy)' before the supporter turns of the history")
    situation: bool = item(False, "show the seeker's situation in the system message")


@dataclass
class PromptConfig:
    train: TemplateConfig = field(default_factory=TemplateConfig)
    eval: TemplateConfig = field(default_factory=TemplateConfig)
    inference: str = item(
        "direct",
        "prompting baseline used at evaluation",
        choices=("direct", "cot", "direct_refine", "self_refine", "with_example"),
    )


@dataclass
class LoggerConfig:
    name: str = item("wandb", "where metrics go, besides metrics.json", choices=("wandb", "csv", "none"))
    project: str = item("esc-lab", "W&B project")
    entity: str | None = item(None, "W&B team or user")
    mode: str = item("offline", "W&B mode; offline needs no account, `wandb sync` uploads later",
                     choices=("offline", "online", "disabled"))  # fmt: skip
    group: str | None = item(
        None, "W&B group; null = the experiment, else the directory of the multirun or pipeline that the run is part of"
    )
    artifacts: list[str] = item(
        ["adapter", "esc_pro", "evaluation"],
        "artifacts that W&B gets with their files; of the others it gets names and checksums",
        choices=("adapter", "model", "classifier", "esc_pro", "corpus", "evaluation"),
    )


@dataclass
class PipelineConfig:
    stages: list[str] = item(
        ["search", "sft", "cso"],
        "what is done before the comparison; without search it trains on the rejected replies that data brings along",
    )


@dataclass
class CompareConfig:
    runs: list[str] = item([], "what is compared: directories of runs, of pipelines, of multiruns")
    wandb: str | None = item(None, "W&B project (entity/project) whose finished evaluations are compared too")
    wandb_groups: list[str] = item([], "only evaluations of these W&B groups; empty = of all")
    baseline: str | None = item(
        None,
        "what differences are to: a method (base, SFT, ...), each model's own, or one row of the table; null = base, "
        "else the first",
    )
    primary: str = item("strategy/Q", "the one metric whose p-values need no correction; Holm's is for all others")
    metrics: list[str] | None = item(None, "metrics of the table; null = all that it knows and the runs have")
    draws: int = item(10_000, "draws of the bootstrap and the permutation test", within=COUNT)


@dataclass
class DashboardConfig:
    name: str = item("Comparison of strategies", "name of the W&B workspace")
    parameters: list[str] = item(
        ["model.name", "method", "objective.name", "objective.beta", "adapter.r", "optimizer.lr", "seed"],
        "settings of the runs that its parallel coordinates show",
    )


@dataclass
class PlantedConfig:
    pairs: int = item(600, "preference pairs of a training", within=COUNT)
    held_out: int = item(300, "supporter turns that what was learned is measured at", within=COUNT)
    seeds: int = item(3, "trainings of each order of the pairs, from seed upwards", within=COUNT)


@dataclass
class ExportConfig:
    directory: str | None = item(None, "where the merged model goes; null = <run directory>/model")


@dataclass
class Config:
    """Root of the configuration."""

    stage: str = item(MISSING, "what to do", choices=tuple(STAGES))
    seed: int = item(1, "seed of everything random; each draw derives its own from it", within=(0, 2**32 - 1))
    checkpoint: str | None = item(None, "run directory (or adapter/model directory) to evaluate or export", path=True)
    init_from: str | None = item(
        None, "run directory (or adapter/model directory) that training starts from; in cso also the reference",
        path=True,
    )  # fmt: skip
    resume: str | None = item(
        None,
        "go on with an interrupted training, search or judge: its run directory, or auto = the one of this "
        "configuration below output_root that is furthest, if there is any",
    )
    reuse: bool = item(True, "take results that were computed before from cache_dir instead of computing them again")
    experiment: str | None = item(None, "name of the experiment config in use")
    tags: list[str] = item([], "W&B tags")
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    inventory: InventoryConfig = field(default_factory=InventoryConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    sra: SRAStudyConfig = field(default_factory=SRAStudyConfig)
    dashboard: DashboardConfig = field(default_factory=DashboardConfig)
    planted: PlantedConfig = field(default_factory=PlantedConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    mcts: MCTSConfig = field(default_factory=MCTSConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    judge: JudgingConfig = field(default_factory=JudgingConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    optimize_metric: str | None = item(None, "metric that run.py returns to a sweeper")
    output_root: str = item("outputs", "directory of run directories")
    cache_dir: str = item("${oc.env:ESC_LAB_CACHE,.cache}", "directory of converted models and other reusable results")
    run_dir: str = item("", "this run's directory; set by run.py")


@dataclass(frozen=True)
class Key:
    """One key of the schema: dotted name, type, default and doc."""

    name: str
    type: str
    default: Any
    doc: str
    choices: tuple[str, ...]
    within: tuple[float, float]
    path: bool
    free: bool  # a dict whose keys are the user's own


@cache
def keys() -> tuple[Key, ...]:
    """All leaf keys of the schema in declaration order."""
    return tuple(_keys(Config, ""))


def _keys(node: type, prefix: str) -> Iterator[Key]:
    hints = get_type_hints(node)
    for entry in dataclasses.fields(node):
        kind = hints[entry.name]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from _keys(kind, f"{prefix}{entry.name}.")
            continue
        default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        label = " | ".join(getattr(part, "__name__", str(part)) for part in get_args(kind)) if get_args(kind) else ""
        free = str(kind).startswith("dict")
        name = kind.__name__ if isinstance(kind, type) and not label else (str(kind) if free else label or str(kind))
        meta = entry.metadata
        yield Key(
            f"{prefix}{entry.name}", name, default, meta["doc"], meta["choices"], meta["within"], meta["path"], free
        )


def schema() -> DictConfig:
    """The schema as a config in which the keys of free dicts, and only those, may be added."""
    node: DictConfig = OmegaConf.structured(Config)
    for key in keys():
        if key.free:
            OmegaConf.set_struct(OmegaConf.select(node, key.name), False)
    return node


def typed(cfg: DictConfig) -> Config:
    """The composed configuration as plain dataclasses, all interpolations resolved."""
    plain = OmegaConf.merge(OmegaConf.structured(Config), cfg)
    value = OmegaConf.to_object(plain)
    assert isinstance(value, Config)
    return value
