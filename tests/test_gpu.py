import pytest
import torch

from stages.classifier.weights import load_model
from stages.train import train_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.xdist_group("gpu"),
]
LITE0 = {"model.name": "efficientnet", "model.variant": "lite0", "training.max_epochs": 2}


@pytest.mark.parametrize("precision", ["bf16", 16, 32])
def test_two_trainings_on_a_gpu_write_the_same_bytes(tiny, quick, tmp_path, bytes_below, precision):
    for name in ("one", "again"):
        folder = tmp_path / name
        config = quick(**LITE0, **{"training.precision": precision})
        train_model(config, *tiny, folder / "models", folder / "metrics", folder / "checkpoints")
    for name in ("models", "metrics"):
        assert bytes_below(tmp_path / "one" / name) == bytes_below(tmp_path / "again" / name)
    network, description = load_model(tmp_path / "one" / "models")
    assert description.architecture == "tf_efficientnet_lite0"
    assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())
