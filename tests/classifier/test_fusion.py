import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from benchmarks.plain import HAM10000, PLAIN, told_apart
from stages.classifier.description import ModelDescription
from stages.classifier.fusion import METADATA
from stages.classifier.gradcam import gradcam_heatmaps
from stages.classifier.networks import Ensemble, build_network
from stages.classifier.weights import load_model, save_model
from stages.config import override
from stages.dataset.encoding import learn_encoding
from stages.errors import InputError
from stages.training.module import TrainingModule
from stages.training.optimization import create_optimizer

FUSIONS = ("late", "fused")
KNOWN = pd.DataFrame(
    {"age": [30.0, 70.0, np.nan], "sex": ["male", "female", "male"], "localization": ["ear", "back", "ear"]}
)


def build(fusion, name="baseline_cnn", size=32, seed=0):
    torch.manual_seed(seed)
    return build_network(name, 2, size, encoding=None if fusion == "none" else learn_encoding(fusion, KNOWN)).eval()


def trained(fusion, **options):
    """A network that metadata matter to."""
    network = build(fusion, **options)
    with torch.no_grad():
        nn.init.normal_(network.backbone.metadata.output.weight, std=0.3)
    return network


def rows():
    return torch.from_numpy(learn_encoding("late", KNOWN).encode(KNOWN))


@pytest.mark.parametrize(
    ("fusion", "name"),
    [("late", "baseline_cnn")]
    + [("fused", name) for name in ("baseline_cnn", "tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224")],
)
def test_before_training_metadata_change_nothing(name, fusion):
    network, images = build(fusion, name), torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        image_alone = network.backbone((images - network.mean) / network.std)
        for metadata in (None, rows()):
            torch.testing.assert_close(network(images, metadata), image_alone)


def test_late_adds_the_same_to_any_image_and_fused_does_not():
    images = torch.rand(2, 3, 32, 32)
    one, other = rows()[:1].expand(2, -1), rows()[1:2].expand(2, -1)
    for fusion in FUSIONS:
        network = trained(fusion)
        with torch.inference_mode():
            added = network(images, one) - network(images, other)
        assert added.abs().min() > 1e-3
        assert torch.allclose(added[0], added[1], atol=1e-5) == (fusion == "late")


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_loaded_ensemble_takes_metadata_as_the_saved_one(tmp_path, fusion):
    network, names = Ensemble([trained(fusion, seed=seed) for seed in range(2)]), list(told_apart(2).names)
    numbers = [[0.5] * 3, [0.2] * 3, [0, 0], [1.0, 1.0], [], 32, 1]
    description = ModelDescription(
        "baseline_cnn", 2, names, HAM10000, 32, *numbers, metadata=learn_encoding(fusion, KNOWN)
    )
    for member in network.members:
        member.mean.fill_(0.5), member.std.fill_(0.2)
    save_model(network, description, tmp_path)
    loaded, again = load_model(tmp_path)
    images = torch.rand(3, 3, 32, 32)
    assert again == description
    with torch.inference_mode():
        for metadata in (None, rows()):
            assert torch.equal(loaded(images, metadata), network(images, metadata))
        unknown = network.members[0].backbone.metadata.unknown.expand(3, -1)
        assert torch.equal(network(images), network(images, unknown))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_heatmaps_are_of_the_image_given_its_metadata(fusion):
    network = trained(fusion)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))
    arguments = network, images, told_apart(2), torch.device("cpu"), 1
    alone, told = gradcam_heatmaps(*arguments), gradcam_heatmaps(*arguments, rows().numpy())
    # A term that is the same wherever one looks has no place in the image.
    assert np.array_equal(alone, told) == (fusion == "late")


def test_a_network_whose_last_layer_is_not_linear_is_refused():
    with pytest.raises(
        InputError, match=r"model\.metadata is fused, but deit_tiny_distilled_patch16_224 has no linear"
    ):
        build("fused", "deit_tiny_distilled_patch16_224", 48)


def test_its_layers_learn_as_fast_as_the_last_one_and_while_the_others_are_frozen():
    changes = {"model.name": "efficientnet", "model.variant": "lite0", "model.pretrained": False}
    config = override(PLAIN, changes | {"model.metadata": "fused", "training.layer_decay": 0.5})
    module = TrainingModule(config, 32, torch.tensor([[5, 5]]), learn_encoding("fused", KNOWN))
    optimizer = create_optimizer(module.network.backbone, config.training, torch.device("cpu"))
    scales = {id(parameter): group["lr_scale"] for group in optimizer.param_groups for parameter in group["params"]}
    module.set_train_mode(frozen=True)
    for name, parameter in module.network.backbone.named_parameters():
        is_last = name.startswith(("classifier", METADATA))
        assert parameter.requires_grad == is_last, name
        assert (scales[id(parameter)] == 1) == is_last, name
