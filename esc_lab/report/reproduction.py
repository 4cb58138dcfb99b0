"""How the runs of a comparison came about: commands, versions, and the settings in which they differ."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

from esc_lab.artifacts import read_yaml
from esc_lab.comparison.runs import Cell, Run, shorten_names
from esc_lab.config import keys
from esc_lab.config.files import COMMAND
from esc_lab.runs.identity import flatten
from esc_lab.runs.layout import CONFIG, TREES, read_config
from esc_lab.runs.manifest import read_overrides
from esc_lab.runs.reuse import STORED

# Where a run wrote to and what it logged to, and settings of other stages: not what it did.
_UNSHOWN_KEYS = {
    key.name
    for key in keys()
    if key.affects.kind == "place" or (key.affects.stages and key.affects.stages.isdisjoint(STORED))
}


_TREE_TITLE = re.compile(r"<title>Search tree (\d+): (.*?)</title>")


@dataclass(frozen=True)
class Command:
    """A command line, the directory that it made, the runs that came of it, and of a multirun those of its jobs."""

    line: str
    directory: Path
    runs: tuple[str, ...]
    jobs: tuple[Command, ...] = ()


def run_names(cells: Sequence[Cell]) -> dict[Path, str]:
    """What a page calls each run, by directory: its cell, with the seed where the cell has several."""
    names = shorten_names(cells)
    return {
        run.directory: f"{names[cell.name]}, seed {run.method.seed}" if len(cell.runs) > 1 else names[cell.name]
        for cell in cells
        for run in cell.runs
    }


def tree_pages(runs: Iterable[Run]) -> list[Path]:
    """The pages of search trees behind the runs."""
    folders = dict.fromkeys(place / TREES for run in runs for place in _source_runs(run))
    return [page for folder in folders for page in sorted(folder.glob("*.html"))]


def name_trees(pages: Iterable[Path]) -> dict[str, Path]:
    """Pages of search trees by the problem that each dialogue is about, in this order; else by the dialogue's id."""
    trees: list[tuple[str, int, Path]] = []
    for page in pages:
        title = _TREE_TITLE.search(_head(page))
        trees.append((unescape(title[2]), int(title[1]), page) if title else ("", 0, page))
    named: dict[str, Path] = {}
    for problem, number, page in sorted(trees, key=lambda tree: (tree[0].lower(), tree[1], tree[2].stem)):
        name = f"{problem} (tree {number})" if problem else page.stem
        named[f"{name}, {page.stem}" if name in named else name] = page
    return named


def _head(page: Path) -> str:
    with page.open(encoding="utf-8", errors="replace") as file:
        return file.read(2000)


def _source_runs(run: Run) -> list[Path]:
    """The directories that a run's result comes from, the first step first: search, training, the run itself."""
    steps = [run.directory]
    if run.method.training and run.method.training != run.directory:
        steps.insert(0, run.method.training)
    data = (run.config if run.directory == steps[0] else _config(steps[0])).get("data", {}).get("path")
    search = Path(data).parent if data else None
    for place in (search, run.directory.absolute().parent / search.name) if search else ():
        if (place / TREES).is_dir() or (place / "esc_pro").is_dir():
            return [place, *steps]
    return steps


def commands(cells: Sequence[Cell]) -> tuple[list[Command], list[str]]:
    """The commands behind the runs, in the order in which to run them, and the names of runs that have none on record.

    A step of a pipeline has its pipeline's command, and several jobs of a multirun stand under the multirun's.
    """
    lines: dict[Path, str] = {}
    runs: dict[Path, dict[str, None]] = {}
    without, names = [], run_names(cells)
    for cell in cells:
        for run in cell.runs:
            name = names[run.directory]
            known = [command for directory in _source_runs(run) if (command := _command(directory))]
            for directory, line in known:
                lines[directory] = line
                runs.setdefault(directory, {})[name] = None
            if not known:
                without.append(name)
    listed = [Command(line, directory, tuple(runs[directory])) for directory, line in lines.items()]
    return list(_by_multirun(listed)), without


def _by_multirun(commands: Sequence[Command]) -> Iterator[Command]:
    """The jobs of a multirun together, at the place of the first of them; all others where they are."""
    together: dict[Path, list[Command]] = {}
    for command in commands:
        parent = command.directory.absolute().parent
        together.setdefault(command.directory if read_overrides(parent) is None else parent, []).append(command)
    for directory, jobs in together.items():
        words = read_overrides(directory)
        if words is None or len(jobs) < 2:
            yield from jobs
        else:
            names = dict.fromkeys(name for job in jobs for name in job.runs)
            yield Command(f"{COMMAND} {shlex.join(['-m', *words])}", directory, tuple(names), tuple(jobs))


def differing(cells: Sequence[Cell]) -> tuple[list[str], dict[str, list[str]]]:
    """Settings in which cells differ: names of the cells, and by dotted name of the setting their values.

    Of an evaluation also those of the training behind it, named `training: ...`. A setting differs if cells that have
    it do; the value of those that lack it is empty. If the runs of a cell differ in it, it has all their values, of
    paths their number.
    """
    settings: list[dict[str, dict[str, None]]] = []
    for cell in cells:
        settings.append({})
        for run in cell.runs:
            flat = flatten(run.config)
            if run.method.training and run.method.training != run.directory:
                flat |= {f"training: {key}": value for key, value in flatten(_config(run.method.training)).items()}
            for key, value in flat.items():
                if key.removeprefix("training: ") not in _UNSHOWN_KEYS:
                    settings[-1].setdefault(key, {})[str(value)] = None
    values = [{key: _together(list(several)) for key, several in cell.items()} for cell in settings]
    keys = dict.fromkeys(key for cell in values for key in cell)
    differ = [key for key in keys if len({cell[key] for cell in values if key in cell}) > 1]
    return list(shorten_names(cells).values()), {key: [cell.get(key, "") for cell in values] for key in differ}


def _together(values: Sequence[str]) -> str:
    if len(values) > 1 and all(Path(value).is_absolute() for value in values):
        return f"one for each of {len(values)} seeds"
    return ", ".join(values)


def versions(cells: Sequence[Cell]) -> tuple[list[str], dict[str, list[str]]]:
    """Of the environments that differ: the runs of each, and by what is named (commit, package) its value in each."""
    by_environment: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for directory, name in run_names(cells).items():
        run = next(run for cell in cells for run in cell.runs if run.directory == directory)
        rest = dict(run.environment)
        packages = rest.pop("packages", {})
        environment = {**rest, **(packages if isinstance(packages, Mapping) else {})}
        by_environment.setdefault(tuple((key, str(value)) for key, value in environment.items()), []).append(name)
    tables = [dict(environment) for environment in by_environment]
    keys = dict.fromkeys(key for table in tables for key in table)
    heads = ["all runs" if len(by_environment) == 1 else ", ".join(names) for names in by_environment.values()]
    return heads, {key.replace("_", " "): [table.get(key, "") for table in tables] for key in keys}


def _command(directory: Path) -> tuple[Path, str] | None:
    """The directory of Hydra's own record, here or (of a pipeline's step) above, and the command in it."""
    for place in (directory, directory.absolute().parent):
        path = place / ".hydra" / "overrides.yaml"
        if path.exists():
            words = [word for word in map(str, read_yaml(path) or []) if word != "resume=auto"]
            return place, f"{COMMAND} {shlex.join(words)}"
    return None


def _config(directory: Path) -> Mapping[str, Any]:
    return read_config(directory) if (directory / CONFIG).exists() else {}
