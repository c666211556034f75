"""One step of the optimizer as fast as the GPU can take it: captured once, then replayed without Python in between.

Small kernels starve a GPU: launched one by one, EfficientNet-B0 at batch 32 leaves an H100 idle three quarters of the
time. Captured as CUDA graphs, the whole step is two launches.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer

from stages.classifier.optimization import WeightAverage, is_capturable
from stages.config import TrainingConfig
from stages.dataset.loaders import Batch
from stages.errors import InputError

# Ordinary steps before the capture: they load kernels, fill the optimizer's state and, with several GPUs, connect them.
WARM_UP_STEPS = 3

# How far Python may run ahead of the GPU: what it does meanwhile costs no time as long as it takes less than these.
STEPS_AHEAD = 16

# From the network and a batch to the loss of each of its images, shape (n,).
ImageLosses = Callable[[nn.Module, Batch], Tensor]


class TrainingStep:
    """Forward, backward, clipping, optimizer and weight average, for one batch after another.

    When the GPU's memory is too small for a batch, it goes through the network in parts whose gradients add up, half as
    many images at a time: the step stays what it was, but for the statistics of batch normalisation.

    Args:
        network: what is trained.
        losses: what it is trained for.
        optimizer: of the network's parameters.
        average: of the network's weights, if any.
        training: precision, clipping, accumulation, and whether to compile or capture.
        device: where the network is.
        say: where a fall-back is reported.

    Attributes:
        parts: into how many parts a batch is split because of memory; 1 at first.
        captured: whether steps are replayed from a CUDA graph.
    """

    def __init__(
        self,
        network: nn.Module,
        losses: ImageLosses,
        optimizer: Optimizer,
        average: WeightAverage | None,
        training: TrainingConfig,
        device: torch.device,
        say: Callable[[str], None] = print,
    ) -> None:
        self.parts = 1
        self._network, self._losses, self._optimizer, self._average = network, losses, optimizer, average
        self._training, self._device, self._say = training, device, say
        self._scaler = torch.amp.GradScaler(device.type, enabled=training.precision == 16)
        self._forward = network
        if training.compile == "inductor":
            self._forward = torch.compile(network, dynamic=False)
        reason = self._why_not_captured()
        self.captured = reason is None
        if reason and (training.compile == "graph" or (training.compile != "none" and device.type == "cuda")):
            say(f"steps are not captured as a CUDA graph: {reason}")
        self._stream = torch.cuda.Stream(device) if self.captured else None
        self._buffers = [(buffer, torch.empty_like(buffer)) for buffer in network.buffers()]
        self.reset()

    def _why_not_captured(self) -> str | None:
        training = self._training
        if self._device.type != "cuda":
            return "that needs a GPU"
        if training.compile == "none":
            return "training.compile is none"
        if training.precision == 16:
            return "the loss scaling of precision 16 decides on the CPU whether to step"
        if training.detect_anomaly:
            return "training.detect_anomaly looks at every layer"
        return None

    def reset(self) -> None:
        """Forget what was captured: the network's parameters that learn, or the batches, are others from now on."""
        self._eager_steps = 0
        self._backward_graph = self._update_graph = None
        self._static: Batch | None = None
        self._static_loss: Tensor | None = None

    def __call__(self, batch: Batch) -> Tensor:
        """Take one step.

        Returns:
            The mean loss of the batch, on the device; it is overwritten by the next step.

        Raises:
            InputError: not even one image fits into the GPU's memory.
        """
        while True:
            try:
                return self._run(batch)
            except torch.OutOfMemoryError:
                pass  # handled outside: the exception holds on to the tensors of the step
            self._make_room(len(batch.labels))

    def _run(self, batch: Batch) -> Tensor:
        if not self.captured:
            return self._run_eagerly(batch)
        if self._eager_steps < WARM_UP_STEPS:
            # On a stream of its own, as the capture will be: what is set up here must not belong to the default one.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                loss = self._run_eagerly(batch)
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            self._eager_steps += 1
            return loss
        if self._backward_graph is None:
            self._capture(batch)
        for static, new in zip(self._static, batch):
            if static is not None:
                static.copy_(new)
        self._backward_graph.replay()
        self._average_gradients()
        if self._update_graph is None:
            self._update()
        else:
            self._update_graph.replay()
        return self._static_loss

    def _run_eagerly(self, batch: Batch) -> Tensor:
        for buffer, before in self._buffers:
            before.copy_(buffer)
        self._random = (
            torch.get_rng_state(),
            (torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None),
        )
        loss = self._backward(batch)
        self._average_gradients()
        self._update()
        return loss

    def _capture(self, batch: Batch) -> None:
        self._static = Batch(*(None if tensor is None else tensor.clone() for tensor in batch))
        self._optimizer.zero_grad(set_to_none=True)
        # Threads that read images ahead and, with several GPUs, NCCL's watchdog go on meanwhile: hence thread_local.
        options = {"stream": self._stream, "capture_error_mode": "thread_local", "pool": torch.cuda.graph_pool_handle()}
        backward, update = torch.cuda.CUDAGraph(), None
        with torch.cuda.graph(backward, **options):
            self._static_loss = self._backward(self._static)
        if is_capturable(self._optimizer):
            update = torch.cuda.CUDAGraph()
            with torch.cuda.graph(update, **options):
                self._update()
        else:
            self._say(f"the steps of {self._training.optimizer} are not captured: only those of {_CAPTURABLE} can be")
        self._backward_graph, self._update_graph = backward, update

    def _backward(self, batch: Batch) -> Tensor:
        """Leave the gradient of the mean loss in the parameters; the mean loss."""
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for part in self._split(batch):
            loss = self._losses(self._forward, part).sum() / len(batch.labels)
            self._scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _split(self, batch: Batch) -> list[Batch]:
        """Parts of a batch, as equal as possible, that go through the network one after another."""
        parts = min(len(batch.labels), self._training.accumulate_grad_batches * self.parts)
        columns = ([None] * parts if tensor is None else tensor.tensor_split(parts) for tensor in batch)
        return [Batch(*tensors) for tensors in zip(*columns)]

    def _average_gradients(self) -> None:
        # Between the two graphs, not in one: NCCL need not be captured, and its messages keep their order.
        average_over_processes(parameter.grad for parameter in self._network.parameters())

    def _update(self) -> None:
        """Move the weights along the gradient."""
        if self._training.gradient_clip_val:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._network.parameters(), self._training.gradient_clip_val, foreach=True)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update(self._network)

    def _make_room(self, count: int) -> None:
        """Halve the images that go through the network at a time, and undo what the failed step has done."""
        at_a_time = math.ceil(count / self._training.accumulate_grad_batches)
        size = math.ceil(at_a_time / self.parts)
        # A capture that failed has done nothing; before it, normalisation may have seen some layers of the batch.
        if self._eager_steps < WARM_UP_STEPS:
            for buffer, before in self._buffers:
                buffer.copy_(before)
            on_cpu, on_gpu = self._random
            torch.set_rng_state(on_cpu)
            if on_gpu is not None:
                torch.cuda.set_rng_state(on_gpu, self._device)
        self._optimizer.zero_grad(set_to_none=True)
        self.reset()
        self.parts = more_parts(self.parts, at_a_time)
        times = self.parts * self._training.accumulate_grad_batches
        self._say(
            f"out of memory with {size} images at a time: going on with {math.ceil(size / 2)}, {times} times a step; "
            "the images of a step and its learning rate stay the same"
        )


def more_parts(parts: int, count: int) -> int:
    """Into how many parts to split `count` images for which memory was too small in `parts`; gives back what is unused.

    Raises:
        InputError: the parts were single images already.
    """
    if parts >= count:
        raise InputError(
            "the GPU's memory is too small for a single image: lower data.image_size, or choose a smaller model.variant"
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return 2 * parts


_CAPTURABLE = "adam, adamw, sgd and momentum"


def average_over_processes(tensors: Iterable[Tensor | None]) -> None:
    """Replace each tensor by its mean over the processes that train together, if there are several.

    In one message, after the backward pass and not during it: EfficientNet-B0's 21 MB take less than 1 % of a step
    between two GPUs, and unlike with DistributedDataParallel's hooks the backward pass can be captured.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    # As they lie in memory, alike in all processes: a few hundred small copies would cost as much as the message.
    flat = [tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors if tensor is not None]
    together = torch.cat(flat)
    torch.distributed.all_reduce(together)
    together /= torch.distributed.get_world_size()
    torch._foreach_copy_(flat, together.split([len(tensor) for tensor in flat]))


class StepLoss(NamedTuple):
    """What is known of a step that was taken.

    Attributes:
        epoch: counted from 0.
        batch: of the epoch, counted from 0.
        step: of the training, counted from 0.
        rate: its learning rate.
        loss: its mean loss.
    """

    epoch: int
    batch: int
    step: int
    rate: float
    loss: float


class LossReader:
    """The losses of the steps, read a few steps late, so that nobody waits for the GPU and it never waits for Python.

    Args:
        late: how many steps the GPU may lie behind.
    """

    def __init__(self, late: int = STEPS_AHEAD) -> None:
        self._late = late
        self._pending: deque[tuple[StepLoss, Tensor, torch.cuda.Event | None]] = deque()

    def put(self, step: StepLoss, loss: Tensor) -> list[StepLoss]:
        """Take the loss of a step; the steps, in order, whose losses are known by now."""
        if loss.device.type == "cuda":
            copied = torch.empty((), pin_memory=True).copy_(loss, non_blocking=True)
            event = torch.cuda.current_stream(loss.device).record_event()
        else:
            copied, event = loss, None
        self._pending.append((step, copied, event))
        return self._take(self._late if event is not None else 0)

    def drain(self) -> list[StepLoss]:
        """Wait for the GPU; the steps that were left."""
        return self._take(0)

    def _take(self, left: int) -> list[StepLoss]:
        known = []
        while len(self._pending) > left:
            step, loss, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            known.append(step._replace(loss=loss.item()))
        return known
