"""A SLURM of two nodes on this machine, for tests: it listens on loopback only, and is stopped at its end."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
NODES = ("n1", "n2")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
KillWait=20
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={first} CPUs=2 RealMemory=1000 State=UNKNOWN
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={second} CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """What is missing here for SLURM to run; None: nothing."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"there is no {', '.join(missing)}: `apt-get install slurm-wlm munge`"
    return None if os.getuid() == 0 else "its daemons start jobs as another user, which needs root"


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])


class Slurm:
    """The running daemons; use it as a context manager.

    Args:
        folder: for all that they write.

    Attributes:
        environment: of programs that are to talk to them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: dict[str, subprocess.Popen] = {}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        self.environment = clean | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}

    def __enter__(self) -> "Slurm":
        for name in ("munge", "state"):
            (self.folder / name).mkdir(mode=0o755, parents=True)
        key = self.folder / "munge/key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        controller, first, second = free_ports(3)
        ports = {"controller": controller, "first": first, "second": second}
        config = CONFIG.format(folder=self.folder, host=socket.gethostname(), **ports)
        (self.folder / "slurm.conf").write_text(config, encoding="utf-8")
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder / 'munge' / name}" for option, name in files.items()]
        self._start("munged", "munged", "--foreground", "--force", *options)
        self._start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes():
            process.kill()
        for daemon in self._daemons.values():
            daemon.wait()

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("a") as log:
            self._daemons[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def _processes(self, **variables: str) -> list[psutil.Process]:
        """The daemons' and their jobs' processes, those with other variables in their environment."""
        found, wanted = [], {"SLURM_CONF": self.environment["SLURM_CONF"], **variables}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and wanted.items() <= process.environ().items():
                    found.append(process)
        return found

    def start_node(self, node: str) -> None:
        """Start a node, and wait until it takes jobs."""
        self._start(node, "slurmd", "-D", "-N", node)
        wait_for(
            lambda: self.run("sinfo", "--noheader", "--nodes", node, "--format=%T") == "idle\n", self._daemons[node]
        )

    def kill_node(self, node: str) -> None:
        """Kill a node and all that runs on it, as a power failure does; the controller is told at once."""
        self._daemons[node].kill()
        self._daemons[node].wait()
        # What runs on it is known by its parent's working directory; jobs know their node.
        for process in self._processes(SLURMD_NODENAME=node):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """What a command prints, which must succeed."""
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_soon(self, job: str) -> None:
        """Once a job is queued again, start it without the two minutes that SLURM would wait."""
        wait_for(lambda: self.state(job) == "PENDING")
        # Not at once: a node refuses a job that starts in the second in which it ended.
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+3")

    def state(self, job: str) -> str:
        """Of a job, as PENDING, RUNNING or COMPLETED."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return next(word for word in shown.split() if word.startswith("JobState=")).removeprefix("JobState=")


def wait_for(condition, process: subprocess.Popen | None = None) -> None:
    """Until a condition holds, for at most ten minutes: the machine may be busy."""
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end, "waited too long"
        assert process is None or process.poll() is None, process.args
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
