"""esc-lab: strategy-aware emotional support conversation, from search to evaluation."""

__version__ = "0.1.0"
