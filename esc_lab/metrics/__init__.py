"""Metrics of the field: each defined once, from sums over dialogues, with faces for torch.

`records` has them all. The definitions need numpy alone; torch is imported with the faces, when one is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esc_lab.metrics.faces import PreferenceBias, StrategyProficiency, StrategyRelevantAttention

__all__ = ["PreferenceBias", "StrategyProficiency", "StrategyRelevantAttention"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from esc_lab.metrics import faces

    return getattr(faces, name)
