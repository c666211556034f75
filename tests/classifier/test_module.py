import math
from itertools import pairwise

import pytest
import timm.optim
import torch

from stages.classifier.module import SkinLesionClassifier, learning_rate_factor
from stages.config import ModelConfig, TrainingConfig
from stages.errors import InputError

BASELINE = ModelConfig(name="baseline_cnn", variant=None, pretrained=False)
STEPS = 10  # of an epoch


def classifier(**training):
    return SkinLesionClassifier(BASELINE, TrainingConfig(**training), image_size=16)


def factors(epochs=8, **training):
    """The factor of the learning rate at every step of a training."""
    factor = learning_rate_factor(TrainingConfig(max_epochs=epochs, **training), STEPS)
    return [factor(step) for step in range(epochs * STEPS + 1)]


def test_cosine_falls_from_1_to_0_along_half_a_period():
    rates = factors(lr_scheduler="cosine")
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1
    assert rates[20] == pytest.approx(0.5 + 0.5 * math.sqrt(0.5))
    assert rates[40] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_steps_drop_by_gamma_every_so_many_epochs():
    rates = factors(lr_scheduler="step", lr_step_epochs=3, lr_gamma=0.5)
    assert rates[:30] == [1] * 30
    assert rates[30:60] == [0.5] * 30
    assert rates[60:80] == [0.25] * 20


def test_exponential_falls_by_gamma_over_the_whole_training_at_a_constant_ratio():
    rates = factors(lr_scheduler="exponential", lr_gamma=0.01)
    assert rates[0] == 1
    assert rates[-1] == pytest.approx(0.01)
    ratios = [after / before for before, after in pairwise(rates)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


@pytest.mark.parametrize("scheduler", ["cosine", "exponential", "step"])
def test_the_warm_up_rises_in_equal_steps_to_where_the_schedule_starts(scheduler):
    rates = factors(lr_scheduler=scheduler, lr_warmup_epochs=2.0)
    assert 0 < rates[0] < 0.1
    rises = [after - before for before, after in pairwise(rates[:21])]
    assert rises == pytest.approx([rises[0]] * 20)
    assert rates[20] == max(rates) == pytest.approx(1)
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_half_an_epoch_of_warm_up_is_half_an_epoch():
    rates = factors(lr_warmup_epochs=0.5)
    assert rates.index(max(rates)) == 5


def test_a_warm_up_longer_than_the_training_never_stops_rising():
    rates = factors(epochs=2, lr_warmup_epochs=5.0)
    assert rates == sorted(rates)
    assert rates[-1] < 0.5


def test_reduce_on_plateau_lowers_the_rate_once_val_loss_stalls():
    optimizers = classifier(
        lr_scheduler="reduce_on_plateau", learning_rate=1.0, lr_gamma=0.5, lr_plateau_patience=2
    ).configure_optimizers()
    optimizer, schedule = optimizers["optimizer"], optimizers["lr_scheduler"]
    assert schedule["monitor"] == "val_loss"
    rates = []
    for val_loss in (1.0, 0.8, 0.8, 0.8, 0.8, 0.8, 0.1):
        schedule["scheduler"].step(val_loss)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.5]


def test_weights_decay_but_biases_and_normalisation_do_not():
    module = classifier(lr_scheduler="reduce_on_plateau", weight_decay=0.3)
    groups = module.configure_optimizers()["optimizer"].param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    parameters = dict(module.network.backbone.named_parameters())
    assert set(decay) == {id(parameter) for parameter in parameters.values()}
    for name in ("features.0.weight", "features.4.weight", "classifier.weight"):
        assert decay[id(parameters[name])] == 0.3
    for name in ("features.1.weight", "features.1.bias", "classifier.bias"):
        assert decay[id(parameters[name])] == 0


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "rmsprop", "lion"])
def test_optimizers_of_timm_are_had_by_name_and_step(name):
    module = classifier(optimizer=name, lr_scheduler="reduce_on_plateau", learning_rate=0.01)
    before = module.network.backbone.classifier.weight.clone()
    optimizer = module.configure_optimizers()["optimizer"]
    module(torch.rand(4, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    after = module.network.backbone.classifier.weight
    assert not torch.equal(before, after)
    assert torch.isfinite(after).all()


def test_an_unknown_optimizer_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"training\.optimizer is 'adamm'; timm has .*adamw.*sgd"):
        classifier(optimizer="adamm")


def test_an_optimizer_that_does_not_work_here_is_refused_with_the_reason(monkeypatch):
    def unusable(*_, **__):
        raise AssertionError("CUDA required for APEX optimizers")

    module = classifier(optimizer="fusedadam", lr_scheduler="reduce_on_plateau")
    monkeypatch.setattr(timm.optim, "create_optimizer_v2", unusable)
    with pytest.raises(InputError, match=r"training\.optimizer is 'fusedadam', .* CUDA required for APEX optimizers"):
        module.configure_optimizers()


def test_the_number_of_classes_is_that_of_the_configuration():
    module = SkinLesionClassifier(ModelConfig("baseline_cnn", None, 7, False), TrainingConfig(), 16)
    assert module(torch.rand(2, 3, 16, 16)).shape == (2, 7)
