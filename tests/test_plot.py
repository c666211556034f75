import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import auc

from stages import evaluate, plot
from stages.errors import InputError
from stages.evaluation.cases import read_cases, write_cases
from stages.evaluation.history import read_history
from stages.files import (
    AUGMENTED,
    DETAILS,
    EVALUATION,
    GRADCAM,
    PICTURES,
    PLOTS,
    PREDICTIONS,
    PREPARED,
    TABLES,
    TRAINING_METRICS,
    read_csv,
    read_json,
    write_csv,
)

PNGS = {
    "augmentation",
    "confusion_matrix",
    "decision_curve",
    "gradcam",
    "mistakes",
    "precision_recall",
    "reliability",
    "roc",
    "sample_predictions",
    "subgroups",
    "thresholds",
    "training_curves",
}
# Of each table what DVC draws against what, which have to be numbers.
COLUMNS = {
    "confusion_matrix": [],
    "decision_curve": ["threshold", "model", "lower", "upper", "treat_all", "treat_none"],
    "precision_recall": ["recall", "precision", "lower", "upper"],
    "reliability": ["predicted", "observed", "lower", "upper", "images", "predicted_before", "observed_before"],
    "roc": ["fpr", "tpr", "threshold", "lower", "upper"],
    "subgroups": ["images", "lesions", "specificity", "specificity_lower", "specificity_upper"],
    "thresholds": ["threshold", "sensitivity", "sensitivity_lower", "specificity", "specificity_upper"],
    "training": ["epoch", "train_loss", "val_loss", "val_calibrated_loss", "val_acc", "learning_rate"],
}


@pytest.fixture
def evaluated(workspace):
    """The working directory after `evaluate`."""
    evaluate.main()
    return workspace


def test_every_table_and_picture_is_drawn_again_with_the_same_bytes(evaluated, bytes_below):
    plot.main()
    first = bytes_below(PLOTS)
    drawn = {name for name in first if name.endswith((".csv", ".png"))}
    assert drawn == {f"tables/{name}.csv" for name in COLUMNS} | {f"pictures/{name}.png" for name in PNGS}
    for name in PNGS:
        with Image.open(PICTURES / f"{name}.png") as picture:
            assert picture.width == 900
            picture.load()
    (PICTURES / "no_longer_drawn.png").touch()
    plot.main()
    assert bytes_below(PLOTS) == first


def test_the_tables_are_of_the_test_images_and_agree_with_the_metrics(evaluated, quick_pictures):
    plot.main()
    metrics = read_json(EVALUATION)
    tables = {name: read_csv(TABLES / f"{name}.csv", numbers) for name, numbers in COLUMNS.items()}
    for name, numbers in COLUMNS.items():
        assert all(tables[name][number].dtype.kind in "fi" for number in numbers), name
    assert auc(tables["roc"]["fpr"], tables["roc"]["tpr"]) == pytest.approx(metrics["auroc"], abs=1e-6)
    confusion, curve = tables["confusion_matrix"], tables["precision_recall"]
    assert len(confusion) == 14
    assert (confusion["actual"] == confusion["predicted"]).mean() == pytest.approx(metrics["accuracy"], abs=1e-6)
    area = np.sum(np.diff(curve["recall"]) * curve["precision"][1:])
    assert area == pytest.approx(metrics["auprc"], abs=1e-6)
    assert tables["reliability"]["images"].sum() == 14
    np.testing.assert_allclose(tables["training"], read_history(TRAINING_METRICS), atol=1e-8)


def test_a_missing_input_is_named(evaluated, quick_pictures):
    for place in (PREDICTIONS, TRAINING_METRICS, PREPARED, DETAILS, GRADCAM, AUGMENTED):
        hidden = place.rename(place.with_name("hidden"))
        with pytest.raises(InputError, match=f"{place}.*`dvc repro`"):
            plot.main()
        hidden.rename(place)
    plot.main()


def test_images_of_another_dataset_are_not_shown_for_those_that_were_predicted(evaluated, quick_pictures):
    cases, heatmaps = read_cases(GRADCAM)
    table = read_csv(PREDICTIONS, [])
    write_cases(GRADCAM, cases.assign(image_id="I001"), heatmaps)
    with pytest.raises(InputError, match="data/gradcam is not of the test images"):
        plot.main()
    write_cases(GRADCAM, cases, heatmaps)
    table.loc[table["split"] == "test", "image_id"] += "x"
    write_csv(PREDICTIONS, table)
    with pytest.raises(InputError, match=r"data/predictions.csv is of images that data/prepared does not hold"):
        plot.main()
