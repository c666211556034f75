from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from stages import validation
from stages.classifier.calibration import load_calibration
from stages.classifier.networks import build_network
from stages.classifier.weights import load_model, save_model
from stages.commands import predict, release
from stages.dataset.encoding import MetadataEncoding
from stages.errors import InputError
from stages.experiments.release import gather_networks
from stages.files import MODEL_WEIGHTS, MODELS, read_csv
from tests.cross_validation import FOLDS, NAMES, SIZE, outputs, replace_experiment, write_fold


@pytest.fixture(scope="module")
def released(made_of_folds):
    """The folder of a release; not to be changed."""
    return made_of_folds(release)


def test_the_model_is_the_mean_of_the_networks_of_all_folds(released):
    network, description = load_model(released)
    assert (description.networks, description.epochs) == (FOLDS, [0, 1, 2])
    assert description.validation_folds == [1, 2, 0]
    images = torch.rand(5, 3, SIZE, SIZE)
    each = []
    for number in range(FOLDS):
        torch.manual_seed(number)
        each.append(build_network("baseline_cnn", 7, SIZE).eval()(images).softmax(dim=1))
    assert torch.allclose(network(images).exp(), torch.stack(each).mean(dim=0), atol=1e-6)


def test_its_calibration_is_not_that_of_a_fold_but_of_a_less_confident_average(released, cross_validated):
    calibration = load_calibration(released)
    alone = [fold["calibration"] for fold in _folds(cross_validated)]
    assert calibration.temperature < min(each["temperature"] for each in alone)
    assert calibration.target_sensitivity == alone[0]["target_sensitivity"]
    assert len({str(each["costs"]) for each in alone}) > 1
    assert calibration.costs is not None, "found anew, as those of the folds differ"
    card = (released / "README.md").read_text(encoding="utf-8")
    assert "**No image was held out of this model.**" in card
    assert f"malignant at or above a probability of {calibration.threshold:.3f}" in card
    assert "3-fold cross-validation" in card
    assert "python -m stages predict lesion.jpg --models FOLDER" in card
    assert all(fold["revision"] in card for fold in _folds(cross_validated))


def test_validate_holds_it_against_what_the_folds_said_of_lesions_they_had_not_seen(released):
    own, missing = validation.own_predictions(released, load_calibration(released), load_model(released)[1].told_apart)
    assert own is not None, missing
    assert len(own.table) == len(read_csv(released / "predictions.csv", []))


def _folds(repository):
    from stages.experiments.revision import Revision

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        revisions = [Revision(name) for name in NAMES]
        return [{"revision": each.commit, "calibration": each.results["calibration"]} for each in revisions]


def test_predict_takes_it(released, tmp_path, capsys):
    Image.fromarray(np.full((20, 20, 3), 120, np.uint8)).save(tmp_path / "a.png")
    predict.main([str(tmp_path / "a.png"), "--models", str(released), "--output", str(tmp_path / "p.csv")])
    table = read_csv(tmp_path / "p.csv", ["file", "decision"])
    assert table.filter(like="probability_").filter(regex="^p").sum(axis=1).tolist() == pytest.approx([1])


def _without_weights():
    write_fold(1, outputs()[1])
    MODEL_WEIGHTS.unlink()
    replace_experiment(1)


def _another_network():
    write_fold(1, outputs()[1])
    save_model(build_network("baseline_cnn", 7, 32), replace(load_model()[1], image_size=32))
    replace_experiment(1)


def test_folds_that_know_other_sites_say_of_each_image_what_they_said_alone(released, tmp_path):
    sites, folds, alone, images = ["back", "face", "ear"], [], [], torch.rand(4, 3, SIZE, SIZE)
    rows = pd.DataFrame({"age": 50.0, "sex": "male", "localization": [*sites, "knee"]})
    for number in range(FOLDS):
        known = MetadataEncoding("fused", ["male"], sorted(sites[: number + 1]))
        network = build_network("baseline_cnn", 7, SIZE, encoding=known).eval()
        nn.init.normal_(network.backbone.metadata.output.weight)
        of_one = {"networks": 1, "epochs": [0], "val_losses": [0.5], "validation_folds": []}
        folder = tmp_path / str(number) / MODELS
        save_model(network, replace(load_model(released)[1], metadata=known, **of_one), folder)
        alone.append(network(images, torch.from_numpy(known.encode(rows))).softmax(dim=1))
        revision = SimpleNamespace(name=str(number), read=lambda path, root=folder.parent: (root / path).read_bytes())
        folds.append(SimpleNamespace(number=number, revision=revision))
    network, description = gather_networks(folds)
    assert description.metadata.unheard_of(rows) == ["localization 'knee'"]
    told = network(images, torch.from_numpy(description.metadata.encode(rows))).exp()
    assert torch.allclose(told, torch.stack(alone).mean(dim=0), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_weights, r"fold-1 has no models/model\.safetensors"),
        (_another_network, "the models of fold-1 and fold-0 differ in image_size"),
    ],
)
def test_mistakes_get_a_clear_answer_and_nothing_is_written(cross_validation, change, message):
    change()
    with pytest.raises(InputError, match=message):
        release.main([*NAMES, "--output", "out"])
    assert not Path("out").exists()
