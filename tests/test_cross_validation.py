"""A cross-validation of the real pipeline, from its sweep to a release that predicts."""

import subprocess
import sys

import pytest

from stages.files import read_csv
from tests.clone import ENVIRONMENT, Clone

FOLDS = 3


@pytest.mark.slow
def test_a_sweep_over_folds_becomes_a_release(ran, tmp_path):
    clone = Clone(tmp_path / "clone", copied=ran)

    def stages(*arguments: str) -> str:
        command = [sys.executable, "-m", "stages", *arguments]
        done = subprocess.run(command, cwd=clone.folder, env=ENVIRONMENT, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    stages("sweep", "-S", f"split.test_fold=range({FOLDS})", "-S", f"split.folds={FOLDS}", "--name", "folds")
    told = stages("pool", "--output", "pooled")
    images = read_csv(clone.folder / "data/split.csv", ["image_id"])
    assert told.startswith(f"{len(images)} images of {images['lesion_id'].nunique()} lesions, {FOLDS} folds\n")
    stages("release", "--output", "release")
    assert clone.json("release/model.json")["networks"] == FOLDS
    photo = next((clone.folder / "data/sample").rglob("*.jpg"))
    stages("predict", str(photo), "--models", "release", "--output", "release/photo.csv")
    assert len(read_csv(clone.folder / "release/photo.csv", ["decision"])) == 1
    stages("validate", "data/sample", "--models", "release", "--output", "validation/sample")
    assert clone.json("validation/sample/evaluation.json").keys() == clone.json("pooled/evaluation.json").keys()
    stages("audit", "--output", "doubtful-labels")
    assert (clone.folder / "doubtful-labels/labels.html").exists()
    assert clone.changes() == ""
