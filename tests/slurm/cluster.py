"""A Slurm of its own for tests: real daemons of this machine's packages, all files in one directory, no systemd.

`python tests/slurm/cluster.py DIR COMMAND...` runs a command with it: `sbatch`, `squeue` and `run.py` find it there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
_STARTS_S = 30.0

# Each job has cores and (for the look of it) GPUs that this machine need not have. Requeued jobs start again at once,
# not after the two minutes for which Slurm's credentials are good by default.
_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait=30
MinJobAge=5
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=other Nodes=ALL MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why no Slurm can be started here; None if it can be tried."""
    places = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in DAEMONS if not shutil.which(name, path=places)]
    if missing:
        return f"no Slurm here: {', '.join(missing)} not installed (apt-get install slurm-wlm munge)"
    return None if os.getuid() == 0 else "no Slurm here: its daemons want to be started by root"


@contextmanager
def start_cluster(directory: Path, *, nodes: int = 1) -> Iterator[Mapping[str, str]]:
    """Slurm with partitions `main` (default) and `other`, on nodes of two cores and two GPUs that exist by name only.

    Args:
        directory: for its configuration, logs and state; absolute, and short: it holds a Unix socket.

    Yields:
        The environment variables by which its commands find it.

    Raises:
        RuntimeError: it does not start; the message has the last lines of its logs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    ports = _free_ports(nodes + 1)
    host = socket.gethostname().partition(".")[0]
    lines = [
        f"NodeName=node{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=8000 Gres=gpu:2"
        for number, port in enumerate(ports[1:])
    ]
    config = directory / "slurm.conf"
    config.write_text(
        _CONFIG.format(host=host, directory=directory, controller_port=ports[0], nodes="\n".join(lines)).lstrip()
    )
    (directory / "gres.conf").write_text(f"Name=gpu File={directory}/gpu[0-1]\n")
    for number in range(2):
        (directory / f"gpu{number}").touch()
    (directory / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (directory / "state").mkdir(exist_ok=True)
    key = directory / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    environment = {**os.environ, "SLURM_CONF": str(config), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    environment = {name: value for name, value in environment.items() if not name.startswith("SLURM_JOB")}
    munge = [f"--socket={directory}/munge.socket"]
    munge += [f"--{kind}-file={directory}/munge.{kind}" for kind in ("key", "log", "pid", "seed")]
    commands = [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D", "-f", str(config)]]
    commands += [["slurmd", "-D", "-f", str(config), "-N", f"node{number}"] for number in range(nodes)]
    with ExitStack() as stack:
        for command in commands:
            stack.enter_context(_daemon(command, environment, directory))
            if command[0] == "munged":
                _wait_until((directory / "munge.socket").exists, directory)
        states = ("sinfo", "-hN", "-p", "main", "-o", "%T")
        _wait_until(lambda: _ask(environment, *states).count("idle") == nodes, directory)
        stack.callback(_end_jobs, environment)
        yield {name: environment[name] for name in ("SLURM_CONF", "PATH")}


@contextmanager
def _daemon(command: list[str], environment: Mapping[str, str], directory: Path) -> Iterator[None]:
    with (directory / f"{command[0]}.out").open("ab") as output:
        # A test run that is killed leaves no daemon behind.
        watched = ["setpriv", "--pdeathsig", "TERM", *command]
        process = subprocess.Popen(watched, env=environment, stdout=output, stderr=output, cwd=directory)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ask(environment: Mapping[str, str], *command: str) -> list[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.split()


def _end_jobs(environment: Mapping[str, str]) -> None:
    """No job, and so no process of one, outlives the daemons."""
    _ask(environment, "scancel", "--user=root", "--signal=KILL")
    _ask(environment, "scancel", "--user=root")
    until = time.monotonic() + _STARTS_S
    while _ask(environment, "squeue", "-h") and time.monotonic() < until:
        time.sleep(0.2)


def _wait_until(holds: Callable[[], bool], directory: Path) -> None:
    until = time.monotonic() + _STARTS_S
    while not holds():
        if time.monotonic() > until:
            last = {path.name: path.read_text(errors="replace").splitlines()[-3:] for path in directory.glob("*.log")}
            raise RuntimeError(f"Slurm does not start: {last}")
        time.sleep(0.1)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(reason)
    with start_cluster(Path(sys.argv[1]).absolute()) as variables:
        sys.exit(subprocess.run(sys.argv[2:], env={**os.environ, **variables}, check=False).returncode)
