"""What evaluations and studies of attention need of a configuration: problems that take more than one key to see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from esc_lab.config.model import ENDPOINT


def check_evaluation(cfg: DictConfig) -> Iterator[str]:
    """Of evaluations, whichever stage runs them."""
    generation = cfg.evaluate.generation
    if cfg.model.source == ENDPOINT:
        yield from _check_served(cfg)
    else:
        for name in (name for name in ("temperature", "top_p") if generation[name] is None):
            reason = "a model that is loaded here needs one"
            yield refuse(cfg, f"evaluate.generation.{name}", reason, "give a number")
    if cfg.evaluate.share_states and cfg.adapter.layers is None:
        reason = "adapters in all layers leave no states to share"
        yield refuse(cfg, "evaluate.share_states", reason, "leave it out, or give adapter.layers as in training")
    yield from check_classifier_choice(cfg, "evaluate.classifier")
    if cfg.stage == "pipeline":
        for key, group in (("evaluate.sra.enabled", "sra/"), ("evaluate.likelihood", "text/perplexity")):
            asked = [metric for metric in cfg.compare.metrics or () if metric.startswith(group)]
            if asked and not OmegaConf.select(cfg, key):
                reason = f"compare.metrics asks for {asked[0]}"
                yield refuse(cfg, key, reason, "leave it out, or compare.metrics=null")
    depths = [*generation.depths]
    if depths and not (len(depths) > 1 and depths[0] >= 0 and depths == sorted(set(depths))):
        reason = "two numbers of turns or more, ascending, are needed"
        yield refuse(cfg, "evaluate.generation.depths", reason, "[5,10,15,20], say")
    yield from _check_boost(cfg, [cfg.evaluate.boost.choice, cfg.evaluate.boost.matched])
    if cfg.prompt.inference == "best_of_n":
        yield from _check_best_of(cfg)
    elif generation.samples > 1:
        key = "evaluate.generation.samples"
        if cfg.evaluate.replies == "gold" or not generation.enabled:
            yield refuse(cfg, key, "no reply is written", "leave it out")
        elif generation.temperature == 0:
            fix = "evaluate.generation.temperature=0.7, or leave samples out"
            yield refuse(cfg, key, "at temperature 0 all samples are the same reply", fix)


# Settings of how weights are loaded, or of what is seen in them.
_WEIGHTS = (
    "checkpoint", "model.revision", "model.quantization", "model.chat_template", "model.context_tokens",
    "model.trust_remote_code",
)  # fmt: skip


def _check_served(cfg: DictConfig) -> Iterator[str]:
    """Of evaluations of a model at an endpoint: it writes replies, and nobody looks into it."""
    local = "model=directory, or another model whose weights are here"
    for key in (key for key in _WEIGHTS if OmegaConf.select(cfg, key)):
        yield refuse(
            cfg, key, "an endpoint has its own weights, context and chat template", f"leave it out, or {local}"
        )
    if cfg.evaluate.generation.no_repeat:
        yield refuse(cfg, "evaluate.generation.no_repeat", "an endpoint has no such setting", "leave it at 0")
    boost = cfg.evaluate.boost
    if boost.mode == "block" or boost.amount:
        key = "evaluate.boost.mode" if boost.mode == "block" else "evaluate.boost.amount"
        yield refuse(cfg, key, "attention at an endpoint cannot be reached", f"leave it out, or {local}")
    if cfg.evaluate.replies == "gold":
        yield refuse(cfg, "evaluate.replies", "an endpoint cannot measure attention on gold replies", "leave it out")
    if not cfg.evaluate.generation.enabled:
        reason = "an endpoint is measured by its replies alone"
        yield refuse(cfg, "evaluate.generation.enabled", reason, f"leave it out, or {local}")
    if cfg.prompt.inference == "best_of_n":
        reason = "replies are drawn and chosen beside the weights of the model"
        yield refuse(cfg, "prompt.inference", reason, f"another prompt.inference, or {local}")
    if cfg.trainer.devices not in ("auto", "1"):
        reason = "one process asks an endpoint, for several replies at a time"
        yield refuse(cfg, "trainer.devices", reason, "leave it out; see search.concurrency")
    yield from check_budget(cfg)


def check_budget(cfg: DictConfig) -> Iterator[str]:
    """Of a limit of what an endpoint may cost."""
    if cfg.search.budget.cost is not None and not any(cfg.llm.openai[name] for name in ("price_in", "price_out")):
        fix = "llm.openai.price_in and price_out, in dollars per million tokens"
        yield refuse(cfg, "search.budget.cost", "without prices every call costs 0", fix)


def check_weights(cfg: DictConfig) -> Iterator[str]:
    """Of stages that train the model, change it or look into it."""
    if cfg.model.source == ENDPOINT:
        fix = "model=directory, or another model whose weights are here; stage=evaluate takes endpoints"
        yield refuse(cfg, "model.source", f"stage={cfg.stage} needs the weights of the model", fix)


def check_classifier_choice(cfg: DictConfig, key: str) -> Iterator[str]:
    """Of a key that names a classifier of strategies."""
    if (choice := OmegaConf.select(cfg, key)) not in (None, "auto") and not Path(choice).is_dir():
        yield refuse(cfg, key, "no such directory", "name a run of stage=classifier, or use auto")


def _check_best_of(cfg: DictConfig) -> Iterator[str]:
    if not cfg.evaluate.best_of.reward:
        fix = "evaluate.best_of.reward=<run directory of a stage=reward>"
        yield f"prompt.inference=best_of_n needs a reward model that chooses. Fix: {fix}"
    if cfg.evaluate.replies == "gold" or not cfg.evaluate.generation.enabled:
        yield refuse(cfg, "prompt.inference", "no reply is written", "leave it out, or let replies be generated")


def _check_boost(cfg: DictConfig, choices: Sequence[str | None]) -> Iterator[str]:
    """A boost of attention in the heads of these choices."""
    boost = cfg.evaluate.boost
    if boost.mode == "share" and not 0 <= boost.amount < 1:
        yield refuse(cfg, "evaluate.boost.amount", "mode=share raises to a share below 1", "from 0 to below 1")
    unknown = not (boost.study and Path(boost.study).is_dir())
    for choice in (choice for choice in choices if choice in ("adherence", "attention") and unknown):
        fix = "evaluate.boost.study=<run directory of experiment=sra_heads>"
        yield f"heads of a boost by {choice}: no study that ranks them. Fix: {fix}"


def check_sra(cfg: DictConfig) -> Iterator[str]:
    """Of stage `sra`."""
    study = cfg.sra
    if study.study == "turns":
        yield from _check_talks(cfg)
    elif not study.templates:
        yield "sra.templates is empty. Fix: name one or more"
    if study.study == "finetuned" and len(study.templates) > 1:
        yield "sra.study=finetuned compares under one template. Fix: sra.templates=[standard]"
    if study.study == "lengths" and not all(length >= 1 for length in study.lengths or [0]):
        yield f"sra.lengths={study.lengths}: numbers of turns are needed, such as [1,5,9]"
    if study.study in ("boost", "ablate"):
        yield from _check_boost_study(cfg)
    if not cfg.evaluate.sra.enabled:
        yield refuse(cfg, "evaluate.sra.enabled", "stage=sra measures it", "leave it out")
    if cfg.evaluate.replies == "generated" and not cfg.evaluate.generation.enabled:
        yield refuse(cfg, "evaluate.generation.enabled", "no replies", "leave it out, or evaluate.replies=gold")


def _check_talks(cfg: DictConfig) -> Iterator[str]:
    runs = [Path(path) for path in cfg.sra.talks]
    if not runs:
        yield "sra.study=turns needs talks. Fix: sra.talks=[<run directory of stage=converse>,...]"
    for run in (run for run in runs if not (run / "talks.jsonl").exists()):
        yield f"sra.talks: {run} has no talks.jsonl. Fix: name run directories of stage=converse"
    if len({run.name for run in runs}) < len(runs):
        yield f"sra.talks={cfg.sra.talks}: runs are told apart by the names of their directories. Fix: rename one"
    if cfg.checkpoint is not None:
        yield refuse(cfg, "checkpoint", "the talks say which model held them", "leave it out")


def _check_boost_study(cfg: DictConfig) -> Iterator[str]:
    study, boost = cfg.sra, cfg.evaluate.boost
    for key in ("spans", "choices", *(["doses"] if study.study == "boost" else [])):
        if not study[key] or len(set(study[key])) < len(study[key]):
            yield f"sra.{key}={study[key]}: one or more are needed, each once. Fix: leave it out"
    if boost.amount:
        yield refuse(cfg, "evaluate.boost.amount", f"sra.study={study.study} sets it", "leave it out; see sra.doses")
    if boost.choice != "all":
        yield refuse(cfg, "evaluate.boost.choice", f"sra.study={study.study} sets it", "leave it out; see sra.choices")
    if boost.matched or boost.draw > 1:
        key = "evaluate.boost.matched" if boost.matched else "evaluate.boost.draw"
        yield refuse(cfg, key, f"sra.study={study.study} sets it", "leave it out; see sra.random_draws")
    if study.study == "boost":
        if boost.mode == "block":
            yield refuse(cfg, "evaluate.boost.mode", "what is blocked has no dose", "experiment=sra_ablate")
        if 0 in study.doses:
            yield f"sra.doses={study.doses}: 0 is there anyway. Fix: leave it out"
        if boost.mode == "share" and not all(0 < dose < 1 for dose in study.doses):
            yield f"sra.doses={study.doses}: shares are between 0 and 1. Fix: sra.doses=[0.1,0.2,0.4], say"
    yield from _check_boost(cfg, study.choices)


def refuse(cfg: DictConfig, key: str, reason: str, fix: str) -> str:
    """The message about the value of a key."""
    value = OmegaConf.select(cfg, key)
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    return f"{key}={shown}: {reason}. Fix: {fix}"


def check_chat(cfg: DictConfig) -> Iterator[str]:
    """Whether a person can talk with the models."""
    if cfg.model.source == ENDPOINT:
        yield refuse(cfg, "model.source", "a chat shows what happens in a model, so it is loaded here", "model=NAME")
    if cfg.prompt.inference != "direct":
        yield refuse(cfg, "prompt.inference", "a chat takes the first answer", "leave it out")
    against = cfg.chat.against
    if against not in (None, "base") and not Path(against).exists():
        yield f"chat.against={against}: no such run directory. Fix: check the path, or base = without a checkpoint"
    if cfg.chat.max_new_tokens > cfg.chat.cache_tokens // 2:
        yield refuse(cfg, "chat.max_new_tokens", f"no room for a talk in {cfg.chat.cache_tokens} tokens", "lower it")
