import numpy as np
import pandas as pd
import pytest

from stages.figures.training import draw_training_curves

DETAILS = {"val": {"images": 30, "lesions": 12}}
ONE = {"epochs": [3], "validation_folds": []}


def history(epochs):
    rate = np.linspace(1, 0.1, epochs)
    losses = {"train_loss": rate, "val_loss": rate[::-1] + 0.1, "val_calibrated_loss": rate + 0.05}
    others = {"val_acc": 1 - rate / 2, "learning_rate": rate * 1e-3}
    return pd.DataFrame({"epoch": range(1, epochs + 1), **losses, **others})


@pytest.mark.parametrize("epochs", [1, 30])
def test_training_is_drawn_of_any_number_of_epochs(words_of, epochs):
    words = words_of(draw_training_curves(history(epochs), DETAILS, ONE))
    assert "n = 30 validation images of 12 lesions" in words


def test_every_loss_is_drawn_under_its_name():
    course = history(5)
    axes = draw_training_curves(course, DETAILS, ONE).axes[0]
    handles, labels = axes.get_legend_handles_labels()
    names = {"training": "train_loss", "validation": "val_loss", "validation, calibrated": "val_calibrated_loss"}
    assert labels == list(names)
    for line, label in zip(handles, labels):
        assert list(line.get_ydata()) == list(course[names[label]])


def test_training_names_the_epoch_that_was_kept():
    course = history(5)
    # The lowest loss of an epoch's end is that of the fourth; a validation within the second one found a lower one.
    course["val_loss"] = [0.9, 0.5, 0.7, 0.4, float("nan")]
    figure = draw_training_curves(course, DETAILS, ONE | {"epochs": [1]})
    assert "epoch 2 of 5 was kept" in figure.texts[0].get_text()
    assert set(figure.axes[1].lines[-1].get_xdata()) == {2}


@pytest.mark.parametrize(
    ("folds", "validated"), [([], "n = 30 validation images"), ([4, 5], "Validation images: fold 4")]
)
def test_of_an_ensemble_the_first_network_is_drawn_with_its_validation_images(words_of, folds, validated):
    words = words_of(draw_training_curves(history(5), DETAILS, {"epochs": [3, 2], "validation_folds": folds}))
    assert "first of 2 networks" in words
    assert validated in words
