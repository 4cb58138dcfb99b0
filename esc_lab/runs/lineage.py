"""What tells runs apart: the method of a run, from its configuration and those of the trainings behind it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from esc_lab.artifacts import READ_ERRORS, fingerprint
from esc_lab.config import TRAININGS, Key, keys
from esc_lab.config.search import ASKED
from esc_lab.errors import UserError
from esc_lab.runs.identity import flatten, select
from esc_lab.runs.layout import CONFIG, TRAINING_TREES, Settings, find_run, read_config

_NAMED_APART = ("stage", "seed")  # a method has them beside its settings


@dataclass(frozen=True)
class Method:
    """How a run came to its model.

    Attributes:
        name: `base`, `SFT`, `CSO`, `SimPO random negatives`, `SFT training` (the metrics of the training itself), ...
        settings: all settings behind it that may matter, by their names in the configuration.
        seed: the seed of the training, or of the evaluation where nothing was trained.
        training: the run that trained the model; None for a model as it came, or if that run is gone.
    """

    name: str
    settings: Mapping[str, str]
    seed: int
    training: Path | None


def read_method(directory: Path) -> Method:
    """The method of a run.

    Raises:
        KeyError: the configuration lacks what every run's has; and what `read_config` raises.
    """
    config = read_config(directory)
    if config["stage"] not in ("evaluate", "converse"):
        name, settings = _training(directory)
        return Method(f"{name} training", settings, config.get("seed", 0), directory)
    if config["stage"] == "converse":
        settings, extra = _values(config, _supporter_keys()), _name_schedule(config["converse"]["strategies"])
    else:
        settings = _values(config, _evaluation_keys()) | _name_reward(config, "evaluate.best_of.reward")
        extra = "" if config["prompt"]["inference"] == "direct" else f" {config['prompt']['inference']}"
    if not config["checkpoint"]:
        return Method(f"base{extra}", settings, config.get("seed", 0), None)
    training = find_run(Path(config["checkpoint"]), directory)
    if training is None:
        gone = {**settings, "checkpoint": str(config["checkpoint"])}
        return Method(f"{Path(config['checkpoint']).name} (training gone){extra}", gone, config.get("seed", 0), None)
    name, earlier = _training(training)
    for key in earlier.keys() & settings.keys():  # settings of both
        if earlier[key] != settings[key]:
            settings[key] = f"{earlier[key]} -> {settings[key]}"
    return Method(name + extra, {**earlier, **settings}, read_config(training).get("seed", 0), training)


def find_distinguishing_settings(groups: Iterable[Sequence[Method]]) -> dict[str, tuple[str, ...]]:
    """The settings that differ among runs that are named alike.

    Args:
        groups: the methods of one model under one prompt template, in each group.

    Returns:
        For each method's name, the settings that differ within some group among the methods of that name. A setting
        that some of them do not have, since they are older than it, is left out.
    """
    differing: dict[str, dict[str, None]] = {}
    for group in groups:
        by_name: dict[str, list[Mapping[str, str]]] = {}
        for method in group:
            by_name.setdefault(method.name, []).append(method.settings)
        for name, settings in by_name.items():
            values = {key: {run.get(key) for run in settings} for key in settings[0]}
            differing.setdefault(name, {}).update({key: None for key in values if _differ(values[key])})
    return {name: tuple(keys) for name, keys in differing.items()}


def _differ(values: set[str | None]) -> bool:
    return len(values) > 1 and None not in values


def find_searches(directory: Path) -> tuple[list[Path], list[str]]:
    """The searches whose data trained the model of a run, and the checkpoints behind it whose runs are gone.

    Raises:
        UserError: a configuration behind it cannot be read, or lacks what every run's has.
    """
    runs = list(_walk_back(directory))
    searches = [search for _, of_data, _ in reversed(runs) for search in of_data]
    lost = [origin for _, _, gone in reversed(runs) for origin in gone]
    return list(dict.fromkeys(searches)), list(dict.fromkeys(lost))


def find_origins(directory: Path) -> list[Path]:
    """All runs behind a run: trainings, searches, and reward models that judged or valued. Raises what they do."""
    trainings = [run for run, _, _ in _walk_back(directory) if run != directory]
    searches, _ = find_searches(directory)
    rewards = [reward for _, reward in find_rewards(directory)]
    judges = [read_config(search)["llm"]["judge"].get("checkpoint") for search in searches]
    rewards += [
        find_run(Path(path), search) or Path(path) for search, path in zip(searches, judges, strict=True) if path
    ]
    return list(dict.fromkeys([*trainings, *searches, *(path for path in rewards if (path / CONFIG).exists())]))


def find_rewards(directory: Path) -> list[tuple[Path, Path]]:
    """Where reward models had a say in what a run writes: the run, or a training behind it, and the reward model.

    A training has the values of replies from it (`objective.reward`), an evaluation its choice of replies
    (`prompt.inference=best_of_n`). Searches have it as judge: see `find_searches`. Raises what that does.
    """
    found = []
    for run, _, _ in _walk_back(directory):
        config = read_config(run)
        if path := find_reward(config):
            found.append((run, find_run(path, run) or path))
    return found


def find_reward(config: Settings) -> Path | None:
    """The reward model that values the replies of a training, or chooses those of an evaluation."""
    reward = None
    if config["stage"] == "cso":
        reward = config["objective"].get("reward")
    elif config["stage"] == "evaluate" and config["prompt"]["inference"] == "best_of_n":
        reward = config["evaluate"]["best_of"]["reward"]
    return Path(reward) if reward else None


def _walk_back(directory: Path) -> Iterator[tuple[Path, list[Path], list[str]]]:
    """A run and the trainings behind it, each with the searches of its data and the checkpoints whose runs are gone."""
    left, visited = [directory], set[Path]()
    while left:
        run = left.pop()
        if run.resolve() in visited:
            continue
        visited.add(run.resolve())
        try:
            trainings, searches, gone = _origins(run)
        except READ_ERRORS as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            fix = "correct it, or leave out the runs that were made from it"
            raise UserError(f"not the configuration of a run: {reason}", where=str(run / CONFIG), fix=fix) from error
        yield run, searches, gone
        left += trainings


def _origins(directory: Path) -> tuple[list[Path], list[Path], list[str]]:
    """The trainings that a run goes on from, the searches that made its data, and checkpoints whose runs are gone."""
    config = read_config(directory)
    origins = [Path(origin) for origin in (config.get("checkpoint"), config.get("init_from")) if origin]
    trainings = {origin: find_run(origin, directory) for origin in origins}
    data = config.get("data", {}).get("path")
    searches: list[Path] = []
    if data and config["stage"] in ("sft", "cso"):
        # The data may be named as the folder that the search left, or as a file in it.
        runs = (find_run(path, directory) for path in (Path(data), Path(data).parent))
        searches = [run for run in runs if run and read_config(run).get("stage") == "search"]
    lost = [str(origin) for origin, training in trainings.items() if not training]
    return [training for training in trainings.values() if training], searches, lost


def find_training_trees(directory: Path) -> dict[str, Path]:
    """Trees that the model of a training run was trained on, there or in the trainings that it went on from.

    Returns:
        The last run that was trained on each, by tree id. Runs of older code do not say what they were trained on.

    Raises:
        UserError: a file that says so is broken.
    """
    trees: dict[str, Path] = {}
    run: Path | None = directory
    visited: set[Path] = set()
    while run and run.resolve() not in visited:
        visited.add(run.resolve())
        file = run / TRAINING_TREES
        try:
            trees = dict.fromkeys(json.loads(file.read_text(encoding="utf-8")) if file.exists() else (), run) | trees
            origin = read_config(run).get("init_from")
        except READ_ERRORS as error:
            fix = "train again, or name a whole run"
            raise UserError(f"cannot be read: {error}", where=str(file), fix=fix) from error
        run = find_run(Path(origin), run) if origin else None
    return trees


def _training(directory: Path) -> tuple[str, dict[str, str]]:
    """Name and settings of a training, with those of the search and of the training that it goes on from."""
    config = read_config(directory)
    preferences = config["stage"] == "cso"
    settings = _values(config, _deciding_keys(config["stage"]))
    objective = config["objective"] if preferences else {"name": config["stage"]}
    name = str(objective.get("title") or str(objective["name"]).upper())
    if config.get("data", {}).get("side") == "seeker":
        name += " seeker"
    if config.get("adapter", {}).get("kind") == "full":
        name += " full"
    negatives = config.get("data", {}).get("negatives", "recorded")
    if preferences and negatives != "recorded":
        name += f" {negatives.replace('_', '-')} negatives"
    if preferences and config.get("data", {}).get("shuffle_pairs"):
        name += " shuffled pairs"
    origin, data = config.get("init_from"), config.get("data", {}).get("path")
    start = find_run(Path(origin), directory) if origin else None
    earlier = _training(start)[0] if start else Path(origin).name if origin else "base"
    settings["init_from"] = earlier
    if again := re.fullmatch(rf"{re.escape(name)}(?: round (\d+))?", earlier):
        name += f" round {int(again[1] or 1) + 1}"
    settings["data.path"] = str(data)
    settings |= _name_reward(config, "objective.reward")
    source = find_run(Path(data), directory) if data else None
    if source and (stage := str(read_config(source).get("stage"))) in ASKED:
        settings |= {**_values(read_config(source), _source_keys(stage)), "data.path": stage}
    return name, settings


def _name_reward(config: Settings, key: str) -> dict[str, str]:
    """The reward model that values or chooses replies, if one does: a fingerprint of how it was trained."""
    reward = find_reward(config)
    if reward is None:
        return {}
    run = find_run(reward)
    return {key: fingerprint(_values(read_config(run), _deciding_keys("reward")))[:8] if run else reward.name}


def _values(config: Settings, keys: Iterable[Key]) -> dict[str, str]:
    """The values of keys; of a prompt's layout with all its words a fingerprint."""
    values = select(config, keys)
    layouts = {name: values.pop(name) for name in [*values] if name.endswith(".layout")}
    shown = {name: str(value) for name, value in flatten(values).items()}
    return shown | {name: fingerprint(layout)[:8] for name, layout in layouts.items() if layout}


@cache
def _deciding_keys(stage: str) -> list[Key]:
    """Keys that make a run of a stage another method."""
    decisive = [key for key in keys() if key.decides(stage) and not key.path and key.method is not False]
    return [key for key in decisive if key.name not in _NAMED_APART]


def _evaluation_keys() -> list[Key]:
    """Those of an evaluation that are neither its corpus nor its way of measuring."""
    return [key for key in _deciding_keys("evaluate") if not key.decides("search") and (key.method or not key.measures)]


def _supporter_keys() -> list[Key]:
    """Those of whole talks that make the supporter another one: neither cards nor seekers."""
    of_supporter = ("model.", "prompt.", "llm.supporter.", "converse.strategies")
    return [key for key in _deciding_keys("converse") if key.name.startswith(of_supporter)]


def _name_schedule(strategies: Sequence[str]) -> str:
    """What is forced on the supporter of whole talks, as the end of a method's name."""
    return "" if not strategies else " schedule" if len(strategies) > 1 else f" always {strategies[0]}"


def _source_keys(stage: str) -> list[Key]:
    """Those of a stage that makes data which are none of the trainings on its data."""
    return [key for key in _deciding_keys(stage) if not any(map(key.decides, TRAININGS))]
