"""DVC's remote on a real S3 server: what is pushed, what a fresh clone gets, and what failures leave behind."""

import hashlib
import io
import os
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from stages.dataset.pixels import IMAGES_PER_SHARD
from tests.clone import Clone
from tests.conftest import COLUMNS
from tests.s3_server import BUCKET, S3Server, s3_server

pytestmark = pytest.mark.xdist_group("storage")

SECONDS_TO_FAIL = 30


@pytest.fixture(scope="module")
def server(s3_port, tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3"), s3_port()) as server:
        yield server


def add_remote(clone: Clone, server: S3Server, project: str) -> None:
    """What the README says: the address in Git, the keys in the environment."""
    clone.dvc("remote", "add", "--force", "--default", "storage", f"s3://{BUCKET}/{project}")
    clone.dvc("remote", "modify", "storage", "endpointurl", server.endpoint)
    clone.environment |= server.environment


def fresh_clone(origin: Clone, folder) -> Clone:
    clone = Clone(folder, origin)
    clone.environment |= origin.environment
    return clone


def cached(clone: Clone) -> set[str]:
    """The hashes of all that DVC keeps in a clone."""
    cache = clone.folder / ".dvc/cache/files/md5"
    return {"".join(path.relative_to(cache).parts) for path in cache.rglob("*") if path.is_file()}


def keys(server: S3Server, project: str) -> list[str]:
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{project}/")
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def stored(server: S3Server, project: str) -> set[str]:
    """The hashes of all objects of a project on the server. The content of each must have the hash that names it."""
    client, names = server.client(), set()
    for key in keys(server, project):
        name = "".join(key.split("/")[-2:])
        content = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        assert hashlib.md5(content).hexdigest() == name.removesuffix(".dir"), key
        names.add(name)
    return names


def hash_of(clone: Clone, path: str) -> str:
    return hashlib.md5((clone.folder / path).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def pushed(ran, server, tmp_path_factory):
    """A clone in which the pipeline ran; all that it made is committed and pushed."""
    clone = Clone(tmp_path_factory.mktemp("pushed"), copied=ran)
    add_remote(clone, server, "pipeline")
    clone.commit("a remote")
    clone.dvc("push")
    return clone


def test_push_stores_every_output(pushed, server):
    # What Git has is in the cache too, for DVC's run cache, and is not pushed.
    found = stored(server, "pipeline")
    assert found <= cached(pushed) - {hash_of(pushed, "metrics/evaluation.json")}
    assert {hash_of(pushed, path) for path in ("models/model.safetensors", "data/predictions.csv")} <= found


def test_a_fresh_clone_pulls_and_has_nothing_to_do(pushed, bytes_below, tmp_path):
    clone = fresh_clone(pushed, tmp_path / "clone")
    assert not (clone.folder / "models/model.safetensors").exists()
    clone.dvc("pull")
    for folder in ("data", "models", "plots"):
        assert bytes_below(clone.folder / folder) == bytes_below(pushed.folder / folder)
    assert "Data and pipelines are up to date." in clone.dvc("status")
    assert "Data and pipelines are up to date." in clone.dvc("repro")
    assert clone.changes() == ""


@pytest.fixture
def one_core():
    """This process and those that it starts have one core of the machine's."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs a system that gives a process fewer cores, as Linux does")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_a_fresh_clone_without_the_remote_makes_the_same_bytes(pushed, bytes_below, tmp_path):
    """In another folder, on another number of cores, with other numbers of threads wherever they may be chosen."""
    clone = fresh_clone(pushed, tmp_path / "clone")
    clone.dvc("remote", "remove", "storage")
    params = clone.folder / "params.yaml"
    text = params.read_text(encoding="utf-8")
    params.write_text(text.replace("num_workers: null ", "num_workers: 4 "), encoding="utf-8")
    clone.commit("no remote, another number of threads that decode")
    clone.environment |= {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    clone.dvc("repro", "--force")
    # Git has metrics and tables, and in dvc.lock the hash of every other output.
    assert clone.changes() == ""
    for folder in ("data", "models", "plots"):
        assert bytes_below(clone.folder / folder) == bytes_below(pushed.folder / folder)


@pytest.mark.slow
def test_a_changed_parameter_pushes_only_what_changed(pushed, server, tmp_path):
    clone = fresh_clone(pushed, tmp_path / "clone")
    clone.dvc("pull")
    before = cached(clone)
    # Not plot as well, which takes as long as the rest.
    clone.dvc("exp", "run", "-S", "evaluation.gradcam_cases=1", "evaluate")
    clone.dvc("push", "evaluate")
    new = stored(server, "pipeline") - before
    assert new == cached(clone) - before - {hash_of(clone, "metrics/evaluation.json")}
    # The probabilities are the same, and so is all that came before them.
    same = ["models/model.safetensors", "data/split.csv", "data/predictions.csv", "data/prepared/pixels-00000.npy"]
    assert before >= {hash_of(clone, path) for path in same}
    assert new


def write_archive(path, numbers) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in numbers:
            file = io.BytesIO()
            colour = (number % 256, number // 256, 99)
            Image.new("RGB", (16, 16), colour).save(file, "PNG")
            archive.writestr(f"I{number:05d}.png", file.getvalue())


def write_table(path, count: int) -> None:
    row = "L{0:05d},I{0:05d},nv,histo,55.0,female,back,unknown"
    path.write_text("\n".join([",".join(COLUMNS), *map(row.format, range(count))]) + "\n", encoding="utf-8")


def test_images_added_to_a_dataset_push_only_the_shards_that_they_touch(server, tmp_path):
    clone = Clone(tmp_path / "clone")
    add_remote(clone, server, "growth")
    data = clone.folder / "data/ham10000"
    data.mkdir()

    params = clone.folder / "params.yaml"
    text = params.read_text(encoding="utf-8")
    text = text.replace("data_dir: data/sample ", "data_dir: data/ham10000 ").replace(
        "image_size: 64 ", "image_size: 16 "
    )
    params.write_text(text, encoding="utf-8")

    def prepare_and_push() -> set[str]:
        before = stored(server, "growth")
        clone.dvc("add", "data/ham10000")
        clone.dvc("repro", "prepare")
        clone.dvc("push", "data/ham10000", "prepare")
        return stored(server, "growth") - before

    write_archive(data / "HAM10000_images_part_1.zip", range(600))
    write_table(data / "HAM10000_metadata.csv", 600)
    shards = -(-600 // IMAGES_PER_SHARD)
    # And for each of the two folders its list of files, and its table; the diagnoses.
    assert len(prepare_and_push()) == shards + 1 + 4 + 1

    write_archive(data / "HAM10000_images_part_2.zip", range(600, 700))
    write_table(data / "HAM10000_metadata.csv", 700)
    new = prepare_and_push()
    touched = {number // IMAGES_PER_SHARD for number in range(600, 700)}
    assert {name for name in new if not name.endswith(".dir")} == {
        *(hash_of(clone, f"data/prepared/pixels-{shard:05d}.npy") for shard in touched),
        hash_of(clone, "data/prepared/manifest.csv"),
        hash_of(clone, "data/ham10000/HAM10000_images_part_2.zip"),
        hash_of(clone, "data/ham10000/HAM10000_metadata.csv"),
    }
    assert len(new) == len(touched) + 3 + 2


FILES = 500


@pytest.fixture(scope="module")
def images(server, tmp_path_factory):
    """A clone with a dataset of `FILES` loose files, which are not pushed yet."""
    clone = Clone(tmp_path_factory.mktemp("images"))
    add_remote(clone, server, "images")
    data = clone.folder / "data/ham10000"
    data.mkdir()
    for number, content in enumerate(np.random.default_rng(0).integers(0, 256, (FILES, 2000), np.uint8)):
        (data / f"I{number:05d}.jpg").write_bytes(content.tobytes())
    clone.dvc("add", "data/ham10000")
    clone.commit("a dataset and where it is stored")
    return clone


@pytest.fixture(scope="module")
def empty(images, tmp_path_factory):
    """A fresh clone of it that has nothing but what Git has."""
    return fresh_clone(images, tmp_path_factory.mktemp("empty") / "clone")


@pytest.mark.parametrize(
    ("command", "environment", "remote", "message"),
    [
        ("push", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "", "Forbidden"),
        (
            "pull",
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "",
            "Unable to locate credentials",
        ),
        ("push", {}, "url = s3://nowhere/images", "The specified bucket does not exist"),
        ("pull", {}, "endpointurl = http://127.0.0.1:1", "Could not connect to the endpoint URL"),
    ],
    ids=["secret", "no credentials", "bucket", "no server"],
)
def test_a_mistake_gives_a_clear_error_at_once(
    images, empty, server, command, environment, remote, message, tmp_path, monkeypatch
):
    clone = {"push": images, "pull": empty}[command]
    (clone.folder / ".dvc/config.local").write_text(f"['remote \"storage\"']\n{remote}\n", encoding="utf-8")
    # The developer's own keys are not to be found.
    for name, value in (environment | {"HOME": str(tmp_path)}).items():
        monkeypatch.setitem(clone.environment, name, value)
    start = time.monotonic()
    output = clone.fails(command)
    assert time.monotonic() - start < SECONDS_TO_FAIL
    assert message in output
    assert "Traceback" not in output
    assert keys(server, "images") == []


@pytest.mark.slow
def test_a_server_that_dies_in_mid_push(images, s3_port, bytes_below, tmp_path):
    folder, port = tmp_path / "s3", s3_port()
    with s3_server(folder, port) as server:
        settings = f"['remote \"storage\"']\nendpointurl = {server.endpoint}\n"
        (images.folder / ".dvc/config.local").write_text(settings, encoding="utf-8")
        images.environment |= server.environment
        push = images.start("push", "data/ham10000")
        while len(keys(server, "images")) < 20:
            assert push.poll() is None, push.communicate()
            time.sleep(0.02)
        server.process.kill()
        try:
            output = "".join(push.communicate(timeout=SECONDS_TO_FAIL))
        finally:
            push.kill()
    assert push.returncode != 0
    assert "failed to push data to the cloud" in output.splitlines()[-1]
    assert "Could not connect to the endpoint URL" in output
    assert "Traceback" not in output

    with s3_server(folder, port) as server:
        survived = stored(server, "images")
        assert 20 <= len(survived) < FILES
        # A folder's list of its files is pushed last: whoever finds it finds all files.
        assert [name for name in survived if name.endswith(".dir")] == []
        assert f"{FILES + 1 - len(survived)} files pushed" in images.dvc("push", "data/ham10000")
        assert stored(server, "images") == cached(images)
        clone = fresh_clone(images, tmp_path / "clone")
        clone.dvc("remote", "modify", "--local", "storage", "endpointurl", server.endpoint)
        clone.dvc("pull", "data/ham10000")
        assert bytes_below(clone.folder / "data/ham10000") == bytes_below(images.folder / "data/ham10000")
