"""Stages: one verb per module, each `run(cfg) -> metrics`. Only these know the whole configuration."""
