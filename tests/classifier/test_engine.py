import re
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stages.classifier import engine
from stages.classifier.engine import fit, prepare_hardware
from stages.classifier.module import SkinLesionClassifier
from stages.dataset.augmentation import as_float
from stages.dataset.loaders import Batches, SplitImages
from stages.dataset.pixels import PixelStore
from stages.errors import InputError
from stages.evaluation.history import read_history

CPU = torch.device("cpu")
CHECKPOINT = re.compile(r"epoch=\d{3}-val_loss=\d+\.\d{3}\.ckpt")


class Fitted(NamedTuple):
    """What a training left behind."""

    module: SkinLesionClassifier
    val: Batches
    epoch: int
    val_loss: float
    folder: object

    @property
    def history(self):
        return read_history(self.folder / "metrics")

    def val_loss_of_weights(self):
        """The validation loss of the weights that the module has now."""
        self.module.eval()
        with torch.inference_mode():
            logits = torch.cat([self.module(as_float(batch.images)) for batch in self.val])
        return cross_entropy(logits, self.val.images.labels).item()


@pytest.fixture
def train(tiny, quick, tmp_path):
    """A function that trains on the tiny dataset with changed parameters."""

    def run(prepare=lambda module, train, val: None, **changes):
        config = quick(**changes)
        prepare_hardware(config.training)
        store = PixelStore(tiny.folder)
        module = SkinLesionClassifier(config.model, config.training, store.image_size, config.data.augment)
        images, val = (SplitImages(store, name, tiny.split, config.model.num_classes) for name in ("train", "val"))
        prepare(module, images, val)
        batches = Batches(images, config.training.batch_size, CPU, seed=config.training.seed)
        val = Batches(val, config.training.batch_size, CPU)
        checkpoints, metrics = tmp_path / "checkpoints", tmp_path / "metrics"
        epoch, val_loss = fit(module, batches, val, config.training, checkpoints, metrics)
        return Fitted(module, val, epoch, val_loss, tmp_path)

    return run


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(engine, "set_up_device", lambda *_: CPU)


def mislead(module, train, val):
    """Validation that gets worse as the training gets better."""
    val.labels = 1 - val.labels


def fix(module, train, val):
    """A network whose loss only its learning rate can change."""
    module.network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))


def test_a_network_learns_what_can_be_learned(train):
    history = train().history
    assert history["val_acc"].max() > 0.9
    assert history["val_loss"].min() < 0.3
    assert list(history["epoch"]) == [1, 2, 3]


def test_train_loss_val_loss_and_val_acc_are_logged_once_an_epoch_over_all_images(train):
    fitted = train(**{"training.max_epochs": 1, "training.batch_size": 4})  # the last of 14 images make half a batch
    history = fitted.history
    assert len(history) == 1
    assert history["val_loss"][0] == pytest.approx(fitted.val_loss_of_weights(), rel=1e-5)
    with torch.inference_mode():
        logits = torch.cat([fitted.module(as_float(batch.images)) for batch in fitted.val])
    right = (logits.argmax(dim=1) == fitted.val.images.labels).float().mean().item()
    assert history["val_acc"][0] == pytest.approx(right)
    assert np.isfinite(history["train_loss"][0])


def test_the_weights_of_the_epoch_with_the_lowest_val_loss_are_kept_not_the_last(train):
    fitted = train(mislead)
    losses = fitted.history["val_loss"]
    assert fitted.epoch == losses.idxmin() < 2
    assert fitted.val_loss == pytest.approx(losses.min())
    assert fitted.val_loss_of_weights() == pytest.approx(losses.min(), rel=1e-5)
    assert losses.iloc[-1] > 1.2 * losses.min()


def test_the_three_best_checkpoints_and_the_last_are_kept_and_old_ones_removed(train, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch=099-val_loss=0.001.ckpt").touch()
    fitted = train(**{"training.max_epochs": 4})
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()} - {"last.ckpt"}
    best = fitted.history["val_loss"].nsmallest(3)
    assert names == {f"epoch={epoch:03d}-val_loss={loss:.3f}.ckpt" for epoch, loss in best.items()}
    assert all(CHECKPOINT.fullmatch(name) for name in names)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 3


def test_training_stops_after_epochs_without_a_lower_val_loss(train):
    fitted = train(mislead, **{"training.max_epochs": 30, "training.early_stopping_patience": 2})
    assert len(fitted.history) == fitted.epoch + 1 + 2


def test_every_epoch_has_an_order_and_an_augmentation_of_its_own(train, monkeypatch):
    seen = []
    step = SkinLesionClassifier.training_step

    def record(module, batch, batch_idx):
        if batch_idx == 0:
            seen.append((batch.images[:, 0, 0, 0].tolist(), batch.uniforms))
        return step(module, batch, batch_idx)

    monkeypatch.setattr(SkinLesionClassifier, "training_step", record)
    train(**{"training.max_epochs": 3})
    epochs = [np.random.default_rng([0, epoch]) for epoch in range(3)]
    train_images = [number for number in range(70) if number % 5 > 1]
    for (numbers, uniforms), random in zip(seen, epochs, strict=True):
        order = random.permutation(len(train_images))[:8]
        assert numbers == [train_images[place] for place in order]
        assert uniforms[0, 0] == random.random(1, np.float32)[0]


@pytest.mark.parametrize("augmented", [True, False])
def test_training_images_are_augmented_only_if_asked_and_validation_images_never(train, monkeypatch, augmented):
    calls = []
    monkeypatch.setattr(
        "stages.classifier.module.augment", lambda images, _: calls.append(len(images)) or as_float(images)
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
    ],
    ids=str,
)
def test_every_setting_trains(train, changes):
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


def test_the_rate_warms_up_before_it_looks_at_val_loss(train):
    settings = {"training.lr_scheduler": "reduce_on_plateau", "training.lr_warmup_epochs": 2.0}
    rates = train(**settings, **{"training.max_epochs": 4, "training.learning_rate": 0.011}).history["learning_rate"]
    # 5 steps an epoch; each epoch's rate is that of its first step.
    assert list(rates) == pytest.approx([0.001, 0.006, 0.011, 0.011], rel=1e-3)


@pytest.mark.parametrize(("batches", "steps"), [(1, 5), (2, 3), (100, 1)])
def test_so_many_batches_make_one_step(train, batches, steps):
    fitted = train(**{"training.max_epochs": 1, "training.accumulate_grad_batches": batches})
    checkpoint = torch.load(fitted.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == steps


def test_a_gradient_is_clipped_to_its_limit_and_not_with_0(train):
    def moved(limit):
        first = []
        fitted = train(
            lambda module, *_: (fix(module, *_), first.append(module.network[1].weight.detach().clone())),
            **{"training.optimizer": "sgd", "training.learning_rate": 0.1, "training.gradient_clip_val": limit},
            **{"training.max_epochs": 1, "training.batch_size": 42, "training.weight_decay": 0.0},
        )
        return (fitted.module.network[1].weight - first[0]).norm().item()

    assert moved(0.001) <= 0.001 * 0.1 * 2.5  # Nesterov's first step is 1.9 gradients long
    assert moved(0.0) > 0.01


def test_16_bits_on_a_cpu_are_refused_with_what_to_set(quick):
    with pytest.raises(InputError, match=r"training\.precision is 16.*must be 32, bf16 or auto"):
        prepare_hardware(quick(**{"training.precision": 16}).training)


def test_an_interrupted_training_stops_the_stage(train, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(SkinLesionClassifier, "training_step", interrupt)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train()


def break_weights(module, train, val):
    module.network.backbone.classifier.bias.data.fill_(float("nan"))


@pytest.mark.parametrize(
    ("prepare", "changes"),
    [
        (break_weights, {}),
        (lambda *_: None, {"training.learning_rate": 1e30, "training.optimizer": "sgd"}),
    ],
    ids=["weights that are NaN", "a rate of 1e30"],
)
def test_a_training_that_diverges_from_the_start_says_to_lower_the_rate(train, prepare, changes):
    with pytest.raises(InputError, match=r"no epoch with a finite val_loss; lower training\.learning_rate"):
        train(prepare, **changes)


def test_a_training_that_diverges_later_keeps_the_best_epoch_and_its_history(train, monkeypatch):
    start = SkinLesionClassifier.on_train_epoch_start

    def start_or_break(module):
        start(module)
        if module.current_epoch == 1:
            break_weights(module, None, None)

    monkeypatch.setattr(SkinLesionClassifier, "on_train_epoch_start", start_or_break)
    fitted = train(**{"training.max_epochs": 4})
    assert fitted.epoch == 0
    assert np.isfinite(fitted.val_loss_of_weights())
    assert list(np.isfinite(fitted.history["val_loss"])) == [True, False]


def test_the_log_has_a_line_an_epoch_where_there_is_no_terminal(train, capsys):
    train(**{"training.max_epochs": 2})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert all(f"{name} " in line for line in lines for name in ("train_loss", "val_loss", "val_acc"))
