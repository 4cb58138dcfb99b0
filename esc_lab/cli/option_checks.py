"""What is wrong with the options that are data: inventories of strategies. Told before anything heavy is imported."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from esc_lab.config.files import option_files
from esc_lab.data.strategies import build_inventory, load_inventory
from esc_lab.errors import UserError


def option_problems(cfg: DictConfig) -> list[str]:
    """Problems of the sections that a composed configuration has from files; each names its file."""
    plain: dict[str, Any] = OmegaConf.to_container(cfg, throw_on_missing=False)  # type: ignore[assignment]
    try:
        _check_inventory(plain)
    except UserError as error:
        return [str(error)]
    return []


def _check_inventory(cfg: dict[str, Any]) -> None:
    section, config_dirs = cfg["inventory"], cfg["config_dirs"]
    files = option_files("inventory", config_dirs)
    file = files.get(section["name"])
    inventory = build_inventory(section, config_dirs, where=str(file or "inventory"))
    if file and load_inventory(inventory.name, config_dirs).names != inventory.names:
        fix = f"choose it with inventory={inventory.name}, or give these strategies a name of their own"
        raise UserError(f"the strategies are not those of {file}", where=f"inventory.name={inventory.name}", fix=fix)
    for source in inventory.mappings:
        if source in files:
            inventory.mapping_from(load_inventory(source, config_dirs))
    if cfg["prompt"]["inference"] == "with_example" and not inventory.example:
        fix = "add an example to it, or choose another prompt.inference"
        raise UserError(f"{inventory.name} has no example", where="prompt.inference=with_example", fix=fix)
