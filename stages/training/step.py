"""The training step: forward, backward, clipping, optimizer and weight average, for one batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stages.config import TrainingConfig
from stages.dataset.loaders import Batch
from stages.training.optimization import WeightAverage
from stages.training.processes import average_over_processes, is_distributed

# From the network and a batch to the loss of each of its images, shape (n,).
ImageLosses = Callable[[nn.Module, Batch], Tensor]


class TrainingStep:
    """One step of the optimizer, over `training.accumulate_grad_batches` micro-batches whose gradients add up.

    Args:
        network: what is trained.
        losses: what it is trained for.
        optimizer: of the network's parameters.
        average: of the network's weights, if any.
        training: precision, clipping, accumulation, and whether to compile the network.
        device: where the network is.
    """

    def __init__(
        self,
        network: nn.Module,
        losses: ImageLosses,
        optimizer: Optimizer,
        average: WeightAverage | None,
        training: TrainingConfig,
        device: torch.device,
    ) -> None:
        self.network, self.losses, self.optimizer, self.average = network, losses, optimizer, average
        self.training, self.device = training, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.precision == 16)
        self._forward: Any = torch.compile(network, dynamic=False) if training.compile == "inductor" else network

    def __call__(self, batch: Batch) -> Tensor:
        """Take one step; the mean loss of the batch, on the device."""
        loss = self.backward(batch)
        self.synchronize(loss)
        self.update()
        return loss

    def backward(self, batch: Batch) -> Tensor:
        """Leave the gradient of the mean loss in the parameters; the mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for micro_batch in self._micro_batches(batch):
            loss = self.losses(self._forward, micro_batch).sum() / len(batch.labels)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        count = min(len(batch.labels), self.training.accumulate_grad_batches)
        columns = ([None] * count if tensor is None else tensor.tensor_split(count) for tensor in batch)
        return [Batch(*tensors) for tensors in zip(*columns)]

    def synchronize(self, loss: Tensor) -> None:
        """Give all processes the mean of their losses, gradients and normalisation statistics."""
        if is_distributed():
            statistics = [buffer for buffer in self.network.buffers() if buffer.is_floating_point()]
            gradients = [parameter.grad for parameter in self.network.parameters()]
            average_over_processes([loss, *gradients, *statistics])

    def update(self) -> None:
        """Move the weights along the gradient, and their average towards them."""
        if self.training.gradient_clip_val:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.training.gradient_clip_val, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.network)
