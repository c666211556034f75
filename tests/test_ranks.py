import os
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
from lightning_fabric.plugins.environments import MPIEnvironment

from stages.errors import InputError
from stages.ranks import find_launch, has_own_gpus, is_first_process, join, require_one_process, start_in_slurm

OF_LAUNCHERS = re.compile("SLURM|LOCAL_|GROUP_|MASTER_|TORCHELASTIC|OMPI|PMI|(NODE_)?RANK$|WORLD_SIZE$")
SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A function that sets variables; none of a launcher are there before."""
    for name in filter(OF_LAUNCHERS.match, list(os.environ)):
        monkeypatch.delenv(name)
    # `ranks` sets one, too.
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")

    def set_all(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return set_all


def torchrun(node, local, nodes=2, each=2):
    sizes = {"WORLD_SIZE": nodes * each, "LOCAL_WORLD_SIZE": each, "GROUP_WORLD_SIZE": nodes}
    return sizes | {"TORCHELASTIC_RUN_ID": "x", "RANK": each * node + local, "LOCAL_RANK": local, "GROUP_RANK": node}


def slurm(node, local, nodes=2, each=2):
    step = {"SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": nodes * each, "SLURM_STEP_NUM_NODES": nodes}
    rank = {"SLURM_PROCID": each * node + local, "SLURM_LOCALID": local, "SLURM_NODEID": node}
    # As `sbatch` has set it, for all steps of its script.
    return SCRIPT | step | rank | {"SLURM_NTASKS": nodes * each, "SLURM_NTASKS_PER_NODE": 8}


def kubernetes(node, local):
    return {"RANK": 2 * node + local, "WORLD_SIZE": 4, "MASTER_ADDR": "first", "MASTER_PORT": 1}


def lightning(node, local):
    return ({"NODE_RANK": node} if node else {}) | ({"LOCAL_RANK": local} if local else {})


# In each of two processes on each of two machines.
PROCESSES = {
    "torchrun": torchrun,
    "srun": slurm,
    "torchrun under srun": lambda node, local: slurm(node, 0, each=1) | torchrun(node, local),
    "Kubernetes": kubernetes,
    "Lightning": lightning,
    "Lightning in a SLURM job": lambda node, local: SCRIPT | {"SLURM_STEP_NUM_TASKS": "1"} | lightning(node, local),
}


@pytest.mark.parametrize("launcher", PROCESSES)
@pytest.mark.parametrize("process", range(4))
def test_of_all_processes_on_all_machines_one_is_the_first(launcher, process, environment):
    environment(PROCESSES[launcher](*divmod(process, 2)))
    assert is_first_process() == (process == 0)


@pytest.mark.parametrize("launcher", [torchrun, slurm])
def test_what_was_started_must_be_what_the_parameters_say(launcher, environment, monkeypatch):
    environment(launcher(1, 0))
    assert has_own_gpus()
    joined = join(2, 2)
    assert (joined.global_rank(), joined.local_rank(), joined.node_rank(), joined.world_size()) == (2, 0, 1, 4)
    joined.validate_settings(2, 2)
    # All have the same error: the first tells it, and has time to.
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    with pytest.raises(SystemExit):
        join(1, 1)
    assert waited
    environment(launcher(0, 0))
    for devices, nodes in ((1, 1), (4, 1), (1, 4), (1, 2)):
        message = rf" started 4 processes on 2 machines, but .* is {devices} × {nodes}; set them to 2 × 2, or have "
        with pytest.raises(InputError, match=message):
            join(devices, nodes)


def test_a_pod_is_a_machine(environment):
    environment(kubernetes(1, 0))
    assert join(1, 4).global_rank() == 2
    environment(kubernetes(0, 0))
    with pytest.raises(
        InputError, match=r"Kubernetes started 4 processes on 4 machines, but .* 4 × 1; set them to 1 × 4"
    ):
        join(4, 1)


def test_one_task_of_slurm_starts_its_processes_itself(environment):
    environment(slurm(0, 0, nodes=1, each=1))
    assert find_launch() is None  # so no stage of a sweep's job imports PyTorch to know
    assert is_first_process()
    assert not has_own_gpus()
    assert not join(2, 1).creates_processes_externally


def test_mpi_is_asked_through_mpi4py(environment, monkeypatch):
    environment({"OMPI_COMM_WORLD_SIZE": 4})
    monkeypatch.setattr(MPIEnvironment, "detect", lambda: False)
    with pytest.raises(InputError, match=r"MPI started several processes.*pip install mpi4py"):
        is_first_process()
    package = ModuleType("mpi4py")
    package.MPI = SimpleNamespace(COMM_WORLD=SimpleNamespace(Get_size=lambda: 4, Get_rank=lambda: 3))
    monkeypatch.setitem(sys.modules, "mpi4py", package)
    monkeypatch.setattr("lightning_fabric.plugins.environments.mpi._MPI4PY_AVAILABLE", True)
    monkeypatch.setattr(MPIEnvironment, "detect", lambda: True)
    assert not is_first_process()
    assert join(2, 2).global_rank() == 3
    package.MPI.COMM_WORLD.Get_rank = lambda: 0
    with pytest.raises(InputError, match="MPI started 4 processes, but"):
        join(1, 1)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_STEP_NUM_TASKS": 4}, "launcher apart are wrong: there is no SLURM_STEP_NUM_NODES"),
        (slurm(0, 0) | {"SLURM_PROCID": ""}, "launcher apart are wrong: .* ''"),
        (slurm(0, 0) | {"SLURM_STEP_TASKS_PER_NODE": "3,1"}, "SLURM started 3,1 processes .* --ntasks-per-node"),
        (torchrun(0, 0) | {"WORLD_SIZE": "all"}, "launcher apart are wrong: .*'all'"),
        ({"NODE_RANK": "first"}, "launcher apart are wrong: .*'first'"),
    ],
)
def test_what_a_launcher_has_not_set_is_told(variables, message, environment):
    environment(variables)
    for question in (is_first_process, require_one_process, lambda: join(1, 1)):
        with pytest.raises(InputError, match=message):
            question()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "there is no MASTER_ADDR and no NODE_RANK"),
        ({"MASTER_ADDR": "first"}, "there is no NODE_RANK"),
        ({"MASTER_ADDR": "first", "NODE_RANK": 2}, "NODE_RANK is 2, but .* it must be less than 2"),
        ({"MASTER_ADDR": "first", "NODE_RANK": 1, "LOCAL_RANK": 3}, "LOCAL_RANK is 3, but"),
    ],
)
def test_machines_that_are_started_by_hand_must_know_each_other(variables, message, environment):
    environment(variables)
    with pytest.raises(InputError, match=message):
        join(1, 2)


def test_a_job_has_the_machines_that_the_parameters_say(environment, monkeypatch):
    executed = []
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(os, "execv", lambda path, arguments: executed.append(arguments))
    for variables in ({}, torchrun(0, 0), slurm(0, 0), SCRIPT | lightning(1, 1)):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, str(value))
            start_in_slurm(1, 1)
    assert executed == []
    environment(SCRIPT)
    start_in_slurm(2, 2)
    assert {"--nodes=2", "--ntasks=4", "--ntasks-per-node=2"} < set(executed[0])
    environment({"SLURM_JOB_NUM_NODES": 1})
    start_in_slurm(4, 1)  # one, which leases its GPUs and starts the others
    assert {"--nodes=1", "--ntasks=1", "--ntasks-per-node=1"} < set(executed[1])
    environment(SCRIPT)
    with pytest.raises(InputError, match=r"the SLURM job has 2 machines, but training.num_nodes is 1; set it to 2, or"):
        start_in_slurm(4, 1)
