import pytest
import torch

from stages.dataset.augmentation import UNIFORMS_PER_IMAGE, as_float, augment

FLIP, TURN, SCALE, ASPECT, SHIFT_X, SHIFT_Y, STRETCH, BRIGHTNESS, CONTRAST, SATURATION, HUE = range(UNIFORMS_PER_IMAGE)
GREY_AND_COLOURS = {"grey": (128, 128, 128), "red": (170, 60, 50), "blue": (60, 70, 170), "skin": (200, 160, 140)}


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


def test_pixels_become_floats_with_the_channels_first():
    pixels = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).view(2, 3, 4, 3)
    result = as_float(pixels)
    assert result.shape == (2, 3, 3, 4)
    assert result[1, 2, 0, 3] * 255 == pixels[1, 0, 3, 2]
    assert as_float(torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)).flatten().tolist() == pytest.approx(
        [0, 1, 0.2]
    )
