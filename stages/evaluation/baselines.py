"""What is reached without looking at the image: the least that a classifier of images has to beat."""

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from stages.evaluation.metrics import effective_lesions_of
from stages.evaluation.predictions import Predictions
from stages.evaluation.subgroups import subgroup_table
from stages.evaluation.uncertainty import DIFFERENCE, estimate
from stages.evaluation.weighted import weighted_metrics

# Never dx_type: a lesion is sent to histopathology because it looks malignant.
COLUMNS = ["age", "sex", "localization"]


def assess_baselines(
    test: Predictions,
    test_images: pd.DataFrame,
    train_images: pd.DataFrame,
    train_labels: np.ndarray,
    replicates: int,
    confidence: float,
) -> dict:
    """The majority class, and a logistic regression on age band, sex and localization, both from the training images.

    Args:
        test: predictions of the classifier.
        test_images: their rows of the manifest.
        train_images: columns age, sex, localization, dataset and dx_type.
        train_labels: the numbers of their classes.
        replicates: of the bootstrap.
        confidence: of the intervals.

    Returns:
        `majority_class`: its name and metrics; `metadata`: its columns, its metrics, and what the image adds to it: the
        classifier's metrics less these, with paired intervals.
    """
    names = test.classes.names
    majority = int(np.bincount(train_labels).argmax())
    always = np.zeros((len(test.table), len(names)))
    always[:, majority] = 1
    guessed = predict_from_metadata(train_images, train_labels, test_images, len(names))

    def metrics(probabilities: np.ndarray):
        return lambda weights: weighted_metrics(probabilities, test.labels, weights, test.classes)

    def image_adds(weights: np.ndarray) -> dict[str, np.ndarray]:
        ours, theirs = metrics(test.probabilities)(weights), metrics(guessed)(weights)
        return {name: ours[name] - theirs[name] for name in ours}

    settings = (test.lesions, replicates, confidence, effective_lesions_of(test))
    return {
        "majority_class": {"class": names[majority], "metrics": estimate(metrics(always), *settings)},
        "metadata": {
            "columns": COLUMNS,
            "metrics": estimate(metrics(guessed), *settings),
            "image_adds": estimate(image_adds, *settings, bounds=DIFFERENCE),
        },
    }


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
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression(max_iter=1000))
    model.fit(subgroup_table(train_images)[COLUMNS], train_labels)
    probabilities[:, model.classes_] = model.predict_proba(subgroup_table(images)[COLUMNS])
    return probabilities
