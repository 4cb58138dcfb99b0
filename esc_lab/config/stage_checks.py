"""What stages need of a configuration: problems that take more than one key to see, or a look at the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from esc_lab.config.evaluation_checks import (
    check_chat,
    check_classifier_choice,
    check_evaluation,
    check_sra,
    check_weights,
    refuse,
)
from esc_lab.config.export import check_export
from esc_lab.config.model import ENDPOINT
from esc_lab.config.pipeline import PIPELINE_ROLES
from esc_lab.config.reward import COMPARISONS
from esc_lab.config.role_checks import check_roles
from esc_lab.config.schema import can_resume
from esc_lab.config.search import ASKED, ROLES
from esc_lab.config.survey import survey_problems
from esc_lab.config.talk_checks import check_arena, check_cards, check_converse
from esc_lab.errors import nearest


def stage_problems(cfg: DictConfig) -> Iterator[str]:
    """What is wrong with the settings of the stage that is to run."""
    stage = OmegaConf.select(cfg, "stage")
    for check in _CHECKS.get(stage, ()):
        yield from check(cfg)
    if cfg.data.side == "seeker":
        yield from _check_seeker(cfg)
    if cfg.data.loss != "all_replies" and (cfg.data.side == "seeker" or stage in ("cso", "reward")):
        yield refuse(cfg, "data.loss", "it is for sft of a supporter, and for classifier", "leave it out")
    if cfg.data.balance_strategies and cfg.data.loss == "all_replies":
        yield refuse(cfg, "data.balance_strategies", "it draws last replies", "add data.loss=last_reply")
    if cfg.data.hub and stage not in ("convert", "data"):
        fix = "convert it, then data=jsonl data.path=FILE"
        yield refuse(cfg, "data.hub", "only stage=convert and stage=data read it", fix)
    if cfg.data.hub and cfg.data.path:
        yield refuse(cfg, "data.hub", "data.path names another source", "data=hub data.hub=owner/name")
    if cfg.resume is not None:
        yield from _check_resume(cfg)
    if cfg.trainer.strategy == "fsdp2":
        yield from _check_sharded(cfg)


def _check_compare(cfg: DictConfig) -> Iterator[str]:
    if not cfg.compare.runs and not cfg.compare.wandb:
        fix = "add compare.runs=[outputs/...,outputs/...], or compare.wandb=entity/project"
        yield f"stage=compare needs run directories. Fix: {fix}"
    for run in cfg.compare.runs:
        if not any(Path(run, name).exists() for name in ("config.yaml", "manifest.jsonl")):
            fix = "name directories of finished runs or multiruns"
            yield f"compare.runs: {run} holds no config.yaml and no manifest.jsonl: it is no run. Fix: {fix}"


def _check_training(cfg: DictConfig) -> Iterator[str]:
    if cfg.checkpoint is not None:
        yield refuse(cfg, "checkpoint", f"stage={cfg.stage} trains", "start from it with init_from=")


def _check_sharded(cfg: DictConfig) -> Iterator[str]:
    if cfg.stage == "evaluate":
        reason = "an evaluation has the whole model on each device"
        yield refuse(cfg, "trainer.strategy", reason, "trainer.strategy=ddp")
    elif cfg.stage not in ("sft", "cso"):
        yield refuse(cfg, "trainer.strategy", f"stage={cfg.stage} runs on one device", "use it in stage=sft and cso")
    if cfg.model.quantization:
        reason = "quantised weights cannot be parted over processes"
        yield refuse(cfg, "model.quantization", reason, "adapter=lora, or trainer.strategy=ddp")
    if cfg.trainer.precision == "16-mixed":
        fix = "trainer.precision=bf16-mixed, or trainer.strategy=ddp"
        yield refuse(cfg, "trainer.precision", "no scaling of gradients under trainer.strategy=fsdp2", fix)


def _check_seeker(cfg: DictConfig) -> Iterator[str]:
    if cfg.stage not in ("sft", "compare", "export", "dashboard"):
        yield refuse(cfg, "data.side", f"stage={cfg.stage} is about supporters", "leave it out")
    if cfg.data.strategy_weights or cfg.data.label_weight != 1:
        key = "strategy_weights" if cfg.data.strategy_weights else "label_weight"
        yield f"data.{key}: a seeker's turns have no strategy. Fix: leave it out"


def _check_pipeline(cfg: DictConfig) -> Iterator[str]:
    if cfg.search.dry_run:
        yield refuse(cfg, "search.dry_run", "it is of a search alone", "stage=search, with the same settings")
    stages = list(cfg.pipeline.stages)
    allowed = ("reward", "extend", "classifier", "sft", "seeker", "search", "extra_sft", "cso")
    if len(set(stages)) < len(stages) or not set(stages) <= set(allowed) or "cso" in stages[:-1]:
        yield f"pipeline.stages={stages}: choose of {', '.join(allowed)}, each once, cso as the last"
        return
    before = stages[: stages.index("search")] if "search" in stages else []
    for step in (step for step in ("reward", "seeker") if step in stages):
        [(role, client)] = PIPELINE_ROLES[step]
        if step not in before:
            yield f"pipeline.stages={stages}: what {step} trains plays in a search. Fix: name search after it"
        elif cfg.llm[role].client != client:
            reason = f"pipeline.stages trains one for the search ({step}), where it does not play"
            yield refuse(cfg, f"llm.{role}.client", reason, f"llm.{role}.client={client}")
    if cfg.pipeline.rounds > 1:
        yield from _check_rounds(cfg)
    if "extend" in stages:
        yield from _check_extend(cfg)
        if "search" in stages or "cso" in stages:
            yield f"pipeline.stages={stages}: extend leaves no pairs. Fix: leave search and cso out, or extend"
    for step in (step for step in ("extend", "classifier") if step in stages and "sft" in stages):
        if stages.index(step) > stages.index("sft"):
            yield f"pipeline.stages={stages}: sft is done without {step}. Fix: name {step} before it"
    if "search" in stages:
        filled = _fill_checkpoints(cfg, before)
        yield from _check_search(filled)
        base, local = cfg.model, cfg.llm.local.model
        if filled != cfg and (base.source, base.path) != (local.source, local.path):
            reason = f"what is trained before the search is of model.path={base.path}, and plays on the same weights"
            yield refuse(cfg, "llm.local.model.path", reason, "model@llm.local.model=NAME, the one of model=NAME")
    if "extra_sft" in stages and ("sft" not in stages[: stages.index("extra_sft")] or cfg.objective.updates is None):
        fix = "[sft,extra_sft] with objective.updates=NUMBER"
        yield f"pipeline.stages={stages}: extra_sft goes on from sft, for as many steps as cso has. Fix: {fix}"
    if cfg.trainer.devices not in ("auto", "1"):
        fix = "run stage=sft on several, then stage=evaluate on several"
        yield refuse(cfg, "trainer.devices", "stage=pipeline runs on one device", fix)
    yield from check_evaluation(cfg)


def _check_rounds(cfg: DictConfig) -> Iterator[str]:
    stages, rounds = list(cfg.pipeline.stages), cfg.pipeline.rounds
    if stages[-2:] != ["search", "cso"] or "sft" not in stages:
        reason = f"rounds search with what was trained, and train on it; pipeline.stages={stages}"
        yield refuse(cfg, "pipeline.rounds", reason, "pipeline.stages=[reward,sft,seeker,search,cso] (pairs=trained)")
    roles = PIPELINE_ROLES["sft"]
    if not any(cfg.llm[role].client == client and not cfg.llm[role].checkpoint for role, client in roles):
        reason = "no role of the search is played by the policy of the round before"
        yield refuse(cfg, "pipeline.rounds", reason, "llm=policy llm.supporter.checkpoint=null")
    for key in ("search.seeds", "objective.updates"):
        value = OmegaConf.select(cfg, key)
        if value is None and key == "search.seeds":
            yield refuse(cfg, key, "rounds share the seeds", f"search.seeds=NUMBER, {rounds} at least")
        elif value is not None and value < rounds:
            yield refuse(cfg, key, f"{rounds} rounds share them, one each at least", f"{key}={rounds}, or fewer rounds")


def _fill_checkpoints(cfg: DictConfig, steps: Sequence[str]) -> DictConfig:
    """The configuration with a name as the checkpoint of each role that plays with what these steps will train."""
    filled = cfg.copy()
    for step in steps:
        for role, client in PIPELINE_ROLES.get(step, ()):
            if cfg.llm[role].client == client and not cfg.llm[role].checkpoint:
                filled.llm[role].checkpoint = step
    return filled


def _check_search(cfg: DictConfig) -> Iterator[str]:
    yield from check_roles(cfg, ROLES)
    rule = cfg.mcts.preferences
    if rule.threshold == "quantile" and not (0 <= rule.preferred_min <= 1 and 0 <= rule.rejected_max <= 1):
        limits = f"preferred_min={rule.preferred_min}, rejected_max={rule.rejected_max}"
        fix = "threshold=absolute, or other limits"
        yield f"mcts.preferences: quantiles are from 0 to 1; {limits}. Fix: {fix}"
    if cfg.data.negatives != "recorded":
        yield refuse(cfg, "data.negatives", "the search finds the rejected replies", "leave it out")


def _check_extend(cfg: DictConfig) -> Iterator[str]:
    settings, strategies = cfg.extend, len(cfg.inventory.strategies)
    if not settings.splits:
        yield "extend.splits is empty. Fix: name one or more of train, val, test"
    if settings.min_turns > settings.max_turns:
        yield refuse(cfg, "extend.min_turns", f"above extend.max_turns={settings.max_turns}", "lower it")
    if settings.source == "corpus":
        yield from check_classifier_choice(cfg, "extend.classifier")
        return
    if (settings.number or 0) > strategies:
        yield refuse(cfg, "extend.number", f"the inventory {cfg.inventory.name} has {strategies}", "lower it")
    if settings.number == 0 and settings.unconditional == 0:
        yield refuse(cfg, "extend.number", "nothing would be written", "extend.unconditional=1, or some strategies")
    if settings.examples and not cfg.inventory.examples:
        fix = "extend.examples=0, or write examples into the inventory"
        yield refuse(cfg, "extend.examples", f"the inventory {cfg.inventory.name} has none", fix)
    yield from check_classifier_choice(cfg, "extend.classifier")
    yield from check_roles(cfg, ASKED["extend"])


def _check_arena_trainings(cfg: DictConfig) -> Iterator[str]:
    if "cso" not in cfg.arena.supporters or cfg.arena.cso:
        return
    stages = list(cfg.pipeline.stages)
    if not {"sft", "cso"} <= set(stages):
        fix = "pipeline.stages=[search,sft,cso], or arena.sft=RUN arena.cso=RUN"
        yield f"pipeline.stages={stages}: arena.sft and arena.cso are not named, and it does not train both. Fix: {fix}"
    yield from _check_pipeline(cfg)


def _check_judge(cfg: DictConfig) -> Iterator[str]:
    settings = cfg.judge
    if not settings.runs:
        fix = "add judge.runs=[outputs/...,outputs/...]"
        yield f"stage=judge needs run directories of evaluations, or of stage=converse. Fix: {fix}"
    for run in settings.runs:
        if not Path(run).is_dir():
            yield f"judge.runs: {run}: no such directory. Fix: name run directories of stage=evaluate or stage=converse"
    if not (settings.rubric or settings.pairwise or settings.intensity):
        yield "judge.rubric=false and judge.pairwise=false: nothing is judged. Fix: leave one of them out"
    if settings.pairwise and settings.question == "adherence" and cfg.llm.judge.client == "reward":
        reason = "a reward model knows which reply is better, not which follows a strategy"
        yield refuse(cfg, "judge.question", reason, "judge.question=help, or another llm.judge.client")
    yield from check_roles(cfg, ("judge",))


def _check_classifier(cfg: DictConfig) -> Iterator[str]:
    for name in ("checkpoint", "init_from"):
        if cfg[name] is not None:
            reason = "a classifier starts from a base model, so that it judges all runs alike"
            fix = "leave it out, or name the directory of an exported model with model=directory"
            yield refuse(cfg, name, reason, fix)
    if cfg.model.quantization:
        reason = "a classifier is trained on weights that are not quantised"
        yield refuse(cfg, "model.quantization", reason, "model.quantization=null")
    if cfg.model.trust_remote_code:
        reason = "a classifier runs no code that ships with a model"
        yield refuse(cfg, "model.trust_remote_code", reason, "choose another model, or leave it at false")
    if cfg.data.strategy_weights:
        yield "data.strategy_weights: stage=classifier weighs all replies alike. Fix: leave it out"
    if cfg.trainer.devices not in ("auto", "1"):
        yield refuse(cfg, "trainer.devices", "stage=classifier runs on one device", "leave it out")


def _check_reward(cfg: DictConfig) -> Iterator[str]:
    for name in ("checkpoint", "init_from"):
        if cfg[name] is not None:
            reason = "a reward model starts from a base model, so that it judges all runs alike"
            fix = "leave it out, or name the directory of an exported model with model=directory"
            yield refuse(cfg, name, reason, fix)
    if cfg.adapter.kind == "full":
        reason = "a reward model is an adapter and a head, so that other roles can share its base model"
        yield refuse(cfg, "adapter.kind", reason, "adapter=lora")
    if cfg.trainer.devices not in ("auto", "1"):
        yield refuse(cfg, "trainer.devices", "stage=reward runs on one device", "leave it out")
    kinds = cfg.reward.kinds
    for name in (name for name in kinds if name not in COMPARISONS):
        yield f"reward.kinds: no kind '{name}'{nearest(name, COMPARISONS)}. Fix: choose of {', '.join(COMPARISONS)}"
    if any(share < 0 for share in kinds.values()) or not any(share > 0 for share in kinds.values()):
        yield f"reward.kinds={kinds}: shares are from 0, and one at least above it. Fix: {{same_dialogue: 1}}, say"
    if cfg.reward.strategy_share and not kinds.get("strategy"):
        share = f"reward.strategy_share={cfg.reward.strategy_share:g}"
        yield f"{share}: strategies alone are not compared. Fix: reward=strategy_fit, or kind strategy in reward.kinds"
    if kinds.get("own_reply", 0) > 0 and cfg.data.negatives == "recorded":
        reason = "kind own_reply compares with what the model writes"
        yield refuse(cfg, "data.negatives", reason, "data.negatives=random, or gold_contrast")
    replies = (1 + cfg.reward.foils + (kinds.get("strategy", 0) > 0)) * cfg.reward.reply_tokens
    if cfg.data.row_tokens <= replies:
        fix = "raise it, or lower reward.reply_tokens"
        yield refuse(cfg, "data.row_tokens", f"{replies} tokens of replies leave no room for a history", fix)


def _check_resume(cfg: DictConfig) -> Iterator[str]:
    if not can_resume(cfg):
        yield refuse(cfg, "resume", f"stage={cfg.stage} trains nothing", "leave it out")
    if cfg.trainer.fast_dev_run:
        yield refuse(cfg, "resume", "a dry run goes on from nothing", "trainer.fast_dev_run=false")
    journals = {"search": ["trees/*.journal.jsonl"], "extend": ["contexts/*.journal.jsonl"]}
    talks = {
        "converse": ["talks/*.journal.jsonl"], "cards": ["cards/*.journal.jsonl"], "chat": ["chat.json"],
    }  # fmt: skip
    one = {"judge": ["judge.journal.jsonl", "talk_pairs.journal.jsonl"], "evaluate": ["replies.journal.jsonl"]}
    places = {**journals, **talks, **one}.get(cfg.stage, ["checkpoints/last.ckpt"])
    if cfg.stage == "pipeline":
        places = [f"{step}{place}" for step in ("", "*/") for place in (*chain(*journals.values()), *places)]
    if cfg.resume != "auto" and not any(True for place in places for _ in Path(cfg.resume).glob(place)):
        reason = (
            f"no {' or '.join(places)} there: not such a run, or a training that has finished or did not come to its "
            "first checkpoint"
        )
        yield refuse(cfg, "resume", reason, "resume=auto, or name another run directory")


def _check_convert(cfg: DictConfig) -> Iterator[str]:
    data = cfg.data
    target = cfg.convert.path
    if target and data.path and os.path.exists(target) and os.path.samefile(target, data.path):
        yield refuse(cfg, "convert.path", "that is the corpus itself", "name another file")


def _check_look(cfg: DictConfig) -> Iterator[str]:
    if cfg.model.source == ENDPOINT:
        yield refuse(cfg, "model.source", "an endpoint has no tokenizer here", "name the model to be trained")


_CHECKS: Mapping[str, Sequence[Callable[[DictConfig], Iterator[str]]]] = {
    "data": (_check_look,),
    "convert": (_check_convert,),
    "sft": (check_weights, _check_training),
    "cso": (check_weights, _check_training),
    "classifier": (check_weights, _check_classifier),
    "reward": (check_weights, _check_reward),
    "search": (_check_search,),
    "extend": (_check_extend,),
    "arena": (check_arena, _check_arena_trainings),
    "cards": (check_cards,),
    "converse": (check_converse,),
    "chat": (check_chat,),
    "pipeline": (check_weights, _check_pipeline),
    "evaluate": (check_evaluation,),
    "sra": (check_weights, check_evaluation, check_sra),
    "judge": (_check_judge,),
    "survey": (survey_problems,),
    "compare": (_check_compare,),
    "export": (check_export,),
    "planted_preference": (check_weights,),
}
