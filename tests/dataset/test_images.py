import io
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from stages.dataset import images
from stages.dataset.images import (
    ImageFile,
    ImageProblem,
    ImageReader,
    by_image_id,
    decode_square,
    describe_passed_over,
    find_images,
)

GREEN, WHITE = (0, 255, 0), (255, 255, 255)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_a_dot(size=(80, 60), centre=(40, 30)):
    """A white image with a green dot."""
    image = Image.new("RGB", size, WHITE)
    image.paste(GREEN, (centre[0] - 10, centre[1] - 10, centre[0] + 10, centre[1] + 10))
    return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("source", [(80, 60), (60, 80), (64, 64), (600, 450)])
@pytest.mark.parametrize("size", [16, 47])
def test_an_image_becomes_a_square_that_shows_its_centre(kind, source, size):
    data = encoded(with_a_dot(source, (source[0] // 2, source[1] // 2)), kind)
    pixels = decode_square(data, size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    red, green, blue = pixels[size // 2, size // 2].astype(int)
    assert green > 200
    assert green > red + 20
    assert green > blue + 20
    assert pixels[1, 1].min() > 230


def test_what_is_reduced_first_shows_no_more_than_was_left_and_smaller_ones_stay():
    fine = Image.fromarray(np.tile(np.array([[0, 255], [255, 0]], np.uint8), (30, 40)))
    reduced = decode_square(encoded(fine), 80, detail=20)
    assert reduced.std() < 5 < 50 < decode_square(encoded(fine), 80).std()
    assert np.array_equal(decode_square(encoded(fine), 80, detail=60), decode_square(encoded(fine), 80))
    assert decode_square(encoded(with_a_dot()), 64, detail=30).shape == (64, 64, 3)


def test_an_image_is_enlarged_where_it_is_smaller_than_asked_for():
    assert decode_square(encoded(with_a_dot()), 200).shape == (200, 200, 3)


@pytest.mark.parametrize("data", [b"", b"image_id,dx\n", encoded(Image.new("RGB", (40, 40)), "GIF")])
def test_a_file_that_is_no_image_is_refused(data):
    with pytest.raises(ImageProblem, match="is not a JPEG, PNG, BMP, TIFF or WebP image"):
        decode_square(data, 16)


@pytest.mark.parametrize("size", [(15, 100), (100, 1)])
def test_an_image_too_small_to_show_anything_is_refused_with_its_size(size):
    with pytest.raises(ImageProblem, match=f"{size[0]}×{size[1]} pixels"):
        decode_square(encoded(Image.new("RGB", size)), 16)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(8000, 8000, "8000×8000 pixels"), (10**5, 10**5, "size"), (2**31 - 1, 2**31 - 1, "size")],
)
def test_an_absurdly_large_image_is_refused_before_it_is_decoded(monkeypatch, png_of, width, height, expected):
    def load(image):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(ImageProblem, match=expected):
        decode_square(png_of(width, height), 16)


def test_damaged_exif_data_is_no_crash():
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif[0x0112] = 6
    exif[0x011A] = 72.0
    data = encoded(Image.new("RGB", (40, 30)), "JPEG", exif=exif)
    start = data.index(b"Exif")
    for place in range(start, start + 90):
        for value in (0, 1, 2, 7, 12, 255):
            damaged = bytearray(data)
            damaged[place] = value
            try:
                pixels = decode_square(bytes(damaged), 16)
            except ImageProblem:
                continue
            assert pixels.shape == (16, 16, 3)


def found_in(folder):
    """The images of a folder by their id, and all problems."""
    files, problems, _ = find_images(folder)
    images, repeated = by_image_id(files)
    return images, problems + repeated


def test_images_are_found_below_the_folder_whatever_the_case_of_their_ending(tmp_path):
    for name in ("a.jpg", "b.JPG", "c.jpeg", "deep/down/d.PNG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("e.txt", "f.gif", "._a.jpg", "jpg", ".cache/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found, problems = found_in(tmp_path)
    assert problems == []
    assert found == {
        "a": ImageFile(tmp_path / "a.jpg"),
        "b": ImageFile(tmp_path / "b.JPG"),
        "c": ImageFile(tmp_path / "c.jpeg"),
        "d": ImageFile(tmp_path / "deep/down/d.PNG"),
    }


def test_archives_are_searched_but_not_what_macos_adds_to_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in ("images/a.jpg", "B.PNG", "__MACOSX/images/a.jpg", "__MACOSX/images/._a.jpg", "read.me"):
            archive.writestr(name, name)
    found, problems = found_in(tmp_path)
    assert problems == []
    assert {image_id: str(file) for image_id, file in found.items()} == {
        "a": f"{tmp_path}/images.zip:images/a.jpg",
        "B": f"{tmp_path}/images.zip:B.PNG",
    }
    with ImageReader() as reader:
        assert reader.read(found["a"]) == b"images/a.jpg"


def test_archives_are_found_at_any_depth_and_whatever_the_case_of_their_ending(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("deep/a.zip", "B.ZIP", ".hidden.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(f"{name[-5]}.jpg", "")
    found, problems = found_in(tmp_path)
    assert problems == []
    assert sorted(map(str, found.values())) == [f"{tmp_path}/B.ZIP:B.jpg", f"{tmp_path}/deep/a.zip:a.jpg"]


def test_members_of_archives_of_windows_have_backslashes(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in ("images\\a.jpg", "deep\\er\\B.PNG", "deep\\er\\", "__MACOSX\\images\\a.jpg", "deep\\read.me"):
            archive.writestr(name, name)
    found, problems = found_in(tmp_path)
    assert problems == []
    assert set(found) == {"a", "B"}
    with ImageReader() as reader:
        assert reader.read(found["B"]) == b"deep\\er\\B.PNG"
    assert find_images(tmp_path).passed_over == [f"{tmp_path}/images.zip:deep\\read.me"]


def test_what_is_passed_over_is_named_and_counted_by_its_ending(tmp_path):
    for name in ("a.jpg", "LICENSE", "b.heic", "deep/c.HEIC", "META.CSV", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images, problems, passed_over = find_images(tmp_path)
    assert (len(images), problems) == (1, [])
    assert passed_over == [f"{tmp_path}/{name}" for name in ("LICENSE", "b.heic", "deep/c.HEIC")]
    (line,) = describe_passed_over(passed_over)
    assert line.startswith("passed over 3 files that are no images (2 .heic, 1 without an ending): ")
    assert line.endswith("deep/c.HEIC")
    assert describe_passed_over([]) == []
    assert describe_passed_over(["x.txt"] * 9)[0].endswith(": x.txt, x.txt, x.txt, x.txt, x.txt, …")


@pytest.mark.parametrize(("kind", "options"), [("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_every_kind_of_image_has_the_same_pixels(kind, options):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8))
    assert np.array_equal(decode_square(encoded(image, kind, **options), 16), decode_square(encoded(image, "PNG"), 16))


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_of_16_bits_in_a_tiff_the_upper_8_are_kept(mode):
    values = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(">u2" if mode.endswith("B") else "<u2")
    pixels = decode_square(encoded(Image.frombytes(mode, (40, 40), values.tobytes()), "TIFF"), 40)
    np.testing.assert_allclose(pixels[..., 0], values.astype(int) >> 8, atol=1)


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.jpg").touch()
    data = tmp_path / "data"
    data.mkdir()
    for name, target in (("linked", "elsewhere"), ("twice", "elsewhere"), ("loop", "data"), ("loop2", "data/linked")):
        (data / name).symlink_to(tmp_path / target)
    (tmp_path / "elsewhere/back").symlink_to(data)
    found, problems = found_in(data)
    assert problems == []
    assert {image_id: str(file) for image_id, file in found.items()} == {"a": f"{data}/linked/a.jpg"}


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    if os.access(tmp_path / "closed", os.R_OK):
        pytest.skip("needs a user whom permissions hold back")
    assert find_images(tmp_path)[1] == [f"{tmp_path}/closed: cannot be read (Permission denied)"]


def test_an_archive_unpacked_beside_itself_gives_the_loose_files(tmp_path):
    (tmp_path / "a.jpg").touch()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in ("a.jpg", "b.jpg"):
            archive.writestr(name, "")
    found, problems = found_in(tmp_path)
    assert problems == []
    assert (found["a"].member, found["b"].member) == (None, "b.jpg")


def test_threads_read_each_its_own_member_of_one_archive(tmp_path):
    content = {f"I{number}": np.random.default_rng(number).bytes(20_000) for number in range(64)}
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for image_id, data in content.items():
            archive.writestr(f"{image_id}.jpg", data)
    found, _ = found_in(tmp_path)
    with ImageReader() as reader, ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(lambda image_id: reader.read(found[image_id]), content)) == list(content.values())


def test_two_files_of_one_image_id_are_named(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("a.jpg", "folder/a.png"):
        (tmp_path / name).touch()
    for name in ("one.zip", "two.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("b.jpg", name)
    _, problems = found_in(tmp_path)
    assert problems == [
        f"{tmp_path}/folder/a.png: the same image id as {tmp_path}/a.jpg; keep one of them",
        f"{tmp_path}/two.zip:b.jpg: the same image id as {tmp_path}/one.zip:b.jpg; keep one of them",
    ]


def test_a_damaged_member_of_an_archive_is_a_problem_of_that_image(tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"the bytes of a")
        archive.writestr("b.jpg", b"the bytes of b")
    path.write_bytes(path.read_bytes().replace(b"bytes of a", b"bites of a"))
    found, problems = found_in(tmp_path)
    assert problems == []
    with ImageReader() as reader:
        with pytest.raises(ImageProblem, match="cannot be unpacked"):
            reader.read(found["a"])
        assert reader.read(found["b"]) == b"the bytes of b"


@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_of_an_absurd_length_is_not_read(tmp_path, monkeypatch, zipped):
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    if zipped:
        with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.jpg", bytes(101))
    else:
        (tmp_path / "a.jpg").write_bytes(bytes(101))
    with ImageReader() as reader, pytest.raises(ImageProblem, match="101 bytes; at most 100 are accepted"):
        reader.read(found_in(tmp_path)[0]["a"])


def test_a_file_that_is_gone_is_a_problem_of_that_image(tmp_path):
    with ImageReader() as reader, pytest.raises(ImageProblem, match="cannot be read"):
        reader.read(ImageFile(tmp_path / "gone.jpg"))
