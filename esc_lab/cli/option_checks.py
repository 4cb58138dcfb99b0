"""What is wrong with the options that are data: inventories and layouts. Told before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from esc_lab.config.compare import TalkPairsConfig
from esc_lab.config.evaluate import BoostConfig
from esc_lab.config.files import option_files
from esc_lab.config.item import TRAININGS
from esc_lab.config.model import ENDPOINT
from esc_lab.config.pipeline import list_steps
from esc_lab.config.prompt import PromptConfig, TemplateConfig, find_layout
from esc_lab.config.search import LLMConfig
from esc_lab.config.training import ObjectiveConfig
from esc_lab.data.strategies import Inventory, build_inventory, load_inventory
from esc_lab.errors import UserError, nearest
from esc_lab.evaluation.arena.card_writer import SLOTS
from esc_lab.evaluation.arena.persona import build_words
from esc_lab.judging.talk_pairs import build_talk_pair_prompts
from esc_lab.prompts import Layout, build_layout, check_wording
from esc_lab.search.role_prompts import build_role_prompts
from esc_lab.training.objectives import OBJECTIVES, objective_of

Section = dict[str, Any]
_CLOSED = ("strategy", "generated", "chance", "text", "val")  # families of metrics whose records name them all


def option_problems(cfg: DictConfig) -> list[str]:
    """Problems of the sections that a composed configuration has from files; each names its file."""
    plain: Section = OmegaConf.to_container(cfg, throw_on_missing=False)  # type: ignore[assignment]
    messages = []
    checks: tuple[Callable[[Section], None], ...] = (
        _check_inventory,
        _check_prompts,
        _check_roles,
        _check_persona,
        _check_talk_pairs,
        _check_objective,
        _check_metric,
    )
    for check in checks:
        try:
            check(plain)
        except UserError as error:
            messages.append(str(error))
    return messages


def _check_inventory(cfg: Section) -> None:
    section, config_dirs = cfg["inventory"], cfg["config_dirs"]
    files = option_files("inventory", config_dirs)
    file = files.get(section["name"])
    inventory = build_inventory(section, config_dirs, where=str(file or "inventory"))
    if file and load_inventory(inventory.name, config_dirs).names != inventory.names:
        fix = f"choose it with inventory={inventory.name}, or give these strategies a name of their own"
        raise UserError(f"the strategies are not those of {file}", where=f"inventory.name={inventory.name}", fix=fix)
    for source in inventory.mappings:
        if source in files:
            inventory.mapping_from(load_inventory(source, config_dirs))
    labels = cfg["data"]["inventory"]
    if labels is not None and labels not in files:
        what = f"no such inventory{nearest(labels, files)}"
        raise UserError(what, where=f"data.inventory={labels}", fix=f"use one of {', '.join(files)}")


def _check_objective(cfg: Section) -> None:
    section = cfg["objective"]
    if cfg["stage"] in ("cso", "pipeline") and section["name"] in OBJECTIVES:  # others are no choice of the key
        objective_of(ObjectiveConfig(name=section["name"], value_margin=section["value_margin"]))


def _check_metric(cfg: Section) -> None:
    """Whether a training, an evaluation or a pipeline can have the metric that a sweep is to look for."""
    name, stage = cfg["optimize_metric"], cfg["stage"]
    if not name or stage not in (*TRAININGS, "evaluate", "pipeline"):
        return
    from esc_lab.metrics.records import METRICS  # numpy comes with it

    pipeline = cfg["pipeline"]
    listed = list_steps(pipeline["stages"], pipeline["rounds"], pipeline["templates"])
    steps = [step.removeprefix("evaluate_") for step in listed if step.startswith("evaluate_")]
    steps = steps if stage == "pipeline" else []
    known = [f"{step}/{metric}" for step in steps for metric in METRICS] or [*METRICS]
    known = ["val/loss"] if stage in TRAININGS else known
    family = ["", *name.split("/")][-2]
    if name not in known and family in ("", *_CLOSED):
        ending = [metric for metric in known if metric.endswith(f"/{name}")]
        hint = nearest(name, ending, cutoff=0) or nearest(name, known)
        raise UserError(f"no such metric{hint}", where=f"optimize_metric={name}", fix="see metrics.json")


def _check_prompts(cfg: Section) -> None:
    stage, inference = cfg["stage"], cfg["prompt"]["inference"]
    train, evaluation = (
        _layout(cfg, f"prompt.{side}.template", cfg["prompt"][side]["template"]) for side in ("train", "eval")
    )
    baseline = evaluation.baseline(inference)
    if baseline.example and not cfg["inventory"]["example"]:
        fix = "add an example to it, or choose another prompt.inference"
        raise UserError(f"{cfg['inventory']['name']} has no example", where=f"prompt.inference={inference}", fix=fix)
    if stage in ("extend", "pipeline"):
        extended = cfg["extend"]["template"]
        if _layout(cfg, "extend.template", extended).chooses_strategy:
            fix = "use a layout that names it, such as c1_hf"
            raise UserError("its prompts name no strategy", where=f"extend.template={extended}", fix=fix)
        for name in cfg["pipeline"]["templates"] if stage == "pipeline" else ():
            _check_span(cfg, _layout(cfg, "pipeline.templates", name))
    if stage in ("arena", "converse"):
        _check_choice(cfg, evaluation)
    for name in cfg["chat"]["templates"] if stage == "chat" else ():
        _layout(cfg, "chat.templates", name)
    if stage == "arena":
        _check_named(cfg, cfg["arena"]["template"])
    prefers = stage == "cso" or (stage == "pipeline" and "cso" in cfg["pipeline"]["stages"])
    if prefers and not train.chooses_strategy:
        where, fix = f"prompt.train.template={train.name}", "prompt=cso, or `choice` for `instruction` in the layout"
        raise UserError("it names the strategy, so there is none to prefer", where=where, fix=fix)
    if stage in ("evaluate", "pipeline"):
        _check_span(cfg, evaluation)
        boost = cfg["evaluate"]["boost"]
        _check_boost(evaluation, [boost["span"]] if BoostConfig(**boost).active else [], "evaluate.boost.span")
    if stage != "sra":
        return
    if not baseline.answers_once:
        raise UserError("its reply is not one answer", where=f"prompt.inference={inference}", fix="direct")
    for name in cfg["sra"]["templates"]:
        if _layout(cfg, "sra.templates", name).chooses_strategy:
            raise UserError(f"'{name}' names no strategy", where="sra.templates", fix="use layouts that name it")
        layout, study = _layout(cfg, "sra.templates", name), cfg["sra"]
        _check_span(cfg, layout)
        _check_boost(layout, study["spans"] if study["study"] in ("boost", "ablate") else [], "sra.spans")


def _check_named(cfg: Section, template: str) -> None:
    """Whether a layout names the strategy where others choose it."""
    asked = {"steerable", "prompted"} & {*cfg["arena"]["supporters"]}
    if asked and _layout(cfg, "arena.template", template).chooses_strategy:
        what = "its prompts let the model choose"
        raise UserError(what, where=f"arena.template={template}", fix="arena.template=standard")


def _check_choice(cfg: Section, layout: Layout) -> None:
    """Whether it is said who chooses the strategies of a talk."""
    forced, where = cfg["converse"]["strategies"], f"prompt.eval.template={layout.name}"
    if not layout.chooses_strategy and not forced:
        fix = "converse.strategies=[NAME,...], or prompt=cso"
        raise UserError("its prompts name the strategy, and none is given", where=where, fix=fix)
    served = cfg["llm"]["supporter"]["client"] == "openai" or cfg["model"]["source"] == ENDPOINT
    if layout.chooses_strategy and forced and served:
        what = "the model chooses the strategy itself, and no endpoint can be held to a label"
        raise UserError(what, where=where, fix="prompt=standard, or no converse.strategies")


def _check_span(cfg: Section, layout: Layout) -> None:
    """Whether the words of a layout have the span of the strategy that attention is measured on."""
    span = cfg["evaluate"]["sra"]["span"]
    if cfg["evaluate"]["sra"]["enabled"] and span not in layout.strategy_spans:
        what = f"the template {layout.name} does not write a strategy like that"
        raise UserError(what, where=f"evaluate.sra.span={span}", fix=f"use {', '.join(layout.strategy_spans)}")


def _check_boost(layout: Layout, spans: Sequence[str], where: str) -> None:
    """Whether prompts of a layout have the spans that attention is boosted on."""
    for span in spans:
        if layout.chooses_strategy:
            what, fix = f"the template {layout.name} tells no strategy", "prompt=standard, or another that names it"
            raise UserError(what, where=f"{where}={span}", fix=fix)
        if span.startswith("neutral") and not all("{neutral}" in words["instruction"] for words in layout.wordings):
            what, fix = f"the template {layout.name} has no neutral instruction", "write {neutral} into its instruction"
            raise UserError(what, where=f"{where}={span}", fix=fix)


def _check_roles(cfg: Section) -> None:
    llm = LLMConfig(wording=cfg["llm"]["wording"])
    llm.judge.axes = cfg["llm"]["judge"]["axes"]
    build_role_prompts(Inventory("", ()), llm)


def _check_persona(cfg: Section) -> None:
    if cfg["stage"] in ("arena", "converse"):
        build_words(cfg["converse"]["wording"])
    if cfg["stage"] == "cards":
        check_wording(cfg["cards"]["wording"], SLOTS, "cards.wording")


def _check_talk_pairs(cfg: Section) -> None:
    if cfg["stage"] == "judge":
        settings = TalkPairsConfig(**{name: cfg["judge"]["talk_pairs"][name] for name in ("aspects", "wording")})
        build_talk_pair_prompts(settings, build_role_prompts(Inventory("", ()), LLMConfig()))


def _layout(cfg: Section, key: str, name: str) -> Layout:
    prompt = PromptConfig(**{name: cfg["prompt"][name] for name in ("layouts", "wording", "baselines")})
    try:
        return build_layout(TemplateConfig(name, layout=find_layout(name, cfg["config_dirs"], prompt)))
    except UserError as error:
        raise UserError(error.message, where=error.where or key, fix=error.fix) from error
