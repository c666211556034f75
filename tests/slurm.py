"""A SLURM of two nodes on this machine, for tests: it listens on loopback only, and is stopped at its end."""

import getpass
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
NODES = ("n1", "n2")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}({address})
SlurmctldPort={controller}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser={user}
SlurmdUser={user}
SlurmdParameters=config_overrides
FirstJobId={first_job}
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
OverTimeLimit=10
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeAddr={address} NodeHostname={host} Port={first} CPUs=2 RealMemory=1000 State=UNKNOWN
NodeName=n2 NodeAddr={address} NodeHostname={host} Port={second} CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])


class Unavailable(Exception):
    """SLURM cannot run here; the message says why."""


class Slurm:
    """The running daemons; use it as a context manager.

    Args:
        folder: for all that they write.

    Attributes:
        environment: of programs that are to talk to them.

    Raises:
        Unavailable: they are not installed, or cannot run here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: dict[str, subprocess.Popen] = {}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        self.environment = clean | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}

    def __enter__(self) -> "Slurm":
        if missing := [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]:
            raise Unavailable(f"there is no {', '.join(missing)}: `apt-get install slurm-wlm munge`")
        host, address = socket.gethostname(), ""
        with suppress(OSError):
            address = socket.gethostbyname(host)
        if not address.startswith("127."):
            where = f"leads to {address}" if address else "leads nowhere"
            raise Unavailable(
                f"this machine's name {where}, and SLURM is to listen on loopback: 127.0.0.1 {host} in /etc/hosts"
            )
        for name in ("munge", "state"):
            (self.folder / name).mkdir(mode=0o755, parents=True)
        key = self.folder / "munge/key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        controller, first, second = free_ports(3)
        # PyTorch's port follows from the job's number: others that test on this machine have others.
        numbers = {"controller": controller, "first": first, "second": second, "first_job": random.randrange(1, 9000)}
        names = {"host": host, "address": address, "user": getpass.getuser()}
        (self.folder / "slurm.conf").write_text(CONFIG.format(folder=self.folder, **names, **numbers), encoding="utf-8")
        # Which is not used, and unlike others does not ask for cgroups, which a container may lack.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n", encoding="utf-8")
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder / 'munge' / name}" for option, name in files.items()]
        try:
            self._start("munged", "munged", "--foreground", "--force", *options)
            self._start("slurmctld", "slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            self.run("srun", "--nodes=2", "--immediate=30", "true")
        except (AssertionError, subprocess.TimeoutExpired) as error:
            self.__exit__()
            raise Unavailable(f"it does not start: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.processes(), *self._steps(NODES)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("a") as log:
            self._daemons[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def processes(self, **variables: str) -> list[psutil.Process]:
        """The daemons' and their jobs' processes, those with other variables in their environment."""
        found, wanted = [], {"SLURM_CONF": self.environment["SLURM_CONF"], **variables}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and wanted.items() <= process.environ().items():
                    found.append(process)
        return found

    def _steps(self, nodes: Sequence[str]) -> list[psutil.Process]:
        """The daemons of the jobs' steps on some nodes, which hide their environment but write to their node's log."""
        logs, found = {str(self.folder / f"slurmd-{node}.log") for node in nodes}, []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.name().startswith("slurmstepd") and logs & {file.path for file in process.open_files()}:
                    found.append(process)
        return found

    def start_node(self, node: str) -> None:
        """Start a node, and wait until it takes jobs."""
        self._start(node, "slurmd", "-D", "-N", node)
        shown = ("sinfo", "--noheader", "--nodes", node, "--format=%T")
        self.wait_for(lambda: self._printed(*shown) == "idle\n", seconds=60)

    def kill_node(self, node: str) -> None:
        """Kill a node and all that runs on it, as a power failure does; the controller is told at once."""
        self._daemons[node].kill()
        self._daemons[node].wait()
        for process in [*self._steps([node]), *self.processes(SLURMD_NODENAME=node)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """What a command prints, which must succeed."""
        done = self._done(*command, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def fails(self, *command: str, cwd: Path | None = None) -> str:
        """What a command prints as its errors, which must fail."""
        done = self._done(*command, cwd=cwd)
        assert done.returncode, done.stdout + done.stderr
        return done.stderr

    def _done(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=120
        )

    def start_soon(self, job: str, *changes: str) -> None:
        """Once a job is queued again, change it, and start it without the two minutes that SLURM would wait."""
        self.wait_for(lambda: self.state(job) == "PENDING")
        # Not at once: a node refuses a job that starts in the second in which it ended.
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+3", *changes)

    def wait_for_end(self, job: str, log: Path) -> None:
        """Wait until a job has ended, which must be complete."""
        self.wait_for(lambda: self.state(job) not in ("PENDING", "RUNNING", "COMPLETING"), log)
        assert self.state(job) == "COMPLETED", log.read_text()

    def state(self, job: str) -> str:
        """Of a job, as PENDING, RUNNING or COMPLETED."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return next(word for word in shown.split() if word.startswith("JobState=")).removeprefix("JobState=")

    def wait_for(self, condition: Callable[[], bool], log: Path | None = None, seconds: float = 240) -> None:
        """`wait_for`, which also ends if a daemon does; it tells what SLURM and a log say."""

        def reason() -> str:
            shown = [self._printed("sinfo", "--Node", "--long"), self._printed("scontrol", "show", "jobs")]
            logs = [*self.folder.glob("*.log"), *self.folder.glob("*.out"), *([log] if log else [])]
            return "\n\n".join([*shown, *(f"{path}\n{tail(path)}" for path in logs)])

        def holds() -> bool:
            assert all(daemon.poll() is None for daemon in self._daemons.values()), f"a daemon has ended\n{reason()}"
            return condition()

        wait_for(holds, reason, seconds)

    def _printed(self, *command: str) -> str:
        done = self._done(*command)
        return done.stdout or done.stderr


def wait_for(condition: Callable[[], bool], reason: Callable[[], str] = str, seconds: float = 240) -> None:
    """Until a condition holds; after `seconds`, more than a busy machine needs, fail with what `reason` tells."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s\n{reason()}"
        time.sleep(0.2)


def tail(path: Path) -> str:
    """The last lines of a file; none if there is none."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return "\n".join(lines[-15:])


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, nor does the system give to connections: a node finds its own again."""
    found: set[int] = set()
    while len(found) < count:
        with suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", random.randrange(25_000, 32_000)))
            found.add(one.getsockname()[1])
    return list(found)
