"""Where planted talks lie: sets that ship beside this module, and files of the user's own."""

from __future__ import annotations

from pathlib import Path


def find_planted(name: str) -> Path:
    """The file of planted talks: of a set that ships, by its name, else the path itself."""
    shipped = Path(__file__).parent / f"planted_{name}.yaml"
    return shipped if name.isidentifier() and shipped.exists() else Path(name)
