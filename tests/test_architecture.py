"""The plan of the house: every import runs down the floors that docs/architecture.md draws."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from itertools import chain
from pathlib import Path

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "architecture.md"


def floors() -> list[list[str]]:
    """Rooms by floor, from the ground up, as the page draws them."""
    picture = PAGE.read_text(encoding="utf-8").split("<!-- floors -->")[1].split("```")[1]
    drawn: list[list[str]] = []
    for line in picture.strip("\n").splitlines():
        number, room = line[:3].strip(), line[3:].split()[0]
        if number:
            drawn.append([])
        drawn[-1].append(room)
    return drawn[::-1]


PACKAGE = ROOT / "esc_lab"
ORDER = [room for floor in floors() for room in floor]


def room_of(module: str) -> str:
    """The room of a dotted module below `esc_lab`; empty for the package itself, whose version all may read."""
    return module.removeprefix("esc_lab").lstrip(".").split(".")[0]


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything of this package that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "esc_lab")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "esc_lab":
            if node.module == "esc_lab":
                yield from ((node.lineno, f"esc_lab.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def test_every_module_is_in_a_room():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(ORDER)
    assert len(list(PACKAGE.glob("*.py"))) <= 6
    assert len(ORDER) + len(["run.py", "benchmarks", "tests", "conf", "docs", "sweeps"]) <= 30


def test_imports_run_down():
    """Up, or to a later room of the same floor, is an arrow that would make a circle possible."""
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        here = room_of(module)
        for line, name in imports(file):
            there = room_of(name)
            if here and there and there in ORDER and here != there and ORDER.index(there) > ORDER.index(here):
                wrong.append(f"{file.relative_to(ROOT)}:{line}: {here} imports {name}, which is above it")
    assert not wrong, "\n".join(wrong)


def test_only_the_command_line_knows_hydra():
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.is_relative_to(PACKAGE / "cli"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "hydra" for name in names), f"{file.relative_to(ROOT)}:{node.lineno}"


def test_what_is_imported_is_declared():
    """By the package or by an extra of its users, not only by what these happen to bring along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (needs for name, needs in project["optional-dependencies"].items() if name not in ("dev", "docs", "bench"))
    declared = {canonical(re.match(r"[\w.-]+", need)[0]) for need in chain(project["dependencies"], *extras)}
    owners = metadata.packages_distributions()
    missing = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in {name.split(".")[0] for name in names} - {*sys.stdlib_module_names, "esc_lab"}:
                if not {*map(canonical, owners.get(name, [name]))} & declared:
                    missing.add(f"{file.relative_to(ROOT)}: {name}")
    assert not missing


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_files_hold_one_idea():
    long = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines())
        for file in PACKAGE.rglob("*.py")
    }
    assert {name: lines for name, lines in long.items() if lines > 350} == {}
