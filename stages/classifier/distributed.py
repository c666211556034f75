"""Several processes that train one network: Lightning starts and connects them, the step averages their gradients."""

import torch.distributed
from pytorch_lightning.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy

from stages.config import TrainingConfig
from stages.errors import InputError


def check_launcher(training: TrainingConfig) -> None:
    """See that torchrun, where it started this process, started as many as the parameters say.

    With one device Lightning would ask nobody: each process would train alone, and write to the same files.

    Raises:
        InputError: there are more of them, or fewer.
    """
    if not TorchElasticEnvironment.detect():
        return
    started, wanted = TorchElasticEnvironment().world_size(), training.devices * training.num_nodes
    if started != wanted:
        raise InputError(
            f"torchrun started {started} processes, but training.devices × training.num_nodes is "
            f"{training.devices} × {training.num_nodes}; set them so that their product is {started}, "
            "or change torchrun's --nproc-per-node and --nnodes"
        )


class AveragedGradients(DDPStrategy):
    """Lightning's DDP, on one machine or many, under torchrun and SLURM, without DistributedDataParallel's wrapper.

    Its hooks send gradients while the backward pass runs, which a CUDA graph captures only after eleven steps of
    preparation; `TrainingStep` sends them all at once behind it.
    """

    def configure_ddp(self) -> None:
        """Give all processes the weights of the first, as DistributedDataParallel does."""
        for tensor in self.model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)
