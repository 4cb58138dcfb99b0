"""How a configuration key is declared: its default with doc, allowed values and range."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any

ANY = (-math.inf, math.inf)
COUNT = (1, math.inf)
FROM_ZERO = (0, math.inf)
SHARE = (0, 1)


def item(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    within: tuple[float, float] = ANY,
    path: bool = False,
) -> Any:
    """A config key: default, doc (with unit), allowed values or range; `path` marks files that must exist."""
    metadata = {"doc": doc, "choices": choices, "within": within, "path": path}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)
