"""A training step as fast as the GPU allows: captured once, then replayed without Python in between.

Small kernels starve a GPU: launched one by one, EfficientNet-B0 at batch 32 leaves an H100 idle three quarters of the
time. Captured as CUDA graphs, the whole step is two launches.
"""

import torch
from torch import Tensor

from stages.dataset.loaders import Batch
from stages.training.optimization import is_capturable
from stages.training.step import TrainingStep

# Ordinary steps before the capture: they load kernels, fill the optimizer's state and, with several GPUs, connect them.
WARM_UP_STEPS = 3


def why_not_captured(step: TrainingStep) -> str | None:
    """Why steps cannot be captured as a CUDA graph; None if they can."""
    if step.device.type != "cuda":
        return "that needs a GPU"
    if step.training.compile == "none":
        return "training.compile is none"
    if step.training.precision == 16:
        return "the loss scaling of precision 16 decides on the CPU whether to step"
    if step.training.detect_anomaly:
        return "training.detect_anomaly looks at every layer"
    return None


class CapturedStep:
    """Takes the steps of a `TrainingStep` by replaying them as CUDA graphs.

    Its backward pass and its update are a graph each. Communication between processes takes place between the two: NCCL
    need not be captured, and its messages keep their order.

    Args:
        step: on a GPU; its batches all have the same shape.
    """

    def __init__(self, step: TrainingStep) -> None:
        self._step = step
        self._stream = torch.cuda.Stream(step.device)
        self.reset()

    def reset(self) -> None:
        """Discard what was captured: other parameters are trained from now on."""
        self._eager_steps = 0
        self._backward_graph: torch.cuda.CUDAGraph | None = None
        self._update_graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch) -> Tensor:
        """Take one step; the mean loss of the batch, on the device, which the next step overwrites."""
        if self._eager_steps < WARM_UP_STEPS:
            return self._warm_up(batch)
        backward_graph = self._backward_graph or self._capture(batch)
        for static, new in zip(self._static, batch):
            if static is not None and new is not None:
                static.copy_(new)
        backward_graph.replay()
        self._step.synchronize(self._loss)
        if self._update_graph is None:
            self._step.update()
        else:
            self._update_graph.replay()
        return self._loss

    def _warm_up(self, batch: Batch) -> Tensor:
        # On a stream of its own, as the capture will be: what is set up here must not belong to the default one.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = self._step(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        self._eager_steps += 1
        return loss

    def _capture(self, batch: Batch) -> torch.cuda.CUDAGraph:
        self._static = Batch._make(None if tensor is None else tensor.clone() for tensor in batch)
        self._step.optimizer.zero_grad(set_to_none=True)
        # Threads that read images ahead and, with several GPUs, NCCL's watchdog go on meanwhile: hence thread_local.
        options = {"stream": self._stream, "capture_error_mode": "thread_local", "pool": torch.cuda.graph_pool_handle()}
        backward = torch.cuda.CUDAGraph()
        with torch.cuda.graph(backward, **options):
            self._loss = self._step.backward(self._static)
        if is_capturable(self._step.optimizer):
            self._update_graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._update_graph, **options):
                self._step.update()
        self._backward_graph = backward
        return backward
