"""Stage `pipeline`: evaluate the base model, sft, evaluate, cso from it, evaluate, compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from esc_lab.config import Config
from esc_lab.stages import compare, cso, evaluate, sft
from esc_lab.stages.record import recorded_step


def run(cfg: Config) -> dict[str, float]:
    """Run the steps in subdirectories of the run directory, each as complete as a run of its own stage."""
    root = Path(cfg.run_dir)
    group = cfg.logger.group or root.name
    # One device: a second process would start the pipeline over from its first step.
    cfg = replace(cfg, logger=replace(cfg.logger, group=group), trainer=replace(cfg.trainer, devices="1"))
    metrics: dict[str, float] = {}
    evaluated = []
    checkpoint = cfg.checkpoint
    for method, train in (("base", None), ("sft", sft.run), ("cso", cso.run)):
        if train is not None:
            # SFT starts from what was evaluated as the base; CSO starts from SFT, which is its reference too.
            training = replace(cfg, stage=method, checkpoint=None, init_from=checkpoint)
            trained = recorded_step(training, train, root / method)
            metrics |= {f"{method}/{name}": value for name, value in trained.items()}
            checkpoint = str(root / method)
        directory = root / f"evaluate_{method}"
        step = replace(cfg, stage="evaluate", checkpoint=checkpoint, init_from=None, resume=None)
        found = recorded_step(step, evaluate.run, directory)
        metrics |= {f"{method}/{name}": value for name, value in found.items()}
        evaluated.append(str(directory))
    comparison = replace(cfg, stage="compare", resume=None, compare=replace(cfg.compare, runs=evaluated))
    recorded_step(comparison, compare.run, root / "compare")
    return metrics
