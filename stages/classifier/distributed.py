"""Several processes that train one network: Lightning starts and connects them, the step averages their gradients."""

import os

import torch.distributed
from pytorch_lightning.strategies import DDPStrategy


def is_first_process() -> bool:
    """Whether this is the first of the processes that train together, before Lightning has connected them."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


class AveragedGradients(DDPStrategy):
    """Lightning's DDP, on one machine or many, under torchrun and SLURM, without DistributedDataParallel's wrapper.

    Its hooks send gradients while the backward pass runs, which a CUDA graph captures only after eleven steps of
    preparation; `TrainingStep` sends them all at once behind it.
    """

    def configure_ddp(self) -> None:
        """Give all processes the weights of the first, as DistributedDataParallel does."""
        for tensor in self.model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)
