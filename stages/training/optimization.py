"""The optimizer, its learning rate over the course of training, and the average of the weights."""

import copy
import math
from collections.abc import Callable
from typing import Any

import timm
import timm.optim
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from stages.classifier.networks import NormalizedNetwork
from stages.config import TrainingConfig
from stages.errors import InputError

# Those whose step PyTorch takes in one kernel that reads the learning rate and the step's number on the GPU.
FUSED = ("adam", "adamw", "sgd", "momentum")


def check_optimizer(name: str) -> None:
    """Raise an InputError unless timm knows an optimizer of that name, and it can step here."""
    # It needs second derivatives, and no second backward pass is made here.
    usable = [str(one) for one in timm.optim.list_optimizers() if one != "adahessian"]
    if name not in usable:
        raise InputError(f"training.optimizer is {name!r}; it must be one of timm's {', '.join(usable)}")


def create_optimizer(backbone: nn.Module, training: TrainingConfig, device: torch.device) -> Optimizer:
    """timm's optimizer of that name: weight decay on weights only, and a learning rate that layers may share unequally.

    Every group of parameters has its `lr_scale`, the factor that `training.layer_decay` gives its layer.

    Raises:
        InputError: the optimizer cannot be used here.
    """
    options: dict[str, Any] = {"fused": True} if training.optimizer in FUSED else {}
    if training.optimizer in ("adam", "adamw") and device.type == "cuda":
        options["capturable"] = True
    try:
        optimizer = timm.optim.create_optimizer_v2(
            backbone,
            opt=training.optimizer,
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            layer_decay=training.layer_decay if training.layer_decay < 1 else None,
            **options,
        )
    except Exception as error:  # timm lists optimizers of packages that are not installed, or that need a GPU
        raise InputError(f"training.optimizer is {training.optimizer!r}, which cannot be used here: {error}") from None
    for group in optimizer.param_groups:
        group.setdefault("lr_scale", 1.0)
        if is_capturable(optimizer) and device.type == "cuda":
            # A number would be frozen into the captured step.
            group["lr"] = torch.tensor(group["lr"], device=device)
    return optimizer


def is_capturable(optimizer: Optimizer) -> bool:
    """Whether its step can be captured in a CUDA graph and replayed."""
    return type(optimizer) in (Adam, AdamW, SGD) and all(group["fused"] for group in optimizer.param_groups)


class LearningRate:
    """The learning rate of each step, which it sets in the optimizer without waiting for the GPU.

    Args:
        optimizer: whose rate is set.
        training: which schedule.
        steps_per_epoch: steps of the optimizer in an epoch.

    Attributes:
        rate: of the layers that learn fastest, as it was last set.
    """

    def __init__(self, optimizer: Optimizer, training: TrainingConfig, steps_per_epoch: int) -> None:
        self._optimizer = optimizer
        self._training = training
        self._factor = learning_rate_factor(training, steps_per_epoch)
        self._warmup_steps = math.ceil(training.lr_warmup_epochs * steps_per_epoch)
        self._plateau = None
        if training.lr_scheduler == "reduce_on_plateau":
            self._plateau = ReduceLROnPlateau(
                optimizer, factor=training.lr_gamma, patience=training.lr_plateau_patience
            )
        self._set(training.learning_rate)

    def before_step(self, step: int) -> None:
        """Set the rate of a step, counted from 0."""
        # After its warm-up, reduce_on_plateau does not depend on the step.
        if self._plateau is None or step <= self._warmup_steps:
            self._set(self._training.learning_rate * self._factor(step))

    def after_validation(self, val_loss: float) -> None:
        """Lower the rate where `reduce_on_plateau` finds that the monitored validation loss stalls."""
        if self._plateau is not None:
            self._plateau.step(val_loss)
            group = self._optimizer.param_groups[0]
            self.rate = float(group["lr"]) / group["lr_scale"]

    def _set(self, rate: float) -> None:
        self.rate = rate
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * group["lr_scale"])
            else:
                group["lr"] = rate * group["lr_scale"]

    def state_dict(self) -> dict:
        return {"rate": self.rate, "plateau": self._plateau and self._plateau.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self._set(state["rate"])
        if self._plateau is not None:
            self._plateau.load_state_dict(state["plateau"])


def learning_rate_factor(training: TrainingConfig, steps_per_epoch: float) -> Callable[[int], float]:
    """The schedule as a function from the step, counted from 0, to the factor of `training.learning_rate`.

    For reduce_on_plateau, only its warm-up.

    Cosine: Loshchilov & Hutter, SGDR, ICLR 2017, one period without restart.
    """

    def factor(step: int) -> float:
        epoch, warmup = step / steps_per_epoch, training.lr_warmup_epochs
        if epoch < warmup:
            return (step + 1) / (warmup * steps_per_epoch + 1)
        if training.lr_scheduler == "reduce_on_plateau":
            return 1.0
        if training.lr_scheduler == "step":
            return training.lr_gamma ** (epoch // training.lr_step_epochs)
        progress = min(1.0, (epoch - warmup) / max(1e-9, training.max_epochs - warmup))
        if training.lr_scheduler == "exponential":
            return training.lr_gamma**progress
        return 0.5 * (1 + math.cos(math.pi * progress))

    return factor


class WeightAverage(nn.Module):
    """An average of a network's weights over the steps (Polyak & Juditsky, 1992), as a separate network.

    For the first 1 / (1 − decay) steps it is the plain mean of the weights after each step: those before training do
    not count. From then on it is an exponential moving average with this decay.
    """

    def __init__(self, network: NormalizedNetwork, decay: float) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros(()))

    def train(self, mode: bool = True) -> "WeightAverage":
        """Stay in evaluation mode: nothing passes through the average but what is predicted."""
        return self

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the weights of `network`; without a number that a captured step would freeze."""
        self.steps += 1
        weight = (1 / self.steps).clamp(min=1 - self.decay)
        averaged, latest = (list(one.state_dict().values()) for one in (self.network, network))
        floats = [number for number, tensor in enumerate(averaged) if tensor.is_floating_point()]
        means, news = ([tensors[number] for number in floats] for tensors in (averaged, latest))
        change = torch._foreach_sub(news, means)
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(means, change)
        for mean, new in zip(averaged, latest):
            if not mean.is_floating_point():  # how many batches a normalisation has seen
                mean.copy_(new)
