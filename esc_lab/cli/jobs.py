"""How far a multirun has come: `python -m esc_lab.cli.jobs RUN` prints which jobs are done, and which are missing.

It changes nothing, and may be asked while the multirun is under way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from esc_lab.cli.compositions import compose_config
from esc_lab.cli.latest import MULTIRUN, find_latest
from esc_lab.cli.multirun import print_jobs
from esc_lab.cli.overrides import expand_multirun
from esc_lab.config import Config
from esc_lab.errors import UserError
from esc_lab.runs import manifest
from esc_lab.runs.directory import is_owned
from esc_lab.runs.layout import METRICS


def show_jobs(directory: Path) -> int:
    """Print the jobs of a multirun; the number of those that are not done.

    Raises:
        UserError: it is no multirun, or what it was started with cannot be read.
    """
    words = manifest.read_overrides(directory)
    if words is None:
        raise UserError("no multirun", where=str(directory), fix="name a directory of outputs/multirun")
    planned, _ = expand_multirun(words)
    started = [_look_at(job) for job in manifest.read_jobs(directory)]
    metric = compose_config(*planned[0]).cfg.optimize_metric if planned else None
    print_jobs(started, planned, metric)
    if (directory / ".submitit").exists():  # a launcher of submitit has made it
        from esc_lab.cli.slurm import queued_jobs

        try:
            states = ", ".join(f"{job} {state.lower()}" for job, state in queued_jobs(directory).items()) or "none"
        except UserError as error:
            states = f"nobody knows. {error.message}"
        print(f"in Slurm's queue: {states}")
    done = sum(job.status in manifest.DONE for job in started)
    print(f"{done} of {max(len(planned), len(started))} jobs are done; the same command with resume=auto goes on")
    return max(len(planned), len(started)) - done


def _look_at(job: manifest.Job) -> manifest.Job:
    """The job; if it has not ended, whether it is under way, and the steps of it that are done."""
    job = replace(job, overrides=tuple(manifest.drop_places(job.overrides)))  # as the multirun's own words are kept
    if job.status != "running":
        return job
    steps = ", ".join(path.parent.name for path in sorted(job.directory.glob(f"*/{METRICS}"))) or "nothing yet"
    status = "under way" if is_owned(job.directory) else "stopped"
    return replace(job, status=status, error=f"done: {steps}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="of the multirun; latest = the newest below outputs")
    try:
        directory = parser.parse_args(arguments).directory
        named = str(directory) in ("latest", f"latest:{MULTIRUN}") and not directory.exists()
        show_jobs(find_latest(Path(Config().output_root), MULTIRUN) if named else directory)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
