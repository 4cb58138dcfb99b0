"""W&B sweep files from the experiments that sweep: `python -m esc_lab.cli.sweeps` writes `sweeps/`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from esc_lab.artifacts import write_atomic
from esc_lab.cli.compositions import CONF, compose_config

SWEEPS = CONF.parent / "sweeps"


def sweep_files() -> dict[str, str]:
    """Name and text of the sweep file of each experiment in `conf/` that sweeps."""
    experiments = sorted((CONF / "experiment").glob("*.yaml"))
    sweeping = [path for path in experiments if "params:" in path.read_text(encoding="utf-8")]
    return {path.name: sweep_text(path) for path in sweeping}


def sweep_text(experiment: Path) -> str:
    """The sweep file of an experiment: a grid, or a Bayesian search where it names ranges."""
    name = experiment.stem
    composition = compose_config(f"experiment={name}")
    params = composition.hydra.sweeper.params
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    search = any(override.is_interval_sweep() for override in overrides)
    bayes = compose_config(f"experiment={name}", "hydra/sweeper=bayes").hydra.sweeper if search else None
    sweep: dict[str, Any] = {
        "program": "run.py",
        "project": composition.cfg.logger.project,
        "name": name,
        "method": "bayes" if search else "grid",
        "metric": {"name": composition.cfg.optimize_metric, "goal": "maximize"},
        **({"run_cap": bayes.n_trials} if bayes else {}),
        "parameters": {override.get_key_element(): _parameter(override) for override in overrides},
        "command": [
            "${env}", "${interpreter}", "${program}", f"experiment={name}", "logger.mode=online", "${args_no_hyphens}",
        ],
    }  # fmt: skip
    about = [line for line in experiment.read_text(encoding="utf-8").splitlines() if line.startswith("# ")][1]
    twin = f"python run.py -m experiment={name}{' hydra/sweeper=bayes' if search else ''}"
    head = f"{about}\n# Written by `make sweeps` from conf/experiment/{name}.yaml. Local twin: {twin}\n"
    if search:
        head += "# No early_terminate: the metric is measured once, at the end.\n"
    return head + yaml.dump(sweep, sort_keys=False, default_flow_style=None, width=1000)


def _parameter(override: Override) -> dict[str, Any]:
    if override.is_interval_sweep():
        interval: Any = override.value()
        shape = "log_uniform_values" if "log" in interval.tags else "uniform"
        return {"distribution": shape, "min": float(interval.start), "max": float(interval.end)}
    return {"values": [yaml.safe_load(str(value)) for value in override.sweep_string_iterator()]}


def main() -> int:
    """Write `sweeps/`; files of experiments that are gone go too."""
    texts = sweep_files()
    for path in SWEEPS.glob("*.yaml"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        write_atomic(SWEEPS / name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
