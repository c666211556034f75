"""Which of the processes that run a stage together this one is, and who started them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from stages.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments import ClusterEnvironment

# Without a launcher one of them tells processes apart. Where there is none, nobody has to import PyTorch to know.
_MARKS = ("LOCAL_RANK", "NODE_RANK", "RANK")
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
OTHERS_WAIT_SECONDS = 5


class Launch(NamedTuple):
    """How the processes of a stage were started.

    Attributes:
        launcher: that has started all of them; None: each machine is started by hand, or there is one process.
        environment: Lightning's view of them.
        rank: of this process; without a launcher 0 for the first, and another number for the others.
        processes: their number; without a launcher 1, for the parameters decide.
        machines: their number; None where the launcher does not say.
    """

    launcher: str | None
    environment: "ClusterEnvironment"
    rank: int
    processes: int
    machines: int | None


def is_first_process() -> bool:
    """Whether this is the first of all processes, on whichever machine, or the only one."""
    launch = find_launch()
    return launch is None or launch.rank == 0


def has_own_gpus() -> bool:
    """Whether who has started this process has also chosen its GPU, as for one of several."""
    return "LOCAL_RANK" in os.environ or _launcher() is not None


def require_one_process() -> None:
    """Check that nobody has started several processes, each of which would write the same files.

    Raises:
        InputError: they have.
    """
    launch = find_launch()
    if launch is not None and launch.processes > 1:
        _refuse(
            f"{launch.launcher} started {launch.processes} processes, but this stage is a single one: run `dvc repro` "
            "once, as one process; `train` starts others itself",
            launch.rank,
        )


def _refuse(message: str, rank: int) -> NoReturn:
    """An error of all processes alike, which the first tells; the others let it: where one ends, launchers end all."""
    if rank:
        time.sleep(OTHERS_WAIT_SECONDS)
        sys.exit(1)
    raise InputError(message)


def join(devices: int, num_nodes: int) -> "ClusterEnvironment":
    """Lightning's view of the processes that have been started, or that it is to start.

    Args:
        devices: `training.devices`, processes of a machine.
        num_nodes: `training.num_nodes`, machines.

    Raises:
        InputError: others were started than the parameters say.
    """
    from lightning_fabric.plugins.environments import LightningEnvironment

    wanted = f"training.devices × training.num_nodes is {devices} × {num_nodes}"
    launcher, environment, rank, started, machines = find_launch() or Launch(None, LightningEnvironment(), 0, 1, None)
    if launcher:
        places = f" on {machines} machine{'s' * (machines > 1)}" if machines else ""
        machines = machines or num_nodes
        if (started, machines) == (devices * num_nodes, num_nodes):
            return environment
        _refuse(
            f"{launcher} started {started} processes{places}, but {wanted}; set them to "
            f"{started // machines or 1} × {machines}, or have {launcher} start as many as they say",
            rank,
        )
    for name, value, number in (("NODE_RANK", environment.node_rank(), num_nodes),
                                ("LOCAL_RANK", environment.local_rank(), devices)):  # fmt: skip
        if value >= number:
            raise InputError(f"{name} is {value}, but {wanted}: it must be less than {number}")
    if num_nodes > 1 and (missing := [name for name in ("MASTER_ADDR", "NODE_RANK") if name not in os.environ]):
        raise InputError(
            f"{wanted}, and there is no {' and no '.join(missing)}, which tells the machines of each other: start all "
            "processes by srun or torchrun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each machine"
        )
    return environment


def find_launch() -> Launch | None:
    """How this process was started; None: by itself.

    Raises:
        InputError: what the launcher has set is incomplete, as in a container that sees a part of it; the processes are
            not as many on each machine; MPI has started them, and there is no mpi4py to tell them apart.
    """
    try:
        launcher = _launcher()
        if launcher is None and not any(name in os.environ for name in _MARKS):
            return None
        environment, machines = _view(launcher)
        if launcher is None:
            return Launch(None, environment, environment.node_rank() or environment.local_rank(), 1, None)
        return Launch(launcher, environment, environment.global_rank(), environment.world_size(), machines)
    except (KeyError, ValueError) as error:
        reason = f"there is no {error.args[0]}" if isinstance(error, KeyError) else error
        raise InputError(f"the variables that tell the processes of a launcher apart are wrong: {reason}") from None


def _view(launcher: str | None) -> tuple["ClusterEnvironment", int | None]:
    """Lightning's view of a launcher's processes, and the number of machines."""
    from lightning_fabric.plugins import environments

    get = os.environ.get
    if launcher == "torchrun":
        return environments.TorchElasticEnvironment(), int(get("GROUP_WORLD_SIZE", "1"))
    if launcher == "SLURM":
        machines = int(os.environ["SLURM_STEP_NUM_NODES"])
        if "," in (each := get("SLURM_STEP_TASKS_PER_NODE", "")):
            raise InputError(f"SLURM started {each} processes on its machines: --ntasks-per-node=… makes them equal")
        # Lightning wants this variable, which srun sets for some of its options only, or leaves as sbatch has set it.
        os.environ["SLURM_NTASKS_PER_NODE"] = str(int(os.environ["SLURM_STEP_NUM_TASKS"]) // machines)
        return environments.SLURMEnvironment(), machines
    if launcher == "LSF":
        return environments.LSFEnvironment(), None
    if launcher == "MPI":
        if not environments.MPIEnvironment.detect():
            raise InputError("MPI started several processes, which mpi4py tells apart: `pip install mpi4py`")
        return environments.MPIEnvironment(), None
    if launcher == "Kubernetes":
        environment = environments.KubeflowEnvironment()
        return environment, environment.world_size()  # one process in each pod
    return environments.LightningEnvironment(), None


def _launcher() -> str | None:
    """Who has started several processes, as their variables tell."""
    get = os.environ.get
    if "TORCHELASTIC_RUN_ID" in os.environ:  # first: it may run under any of the others
        return "torchrun"
    if "LOCAL_RANK" in os.environ:  # Lightning's own processes have those of the others, too
        return None
    if int(get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return "SLURM"
    if "JSM_NAMESPACE_SIZE" in os.environ:
        return "LSF"
    if any(int(get(name, "1")) > 1 for name in _MPI_SIZES):
        return "MPI"
    if {"MASTER_ADDR", "RANK", "WORLD_SIZE"} <= os.environ.keys():  # as an operator of Kubernetes sets them in each pod
        return "Kubernetes"
    return None


def start_processes_of_this_machine(devices: int, num_nodes: int) -> None:
    """Start the others of `devices` processes, as Lightning would, but before PyTorch is loaded here.

    All load it at once; and none goes on without the others: if one fails, or this one ends, all do.
    """
    if parent := os.environ.get("STARTED_BY"):
        end_with(int(parent))
    if devices == 1 or has_own_gpus() or (num_nodes > 1 and not {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys()):
        return  # of what is missing, `join` tells
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ.setdefault("MASTER_PORT", str(free.getsockname()[1]))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    command = [sys.executable, "-m", "stages.train"]
    others = os.environ | {"STARTED_BY": str(os.getpid())}
    started = [subprocess.Popen(command, env=others | {"LOCAL_RANK": str(rank)}) for rank in range(1, devices)]  # noqa: S603
    os.environ["LOCAL_RANK"] = "0"
    threading.Thread(target=_end_with_others, args=(started,), daemon=True).start()


def end_with(parent: int) -> None:
    """End this process when its parent has ended: one that is killed tells nobody.

    Args:
        parent: its number.
    """

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)  # it may wait for others, and notice no gentler signal

    threading.Thread(target=wait, daemon=True).start()


def _end_with_others(started: list[subprocess.Popen]) -> None:
    while not any(process.poll() for process in started):
        time.sleep(1)
    time.sleep(5)  # for this process, which may know why, to say so
    for process in started:
        process.kill()
    os._exit(1)


def start_in_slurm(devices: int, num_nodes: int) -> None:
    """In the script of a SLURM job, replace this process by srun, which starts all that the parameters ask for.

    So `dvc repro` in the script uses all machines of the job, and SLURM's signals reach the training alone, which saves
    a checkpoint, and not DVC. On one machine srun starts one process, which starts the others: it leases its GPUs, of
    which a sweep in a job may run several trainings. Elsewhere nothing happens.

    Args:
        devices: `training.devices`, processes of a machine.
        num_nodes: `training.num_nodes`, machines.

    Raises:
        InputError: the job has another number of machines.
    """
    started = any(name in os.environ for name in ("SLURM_STEP_ID", "LOCAL_RANK", "NODE_RANK"))
    if "SLURM_JOB_ID" not in os.environ or started or _launcher() or not (srun := shutil.which("srun")):
        return
    machines = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if machines != num_nodes:
        raise InputError(
            f"the SLURM job has {machines} machine{'s' * (machines > 1)}, but training.num_nodes is {num_nodes}; set "
            f"it to {machines}, or submit the job with --nodes={num_nodes}"
        )
    # Each process sees the GPUs of its machine, of which it takes its own, and computes on all of its processors.
    each = devices if num_nodes > 1 else 1
    options = [f"--nodes={num_nodes}", f"--ntasks={each * num_nodes}", f"--ntasks-per-node={each}"]
    options += ["--export=ALL", "--cpu-bind=none", "--kill-on-bad-exit=1", "--overlap"]
    for name in ("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK"):  # those of the script, which is one task
        os.environ.pop(name, None)
    os.execv(srun, [srun, *options, sys.executable, "-m", "stages.train"])  # noqa: S606
