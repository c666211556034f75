from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.plain import told_apart
from stages.classifier.gradcam import gradcam_heatmaps
from stages.classifier.networks import Ensemble, NormalizedNetwork, build_network
from stages.dataset.augmentation import as_float

CPU = torch.device("cpu")
SIZE, SIDE = 64, 16  # pixels of a side of the images, and of the squares on them
CORNERS = [(4, 4), (4, 44), (44, 4), (44, 44)]  # row and column of a square's own corner
RED, BLUE = (200, 70, 70), (70, 70, 200)
NETWORKS = ["baseline_cnn", "tf_efficientnet_lite0", "resnet18"]


def skin_with(colour, corner):
    """Noisy skin with one square of a colour, uint8 (64, 64, 3)."""
    row, column = corner
    noise = np.random.default_rng(row * SIZE + column).integers(-20, 20, (SIZE, SIZE, 3))
    image = 130 + noise
    image[row : row + SIDE, column : column + SIDE] = colour
    return torch.from_numpy(image.astype(np.uint8))


def heatmaps_of(network, images, num_classes=2):
    return gradcam_heatmaps(network, images, told_apart(num_classes), CPU)


def enlarged(heatmaps):
    """Heatmaps as large as the images."""
    return [np.kron(heatmap, np.ones((SIZE // len(heatmap),) * 2)) for heatmap in heatmaps]


def share_near(heatmap, corner):
    """How much of a heatmap lies in the quarter of the image with the square at `corner`."""
    half = SIZE // 2
    row, column = (half * (place // half) for place in corner)
    return heatmap[row : row + half, column : column + half].sum(dtype=float) / heatmap.sum(dtype=float)


@pytest.fixture(scope="module")
def red_is_malignant():
    """A baseline CNN that was taught that a red square is malignant and a blue one benign."""
    torch.manual_seed(0)
    network = build_network("baseline_cnn", 2, SIZE)
    places = [(0, 0), (0, 40), (24, 24), (40, 0), (48, 48)]
    images = as_float(torch.stack([skin_with(colour, place) for colour in (BLUE, RED) for place in places]))
    labels = torch.arange(2).repeat_interleave(len(places))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.003)
    for _ in range(12):
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()
    assert (network.eval()(images).argmax(dim=1) == labels).all()
    return network


def test_the_heatmap_lies_where_the_evidence_is_and_moves_with_it(red_is_malignant):
    heatmaps = enlarged(heatmaps_of(red_is_malignant, torch.stack([skin_with(RED, corner) for corner in CORNERS])))
    for heatmap, corner in zip(heatmaps, CORNERS):
        assert share_near(heatmap, corner) > 0.7


def test_benign_evidence_is_left_cold(red_is_malignant):
    both = skin_with(RED, CORNERS[0])
    row, column = CORNERS[3]
    both[row : row + SIDE, column : column + SIDE] = torch.tensor(BLUE, dtype=torch.uint8)
    [heatmap] = enlarged(heatmaps_of(red_is_malignant, both[None]))
    assert share_near(heatmap, CORNERS[0]) > 0.7
    assert share_near(heatmap, CORNERS[3]) < 0.05


class Colours(nn.Module):
    """Two maps of half the image's size, how red and how blue each place is, and a linear layer on their means."""

    def __init__(self, weights):
        super().__init__()
        self.colours = nn.Conv2d(3, 2, kernel_size=2, stride=2, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2, len(weights))
        with torch.no_grad():
            self.colours.weight.copy_(torch.tensor([[1.0, -1, 0], [0, -1, 1]])[..., None, None].expand(2, 3, 2, 2) / 4)
            self.head.weight.copy_(torch.tensor(weights))
            self.head.bias.zero_()

    def forward(self, images):
        return self.head(self.pool(self.act(self.colours(images))).flatten(1))


def colours_network(*weights):
    """What maps the share of red and of blue to logits, one pair of weights a class."""
    return NormalizedNetwork(Colours(weights), (0.0,) * 3, (1.0,) * 3).eval()


def squares(colour, strengths):
    """Black images with one square each, at the upper left, of so much of a colour."""
    images = torch.zeros(len(strengths), SIZE, SIZE, 3, dtype=torch.uint8)
    images[:, 8:24, 8:24] = torch.tensor(colour) * torch.tensor(strengths, dtype=torch.uint8).view(-1, 1, 1, 1)
    return images


def test_each_heatmap_has_its_own_scale_and_one_without_evidence_is_zero():
    network = colours_network((0.0, 1.0), (1.0, 0.0))  # blue is benign, red malignant
    strong, weak = heatmaps_of(network, squares((1, 0, 0), [250, 3]))
    assert strong.dtype == np.uint8
    assert strong.shape == (SIZE // 2, SIZE // 2)
    assert np.array_equal(strong, weak)
    assert set(np.unique(strong[4:12, 4:12])) == {255}
    assert strong.sum(dtype=int) == 8 * 8 * 255
    assert not heatmaps_of(network, squares((0, 0, 1), [250, 3])).any()
    assert not heatmaps_of(network, squares((0, 0, 0), [250])).any()


def test_of_seven_classes_any_malignant_one_is_evidence_and_no_benign_one():
    for name in told_apart(7).names:
        red = [(float(name == each), 0.0) for each in told_apart(7).names]
        heatmap = heatmaps_of(colours_network(*red), squares((1, 0, 0), [250]), 7)
        assert heatmap.any() == (name in told_apart(7).malignant), name


def test_a_certain_prediction_is_explained_too():
    # The probability is 1 in float32, and its gradient 0.
    network = colours_network((0.0, 1.0), (9999.0, 0.0))
    assert heatmaps_of(network, squares((1, 0, 0), [250])).max() == 255


def random_images(count=3, size=SIZE):
    return torch.randint(0, 256, (count, size, size, 3), generator=torch.Generator().manual_seed(1)).byte()


@cache
def lively(name, num_classes):
    """A network with random weights that are large enough for its maps to differ, and its batch statistics moved."""
    torch.manual_seed(1)
    network = build_network(name, num_classes, SIZE, dropout_rate=0.5)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        network.train()(as_float(random_images(8)))
    return network.eval()


@pytest.mark.parametrize("num_classes", [2, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_heatmaps_are_those_of_the_published_formula(name, num_classes):
    size = 224 if name != "baseline_cnn" else 112  # whose last maps have 7 × 7 cells
    network, images = lively(name, num_classes), random_images(size=size)
    backbone = network.backbone
    if name == "baseline_cnn":
        maps = backbone.features((as_float(images) - network.mean) / network.std)
        logits = backbone.classifier(maps.mean(dim=(2, 3)))
    else:
        maps = backbone.forward_features((as_float(images) - network.mean) / network.std)
        logits = backbone.forward_head(maps)
    malignant = torch.from_numpy(told_apart(num_classes).is_malignant)
    probability = logits.double().softmax(dim=1)[:, malignant].sum(dim=1)
    [gradients] = torch.autograd.grad((probability / (1 - probability)).log().sum(), maps)
    # Equations 1 and 2 of Selvaraju et al.: the mean gradient of a map weighs it, and only what is above 0 is kept.
    expected = torch.einsum("nc,nchw->nhw", gradients.mean(dim=(2, 3)), maps).relu()
    expected = (expected / expected.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30) * 255).detach().numpy()
    found = heatmaps_of(network, images, num_classes)
    assert found.shape == (3, 7, 7)
    assert np.abs(found - expected).max() <= 1
    assert len(np.unique(found)) > 1  # there is something to compare


def test_an_ensemble_shows_the_mean_of_its_networks_heatmaps():
    images = random_images()
    members = [lively("baseline_cnn", 2), deepcopy(lively("baseline_cnn", 2))]
    members[1].backbone.classifier.weight.data.neg_()  # sees evidence where the other sees its opposite
    one, other = (heatmaps_of(member, images) / 255 for member in members)
    expected = one + other
    expected = (expected / expected.max(axis=(1, 2), keepdims=True) * 255).round()
    found = heatmaps_of(Ensemble(members), images)
    assert np.abs(found - expected).max() <= 2  # of two that were rounded
    assert np.abs(found - one * 255).max() > 50


@pytest.mark.parametrize("name", NETWORKS)
def test_small_images_are_explained_by_the_coarsest_maps_that_say_where(name):
    heatmaps = heatmaps_of(lively(name, 7), random_images(), 7)
    assert heatmaps.shape == (3, 8, 8)  # those at the network's end are 2 × 2 or 4 × 4
    assert len(np.unique(heatmaps)) > 5
    assert heatmaps_of(lively("resnet18", 7), random_images(1, 12), 7) is None, "no maps are fine enough"


def test_a_module_that_is_used_twice_counts_where_it_is_used_last():
    torch.manual_seed(0)
    first, second, head = nn.Conv2d(3, 8, 3, stride=4), nn.Conv2d(8, 8, 3, stride=2), nn.Linear(8, 7)  # 16 and 7 cells
    act = nn.ReLU(inplace=True)

    def heatmaps(last):
        layers = nn.Sequential(first, act, second, last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        return heatmaps_of(NormalizedNetwork(layers, (0.5,) * 3, (0.2,) * 3), random_images(), 7)

    expected = heatmaps(nn.ReLU(inplace=True))
    assert np.array_equal(heatmaps(act), expected)
    assert len(np.unique(expected)) > 50


class ChannelsLast(nn.Module):
    """Ends, as some transformers do, in maps whose channels are the last axis."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 5, kernel_size=8, stride=8)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 2)

    def forward(self, images):
        return self.head(self.norm(self.patches(images).permute(0, 2, 3, 1)).mean(dim=(1, 2)))


def test_networks_without_feature_maps_have_no_heatmaps():
    assert heatmaps_of(build_network("vit_tiny_patch16_224", 2, 48), random_images(2, 48)) is None
    last = NormalizedNetwork(ChannelsLast(), (0.0,) * 3, (1.0,) * 3)
    assert heatmaps_of(last, random_images(2, 48)) is None
    linear = NormalizedNetwork(nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 2)), (0.0,) * 3, (1.0,) * 3)
    assert heatmaps_of(linear, random_images(2, 48)) is None


@pytest.fixture
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("name", NETWORKS)
def test_heatmaps_are_the_same_bytes_again(name, deterministic):
    network, images = lively(name, 7), random_images()
    assert heatmaps_of(network, images, 7).tobytes() == heatmaps_of(network, images, 7).tobytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.xdist_group("gpu")
@pytest.mark.parametrize("name", NETWORKS)
def test_heatmaps_of_a_gpu_are_the_same_bytes_again_and_nearly_those_of_a_cpu(name, deterministic, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # whose 10 bits of mantissa such a network amplifies
    network, images = lively(name, 7), random_images()
    one, again = (gradcam_heatmaps(network, images, told_apart(7), torch.device("cuda")) for _ in range(2))
    assert one.tobytes() == again.tobytes()
    assert np.abs(one.astype(float) - heatmaps_of(network, images, 7)).mean() < 3
    filled_up = gradcam_heatmaps(network, images, told_apart(7), torch.device("cuda"), batch_size=64)
    assert filled_up.shape == one.shape
    assert np.abs(one.astype(float) - filled_up).mean() < 3


def test_an_image_s_heatmap_does_not_depend_on_the_others():
    network, images = lively("resnet18", 7), random_images()
    together = heatmaps_of(network, images, 7).astype(int)
    alone = np.concatenate([heatmaps_of(network, image[None], 7) for image in images])
    assert np.abs(together - alone).max() <= 1


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_left_as_it_was_and_dropout_does_not_count(name):
    network, images = deepcopy(lively(name, 7)), random_images()
    expected = heatmaps_of(network, images, 7)
    network.train()
    next(network.backbone.children()).eval()
    parameters = list(network.parameters())
    for parameter in parameters[::3]:
        parameter.requires_grad_(False)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]

    assert np.array_equal(heatmaps_of(network, images, 7), expected)

    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert [parameter.requires_grad for parameter in parameters] == [
        number % 3 > 0 for number in range(len(parameters))
    ]
    assert all(parameter.grad is None for parameter in parameters)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
