import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import auc

from stages import evaluate, plot
from stages.errors import InputError
from stages.evaluation.history import read_history
from stages.files import EVALUATION, PICTURES, PLOTS, PREDICTIONS, PREPARED, TRAINING_METRICS, read_csv, read_json

PNGS = {"roc", "precision_recall", "confusion_matrix", "training_curves", "sample_predictions"}
TABLES = {"roc", "precision_recall", "confusion_matrix", "training"}


@pytest.fixture
def evaluated(workspace):
    """The working directory after `evaluate`."""
    evaluate.main()
    return workspace


def test_every_table_and_picture_is_drawn_again_with_the_same_bytes(evaluated, bytes_below):
    plot.main()
    expected = {f"{name}.csv" for name in TABLES} | {f"pictures/{name}.png" for name in PNGS}
    first = bytes_below(PLOTS)
    (PICTURES / "no_longer_drawn.png").touch()
    assert set(first) == expected
    for name in PNGS:
        with Image.open(PICTURES / f"{name}.png") as picture:
            assert picture.width >= 600
            picture.load()
    plot.main()
    assert bytes_below(PLOTS) == first


def test_the_tables_are_of_the_test_images_and_agree_with_the_metrics(evaluated, monkeypatch):
    monkeypatch.setattr(plot, "save", lambda figure, path: path.touch())  # the pictures are not looked at
    plot.main()
    metrics = read_json(EVALUATION)
    roc = read_csv(PLOTS / "roc.csv", ["fpr", "tpr", "threshold"])
    assert auc(roc["fpr"], roc["tpr"]) == pytest.approx(metrics["auroc"], abs=1e-6)
    confusion = read_csv(PLOTS / "confusion_matrix.csv", ["actual", "predicted"])
    assert len(confusion) == 14
    assert (confusion["actual"] == confusion["predicted"]).mean() == pytest.approx(metrics["accuracy"], abs=1e-6)
    curve = read_csv(PLOTS / "precision_recall.csv", ["recall", "precision"])
    area = np.sum(np.diff(curve["recall"]) * curve["precision"][1:])
    assert area == pytest.approx(metrics["auprc"], abs=1e-6)
    training = read_csv(PLOTS / "training.csv", ["epoch"])
    np.testing.assert_allclose(training, read_history(TRAINING_METRICS), atol=1e-8)


@pytest.mark.parametrize("place", [PREDICTIONS, TRAINING_METRICS, PREPARED])
def test_a_missing_input_is_named(evaluated, place):
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(InputError, match=f"{place}.*`dvc repro` makes it"):
        plot.main()
