"""esc-lab: strategy-aware emotional support conversation, from search to evaluation.

What Python code needs of it is here (`load`, `compose`, `run`, `read_run`); each comes with its imports when it is
first asked for, so that `import esc_lab` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Relative, as no import of the package is: what stages import decides whether their results are reused.
    from .cli.api import Supporter, compose, load, read_run, run

__version__ = "0.1.0"
__all__ = ["Supporter", "compose", "load", "read_run", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'esc_lab' has no attribute '{name}'")
    return getattr(import_module("esc_lab.cli.api"), name)
