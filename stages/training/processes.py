"""The processes that train one network together: how they start, and what they exchange."""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import torch
import torch.distributed
from torch import Tensor

from stages.config import TrainingConfig
from stages.errors import InputError
from stages.ranks import find_launch, join

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class OneProcess(NamedTuple):
    """A process that trains alone, without Lightning, which takes seconds to import."""

    device: torch.device
    global_rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    is_global_zero: bool = True

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """What this process has."""
        return obj

    def barrier(self, name: str | None = None) -> None:
        """Do nothing: there are no others."""


# Which of the processes this is, and its communication with the others.
Processes = Union["Fabric", OneProcess]


def start_processes(training: TrainingConfig) -> Processes:
    """Start and connect the processes that the parameters ask for, or join those that have been started.

    Raises:
        InputError: there are fewer devices than asked for, or others were started.
    """
    alone = training.devices * training.num_nodes == 1 and training.strategy != "ddp"
    if alone and find_launch() is None:
        return OneProcess(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
    from lightning_fabric import Fabric

    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # With one device Lightning would not check: each process would train alone, and write to the same files.
    environment = join(training.devices, training.num_nodes)
    on_gpu = torch.cuda.is_available()
    if on_gpu and training.devices > torch.cuda.device_count():
        raise InputError(f"training.devices is {training.devices}; this machine has {torch.cuda.device_count()} GPUs")
    fabric = Fabric(
        accelerator="gpu" if on_gpu else "cpu",
        devices=training.devices,
        num_nodes=training.num_nodes,
        strategy="auto" if alone else "ddp",
        plugins=[environment],
    )
    fabric.launch()
    return fabric


def say(fabric: Processes, message: str) -> None:
    """Print a message once; `Fabric.print` would on each machine."""
    if fabric.is_global_zero:
        print(message, flush=True)


def is_distributed() -> bool:
    """Whether there are several processes, connected."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def average_over_processes(tensors: Iterable[Tensor | None]) -> None:
    """Replace each tensor by its mean over the processes.

    In one message, after the backward pass and not during it: EfficientNet-B0's 21 MB take less than 1 % of a step
    between two GPUs, and unlike with DistributedDataParallel's hooks the backward pass can be captured.
    """
    # As they lie in memory, alike in all processes: a few hundred small copies would cost as much as the message.
    flat = [tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors if tensor is not None]
    together = torch.cat(flat)
    torch.distributed.all_reduce(together)
    together /= torch.distributed.get_world_size()
    torch.split_with_sizes_copy(together, [len(tensor) for tensor in flat], out=flat)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, those of the first one first, on the CPU; every process gets them."""
    rows = rows.cpu()
    if not is_distributed():
        return rows
    gathered: list[Tensor] = [rows] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, rows)
    return torch.cat(gathered)


def any_process(*flags: bool, device: torch.device) -> list[bool]:
    """Of each flag, whether it is set in any process."""
    if not is_distributed():
        return list(flags)
    tensor = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in tensor.tolist()]
