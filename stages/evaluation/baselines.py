"""What is reached without looking at the image: the least that a classifier of images has to beat."""

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from stages.dataset.taxonomy import class_names, class_of
from stages.evaluation.predictions import Predictions
from stages.evaluation.subgroups import subgroup_table
from stages.evaluation.uncertainty import DIFFERENCE, count_lesions, estimate, lesions_behind
from stages.evaluation.weighted import weighted_metrics

# Never dx_type: a lesion is sent to histopathology because it looks malignant.
COLUMNS = ["age", "sex", "localization"]


def judge_baselines(
    test: Predictions, test_images: pd.DataFrame, train_images: pd.DataFrame, replicates: int, confidence: float
) -> dict:
    """The majority class, and a logistic regression on age band, sex and localization, both from the training images.

    Args:
        test: predictions of the classifier.
        test_images: their rows of the manifest.
        train_images: columns dx, age, sex, localization, dataset and dx_type.
        replicates: of the bootstrap.
        confidence: of the intervals.

    Returns:
        `majority_class`: its name and metrics; `metadata`: its columns, its metrics, and what the image adds to it: the
        classifier's metrics less these, with paired intervals.
    """
    classes = class_names(len(test.classes))
    labels = np.array([classes.index(class_of(dx, len(classes))) for dx in train_images["dx"]])
    majority = int(np.bincount(labels).argmax())
    always = np.zeros((len(test.table), len(classes)))
    always[:, majority] = 1

    guessed = always.copy()
    if len(np.unique(labels)) > 1:  # of a single class there is nothing to learn
        model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression(max_iter=1000))
        model.fit(subgroup_table(train_images)[COLUMNS], labels)
        guessed[:] = 0
        guessed[:, model.classes_] = model.predict_proba(subgroup_table(test_images)[COLUMNS])

    def metrics(probabilities: np.ndarray):
        return lambda weights: weighted_metrics(probabilities, test.labels, weights)

    def image_adds(weights: np.ndarray) -> dict[str, np.ndarray]:
        ours, theirs = metrics(test.probabilities)(weights), metrics(guessed)(weights)
        return {name: ours[name] - theirs[name] for name in ours}

    counts = count_lesions(test.lesions, test.is_malignant)
    settings = (test.lesions, replicates, confidence, lambda name: lesions_behind(name, *counts))
    return {
        "majority_class": {"class": classes[majority], "metrics": estimate(metrics(always), *settings)},
        "metadata": {
            "columns": COLUMNS,
            "metrics": estimate(metrics(guessed), *settings),
            "image_adds": estimate(image_adds, *settings, span=DIFFERENCE),
        },
    }
