"""The processes that train one network together: how they start, and what they exchange."""

import logging
from collections.abc import Iterable

import torch
import torch.distributed
from lightning_fabric import Fabric
from torch import Tensor

from stages.config import TrainingConfig
from stages.errors import InputError
from stages.ranks import join


def start_processes(training: TrainingConfig) -> Fabric:
    """Start and connect the processes that the parameters ask for, or join those that have been started.

    Returns:
        Which of them this is (`global_rank`, `world_size`), its device, and Lightning's communication with the others.

    Raises:
        InputError: there are fewer devices than asked for, or others were started.
    """
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
        strategy="ddp" if training.strategy == "ddp" or training.devices * training.num_nodes > 1 else "auto",
        plugins=[environment],
    )
    fabric.launch()
    return fabric


def say(fabric: Fabric, message: str) -> None:
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
    torch._foreach_copy_(flat, together.split([len(tensor) for tensor in flat]))


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
