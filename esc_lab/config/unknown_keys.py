"""Names of keys that the schema does not have, and what they may have been meant to be."""

from __future__ import annotations

import difflib

from esc_lab.config.schema import RENAMED, keys
from esc_lab.errors import nearest


def unknown_key(name: str) -> str | None:
    """Message for a dotted key that the schema does not have, naming the nearest valid one; None if it is known."""
    known = {key.name: key for key in keys()}
    sections = {name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)}
    if name in known or name in sections:
        return None
    for depth in range(1, name.count(".") + 1):
        parent = ".".join(name.split(".")[:depth])
        key = known.get(parent)
        if key and key.free:
            return None
        if key and isinstance(key.default, list):
            if name.split(".")[depth].isdigit():
                return None
            fix = f"Fix: count its items from 0, as in {parent}.0, or give all of it"
            return f"'{name}': {parent} is a list ({key.doc}). {fix}"
    if name in RENAMED:
        return f"unknown config key '{name}'; it is '{RENAMED[name]}' now. Fix: write {RENAMED[name]}=..."
    section = name.split(".")[0]
    topic = f" {section}" if section in sections else ""
    return f"unknown config key '{name}'{_hint(name, sections)} Fix: `python run.py --help{topic}` lists the keys"


def _hint(name: str, sections: set[str]) -> str:
    """What an unknown key may have been meant to be: a similar name, or a key whose doc has its words."""
    known = {key.name: key.doc for key in keys()}
    section, _, leaf = name.rpartition(".")

    def likeness(other: str) -> float:
        other_section, _, other_leaf = other.rpartition(".")
        in_full = difflib.SequenceMatcher(None, name, other).ratio()
        last_part = difflib.SequenceMatcher(None, leaf, other_leaf).ratio()
        if leaf in other_leaf.split("_"):
            last_part = max(last_part, 0.9)
        return max(0.9 * in_full, 0.85 * last_part + 0.15 * (section == other_section))

    best = max([*known, *([] if section in sections else sections)], key=likeness)
    if likeness(best) >= 0.68:
        return f"; did you mean '{best}'?"
    words = set(leaf.lower().split("_"))
    documented = [key for key, doc in known.items() if words <= set(doc.lower().replace(",", "").split())]
    if documented:
        meant = min(documented, key=lambda key: (not key.startswith(f"{section}."), len(known[key])))
        return f"; did you mean '{meant}'?"
    if section in sections:
        own = [key.removeprefix(f"{section}.") for key in known if key.startswith(f"{section}.")]
        return f"; '{section}' has {', '.join(own)}."
    return nearest(name, [*known, *sections]) or "."
