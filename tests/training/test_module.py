import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.plain import PLAIN
from stages.config import override
from stages.dataset.augmentation import as_float
from stages.dataset.loaders import Batch
from stages.errors import InputError
from stages.training.module import TrainingModule

COUNTS = torch.tensor([30, 10])


def classifier(classes=2, **training):
    changes = {"data.image_size": 16, "model.name": "baseline_cnn", "model.variant": None, "model.num_classes": classes}
    changes |= {"model.pretrained": False, "training.precision": 32}
    config = override(PLAIN, changes | {f"training.{key}": value for key, value in training.items()})
    return TrainingModule(config, 16, COUNTS).eval()


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8, generator=random)
    return Batch(images, torch.tensor([0, 0, 1, 0, 1, 0]), None)


def test_the_number_of_classes_is_that_of_the_configuration():
    assert classifier(7)(torch.rand(2, 3, 16, 16)).shape == (2, 7)


def test_an_unknown_optimizer_is_refused_before_anything_is_trained():
    with pytest.raises(InputError, match=r"training\.optimizer is 'adamm'"):
        classifier(optimizer="adamm")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_cross_entropy_of_each_image(batch, smoothing):
    module = classifier(label_smoothing=smoothing)
    expected = cross_entropy(module(as_float(batch.images)), batch.labels, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(module.losses(module.network, batch), expected)


def test_class_weights_make_classes_count_alike_and_leave_the_mean_loss_its_size(batch):
    weighted, plain = (classifier(class_balance=balance) for balance in ("weights", "none"))
    weighted.load_state_dict(plain.state_dict())
    ratio = weighted.losses(weighted.network, batch) / plain.losses(plain.network, batch)
    weights = {label: ratio[batch.labels == label] for label in (0, 1)}
    # 30 images of the first class and 10 of the second.
    torch.testing.assert_close(weights[0], torch.full((4,), 40 / 60))
    torch.testing.assert_close(weights[1], torch.full((2,), 40 / 20))


def test_half_the_strength_weighs_by_the_root_of_the_frequency(batch):
    weights = classifier(class_balance="weights", class_balance_strength=0.5).class_weights
    assert (weights[1] / weights[0]).item() == pytest.approx((30 / 10) ** 0.5)
    assert (COUNTS * weights).sum().item() == pytest.approx(40)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_an_adjusted_loss_is_that_of_logits_with_the_frequencies_added(batch, strength):
    module = classifier(class_balance="logits", class_balance_strength=strength)
    logits = module(as_float(batch.images))
    # softmax(logits) ∝ p(class | image) / frequency^strength is what has the least loss.
    adjusted = logits.softmax(dim=1) * torch.tensor([0.75, 0.25]) ** strength
    expected = -(adjusted / adjusted.sum(dim=1, keepdim=True))[torch.arange(6), batch.labels].log()
    torch.testing.assert_close(module.losses(module.network, batch), expected)


def test_what_is_validated_is_the_average_where_there_is_one():
    plain, averaged = classifier(), classifier(ema_decay=0.9)
    assert plain.eval_network is plain.network
    assert averaged.eval_network is averaged.average.network
    assert averaged.eval_network is not averaged.network
