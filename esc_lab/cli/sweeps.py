"""W&B sweep files from the experiments that sweep: `python -m esc_lab.cli.sweeps` writes `sweeps/`.

With `--config-dir DIR` it writes `DIR/sweeps/` from the experiments of a directory of your own.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from esc_lab.artifacts import write_atomic
from esc_lab.cli.compositions import COMPOSITION_ERRORS, compose_config, explain_error, use_config_dirs
from esc_lab.cli.help import describe_option
from esc_lab.config.files import CHECKOUT, COMMAND, CONF
from esc_lab.errors import UserError


def sweep_files(directory: Path = CONF) -> dict[str, str]:
    """Name and text of the sweep file of each experiment in a directory that sweeps."""
    experiments = sorted((directory / "experiment").glob("*.yaml"))
    sweeping = [path for path in experiments if "params:" in path.read_text(encoding="utf-8")]
    return {path.name: sweep_text(path) for path in sweeping}


def sweep_text(experiment: Path) -> str:
    """The sweep file of an experiment: a grid, or a Bayesian search where it names ranges."""
    name, directory = experiment.stem, experiment.parents[1]
    source = f"conf/experiment/{experiment.name}" if directory == CONF else str(experiment)
    own = [] if directory == CONF else ["--config-dir", str(directory)]
    composition = compose_config(f"experiment={name}")
    metric, params = composition.cfg.optimize_metric, composition.hydra.sweeper.params
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    search = any(override.is_interval_sweep() for override in overrides)
    bayes = compose_config(f"experiment={name}", "hydra/sweeper=bayes").hydra.sweeper if search else None
    sweep: dict[str, Any] = {
        "program": "run.py" if CHECKOUT else "esc-lab",
        "project": composition.cfg.logger.project,
        "name": name,
        "method": "bayes" if search else "grid",
        **({"metric": {"name": metric, "goal": "maximize"}} if metric else {}),
        **({"run_cap": bayes.n_trials} if bayes else {}),
        "parameters": {override.get_key_element(): _parameter(override) for override in overrides},
        "command": [
            "${env}", *(["${interpreter}"] if CHECKOUT else []), "${program}", *own, f"experiment={name}",
            "logger.mode=online", "${args_no_hyphens}",
        ],
    }  # fmt: skip
    twin = f"{COMMAND} " + shlex.join([*own, "-m", f"experiment={name}", *(["hydra/sweeper=bayes"] if search else [])])
    head = f"# {describe_option(experiment)}\n# Written by `make sweeps` from {source}. Local twin: {twin}\n"
    if search:
        head += "# No early_terminate: the metric is measured once, at the end.\n"
    return head + yaml.dump(sweep, sort_keys=False, default_flow_style=None, width=1000)


def _parameter(override: Override) -> dict[str, Any]:
    if override.is_interval_sweep():
        interval: Any = override.value()
        shape = "log_uniform_values" if "log" in interval.tags else "uniform"
        return {"distribution": shape, "min": float(interval.start), "max": float(interval.end)}
    return {"values": [yaml.safe_load(str(value)) for value in override.sweep_string_iterator()]}


def main(words: Sequence[str] | None = None) -> int:
    """Write `sweeps/`, from which files of experiments that are gone go too, or those of a directory of your own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-dir", metavar="DIR", help="directory with experiment/NAME.yaml")
    option = parser.parse_args(words).config_dir
    try:
        if not (option or CHECKOUT):
            raise UserError("no experiments of your own are named", where="sweeps", fix="--config-dir DIR")
        use_config_dirs([], option)
        directory = Path(option).absolute() if option else CONF
        texts = sweep_files(directory)
    except (UserError, *COMPOSITION_ERRORS) as error:
        print(f"error: {error if isinstance(error, UserError) else explain_error(error)}", file=sys.stderr)
        return 1
    target = directory.parent / "sweeps" if directory == CONF else directory / "sweeps"
    target.mkdir(exist_ok=True)
    for path in target.glob("*.yaml") if directory == CONF else ():
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        write_atomic(target / name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
