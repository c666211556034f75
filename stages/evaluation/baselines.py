"""What is reached without looking at the image: the least that a classifier of images has to beat."""

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from stages.dataset.encoding import COLUMNS
from stages.evaluation.metrics import effective_lesions_of
from stages.evaluation.predictions import Predictions
from stages.evaluation.subgroups import subgroup_table
from stages.evaluation.uncertainty import DIFFERENCE, estimate
from stages.evaluation.weighted import weighted_metrics


def assess_baselines(
    test: Predictions,
    test_images: pd.DataFrame,
    train_images: pd.DataFrame,
    train_labels: np.ndarray,
    replicates: int,
    confidence: float,
    image_alone: np.ndarray | None = None,
) -> dict:
    """The majority class, and a logistic regression on age band, sex and localization, both from the training images.

    Args:
        test: predictions of the classifier.
        test_images: their rows of the manifest.
        train_images: columns age, sex, localization, dataset and dx_type.
        train_labels: the numbers of their classes.
        replicates: of the bootstrap.
        confidence: of the intervals.
        image_alone: the classifier's calibrated probabilities where nothing but the image is known, if it takes more.

    Returns:
        `majority_class`: its name and metrics; `metadata`: its columns, its metrics, and what the image adds to it: the
        classifier's metrics less these, with paired intervals; likewise `image_alone`, and what metadata add to it.
    """
    names = test.classes.names
    majority = int(np.bincount(train_labels).argmax())
    always = np.zeros((len(test.table), len(names)))
    always[:, majority] = 1
    guessed = predict_from_metadata(train_images, train_labels, test_images, len(names))

    def metrics(probabilities: np.ndarray):
        return lambda weights: weighted_metrics(probabilities, test.labels, weights, test.classes)

    def added_to(probabilities: np.ndarray) -> dict:
        def difference(weights: np.ndarray) -> dict[str, np.ndarray]:
            ours, theirs = metrics(test.probabilities)(weights), metrics(probabilities)(weights)
            return {name: ours[name] - theirs[name] for name in ours}

        return estimate(difference, *settings, bounds=DIFFERENCE)

    settings = (test.lesions, replicates, confidence, effective_lesions_of(test))
    result = {
        "majority_class": {"class": names[majority], "metrics": estimate(metrics(always), *settings)},
        "metadata": {
            "columns": COLUMNS,
            "metrics": estimate(metrics(guessed), *settings),
            "image_adds": added_to(guessed),
        },
    }
    if image_alone is not None:
        alone = estimate(metrics(image_alone), *settings)
        result["image_alone"] = {"metrics": alone, "metadata_add": added_to(image_alone)}
    return result


def predict_from_metadata(
    train_images: pd.DataFrame, train_labels: np.ndarray, images: pd.DataFrame, num_classes: int
) -> np.ndarray:
    """Probabilities without the image: a logistic regression on age band, sex and localization.

    Args:
        train_images: what it is fitted on: columns age, sex, localization, dataset and dx_type.
        train_labels: the numbers of their classes.
        images: n rows with these columns.
        num_classes: how many classes there are.

    Returns:
        Shape (n, num_classes), rows that sum to 1; a class without training images has 0.
    """
    probabilities = np.zeros((len(images), num_classes))
    if len(np.unique(train_labels)) == 1:  # there is nothing to learn
        probabilities[:, train_labels[0]] = 1
        return probabilities
    train, asked = (subgroup_table(each)[COLUMNS] for each in (train_images, images))
    known, labels = np.unique(train_labels, return_inverse=True)
    # Images that are alike count together: there are few kinds of them.
    kinds = train.assign(label=labels).groupby([*COLUMNS, "label"]).size().rename("count").reset_index()
    coefficients = logistic_regression(
        _one_hot(kinds, train), np.eye(len(known))[kinds["label"]], kinds["count"].to_numpy(float)
    )
    probabilities[:, known] = softmax(_one_hot(asked, train) @ coefficients, axis=1)
    return probabilities


def _one_hot(table: pd.DataFrame, known: pd.DataFrame) -> np.ndarray:
    """A column for each value that `COLUMNS` have in the known table, and one of ones; shape (n, columns)."""
    columns = [table[name].to_numpy()[:, None] == np.unique(known[name]) for name in COLUMNS]
    return np.hstack([*columns, np.ones((len(table), 1))]).astype(float)


def logistic_regression(design: np.ndarray, target: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Coefficients, shape (columns, classes), with the penalty that scikit-learn takes by default.

    Not by scikit-learn itself, which takes as long to import as PyTorch.

    Args:
        design: shape (n, columns), the last one of ones, whose coefficients are not penalised.
        target: the class of each row as 1, shape (n, classes).
        count: how often each row counts, shape (n,).
    """
    weights, classes = count[:, None], target.shape[1]
    # Of two classes scikit-learn gives coefficients to one: half as far apart, they would be penalised half as much.
    penalty = np.full((design.shape[1], 1), 2.0 if classes == 2 else 1.0)
    penalty[-1] = 0

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        coefficients = flat.reshape(-1, classes)
        log_probabilities = log_softmax(design @ coefficients, axis=1)
        gradient = design.T @ (weights * (np.exp(log_probabilities) - target)) + penalty * coefficients
        value = (penalty * coefficients**2).sum() / 2 - (weights * target * log_probabilities).sum()
        return value / weights.sum(), gradient.ravel() / weights.sum()

    options = {"maxiter": 1000, "gtol": 1e-8, "ftol": 0.0}
    return minimize(loss, np.zeros(penalty.size * classes), jac=True, method="L-BFGS-B", options=options).x.reshape(
        -1, classes
    )
