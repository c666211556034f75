import math
from dataclasses import replace
from itertools import pairwise

import pytest
import timm.optim
import torch
from torch import nn

from benchmarks.plain import PLAIN
from stages.classifier.networks import BaselineCNN
from stages.errors import InputError
from stages.training.optimization import (
    LearningRate,
    WeightAverage,
    check_optimizer,
    create_optimizer,
    learning_rate_factor,
)

CPU = torch.device("cpu")
STEPS = 10  # of an epoch


def optimizer_of(network=None, **training):
    return create_optimizer(network or BaselineCNN(2), replace(PLAIN.training, **training), CPU)


def factors(epochs=8, **training):
    """The factor of the learning rate at every step of a training."""
    factor = learning_rate_factor(replace(PLAIN.training, max_epochs=epochs, **training), STEPS)
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
    training = replace(
        PLAIN.training, lr_scheduler="reduce_on_plateau", learning_rate=1.0, lr_gamma=0.5, lr_plateau_patience=2
    )
    optimizer = create_optimizer(BaselineCNN(2), training, CPU)
    schedule = LearningRate(optimizer, training, STEPS)
    rates = []
    for step, val_loss in enumerate((1.0, 0.8, 0.8, 0.8, 0.8, 0.8, 0.1), start=1):
        schedule.after_validation(val_loss)
        schedule.before_step(step)
        rates.append(schedule.rate)
        assert optimizer.param_groups[0]["lr"] == schedule.rate
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.5]


def test_a_restored_schedule_goes_on_where_it_was():
    training = replace(
        PLAIN.training, lr_scheduler="reduce_on_plateau", learning_rate=1.0, lr_gamma=0.5, lr_plateau_patience=1
    )
    schedule = LearningRate(create_optimizer(BaselineCNN(2), training, CPU), training, STEPS)
    for _ in range(3):
        schedule.after_validation(1.0)
    restored = LearningRate(create_optimizer(BaselineCNN(2), training, CPU), training, STEPS)
    restored.load_state_dict(schedule.state_dict())
    for one in (schedule, restored):
        one.after_validation(1.0)
        one.after_validation(1.0)
    assert restored.rate == schedule.rate == 0.25


def test_layers_further_from_the_last_learn_more_slowly():
    network = BaselineCNN(2)
    training = replace(PLAIN.training, layer_decay=0.5, learning_rate=1.0)
    optimizer = create_optimizer(network, training, CPU)
    LearningRate(optimizer, training, STEPS).before_step(0)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    names = [name for name, _ in network.named_parameters() if name.endswith("weight")]
    rates = [rate[id(dict(network.named_parameters())[name])] for name in names]
    assert rates[-1] == 1
    assert all(later == 2 * earlier for earlier, later in pairwise(rates))


def test_without_layer_decay_all_layers_learn_alike():
    assert {group["lr"] for group in optimizer_of(learning_rate=0.3).param_groups} == {0.3}


def test_weights_decay_but_biases_and_normalisation_do_not():
    network = BaselineCNN(2)
    groups = optimizer_of(network, weight_decay=0.3).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    parameters = dict(network.named_parameters())
    assert set(decay) == {id(parameter) for parameter in parameters.values()}
    for name in ("features.0.weight", "features.4.weight", "classifier.weight"):
        assert decay[id(parameters[name])] == 0.3
    for name in ("features.1.weight", "features.1.bias", "classifier.bias"):
        assert decay[id(parameters[name])] == 0


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "momentum", "lamb", "rmsprop", "lion"])
def test_optimizers_of_timm_are_had_by_name_and_step(name):
    network = BaselineCNN(2)
    before = network.classifier.weight.clone()
    optimizer = optimizer_of(network, optimizer=name, learning_rate=0.01)
    network(torch.rand(4, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, network.classifier.weight)
    assert torch.isfinite(network.classifier.weight).all()


def test_an_unknown_optimizer_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"training\.optimizer is 'adamm'; it must be one of timm's .*adamw.*sgd"):
        check_optimizer("adamm")


def test_an_optimizer_that_needs_second_derivatives_is_refused():
    with pytest.raises(InputError, match=r"training\.optimizer is 'adahessian'; it must be one of .*adamw"):
        check_optimizer("adahessian")


def test_an_optimizer_that_does_not_work_here_is_refused_with_the_reason(monkeypatch):
    def unusable(*_, **__):
        raise AssertionError("CUDA required for APEX optimizers")

    monkeypatch.setattr(timm.optim, "create_optimizer_v2", unusable)
    with pytest.raises(InputError, match=r"training\.optimizer is 'fusedadam', .* CUDA required for APEX optimizers"):
        optimizer_of(optimizer="fusedadam")


def test_the_average_follows_the_formula_of_an_exponential_moving_average():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(network, 0.8)
    expected = network[0].weight.detach().clone()
    for step in range(1, 9):
        with torch.no_grad():
            network[0].weight.add_(torch.randn(2, 3))
            network[1](torch.randn(4, 2))
        average.update(network)
        decay = min(0.8, 1 - 1 / step)  # of the first five steps the plain mean
        expected = decay * expected + (1 - decay) * network[0].weight.detach()
        torch.testing.assert_close(average.network[0].weight, expected)
    assert average.network[1].num_batches_tracked == network[1].num_batches_tracked == 8
    assert not torch.equal(average.network[1].running_mean, network[1].running_mean)


def test_the_average_learns_nothing_itself():
    average = WeightAverage(BaselineCNN(2), 0.9)
    assert not any(parameter.requires_grad for parameter in average.parameters())
