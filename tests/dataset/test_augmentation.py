import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.plain import PLAIN
from stages.dataset import augmentation
from stages.dataset.augmentation import UNIFORMS_PER_IMAGE, as_float, augment_batch, params_from_uniforms, sample_params

FLIP, TURN, SCALE, ASPECT, SHIFT_X, SHIFT_Y, STRETCH, BRIGHTNESS, CONTRAST, SATURATION, HUE = range(UNIFORMS_PER_IMAGE)
GREY_AND_COLOURS = {"grey": (128, 128, 128), "red": (170, 60, 50), "blue": (60, 70, 170), "skin": (200, 160, 140)}


def augment(images, uniforms):
    return augmentation.augment(images, torch.from_numpy(params_from_uniforms(uniforms.numpy())))


@pytest.fixture
def images():
    """Four smooth pictures without any symmetry."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 5, 5, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0.2, 0.8)
    return (smooth * 255).byte().permute(0, 2, 3, 1).contiguous()


@pytest.fixture
def random_uniforms():
    return torch.rand(4, UNIFORMS_PER_IMAGE, generator=torch.Generator().manual_seed(1))


def uniforms(count=4, **changes):
    """Uniforms that leave images as they are, except for some."""
    values = torch.full((count, UNIFORMS_PER_IMAGE), 0.5)
    values[:, TURN] = 0
    for name, value in changes.items():
        values[:, globals()[name]] = value
    return values


def test_the_same_uniforms_give_the_same_bits_and_leave_the_images_as_they_are(images, random_uniforms):
    before = images.clone()
    assert torch.equal(augment(images, random_uniforms), augment(images, random_uniforms))
    assert torch.equal(images, before)


def test_the_result_is_a_batch_of_float_images_in_0_to_1(random_uniforms):
    noise = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    for extreme in (random_uniforms, torch.zeros_like(random_uniforms), torch.ones_like(random_uniforms)):
        result = augment(noise, extreme)
        assert result.shape == (4, 3, 32, 32)
        assert result.dtype == torch.float32
        assert result.min() >= 0
        assert result.max() <= 1


@pytest.mark.parametrize(
    "mixing",
    [{}, {"mixup": 0.4, "cutmix": 1.0}, {"cutout": 0.3}, {"acquisition_strength": 1.0}],
    ids=["plain", "mixed", "cut out", "acquired otherwise"],
)
def test_the_result_lies_in_memory_as_networks_take_it(images, mixing):
    config = replace(PLAIN.data, **mixing)
    augment_params = torch.from_numpy(sample_params(np.random.default_rng(0), 4, config))
    pixels, _ = augment_batch(images, torch.eye(4), augment_params, config)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_neutral_uniforms_leave_an_image_as_it_is(images):
    torch.testing.assert_close(augment(images, uniforms()), as_float(images), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"FLIP": 0.0}, lambda pictures: pictures.flip(3)),
        ({"TURN": 0.25}, lambda pictures: pictures.rot90(1, (2, 3))),
        ({"TURN": 0.5}, lambda pictures: pictures.flip(2, 3)),
        ({"FLIP": 0.0, "TURN": 0.5}, lambda pictures: pictures.flip(2)),
    ],
    ids=["mirrored", "a quarter turn", "half a turn", "upside down"],
)
def test_flips_and_rotations_move_the_pixels(images, changes, expected):
    result, original = augment(images, uniforms(**changes)), as_float(images)
    assert (result - original).abs().mean() > 0.05
    torch.testing.assert_close(result, expected(original), atol=5e-3, rtol=0)


def test_a_rotation_reaches_all_angles(images):
    turned = [augment(images[:1], uniforms(1, TURN=turn)) for turn in (0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)]
    for number, one in enumerate(turned):
        assert all((one - other).abs().mean() > 0.02 for other in turned[:number])


@pytest.mark.parametrize("name", ["SCALE", "ASPECT", "SHIFT_X", "SHIFT_Y"])
def test_zoom_stretch_and_shifts_change_the_image_to_both_sides_by_a_little(images, name):
    less, more = (augment(images, uniforms(**{name: value})) for value in (0.0, 1.0))
    for result in (less, more):
        assert 0.005 < (result - as_float(images)).abs().mean() < 0.15
    assert (less - more).abs().mean() > 0.01


def test_a_shift_is_at_most_a_tenth_of_the_side():
    picture = torch.zeros(1, 50, 50, 3, dtype=torch.uint8)
    picture[:, 25, 25] = 255
    for name, axis in (("SHIFT_X", 3), ("SHIFT_Y", 2)):
        light = augment(picture, uniforms(1, **{name: 1.0})).sum(dim=(0, 1, 5 - axis))
        moved = (light / light.sum() * torch.arange(50)).sum() - 25
        assert 2 < moved.abs() < 5


def test_every_image_has_its_own_parameters(images, random_uniforms):
    same = augment(images[:1].expand(4, -1, -1, -1), random_uniforms)
    assert all((same[0] - other).abs().mean() > 0.02 for other in same[1:])


def test_a_permuted_batch_gives_the_permuted_result(images, random_uniforms):
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        augment(images[order], random_uniforms[order]), augment(images, random_uniforms)[order], atol=1e-5, rtol=0
    )


def test_an_image_alone_is_augmented_as_in_a_batch(images, random_uniforms):
    batch = augment(images, random_uniforms)
    for number in range(4):
        alone = augment(images[number : number + 1], random_uniforms[number : number + 1])
        torch.testing.assert_close(alone[0], batch[number], atol=1e-5, rtol=0)


@pytest.mark.parametrize("colour", GREY_AND_COLOURS.values(), ids=GREY_AND_COLOURS)
def test_a_lesion_keeps_its_colour(colour):
    """The order of the channels stays, and grey stays grey: hue and saturation move colours by a few percent."""
    picture = torch.tensor(colour, dtype=torch.uint8).expand(200, 8, 8, 3)
    random = torch.rand(200, UNIFORMS_PER_IMAGE, generator=torch.Generator().manual_seed(3))
    result = augment(picture, random).mean(dim=(2, 3))
    chroma = result - result.mean(dim=1, keepdim=True)
    expected = torch.tensor(colour) / 255 - sum(colour) / 3 / 255
    if colour[0] == colour[1]:
        assert chroma.abs().max() < 0.002
    else:
        similarity = torch.nn.functional.cosine_similarity(chroma, expected.expand_as(chroma))
        assert similarity.min() > 0.97
        assert (chroma.norm(dim=1) / expected.norm()).min() > 0.69
        assert (chroma.norm(dim=1) / expected.norm()).max() < 1.45


def test_brightness_and_contrast_and_colour_go_to_both_sides(images):
    original = as_float(images)
    darker, brighter = (augment(images, uniforms(BRIGHTNESS=value)).mean() for value in (0.0, 1.0))
    assert darker < original.mean() - 0.05 < original.mean() + 0.05 < brighter
    flatter, starker = (augment(images, uniforms(CONTRAST=value)).std() for value in (0.0, 1.0))
    assert flatter < 0.95 * original.std() < 1.05 * original.std() < starker

    def colourfulness(pictures):
        return pictures.std(dim=1).mean()

    paler, richer = (colourfulness(augment(images, uniforms(SATURATION=value))) for value in (0.0, 1.0))
    assert paler < 0.95 * colourfulness(original) < 1.05 * colourfulness(original) < richer
    one, other = (augment(images, uniforms(HUE=value)) for value in (0.0, 1.0))
    assert (one - other).abs().mean() > 0.005


def test_strength_scales_all_but_flips_and_turns(random_uniforms):
    turned = random_uniforms.clone()
    turned[:, [SCALE, ASPECT, SHIFT_X, SHIFT_Y, BRIGHTNESS, CONTRAST, SATURATION, HUE]] = 0.5
    doubled = (0.5 + 2 * (random_uniforms - 0.5)).numpy()
    doubled[:, [FLIP, TURN, STRETCH]] = random_uniforms[:, [FLIP, TURN, STRETCH]]
    for strength, expected in ((0, turned.numpy()), (1, random_uniforms.numpy()), (2, doubled)):
        found = params_from_uniforms(random_uniforms.numpy(), strength)
        np.testing.assert_allclose(found, params_from_uniforms(expected), atol=1e-6)
    plain, strong = (sampled(6, augment_strength=strength)[1] for strength in (1.0, 3.0))
    assert not torch.equal(plain, strong)


def test_pixels_become_floats_with_the_channels_first():
    pixels = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).view(2, 3, 4, 3)
    result = as_float(pixels)
    assert result.shape == (2, 3, 3, 4)
    assert result[1, 2, 0, 3] * 255 == pixels[1, 0, 3, 2]
    assert as_float(torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)).flatten().tolist() == pytest.approx(
        [0, 1, 0.2]
    )


def test_the_grid_is_that_of_pytorch():
    uniforms = torch.rand(5, UNIFORMS_PER_IMAGE, generator=torch.Generator().manual_seed(4))
    matrices = torch.from_numpy(params_from_uniforms(uniforms.numpy()))[:, :6].view(-1, 2, 3)
    expected = torch.nn.functional.affine_grid(matrices, [5, 3, 24, 24], align_corners=False)
    torch.testing.assert_close(augmentation._sampling_grid(matrices, 24, torch.float32), expected)


def sampled(count, **switched_on):
    config = replace(PLAIN.data, **switched_on)
    return config, torch.from_numpy(sample_params(np.random.default_rng(0), count, config))


TARGETS = torch.eye(4)


def unmoved(augment_params):
    """Draws whose images stay where they are and as they are."""
    neutral = torch.from_numpy(params_from_uniforms(uniforms(len(augment_params)).numpy()))
    return torch.cat([neutral, augment_params[:, neutral.shape[1] :]], dim=1)


def test_switching_mixing_on_leaves_geometry_and_colour_as_they_were():
    _, plain = sampled(6)
    _, mixed = sampled(6, mixup=0.3, cutmix=1.0, cutout=0.2)
    assert torch.equal(mixed[:, : plain.shape[1]], plain)


def acquired(picture, **found):
    """A picture (size, size), 0 to 255, of one colour, with the gains and the coarseness."""
    params = {"fine": 1.0, "coarse": 1.0, "coarseness": 0.0} | found
    grey = torch.from_numpy(picture.astype(np.float32) / 255).expand(1, 3, -1, -1).clone()
    result = augmentation._acquire(grey, torch.tensor([list(params.values())]))
    torch.testing.assert_close(result[0, 0], result[0, 2], atol=1e-6, rtol=0)  # matrix products: not to the last bit
    return result[0, 0].numpy() * 255


@pytest.mark.parametrize("size", [64, 77])
def test_detail_goes_away_band_by_band_or_is_exaggerated(size):
    picture = np.random.default_rng(0).uniform(60, 200, (size, size))
    detail = [np.abs(np.diff(acquired(picture, fine=fine, coarse=coarse))).mean() for fine, coarse in
              ((0, 0), (0, 1), (1, 1), (1.5, 1))]  # fmt: skip
    assert detail == sorted(detail)
    assert detail[0] < 0.5 * detail[1] < 0.25 * detail[2] < 0.2 * detail[3]
    np.testing.assert_allclose(acquired(picture), picture, atol=0.5)
    assert acquired(picture, fine=0, coarse=0).mean() == pytest.approx(picture.mean(), abs=2)


@pytest.mark.parametrize("coarseness", [2.0, 4.0])  # whose steps are whole numbers
def test_compression_loses_what_jpeg_loses(coarseness):
    across = np.linspace(0, 12, 64)
    picture = np.round(128 + 50 * np.sin(across)[:, None] + 30 * np.cos(3 * across)[None]).astype(np.uint8)
    picture[20:30, 20:30] += 40
    steps = [int(coarseness * (10 + 6.5 * (row + column))) for row in range(8) for column in range(8)]
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", qtables=[steps])
    of_jpeg, found = np.asarray(Image.open(file)).astype(float), acquired(picture, coarseness=coarseness)
    lost = np.abs(of_jpeg - picture).mean()
    assert lost > 0.5
    assert np.abs(found - of_jpeg).mean() < 0.3 * lost


def test_acquisition_varies_within_its_range_and_leaves_the_other_draws(images):
    _, plain = sampled(500)
    config, params = sampled(500, acquisition_strength=1.0)
    own = params[:, augmentation.PARAMETERS_PER_IMAGE :]
    assert (own.min(dim=0).values >= 0).all()
    assert own[:, 0].min() < 0.5 < 1.5 < own[:, 0].max()
    assert own[:, 2].max() > 1
    width = (params[:, 0:2] / plain[:, 0:2])[:, 0]
    white = (params[:, 6:15] / plain[:, 6:15]).view(-1, 3, 3)[:, :, 0]
    torch.testing.assert_close(params[:, 2:6], plain[:, 2:6])
    assert 3 / 4 <= width.min() < 0.8 < 1.25 < width.max() <= 4 / 3
    assert 1 / 1.12 - 1e-6 <= white.min() < 0.92 < 1.09 < white.max() <= 1.12 + 1e-6
    assert (white[:, 0] - white[:, 2]).abs().max() > 0.1, "each colour has its own"
    pixels, _ = augment_batch(images, TARGETS, params[:4], config)
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_cutout_greys_a_square_of_its_size_wholly_inside_each_image(images):
    config, augment_params = sampled(4, cutout=0.25)
    result, targets = augment_batch(images, TARGETS, unmoved(augment_params), config)
    changed = ((result - as_float(images)).abs() > 2e-3).any(dim=1)
    for picture, mask in zip(result, changed):
        rows, columns = (mask.any(dim=axis).nonzero() for axis in (1, 0))
        assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == 8  # of 32
        assert (picture[:, mask] == 0.5).all()
    assert torch.equal(targets, TARGETS)
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in changed}) > 1


def test_mixup_blends_an_image_and_its_target_with_another_in_the_same_share(images):
    config, augment_params = sampled(4, mixup=1.0)
    result, targets = augment_batch(images, TARGETS, unmoved(augment_params), config)
    original = as_float(images)
    for number in range(4):
        share, other = targets[number, number].item(), (number - 1) % 4
        assert targets[number, other].item() == pytest.approx(1 - share)
        expected = share * original[number] + (1 - share) * original[other]
        torch.testing.assert_close(result[number], expected, atol=3e-3, rtol=0)
    assert len(targets.diagonal().unique()) == 4


def test_cutmix_pastes_a_rectangle_whose_area_is_the_share_of_the_other_target(images):
    config, augment_params = sampled(4, cutmix=1.0)
    result, targets = augment_batch(images, TARGETS, unmoved(augment_params), config)
    original = as_float(images)
    for number in range(4):
        other = original[number - 1]
        of_other, own = (((result[number] - one).abs() < 3e-3).all(dim=0) for one in (other, original[number]))
        assert (of_other | own).all()
        pasted = of_other & ~own
        assert pasted.float().mean().item() == pytest.approx(targets[number, number - 1].item(), abs=0.07)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))


def test_with_mixup_and_cutmix_each_image_gets_one_of_them():
    _, augment_params = sampled(400, mixup=0.4, cutmix=1.0)
    mixup = augment_params[:, augmentation.PARAMETERS_PER_IMAGE]
    assert set(mixup.tolist()) == {0.0, 1.0}
    assert 0.4 < mixup.mean() < 0.6


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_the_share_is_drawn_from_the_beta_distribution(alpha):
    _, augment_params = sampled(4000, mixup=alpha)
    share = augment_params[:, augmentation.PARAMETERS_PER_IMAGE + 1]
    assert share.mean().item() == pytest.approx(0.5, abs=0.03)
    assert share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)
