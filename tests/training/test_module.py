from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.plain import PLAIN
from stages.classifier.networks import Ensemble
from stages.config import override
from stages.dataset.augmentation import as_float, sample_params
from stages.dataset.loaders import Batch, class_weights
from stages.errors import InputError
from stages.training.module import TrainingModule

COUNTS = torch.tensor([[30, 10]])


def classifier(classes=2, counts=COUNTS, teacher=None, **training):
    changes = {"data.image_size": 16, "model.name": "baseline_cnn", "model.variant": None, "model.num_classes": classes}
    changes |= {"model.pretrained": False, "training.precision": 32}
    config = override(PLAIN, changes | {f"training.{key}": value for key, value in training.items()})
    return TrainingModule(config, 16, counts, teacher=teacher).eval()


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8, generator=random)
    return Batch(images, torch.tensor([0, 0, 1, 0, 1, 0]), None, torch.zeros(6, dtype=torch.int64))


def test_the_number_of_classes_is_that_of_the_configuration():
    assert classifier(7, torch.ones(1, 7))(torch.rand(2, 3, 16, 16)).shape == (2, 7)


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
    weights = classifier(class_balance="weights", class_balance_strength=0.5).class_weights[0]
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


# Of three classes the second source lacks the second; no source has the fourth.
WITHIN = torch.tensor([[60, 30, 10, 0], [10, 0, 40, 0]])
SOURCES, LABELS = torch.tensor([0, 0, 0, 1, 1, 0]), torch.tensor([0, 1, 2, 0, 2, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(("balance", "strength"), [("none", 1.0), ("logits", 0.5), ("logits", 1.0)])
def test_an_image_is_compared_with_the_diagnoses_of_its_source_alone(batch, balance, strength, smoothing):
    settings = {"class_balance": balance, "class_balance_strength": strength, "label_smoothing": smoothing}
    module = classifier(4, WITHIN, **settings)
    logits = module(as_float(batch.images)).detach()
    found = module.losses(module.network, batch._replace(labels=LABELS, sources=SOURCES))
    found.sum().backward()
    for source, classes in ((0, [0, 1, 2, 3]), (1, [0, 2, 3])):
        shares = WITHIN[source, classes].clamp(min=1).float()
        prior = (shares / shares.sum()).log() * (strength if balance == "logits" else 0)
        rows = source == SOURCES
        labels = torch.tensor([classes.index(label) for label in LABELS[rows]])
        expected = cross_entropy(logits[rows][:, classes] + prior, labels, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(found[rows], expected)


@pytest.mark.parametrize("balance", ["none", "weights", "logits"])
def test_images_of_two_sources_can_be_mixed(batch, balance):
    config = override(PLAIN, {"data.mixup": 0.4, "data.cutmix": 1.0}).data
    params = torch.from_numpy(sample_params(np.random.default_rng(0), 6, config))
    module = classifier(4, WITHIN, class_balance=balance, label_smoothing=0.1)
    module.config = replace(module.config, data=config)
    losses = module.losses(module.network, Batch(batch.images, LABELS, params, SOURCES))
    assert losses.isfinite().all()
    assert losses.max() < 100, "no diagnosis that one of the two has counts as impossible"


def test_weights_within_sources_leave_each_source_what_it_weighs():
    weights = class_weights(WITHIN, 1.0)
    torch.testing.assert_close((WITHIN * weights).sum(dim=1), WITHIN.sum(dim=1).double())
    torch.testing.assert_close((WITHIN * weights)[0, :3], torch.full((3,), 100 / 3).double())


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_a_student_learns_the_mean_probabilities_of_its_teacher_beside_the_labels(batch, classes, weight):
    counts = torch.arange(1, classes + 1)[None]
    teacher = Ensemble(classifier(classes, counts).network for _ in range(2)).eval()
    balance = {"class_balance": "logits", "class_balance_strength": 0.5}
    module = classifier(classes, counts, teacher, teacher_weight=weight, **balance)
    logits, images = torch.randn(6, classes, requires_grad=True), as_float(batch.images)
    losses = module.losses(lambda *_: logits, batch)
    losses.sum().backward()
    with torch.no_grad():
        taught = sum(member(images).softmax(dim=1) for member in teacher.members) / 2
        told = torch.eye(classes)[batch.labels]
        adjusted = (logits + 0.5 * counts.log()).softmax(dim=1)
        own = logits.softmax(dim=1)
        expected = -(1 - weight) * (told * adjusted.log()).sum(dim=1) - weight * (taught * own.log()).sum(dim=1)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(logits.grad, (1 - weight) * (adjusted - told) + weight * (own - taught))


def test_a_teacher_sees_what_its_student_sees_and_is_neither_trained_nor_kept(batch):
    seen = []
    teacher = classifier().network
    teacher.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module = classifier(teacher=teacher, ema_decay=0.9)
    module.config = override(module.config, {"data.mixup": 0.4, "data.cutmix": 1.0})
    params = torch.from_numpy(sample_params(np.random.default_rng(0), 6, module.config.data))
    module.network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module.train()
    module.training_step(batch._replace(augment_params=params)).backward()
    assert torch.equal(*seen)
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert module.state_dict().keys() == classifier(ema_decay=0.9).state_dict().keys()


def test_what_is_validated_is_the_average_where_there_is_one():
    plain, averaged = classifier(), classifier(ema_decay=0.9)
    assert plain.eval_network is plain.network
    assert averaged.eval_network is averaged.average.network
    assert averaged.eval_network is not averaged.network
