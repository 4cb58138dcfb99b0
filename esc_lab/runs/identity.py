"""What the result of a stage depends on: the settings that its keys declare, and the code that it imports."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import esc_lab
from esc_lab.config import Key

PACKAGE = Path(esc_lab.__file__).parent
# What starts, keeps and logs the run of a stage, and never computes a result.
_SHELL = ("esc_lab.stages.run_stage.", "esc_lab.runs.", "esc_lab.tracking.", "esc_lab.terminal.")
_IMPORT = re.compile(
    rb"^[ \t]*(?:from[ \t]+(esc_lab[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|.*)|import[ \t]+(esc_lab[\w.]*))", re.M
)


def select(config: Mapping[str, Any], keys: Iterable[Key]) -> dict[str, Any]:
    """Values of keys, by their dotted names, in a configuration of nested dictionaries; without those it lacks."""
    values: dict[str, Any] = {}
    for key in keys:
        value: Any = config
        for part in key.name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                break
            value = value[part]
        else:
            values[key.name] = value
    return values


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; an empty section is a value."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping) and value
        leaves |= flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return leaves


@cache
def code_version(stage: str, package: Path = PACKAGE) -> str:
    """Fingerprint of the code of a stage: of all modules of this package that it imports, directly or by others, and of
    the data files (templates, ...) in their folders. Nothing is imported for that.
    """
    modules = set(import_closure(f"esc_lab.stages.{stage}", package).values())
    folders = {path.parent for path in modules} - {package}
    data = {path for folder in folders for path in folder.glob("**/*.*") if path.suffix not in (".py", ".pyc")}
    digest = hashlib.sha256()
    for path in sorted(modules | data):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def import_closure(module: str, package: Path = PACKAGE) -> dict[str, Path]:
    """Files of a module and of all modules of this package that it needs, by name; imports in functions count."""
    paths = {
        ".".join(("esc_lab", *path.relative_to(package).with_suffix("").parts)): path
        for path in package.glob("**/*.py")
    }
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    needed: dict[str, Path] = {}
    left = [module]
    while left:
        name = left.pop()
        if name in needed or name not in modules or f"{name}.".startswith(_SHELL):
            continue
        needed[name] = modules[name]
        left.append(name.rpartition(".")[0])  # a package's __init__ runs first
        for source, names, plain in _IMPORT.findall(needed[name].read_bytes()):
            base = (source or plain).decode()
            left += [base, *(f"{base}.{word}" for word in re.findall(r"\w+", names.decode()))]
    return needed
