import json
import shutil
from typing import NamedTuple

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from pytorch_lightning import Trainer
from torch import nn
from torch.nn.functional import cross_entropy

from stages.classifier.hardware import set_up_device
from stages.classifier.networks import NormalizedNetwork
from stages.classifier.temperature import calibrated_loss
from stages.dataset.augmentation import as_float
from stages.dataset.loaders import Batches, SplitImages
from stages.dataset.pixels import PixelStore
from stages.errors import InputError
from stages.evaluation.history import read_history
from stages.files import MODELS, TRAINING_METRICS
from stages.training import ensemble
from stages.training.anomaly import add_nonfinite_hooks
from stages.training.checkpoints import CHECKPOINT
from stages.training.ensemble import choose_precision, train_member
from stages.training.fit import train_model
from stages.training.lightning import SkinLesionClassifier
from stages.training.loop import Fit
from stages.training.module import TrainingModule
from stages.training.processes import start_processes

CPU = torch.device("cpu")


class Fitted(NamedTuple):
    """What a training left behind."""

    module: TrainingModule
    val: SplitImages
    fit: Fit
    folder: object
    config: object

    @property
    def history(self):
        return read_history(self.folder / "metrics")

    def val_logits(self):
        """Of the weights that the module has now."""
        self.module.eval()
        with torch.inference_mode():
            return torch.cat([self.module(as_float(batch.images)) for batch in Batches(self.val, 8, CPU)])

    def val_loss_of_weights(self):
        return cross_entropy(self.val_logits(), self.val.labels).item()

    def calibrated_loss_of_weights(self):
        return calibrated_loss(self.val_logits().numpy(), self.val.labels.numpy())


@pytest.fixture
def train(tiny, quick, tmp_path, monkeypatch):
    """A function that trains on the tiny dataset with changed parameters."""

    def run(prepare=lambda module, val: None, **changes):
        config = quick(**changes)
        store = PixelStore(tiny.folder)
        images, val = (SplitImages(store, name, tiny.split, config.model.num_classes) for name in ("train", "val"))

        def create(*arguments):
            module = TrainingModule(*arguments)
            prepare(module, val)
            return module

        monkeypatch.setattr(ensemble, "TrainingModule", create)
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)  # else it would go on from the one before
        fabric = Fabric(accelerator="cpu", devices=1)
        places = tmp_path / "checkpoints", tmp_path / "metrics"
        member = train_member(config, 0, images, val, fabric, *places, tuple(tiny))
        return Fitted(member.module, val, member.fit, tmp_path, member.config)

    return run


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_up_device(cpu_threads=1)


def mislead(module, val):
    """Validation that gets worse as the training gets better."""
    val.labels[:] = 1 - val.labels


def contradict(module, val):
    """Three of 14 validation images can only be got wrong: the surer of itself the network, the higher its loss."""
    val.labels[:3] = 1 - val.labels[:3]


class Linear(nn.Sequential):
    """A linear classifier: no statistics of a batch, no dropout."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))


def fix(module, val):
    module.network = NormalizedNetwork(Linear(), (0.5,) * 3, (0.25,) * 3)


def test_a_network_learns_what_can_be_learned(train):
    history = train().history
    assert history["val_acc"].max() > 0.9
    assert history["val_loss"].min() < 0.3
    assert list(history["epoch"]) == [1, 2, 3]


def test_losses_and_val_acc_are_logged_once_an_epoch_over_all_images(train):
    fitted = train(contradict, **{"training.max_epochs": 1, "training.batch_size": 4})
    history = fitted.history
    assert len(history) == 1
    assert history["val_loss"][0] == pytest.approx(fitted.val_loss_of_weights(), rel=1e-5)
    assert history["val_calibrated_loss"][0] == pytest.approx(fitted.calibrated_loss_of_weights(), rel=1e-5)
    right = (fitted.val_logits().argmax(dim=1) == fitted.val.labels).float().mean().item()
    assert history["val_acc"][0] == pytest.approx(right)
    assert np.isfinite(history["train_loss"][0])


def test_a_last_validation_batch_that_is_not_full_changes_nothing(train, monkeypatch):
    monkeypatch.setattr(ensemble, "VALIDATION_BATCH", 4)  # 14 images: the last of 4 has 2
    fitted = train(contradict, **{"training.max_epochs": 1, "training.batch_size": 4})
    assert fitted.history["val_loss"][0] == pytest.approx(fitted.val_loss_of_weights(), rel=1e-5)
    assert fitted.history["val_calibrated_loss"][0] == pytest.approx(fitted.calibrated_loss_of_weights(), rel=1e-5)


def test_train_loss_is_the_mean_over_the_steps(train, tiny):
    changes = {"training.max_epochs": 1, "training.learning_rate": 1e-12, "data.augment": False}
    fitted = train(fix, **changes, **{"training.batch_size": 42})
    fitted.module.eval()
    images = SplitImages(fitted.val.store, "train", tiny.split, 2)
    with torch.inference_mode():
        logits = fitted.module(as_float(torch.from_numpy(images.store.read(images.indices))))
    assert fitted.history["train_loss"][0] == pytest.approx(cross_entropy(logits, images.labels).item(), rel=1e-5)


def test_the_weights_of_the_epoch_with_the_lowest_val_loss_are_kept_not_the_last(train):
    fitted = train(mislead)
    losses = fitted.history["val_loss"]
    assert fitted.fit.epoch == losses.idxmin() < 2
    assert fitted.fit.val_loss == pytest.approx(losses.min())
    assert fitted.val_loss_of_weights() == pytest.approx(losses.min(), rel=1e-5)
    assert losses.iloc[-1] > 1.2 * losses.min()


@pytest.mark.parametrize(
    ("monitor", "other"), [("val_loss", "val_calibrated_loss"), ("val_calibrated_loss", "val_loss")]
)
def test_the_monitored_loss_chooses_the_epoch_and_ends_the_training(train, monitor, other):
    settings = {"training.max_epochs": 6, "training.learning_rate": 0.0005, "training.lr_scheduler": "step"}
    fitted = train(contradict, **settings, **{"training.monitor": monitor, "training.early_stopping_patience": 1})
    history = fitted.history
    assert fitted.fit.epoch == history[monitor].idxmin() != history[other].idxmin()
    assert len(history) == fitted.fit.epoch + 1 + 1 < 6
    assert fitted.fit.val_loss == pytest.approx(history[monitor].min())
    of_weights = {"val_loss": fitted.val_loss_of_weights(), "val_calibrated_loss": fitted.calibrated_loss_of_weights()}
    assert of_weights[monitor] == pytest.approx(history[monitor].min(), rel=1e-5)


def test_training_stops_after_epochs_without_a_lower_val_loss(train):
    fitted = train(mislead, **{"training.max_epochs": 30, "training.early_stopping_patience": 2})
    assert len(fitted.history) == fitted.fit.epoch + 1 + 2


@pytest.fixture
def seen(monkeypatch):
    """The batches that training steps have seen."""
    batches, losses = [], TrainingModule.losses

    def record(module, network, batch):
        batches.append(batch)
        return losses(module, network, batch)

    monkeypatch.setattr(TrainingModule, "losses", record)
    return batches


def test_every_epoch_has_an_order_and_an_augmentation_of_its_own(train, seen):
    train(**{"training.max_epochs": 3})
    orders = [[batch.images[:, 0, 0, 0].tolist() for batch in seen[epoch * 5 : epoch * 5 + 5]] for epoch in range(3)]
    assert all(one != other for number, one in enumerate(orders) for other in orders[:number])
    params = [seen[epoch * 5].augment_params for epoch in range(3)]
    assert not any(torch.equal(one, other) for number, one in enumerate(params) for other in params[:number])


@pytest.mark.parametrize("augmented", [True, False])
def test_training_images_are_augmented_only_if_asked_and_validation_images_never(train, monkeypatch, augmented):
    calls = []
    monkeypatch.setattr(
        "stages.training.module.augment_batch",
        lambda images, targets, *_: calls.append(len(images)) or (as_float(images), targets),
    )
    train(**{"training.max_epochs": 1, "data.augment": augmented})
    assert calls == ([8] * (42 // 8) if augmented else [])


@pytest.mark.parametrize(
    "changes",
    [
        {"training.lr_scheduler": "step", "training.lr_step_epochs": 1},
        {"training.lr_scheduler": "exponential"},
        {"training.lr_scheduler": "cosine", "training.lr_warmup_epochs": 1.5},
        {"training.lr_scheduler": "reduce_on_plateau"},
        {"training.accumulate_grad_batches": 3},
        {"training.gradient_clip_val": 0.0},
        {"training.optimizer": "lamb"},
        {"training.precision": "bf16"},
        {"training.deterministic": False},
        {"model.num_classes": 7},
        {"training.batch_size": 1000},
        {"training.ema_decay": 0.99},
        {"training.label_smoothing": 0.1},
        {"training.class_balance": "weights"},
        {"training.class_balance": "sampling", "training.class_balance_strength": 0.5},
        {"training.class_balance": "logits"},
        {"training.layer_decay": 0.8},
        {"training.frozen_epochs": 1},
        {"training.compile": "graph"},
        {"training.profiler": "simple"},
        {"training.detect_anomaly": True},
        {"data.mixup": 0.4, "data.cutmix": 1.0, "data.cutout": 0.3},
    ],
    ids=str,
)
def test_every_setting_trains(train, changes, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    history = train(**{"training.max_epochs": 2} | changes).history
    assert len(history) == 2
    assert np.isfinite(history).all(axis=None)
    assert (history["learning_rate"] > 0).all()


def test_the_logged_rate_follows_the_schedule(train):
    settings = {"training.max_epochs": 4, "training.learning_rate": 0.01, "training.lr_gamma": 0.5}
    rates = train(**settings, **{"training.lr_scheduler": "step", "training.lr_step_epochs": 2}).history
    assert list(rates["learning_rate"]) == pytest.approx([0.01, 0.01, 0.005, 0.005])


def test_the_rate_drops_where_val_loss_stalls(train):
    settings = {"training.lr_scheduler": "reduce_on_plateau", "training.lr_plateau_patience": 1}
    settings |= {
        "training.max_epochs": 5,
        "training.learning_rate": 1e-7,
        "training.lr_gamma": 0.1,
        "training.optimizer": "sgd",
    }
    rates = train(fix, **settings).history["learning_rate"]
    assert list(rates * 1e7) == pytest.approx([1, 1, 1, 0.1, 0.1])


@pytest.mark.parametrize(("monitor", "rates"), [("val_loss", [1, 1, 0.1, 0.01]), ("val_calibrated_loss", [1, 1, 1, 1])])
def test_the_rate_drops_where_the_monitored_loss_rises(train, monitor, rates):
    settings = {"training.lr_scheduler": "reduce_on_plateau", "training.lr_plateau_patience": 0}
    settings |= {"training.max_epochs": 4, "training.learning_rate": 0.001, "training.monitor": monitor}
    fitted = train(lambda module, val: (fix(module, val), contradict(module, val)), **settings)
    assert fitted.history["val_loss"].is_monotonic_increasing
    assert fitted.history["val_calibrated_loss"].is_monotonic_decreasing
    assert list(fitted.history["learning_rate"] * 1000) == pytest.approx(rates)


def test_the_rate_warms_up_before_it_looks_at_val_loss(train):
    settings = {"training.lr_scheduler": "reduce_on_plateau", "training.lr_warmup_epochs": 2.0}
    rates = train(**settings, **{"training.max_epochs": 4, "training.learning_rate": 0.011}).history["learning_rate"]
    # 5 steps an epoch; each epoch's rate is that of its first step.
    assert list(rates) == pytest.approx([0.001, 0.006, 0.011, 0.011], rel=1e-3)


@pytest.mark.parametrize(("batches", "steps"), [(1, 5), (2, 2), (100, 1)])
def test_so_many_batches_make_one_step(train, batches, steps):
    fitted = train(**{"training.max_epochs": 1, "training.accumulate_grad_batches": batches, "training.ema_decay": 0.9})
    assert fitted.module.average.steps == steps


def test_a_gradient_is_clipped_to_its_limit_and_not_with_0(train):
    def weight(module):
        return module.network.backbone[1].weight

    def moved(limit):
        first = []
        fitted = train(
            lambda module, val: (fix(module, val), first.append(weight(module).detach().clone())),
            **{"training.optimizer": "sgd", "training.learning_rate": 0.1, "training.gradient_clip_val": limit},
            **{"training.max_epochs": 1, "training.batch_size": 42, "training.weight_decay": 0.0},
        )
        return (weight(fitted.module) - first[0]).norm().item()

    assert moved(0.001) <= 0.001 * 0.1 * 2.5  # Nesterov's first step is 1.9 gradients long
    assert moved(0.0) > 0.01


def test_16_bits_on_a_cpu_are_refused_with_what_to_set(quick):
    with pytest.raises(InputError, match=r"training\.precision is 16.*must be 32, bf16 or auto"):
        choose_precision(quick(**{"training.precision": 16}), CPU)


def break_weights(module):
    module.network.backbone.classifier.bias.data.fill_(float("nan"))


def test_a_loss_that_is_not_finite_stops_at_once_and_names_where(train, monkeypatch, seen, tmp_path):
    set_mode = TrainingModule.set_train_mode

    def break_in_the_second_epoch(module, frozen):
        set_mode(module, frozen)
        if len(seen) == 5:
            break_weights(module)

    monkeypatch.setattr(TrainingModule, "set_train_mode", break_in_the_second_epoch)
    with pytest.raises(InputError) as error:
        train(**{"training.max_epochs": 4, "training.checkpoint_minutes": 1e-9})
    assert len(seen) == 5 + 1  # the first step of the second epoch was the last
    ids = [f"I{number:03d}" for number in seen[-1].images[:, 0, 0, 0].tolist()]
    assert "the training loss is nan in epoch 2, step 1 (learning rate 0.00256)" in str(error.value)
    assert f"of the images {', '.join(ids)};" in str(error.value)
    (checkpoint,) = (tmp_path / "checkpoints").glob(f"*/{CHECKPOINT}")
    losses = [metrics["train_loss"] for _, metrics in torch.load(checkpoint)["progress"]["history"]]
    assert np.isfinite(losses).all()


def test_a_rate_that_is_far_too_high_says_to_lower_it(train):
    with pytest.raises(InputError, match=r"is (nan|inf) in epoch 1.*lower training\.learning_rate"):
        train(**{"training.learning_rate": 1e30, "training.optimizer": "sgd", "training.gradient_clip_val": 0.0})


def test_a_validation_loss_that_is_not_finite_stops_too(train, monkeypatch):
    step = TrainingModule.validation_step
    monkeypatch.setattr(
        TrainingModule, "validation_step", lambda module, *rest: break_weights(module) or step(module, *rest)
    )
    with pytest.raises(InputError, match="the validation loss is nan in epoch 1"):
        train()


def test_an_anomaly_is_found_in_its_layer(train):
    def prepare(module, val):
        module.network.backbone.features[4].weight.data.mul_(1e40)

    with pytest.raises(InputError, match=r"layer backbone\.features\.\d .*is not finite.*though its input is finite"):
        train(prepare, **{"training.detect_anomaly": True})


class RootOfZeros(nn.Module):
    """Zeros, whose gradient is not a number: that of a root at 0, times 0."""

    def forward(self, images):
        return (0 * images).sqrt()


class ScaledByARoot(nn.Module):
    """Of its outputs, all gradients are finite, but not that of its parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return images * (0 * self.scale).sqrt()


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (RootOfZeros(), r"the gradient at the output of the layer backbone\.1 is not finite"),
        (ScaledByARoot(), r"the gradient of the parameter backbone\.2\.scale is not finite"),
    ],
    ids=["output", "parameter"],
)
def test_a_gradient_that_is_not_finite_is_found_in_its_layer(train, layer, expected):
    def prepare(module, val):
        backbone = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), layer, nn.Linear(3 * 16 * 16, 2))
        module.network = NormalizedNetwork(backbone, (0.5,) * 3, (0.25,) * 3)

    with pytest.raises(InputError, match=expected):
        train(prepare, **{"training.detect_anomaly": True})


def test_gradients_of_a_scaled_loss_may_overflow():
    network = nn.Sequential(nn.Linear(2, 2), RootOfZeros())
    add_nonfinite_hooks(network, gradients=False)
    network(torch.ones(1, 2)).sum().backward()
    assert network[0].weight.grad.isnan().all()
    with pytest.raises(InputError, match=r"the output of the layer 0 \(Linear\) is not finite"):
        network(torch.full((1, 2), torch.inf))


class Recurrent(nn.Module):
    """A network with a layer that gives a tuple."""

    def __init__(self, state):
        super().__init__()
        self.layer, self.last = nn.LSTM(3 * 16, 4, batch_first=True), nn.Linear(4, 2)
        self.layer.weight_hh_l0.data.fill_(state)

    def forward(self, images):
        return self.last(self.layer(images.flatten(2).reshape(len(images), 16, -1))[0][:, -1])


def test_anomalies_are_looked_for_in_layers_that_give_tuples(train):
    def prepare(state):
        def put(module, val):
            module.network = NormalizedNetwork(Recurrent(state), (0.5,) * 3, (0.25,) * 3)

        return put

    changes = {"training.detect_anomaly": True, "training.max_epochs": 1}
    assert len(train(prepare(0.0), **changes).history) == 1
    with pytest.raises(InputError, match=r"the output of the layer backbone\.layer \(LSTM\) is not finite"):
        train(prepare(float("nan")), **changes)


def test_only_the_last_layer_learns_in_frozen_epochs(train):
    states = []

    def prepare(module, val):
        states.append({name: tensor.clone() for name, tensor in module.network.state_dict().items()})

    fitted = train(prepare, **{"training.frozen_epochs": 1, "training.max_epochs": 1})
    changed = {
        name for name, tensor in fitted.module.network.state_dict().items() if not torch.equal(tensor, states[0][name])
    }
    assert changed == {"backbone.classifier.weight", "backbone.classifier.bias"}
    fitted = train(prepare, **{"training.frozen_epochs": 1, "training.max_epochs": 2})
    assert (
        not torch.equal(fitted.module.network.backbone.features[0].weight, states[1]["backbone.features.0.weight"])
        or fitted.fit.epoch == 0
    )


def test_the_average_of_the_weights_is_validated_and_kept(train):
    fitted = train(**{"training.ema_decay": 0.5, "training.max_epochs": 2})
    assert fitted.val_loss_of_weights() == pytest.approx(fitted.fit.val_loss, rel=1e-5)
    one, other = (network.state_dict() for network in (fitted.module.network, fitted.module.eval_network))
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "steps", "epochs"),
    [
        ({"training.fast_dev_run": True}, 1, 1),
        ({"training.fast_dev_run": 2}, 2, 1),
        ({"training.fast_dev_run": 2, "training.val_check_interval": 5}, 2, 1),
        ({"training.limit_train_batches": 3}, 3, 3),
        ({"training.limit_train_batches": 0.4}, 2, 3),
        ({"training.overfit_batches": 2}, 2, 3),
    ],
    ids=str,
)
def test_a_part_of_an_epoch_can_be_trained_on(train, seen, changes, steps, epochs):
    fitted = train(**changes)
    assert len(fitted.history) == epochs
    assert len(seen) == steps * epochs
    repeats = len({tuple(batch.images[:, 0, 0, 0].tolist()) for batch in seen}) < len(seen)
    assert repeats == ("training.overfit_batches" in changes)


# An epoch of the tiny dataset has 42 training images.
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"val_check_interval": 6}, r"val_check_interval is 6, but .* on 5 batches; .* up to 5, or to a fraction"),
        ({"val_check_interval": 4, "limit_train_batches": 3}, r"val_check_interval is 4, but .* on 3 batches"),
        (
            {"limit_train_batches": 0.1},
            r"limit_train_batches is 0\.1, .*an epoch has 5; .* at least 1/5, or to a number",
        ),
        ({"overfit_batches": 0.4, "batch_size": 20}, r"overfit_batches is 0\.4, .*an epoch has 2; .* at least 1/2"),
    ],
    ids=str,
)
def test_an_epoch_of_too_few_batches_is_refused_before_training(train, seen, changes, expected):
    with pytest.raises(InputError, match=rf"^training\.{expected}"):
        train(**{f"training.{key}": value for key, value in changes.items()})
    assert not seen


@pytest.mark.parametrize(
    ("interval", "validations"), [(0.5, [1, 3, 6, 8, 11, 13]), (2, [1, 3, 6, 8, 11, 13]), (1.0, [4, 9, 14])]
)
def test_validations_come_as_often_as_asked(train, tmp_path, interval, validations):
    train(**{"training.val_check_interval": interval})
    lines = (tmp_path / "metrics/plots/metrics/val/loss.tsv").read_text().splitlines()[1:]
    assert [int(line.split()[0]) for line in lines] == validations


def test_losses_and_rates_of_steps_are_logged_as_often_as_asked(train, tmp_path):
    train(**{"training.log_every_n_steps": 4})
    for name in ("step_loss", "step_learning_rate"):
        lines = (tmp_path / f"metrics/plots/metrics/{name}.tsv").read_text().splitlines()[1:]
        assert [int(line.split()[0]) for line in lines] == [3, 7, 11]


@pytest.mark.parametrize("name", ["simple", "advanced", "pytorch"])
def test_a_profile_lands_in_its_folder_and_nowhere_else(train, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    train(**{"training.profiler": name, "training.max_epochs": 1})
    assert {path.name for path in tmp_path.iterdir()} == {"metrics", "profiles", "checkpoints"}
    assert any(path.stat().st_size > 100 for path in (tmp_path / "profiles").iterdir())


def test_a_batch_that_does_not_fit_is_divided_as_the_parameters_would_divide_it(
    tiny, quick, tmp_path, monkeypatch, capsys, bytes_below
):
    losses = TrainingModule.losses

    def run_out_of_memory(module, network, batch):
        if len(batch.labels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses(module, network, batch)

    def train_into(name, **changes):
        folder = tmp_path / name
        changes |= {"training.max_epochs": 1, "data.mixup": 0.4}
        train_model(quick(**changes), *tiny, folder / MODELS, folder / TRAINING_METRICS, folder / "checkpoints")
        return bytes_below(folder / MODELS) | bytes_below(folder / TRAINING_METRICS)

    roomy = train_into("roomy", **{"training.batch_size": 2, "training.accumulate_grad_batches": 4})
    monkeypatch.setattr(TrainingModule, "losses", run_out_of_memory)
    assert train_into("cramped", **{"training.batch_size": 8}) == roomy
    output = capsys.readouterr().out
    for size in (4, 2):
        assert f"as training.batch_size={size} and training.accumulate_grad_batches={8 // size} do" in output
    assert json.loads(roomy["model.json"])["batch_size"] == 2


@pytest.mark.parametrize("where", ["losses", "validation_step"])
def test_a_single_image_that_does_not_fit_ends_the_training(train, monkeypatch, where):
    def run_out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingModule, where, run_out_of_memory)
    with pytest.raises(InputError, match=r"too small for a single image: lower data\.image_size"):
        train()


def test_more_devices_than_there_are_is_refused(quick, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"training\.devices is 4; this machine has 1 GPU"):
        start_processes(quick(**{"training.devices": 4}).training)


def test_a_plain_trainer_of_lightning_takes_the_same_steps(train, tiny, tmp_path):
    """The classifier is an ordinary LightningModule; the loop is only faster, and survives."""
    changes = {"training.optimizer": "sgd", "training.gradient_clip_val": 0.0, "training.learning_rate": 0.01}
    changes |= {"training.lr_scheduler": "step", "training.lr_warmup_epochs": 0.0, "training.max_epochs": 1}
    changes["model.dropout_rate"] = 0.0
    starts = []
    fitted = train(lambda module, val: starts.append({k: v.clone() for k, v in module.state_dict().items()}), **changes)
    images = SplitImages(fitted.val.store, "train", tiny.split, 2)
    module = SkinLesionClassifier(fitted.config, 16, images.class_counts(within_sources=False))
    module.load_state_dict(starts[0])
    sampling = ensemble.SamplingConfig(fitted.config.training.seed, fitted.config.data)
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(module, Batches(images, fitted.config.training.batch_size, CPU, sampling))
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, fitted.module.state_dict()[name])


def test_the_log_has_a_line_an_epoch_where_there_is_no_terminal(train, capsys):
    train(**{"training.max_epochs": 2})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert all(f"{name} " in line for line in lines for name in ("train_loss", "val_loss", "val_acc"))
