"""esc-lab in Python: compose and run what the command line runs, ask the model of a run, read what evaluations left.

>>> import esc_lab
>>> config = esc_lab.compose(["stage=evaluate", "model=tiny_llama", "data.limit={test: 2}"])
>>> config.model.name, config.data.limit
('tiny-llama', {'test': 2})

All of it raises `esc_lab.errors.UserError` where there is something that its user can mend, with the fix. Names of runs
may be `latest` or `latest:STAGE`, the newest finished run below `outputs/`.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from esc_lab import config as settings
from esc_lab.artifacts import READ_ERRORS
from esc_lab.cli.compositions import Composition, compose_config, use_config_dirs
from esc_lab.cli.latest import MULTIRUN, POLICIES, find_latest, name_latest_runs
from esc_lab.cli.option_checks import option_problems
from esc_lab.cli.overrides import check
from esc_lab.cli.run_models import name_model
from esc_lab.config import Config, InventoryConfig, TemplateConfig
from esc_lab.config.checks import problems
from esc_lab.config.model import ENDPOINT, ModelConfig
from esc_lab.errors import UserError, nearest
from esc_lab.metrics.predictions import read_predictions
from esc_lab.prompts.messages import Talk, build_talk
from esc_lab.prompts.trained import read_template
from esc_lab.runs.layout import PREDICTIONS, find_run, read_config
from esc_lab.terminal import PlainFormatter

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

    from esc_lab.evaluation.arena.chat_reply import Candidate, ChatModel, TokenAttention

_OF_THE_RUN = ("model", "inventory", "prompt", "checkpoint", "stage")


def compose(overrides: Sequence[str], config_dir: str | Path | None = None) -> Config:
    """The configuration that the words of a command line stand for, checked as the command line checks it.

    Its values may be changed before it is run. `config.run_dir` is where a run of it will be.

    Args:
        overrides: `key=value` and `group=option`, as after `esc-lab`.
        config_dir: a directory with options of your own, as `--config-dir` has it.

    Raises:
        UserError: something is wrong with it; all that can be told at once.
    """
    words = use_config_dirs(name_latest_runs(overrides), None if config_dir is None else str(config_dir))
    composition = compose_config(*check(name_model(words)))
    config = settings.typed(composition.cfg)
    config.run_dir = _name_directory(composition)
    return config


def _name_directory(composition: Composition) -> str:
    """The run directory, as Hydra would name it."""
    cfg = copy.deepcopy(composition.cfg)
    with open_dict(cfg):
        cfg.hydra = copy.deepcopy(composition.hydra)
    known: Any = HydraConfig.instance()
    before, known.cfg = known.cfg, cfg  # of a caller that is a Hydra application itself
    try:
        return str(cfg.hydra.run.dir)
    finally:
        known.cfg = before


def run(config: Config) -> dict[str, float]:
    """Run a stage, in `config.run_dir`, and return its metrics. It leaves there what a run of the command line leaves.

    Messages go to stderr, and to run.log.

    Raises:
        UserError: a value that was changed is wrong, or what the stage raises.
    """
    from esc_lab.stages.run_stage import run_substage

    cfg: Any = OmegaConf.merge(settings.schema(), OmegaConf.structured(config))
    wrong = problems(cfg) + option_problems(cfg)
    if wrong:
        raise UserError("\n  ".join([f"{len(wrong)} things are wrong:", *wrong] if len(wrong) > 1 else wrong))
    with _show_messages():
        return run_substage(copy.deepcopy(config), Path(config.run_dir))


@contextmanager
def _show_messages() -> Iterator[None]:
    """esc-lab's messages on stderr, unless the program has set up its logging itself."""
    root, own = logging.getLogger(), logging.getLogger("esc_lab")
    level, handler = own.level, None if root.handlers else logging.StreamHandler()
    if handler:
        handler.setFormatter(PlainFormatter("%(message)s"))
        root.addHandler(handler)
    if not own.isEnabledFor(logging.INFO):
        own.setLevel(logging.INFO)
    try:
        yield
    finally:
        own.setLevel(level)
        if handler:
            root.removeHandler(handler)


def read_run(directory: str | Path) -> pd.DataFrame:
    """What evaluations measured, a row for each decision, prompt and reply: `predictions.jsonl` as a table.

    Columns are the keys of the file (docs/data-format.md), what is nested spread out: `distribution/<strategy>`,
    `sra/<definition>/<span>/<measure>`, `sampling/<setting>`; metrics of single replies stand under their names.

    Args:
        directory: run directory of an evaluation, or one with evaluations in it (a pipeline, a multirun). The column
            `run` says which one a row is of.

    Raises:
        UserError: there is no evaluation, a file is broken, or pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise UserError("pandas is not installed", fix="pip install 'esc-lab[pandas]'") from error
    root = _find(directory, "evaluate", "pipeline", "sra", MULTIRUN)
    files = sorted(root.rglob(PREDICTIONS))
    if not files:
        raise UserError(f"no {PREDICTIONS} in it", where=str(root), fix="name a run of stage=evaluate")
    rows = [
        {"run": str(file.parent.relative_to(root.parent)), **asdict(prediction)}
        for file in files
        for prediction in read_predictions(file)
    ]
    table = pd.json_normalize(rows, sep="/")
    return table.rename(columns=lambda name: name.removeprefix("values/"))


def load(source: str | Path | Config, overrides: Sequence[str] = ()) -> Supporter:
    """The model of a run, ready to be asked as it was in its training or evaluation.

    Args:
        source: run directory of a training or an evaluation, its `adapter/` or `model/`, or `latest:STAGE`; or a
            configuration of stage=chat, for a model that no run has: `load(compose(["stage=chat", "model=NAME"]))`.
        overrides: of a run's other settings, such as `chat.temperature=0`.

    Raises:
        UserError: there is no such run, or its model cannot be loaded.
    """
    from esc_lab.stages.chat import build_templates, load_models
    from esc_lab.training.trainer import quiet_libraries

    config = (
        replace(source)
        if isinstance(source, Config)
        else _describe_supporter(_find(source, *POLICIES, "evaluate", "converse"), overrides)
    )
    if config.model.source == ENDPOINT:
        raise UserError("an endpoint's model is not loaded here", where="model.source", fix="stage=evaluate asks it")
    quiet_libraries()
    checkpoint = Path(config.checkpoint) if config.checkpoint else None
    (model,) = load_models(config, [checkpoint], build_templates(config))
    return Supporter(model)


def _describe_supporter(path: Path, overrides: Sequence[str]) -> Config:
    """How the model of a run is loaded and asked."""
    own = [word for word in overrides if re.split(r"[.=@]", word.lstrip("+~"))[0] in _OF_THE_RUN]
    if own:
        fix = "load(compose(['stage=chat', 'checkpoint=DIR', ...])) loads a checkpoint under other settings"
        raise UserError("the run says that", where=own[0], fix=fix)
    run = find_run(path)
    if run is None:
        fix = "name a run directory with its config.yaml, or load(compose(['stage=chat', 'model=NAME']))"
        raise UserError("no run there", where=str(path), fix=fix)
    composed = compose(["stage=chat", *overrides])
    try:
        known = read_config(run)
        measured = known["stage"] in ("evaluate", "converse", "chat")
        shown = TemplateConfig(**_keep(known["prompt"]["eval"], TemplateConfig)) if measured else read_template(known)
        layouts = {**composed.prompt.layouts, **({shown.template: shown.layout} if shown.layout else {})}
        sections = {
            "checkpoint": known["checkpoint"] if measured else str(path),
            "model": _keep(known["model"], ModelConfig),
            "inventory": _keep(known["inventory"], InventoryConfig),
            "prompt": {"eval": asdict(shown), "layouts": layouts},
        }
        whole: Any = OmegaConf.merge(settings.schema(), OmegaConf.structured(composed), sections)
        return settings.typed(whole)
    except READ_ERRORS as error:
        raise UserError(f"not the configuration of a run: {error}", where=str(run), fix="copy the run again") from error


def _keep(section: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The keys that a section has today."""
    return {each.name: section[each.name] for each in fields(kind) if each.name in section}


def _find(name: str | Path, *fitting: str) -> Path:
    """The path; of plain `latest` that of the newest run of a stage that fits."""
    latest = re.fullmatch(r"latest(?::(\w+))?", str(name))
    if not latest:
        return Path(name)
    return find_latest(Path(Config().output_root), *([latest[1]] if latest[1] else fitting))


class Supporter:
    """A model with the strategies and the prompts of its run.

    Every question stands for itself: a talk is given whole, as the seeker's one message, as messages with `role` and
    `content` (the model in the role of `assistant`; its strategies as in `(Question) Since when?`), as turns, or as a
    dialogue. What was computed for the beginning of a talk is kept for the next question about it.

    Attributes:
        config: how it is loaded and asked; `config.chat` says how replies are drawn, and may be changed.
        inventory: its strategies.
    """

    def __init__(self, model: ChatModel) -> None:
        self._model = model
        self.config, self.inventory = model.cfg, model.inventory

    def reply(
        self,
        talk: Talk,
        strategy: str | None = None,
        *,
        turn: int | None = None,
        template: str | None = None,
        boost: float = 0.0,
        seed: int | None = None,
    ) -> Candidate:
        """The model's reply: its `text`, its `strategy`, and `shares`, the probability of each strategy.

        Args:
            strategy: which it is to use; None: it draws one.
            turn: of a dialogue, the turn to be written, by its index; None: the one after the last.
            template: prompt layout (docs/prompts.md), one of `config.chat.templates`; None: that of the run.
            boost: amount of `evaluate.boost` on the attention to the strategy.
            seed: of the draws; None: that of the configuration.

        Raises:
            UserError: the talk is none, does not end with the seeker or is too long, or there is no such strategy or
                template.
        """
        from esc_lab.evaluation.arena.chat_reply import ReplySettings

        dialogue = build_talk(talk, self.inventory, turn)
        how = ReplySettings(self._name_template(template), strategy, boost)
        drawn = self.config.seed if seed is None else seed
        *_, candidate = self._anew().reply(dialogue.turns, how, drawn, dialogue.situation)
        return candidate

    def strategies(self, talk: Talk, *, turn: int | None = None, template: str | None = None) -> dict[str, float]:
        """The probability of each strategy for the next reply, by its complete label; together 1.

        Where the template names a strategy, the first of `config.chat.templates` that leaves the choice to the model
        is asked. Arguments and errors are those of `reply`.
        """
        dialogue = build_talk(talk, self.inventory, turn)
        name = self._name_template(template)
        log_probs = self._anew().score_strategies(dialogue, name)
        if log_probs is None:
            raise UserError(f"the template {name} leaves the model no choice", where="template", fix="template='cso'")
        return dict(zip(self.inventory.names, np.exp(log_probs).tolist(), strict=True))

    def attention(
        self,
        talk: Talk,
        strategy: str | None = None,
        *,
        turn: int | None = None,
        template: str | None = None,
        boost: float = 0.0,
        seed: int | None = None,
    ) -> TokenAttention:
        """Where the tokens of a reply look: Strategy-Relevant Attention and the attention on every token before.

        The reply is the one that `reply` gives under the same arguments. `measures` has `log SRA`, the attention on the
        strategy of the reply in the prompt, and `sham-net`, what it has more than the other strategies, by the
        definition of `config.evaluate.sra`; none where the prompt does not name strategies.

        Raises:
            UserError: the reply has no words; else as `reply`.
        """
        found = self.reply(talk, strategy, turn=turn, template=template, boost=boost, seed=seed).attention
        if found is None:
            raise UserError("the reply has no words, so nothing looks anywhere", where="seed", fix="another seed")
        return found

    def _anew(self) -> ChatModel:
        """The model without a memory of how far another talk was shortened."""
        from esc_lab.evaluation.arena.chat_reply import ChatModel

        known = self._model
        return ChatModel(known.cfg, known.loaded, known.cache, known.templates)

    def _name_template(self, name: str | None) -> str:
        if name is not None and name not in self._model.templates:
            fix = f"one of {', '.join(self._model.templates)}; load(..., ['chat.templates=[NAME]']) for others"
            raise UserError(f"no template '{name}'{nearest(name, self._model.templates)}", where="template", fix=fix)
        return name or self.config.prompt.eval.template
