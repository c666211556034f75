"""The step without Lightning: what makes up a gradient, alone and in several processes."""

import multiprocessing
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.plain import PLAIN
from stages.dataset.augmentation import as_float
from stages.dataset.loaders import Batch
from stages.training.monitoring import AsyncLossQueue, StepLoss
from stages.training.step import TrainingStep

CPU = torch.device("cpu")


class Linear(nn.Sequential):
    """A network whose images do not see each other."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 10


def losses(network, batch):
    return cross_entropy(network(as_float(batch.images)), batch.labels, reduction="none")


def batch_of(count, start=0):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (32, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return Batch(
        images[start : start + count],
        torch.arange(32)[start : start + count] % 2,
        None,
        torch.zeros(count, dtype=torch.int64),
    )


def stepped(batch, **training):
    """A network after one step, and the loss of the step."""
    network = Linear()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    step = TrainingStep(network, losses, optimizer, None, replace(PLAIN.training, precision=32, **training), CPU)
    loss = step(batch)
    return network, loss


def assert_same_weights(one, other):
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_step_goes_down_the_gradient_of_the_mean_loss():
    batch, network = batch_of(12), Linear()
    expected = losses(network, batch).mean()
    expected.backward()
    moved, loss = stepped(batch, gradient_clip_val=0.0)
    assert loss.item() == pytest.approx(expected.item())
    for before, after in zip(network.parameters(), moved.parameters()):
        torch.testing.assert_close(after, before - 0.5 * before.grad)


@pytest.mark.parametrize("accumulated", [3, 5, 64])
def test_micro_batches_give_the_step_of_the_whole(accumulated):
    batch = batch_of(12)
    whole, loss = stepped(batch)
    in_parts, same_loss = stepped(batch, accumulate_grad_batches=accumulated)
    assert_same_weights(whole, in_parts)
    assert same_loss.item() == pytest.approx(loss.item())


def _train_as_one_of_two(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    network, loss = stepped(batch_of(6, start=6 * rank))
    torch.save(network.state_dict() | {"loss": loss}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_take_the_step_of_all_their_images(tmp_path):
    multiprocessing.set_forkserver_preload([__name__])  # what takes seconds to load is loaded once for both
    torch.multiprocessing.start_processes(_train_as_one_of_two, (str(tmp_path),), 2, start_method="forkserver")
    whole, loss = stepped(batch_of(12))
    for rank in range(2):
        network, state = Linear(), torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(state.pop("loss"), loss)
        network.load_state_dict(state)
        assert_same_weights(whole, network)


def test_losses_are_read_in_order_and_none_is_lost():
    reader, read = AsyncLossQueue(), []
    for step in range(7):
        read += reader.put(StepLoss(0, step, step, 0.1, float("nan")), torch.tensor(float(step)))
    read += reader.drain()
    assert [(taken.step, taken.loss) for taken in read] == [(step, float(step)) for step in range(7)]
    assert reader.drain() == []
