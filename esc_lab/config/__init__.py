"""The configuration: its schema by theme, and checks. Imports neither torch nor Hydra."""

from esc_lab.config.data import SPLITS, DataConfig, InventoryConfig
from esc_lab.config.item import TRAININGS, Key
from esc_lab.config.prompt import PromptConfig, TemplateConfig
from esc_lab.config.schema import STAGES, Config, can_resume, is_dry_run, keys, place_names, schema, to_yaml, typed

__all__ = [
    "SPLITS",
    "STAGES",
    "TRAININGS",
    "Config",
    "DataConfig",
    "InventoryConfig",
    "Key",
    "PromptConfig",
    "TemplateConfig",
    "can_resume",
    "is_dry_run",
    "keys",
    "place_names",
    "schema",
    "to_yaml",
    "typed",
]
