"""Predictions with what `evaluate` would say of them, and what can be read in a picture."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmarks.plain import PLAIN, taxonomy_of
from stages.classifier.calibration import Calibration, described
from stages.evaluation.assessment import assess
from stages.evaluation.predictions import Predictions, describe_classes

CALIBRATION = Calibration(True, 1.5, 0.3, 0.9, 0.45)


@pytest.fixture
def judge_images():
    """A function that gives what metrics/details.json would hold of predictions."""

    def make(predictions: Predictions) -> dict:
        numbers = np.arange(len(predictions.table))
        images = pd.DataFrame(
            {
                "age": np.where(numbers % 9 == 8, np.nan, numbers * 7 % 90),
                "sex": np.where(numbers % 3, "male", "female"),
                "localization": np.where(numbers % 5, "back", "ear"),
                "dataset": "rosendahl",
                "dx_type": np.where(numbers % 2, "histo", "consensus"),
            }
        )
        config = replace(PLAIN.evaluation, bootstrap_replicates=100)
        return {
            **describe_classes(predictions.classes, taxonomy_of(len(predictions.classes.names))),
            "confidence": 0.95,
            "bootstrap_replicates": 100,
            "calibration": described(CALIBRATION),
            "val": {"images": 30, "lesions": 12},
            "test": assess(predictions, predictions.probabilities**0.5, images, CALIBRATION, config),
        }

    return make


@pytest.fixture
def judged(predictions_of, judge_images):
    """A function that gives predictions for images of given classes, and what `judge_images` says of them."""

    def make(labels: list[int], classes: int) -> tuple[Predictions, dict]:
        predictions = predictions_of(labels, classes)
        return predictions, judge_images(predictions)

    return make


@pytest.fixture
def texts_of(monkeypatch):
    """A function that gives every text of a figure that is drawn."""

    def read(figure: Figure) -> list[Text]:
        figure.set_dpi(150)  # as saved
        drawn = []
        draw = Text.draw

        def note(text, renderer):
            drawn.append(text)
            draw(text, renderer)

        with monkeypatch.context() as patch:
            patch.setattr(Text, "draw", note)
            figure.draw_without_rendering()
        return [text for text in drawn if text.get_visible() and text.get_text().strip()]

    return read


@pytest.fixture
def words_of(texts_of):
    """A function that gives all that can be read in a figure, one text a line, with plain spaces."""
    return lambda figure: "\n".join(text.get_text() for text in texts_of(figure)).replace("\N{NO-BREAK SPACE}", " ")
