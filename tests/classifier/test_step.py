"""The step without Lightning: what makes up a gradient, alone and in several processes."""

from dataclasses import replace

import pytest
import torch
import torch.multiprocessing
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.plain import PLAIN
from stages.classifier.memory import largest_power
from stages.classifier.step import LossReader, StepLoss, TrainingStep
from stages.dataset.augmentation import as_float
from stages.dataset.loaders import Batch

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
    return Batch(images[start : start + count], torch.arange(32)[start : start + count] % 2, None)


def stepped(batch, parts=1, **training):
    """A network after one step, and the loss of the step."""
    network = Linear()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    step = TrainingStep(network, losses, optimizer, None, replace(PLAIN.training, precision=32, **training), CPU)
    step.parts = parts
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


@pytest.mark.parametrize(("accumulated", "parts"), [(3, 1), (1, 4), (2, 2), (5, 1), (1, 64)])
def test_parts_of_a_batch_give_the_step_of_the_whole(accumulated, parts):
    batch = batch_of(12)
    whole, loss = stepped(batch)
    in_parts, same_loss = stepped(batch, parts, accumulate_grad_batches=accumulated)
    assert_same_weights(whole, in_parts)
    assert same_loss.item() == pytest.approx(loss.item())


def test_memory_that_runs_out_in_the_middle_of_a_step_leaves_no_trace():
    """Statistics and random numbers of the attempt that failed must not count."""

    def step_with(limit):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Dropout(0.5), nn.Linear(192, 2))
        seen = []

        def limited(network, batch):
            result = losses(network, batch)
            seen.append(len(batch.labels))
            if len(batch.labels) > limit:
                raise torch.OutOfMemoryError
            return result

        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        step = TrainingStep(
            network, limited, optimizer, None, replace(PLAIN.training, precision=32), CPU, lambda _: None
        )
        step.parts = 1 if limit < 12 else 2
        step(batch_of(12))
        return network, seen

    failed_first, seen = step_with(6)
    assert seen == [12, 6, 6]
    in_two, seen = step_with(12)
    assert seen == [6, 6]
    for one, other in zip(failed_first.state_dict().values(), in_two.state_dict().values()):
        assert torch.equal(one, other)


def _train_as_one_of_two(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    network, _ = stepped(batch_of(6, start=6 * rank))
    torch.save(network.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_take_the_step_of_all_their_images(tmp_path):
    torch.multiprocessing.spawn(_train_as_one_of_two, (str(tmp_path),), nprocs=2)
    whole, _ = stepped(batch_of(12))
    for rank in range(2):
        network = Linear()
        network.load_state_dict(torch.load(tmp_path / f"{rank}.pt", weights_only=True))
        assert_same_weights(whole, network)


def test_losses_are_read_in_order_and_none_is_lost():
    reader, read = LossReader(), []
    for step in range(7):
        read += reader.put(StepLoss(0, step, step, 0.1, float("nan")), torch.tensor(float(step)))
    read += reader.drain()
    assert [(taken.step, taken.loss) for taken in read] == [(step, float(step)) for step in range(7)]
    assert reader.drain() == []


@pytest.mark.parametrize(
    ("start", "limit", "largest", "expected"),
    [
        (32, 1000, 300, 256),
        (32, 100, 300, 64),
        (32, 1000, 32, 32),
        (32, 1000, 9, 8),
        (32, 1000, 0, 1),
        (32, 20, 300, 20),
    ],
)
def test_batches_grow_and_shrink_by_powers_of_two(start, limit, largest, expected):
    assert largest_power(start, limit, lambda size: size <= largest) == expected
