"""The schema of the whole configuration.

Each key is a dataclass field with type, default, unit and doc; `conf/` only composes values for it. Hydra checks types,
`esc_lab.config.checks` the rest. This module imports neither torch nor Hydra.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf._utils import OmegaConfDumper

from esc_lab.config.arena import ArenaConfig
from esc_lab.config.chat import ChatConfig
from esc_lab.config.compare import CompareConfig, JudgingConfig
from esc_lab.config.converse import CardsConfig, ConverseConfig
from esc_lab.config.convert import ConvertConfig, LookConfig
from esc_lab.config.data import DataConfig, InventoryConfig
from esc_lab.config.evaluate import ClassifierConfig, EvaluateConfig, SRAStudyConfig
from esc_lab.config.export import ExportConfig
from esc_lab.config.extend import ExtendConfig
from esc_lab.config.item import (
    COUNT,
    LOOKS,
    PLACE,
    TRAINING,
    TRAININGS,
    Key,
    item,
    keys_of,
    looks,
    results,
    section,
)
from esc_lab.config.model import ENDPOINT, ModelConfig
from esc_lab.config.pipeline import PipelineConfig
from esc_lab.config.prompt import PromptConfig, collect_seeker_words, fill_layouts, find_layout
from esc_lab.config.reward import RewardConfig
from esc_lab.config.search import ASKED, LLMConfig, MCTSConfig, SearchConfig
from esc_lab.config.survey import SurveyConfig
from esc_lab.config.tracking import DashboardConfig, LoggerConfig
from esc_lab.config.training import AdapterConfig, ObjectiveConfig, OptimizerConfig, SchedulerConfig, TrainerConfig

STAGES: Mapping[str, str] = {
    "data": "look at a corpus before anything is trained: counts, labels, lengths, what would be dropped, prompts",
    "convert": "write a corpus of any form as esc-lab's own format, or as ESC-Pro",
    "sft": "fine-tune a model on the supporter turns of the training dialogues, or on the seekers' (data.side=seeker)",
    "cso": "optimise a model on preference pairs (Chain of Strategy Optimization, or another objective)",
    "evaluate": "score a model or run: strategy choice, preference bias, text overlap, perplexity",
    "judge": "have a language model judge replies of evaluations, or whole talks, by a rubric or in pairs",
    "survey": "ask people about replies: make blinded questionnaires from evaluations, or read what raters gave back",
    "compare": "compare runs: one table with intervals and tests, figures, and a report (HTML)",
    "dashboard": "lay out the comparison of a W&B project's runs as a workspace",
    "export": "write a plain model directory with its card, or dialogues as files of other tools; push it to the hub",
    "search": "search for good strategies from seed dialogues (MCTS): builds preference data, ESC-Pro",
    "extend": "continue dialogues from random places, with strategies that prompts name: data of steerable models",
    "cards": "make cards of simulated seekers from the situations of a corpus, by rule or by a model",
    "converse": "have a model talk with simulated seekers, whole conversations: the arena",
    "chat": "talk to a model yourself, as the seeker, or to two side by side: in the terminal or the browser",
    "arena": "whole talks of a model as it came, after SFT, after CSO and steerable, with the same seekers, compared",
    "pipeline": "train, search, optimise (pipeline.stages): build preference data, train and evaluate, then compare",
    "classifier": "train a classifier that tells the strategy of a reply: the judge of strategy adherence",
    "reward": "train a reward model: a score of a reply in its dialogue, learned from comparisons with other replies",
    "sra": "studies of Strategy-Relevant Attention: evaluations side by side, their tables and figures",
    "planted_preference": "check that cso learns what its pairs say: dialogues with known strategy utilities",
}

# Stages that can go on where an earlier run of them ended.
RESUMED = (*TRAININGS, "pipeline", "search", "extend", "cards", "converse", "chat", "judge")


def can_resume(cfg: Config | DictConfig) -> bool:
    """Whether the stage of a configuration can: of evaluations those whose replies an endpoint writes."""
    return cfg.stage in RESUMED or (cfg.stage == "evaluate" and cfg.model.source == ENDPOINT)


def is_dry_run(cfg: Config | DictConfig) -> bool:
    """Whether the stage is only to say what it would take: it leaves nothing then."""
    return bool(cfg.stage == "search" and cfg.search.dry_run)


# Keys that were renamed, old name -> new, and values of choices, `key=old` -> `key=new` (with the key's name of today).
# Configurations of older runs are read with it; on a command line an old name is refused with the new one as its hint.
RENAMED: Mapping[str, str] = {
    # data, prompt, inventory
    # training
    # evaluate, sra
    "evaluate.least_turns": "evaluate.min_turns",
    "evaluate.replies=given": "evaluate.replies=gold",
    # mcts, search, llm
    "mcts.enough_iterations": "mcts.min_iterations",
    "mcts.enough_ended": "mcts.min_ended",
    "mcts.most_ended": "mcts.max_ended",
    "mcts.most_iterations": "mcts.max_iterations",
    # judge, compare
    "judge.least_auc": "judge.min_auc",
    # all others
}


@dataclass
class PlantedConfig:
    pairs: int = item(600, "preference pairs of a training", within=COUNT)
    held_out: int = item(300, "supporter turns that what was learned is measured at", within=COUNT)
    seeds: int = item(3, "trainings of each order of the pairs, from seed upwards", within=COUNT)


@dataclass
class Config:
    """Root of the configuration."""

    stage: str = item(MISSING, "what to do", choices=tuple(STAGES), affects=results(*STAGES))
    seed: int = item(
        1,
        "seed of everything random; each draw derives its own from it",
        within=(0, 2**32 - 1),
        affects=results(*TRAININGS, "evaluate", "chat", "judge", "survey", "compare", "planted_preference"),
    )
    checkpoint: str | None = item(
        None,
        "run directory (or adapter/model directory) to evaluate, converse or chat with, or export",
        path=True,
        affects=results("evaluate", "converse", "chat", "export"),
    )
    init_from: str | None = item(
        None, "run directory (or adapter/model directory) that training starts from; in cso also the reference",
        path=True, affects=results("sft", "cso"))  # fmt: skip
    resume: str | None = item(
        None,
        "go on with an interrupted training, search, extend, converse, chat, judge or evaluation of an endpoint: its "
        "run directory, or auto = the one of this configuration below output_root that is furthest (of chats the "
        "last), if there is any",
        affects=PLACE,
    )
    reuse: bool = item(
        True, "take results that were computed before from cache_dir instead of computing them again", affects=PLACE
    )
    experiment: str | None = item(None, "name of the experiment config in use", affects=LOOKS)
    tags: list[str] = item([], "W&B tags", affects=LOOKS)
    model: ModelConfig = section(ModelConfig, results(*TRAININGS, "data", "evaluate", "converse", "chat", "export"))
    adapter: AdapterConfig = section(AdapterConfig, TRAINING)
    data: DataConfig = section(DataConfig, results(*ASKED, *TRAININGS, "evaluate", "data", "convert", "export"))
    look: LookConfig = section(LookConfig, results("data"))
    convert: ConvertConfig = section(ConvertConfig, results("convert"))
    inventory: InventoryConfig = section(
        InventoryConfig, results(*ASKED, "chat", *TRAININGS, "evaluate", "data", "convert", "export")
    )
    prompt: PromptConfig = section(
        PromptConfig, results("data", "sft", "cso", "reward", "evaluate", "converse", "chat")
    )
    objective: ObjectiveConfig = section(ObjectiveConfig, results("cso"))
    optimizer: OptimizerConfig = section(OptimizerConfig, TRAINING)
    scheduler: SchedulerConfig = section(SchedulerConfig, TRAINING)
    trainer: TrainerConfig = section(TrainerConfig, results(*TRAININGS, "evaluate"))
    logger: LoggerConfig = section(LoggerConfig, PLACE)
    evaluate: EvaluateConfig = section(EvaluateConfig, results("evaluate", "chat"))
    compare: CompareConfig = section(CompareConfig, results("compare"))
    export: ExportConfig = section(ExportConfig, results("export"))
    sra: SRAStudyConfig = section(SRAStudyConfig, results("sra"))
    dashboard: DashboardConfig = section(DashboardConfig, looks("dashboard"))
    planted: PlantedConfig = section(PlantedConfig, results("planted_preference"))
    classifier: ClassifierConfig = section(ClassifierConfig, results("classifier"))
    reward: RewardConfig = section(RewardConfig, results("reward"))
    mcts: MCTSConfig = section(MCTSConfig, results("search"))
    llm: LLMConfig = section(LLMConfig, results(*ASKED, "judge"))
    search: SearchConfig = section(SearchConfig, results("search"))
    extend: ExtendConfig = section(ExtendConfig, results("extend"))
    cards: CardsConfig = section(CardsConfig, results("cards", "converse"))
    converse: ConverseConfig = section(ConverseConfig, results("converse"))
    chat: ChatConfig = section(ChatConfig, results("chat"))
    arena: ArenaConfig = section(ArenaConfig, results("arena"))
    judge: JudgingConfig = section(JudgingConfig, results("judge"))
    survey: SurveyConfig = section(SurveyConfig, results("survey"))
    pipeline: PipelineConfig = section(PipelineConfig, results("pipeline"))
    optimize_metric: str | None = item(None, "metric that a job returns to a sweeper", affects=LOOKS)
    output_root: str = item("outputs", "directory of run directories", affects=PLACE)
    cache_dir: str = item(
        "${oc.env:ESC_LAB_CACHE,.cache}", "directory of converted models and other reusable results", affects=PLACE
    )
    config_dirs: list[str] = item(
        [], "directories of your own with options of groups, searched besides conf/ (--config-dir)", affects=PLACE
    )
    allow: list[str] = item([], "packages of your own whose classes `_target_` may name", affects=PLACE)
    run_dir: str = item("", "this run's directory, which is set for it", affects=PLACE)


def use_objective_schedule(cfg: Config) -> Config:
    """Optimizer steps and peak learning rate of a training as the objective has them, where it says."""
    objective, optimizer, trainer = cfg.objective, cfg.optimizer, cfg.trainer
    if objective.peak_lr is not None:
        optimizer = dataclasses.replace(optimizer, lr=objective.peak_lr)
    if objective.updates is not None:
        trainer = dataclasses.replace(trainer, max_epochs=-1, max_steps=objective.updates)
    return dataclasses.replace(cfg, optimizer=optimizer, trainer=trainer)


@cache
def keys() -> tuple[Key, ...]:
    """All leaf keys of the schema in declaration order."""
    return tuple(keys_of(Config))


@cache
def place_names() -> frozenset[str]:
    """Keys, and sections of nothing else, that only say where files and logs go."""
    kinds: dict[str, set[str]] = {}
    for key in keys():
        for name in (key.name, key.name.rpartition(".")[0]):
            kinds.setdefault(name, set()).add(key.affects.kind)
    return frozenset(name for name in kinds if name and kinds[name] == {PLACE.kind})


class ReplacedMapping(DictConfig):
    """A mapping that the next one takes the place of, as OmegaConf has it for lists, and does not join."""

    def _merge_with(self, *others: Any) -> None:
        for other in others:
            self.clear()
            super()._merge_with(other)

    def __deepcopy__(self, memo: dict[int, Any]) -> DictConfig:
        return _replaced(super().__deepcopy__(memo))


def _replaced(mapping: DictConfig) -> DictConfig:
    object.__setattr__(mapping, "__class__", ReplacedMapping)
    return mapping


@cache
def schema() -> DictConfig:
    """The schema as a config in which the keys of free dicts, and only those, may be added; to be read only.

    A free dict that a file or a word of the command line gives replaces the one before it; `KEY.NAME=value` changes one
    entry.
    """
    copied_once = "no_deepcopy_set_nodes"  # or each section would be, again, for each section that it is in
    node: DictConfig = OmegaConf.structured(Config, flags={copied_once: True})
    node._set_flag(copied_once, None)
    for key in keys():
        if key.free:
            OmegaConf.set_struct(_replaced(OmegaConf.select(node, key.name)), False)
    return node


def typed(cfg: DictConfig) -> Config:
    """The composed configuration as plain dataclasses, all interpolations resolved."""
    known = OmegaConf.get_type(cfg) is Config  # composed with the schema
    value = OmegaConf.to_object(cfg if known else OmegaConf.merge(schema(), cfg))
    assert isinstance(value, Config)
    fill_layouts(value.prompt, value.config_dirs)
    if value.stage in ("arena", "extend", "pipeline"):
        value.extend.layout = find_layout(value.extend.template, value.config_dirs, value.prompt)
    if value.data.side == "seeker":
        value.prompt.seeker = collect_seeker_words(value.prompt, value.llm.wording)
    return value


class ConfigDumper(getattr(yaml, "CDumper", yaml.Dumper)):  # type: ignore[misc]
    """OmegaConf's way to write YAML, in C: a configuration takes a quarter of the time."""


ConfigDumper.add_representer(str, OmegaConfDumper.str_representer)


def to_yaml(cfg: Config) -> str:
    """The text of config.yaml: as `OmegaConf.to_yaml` writes it, which would check every value again."""
    text: str = yaml.dump(
        dataclasses.asdict(cfg),
        Dumper=ConfigDumper,
        default_flow_style=False,
        allow_unicode=True,
        sort_keys=False,
    )
    return text
