"""Whatever a file holds, it is used rightly or refused with one message; nothing is written where it should not be."""

import ast
import json
import os
import shutil
import tracemalloc
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.plain import HAM10000, PLAIN
from stages import prepare
from stages.classifier.weights import load_model
from stages.commands import predict
from stages.config import load_config
from stages.dataset.images import ImageProblem, ImageReader, by_image_id, decode_square, find_images
from stages.dataset.metadata import read_metadata
from stages.dataset.pixels import PixelStore
from stages.errors import InputError
from stages.evaluation.details import read_details
from stages.experiments import report
from stages.experiments.report import draw_pictures, render_report
from stages.experiments.revision import WORKSPACE, Revision
from stages.files import DETAILS, ENVIRONMENT, EVALUATION, MODELS, PLOTS, PUBLISHED, SPLIT_METRICS, write_json
from stages.prepare import prepare_dataset
from stages.reporting import code, escape_markdown, markdown_table
from tests.figures.findings import details_of
from tests.hostile import (
    FORMULA,
    MARKDOWN,
    SCRIPT,
    SIZE,
    TARGETS,
    altered_json,
    archives,
    attempt,
    encoded,
    halves,
    has_halves,
    images,
    lay_out,
    lying_zip,
    zipped,
)

IMAGES = list(images())
ARCHIVES = dict(archives())
HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n"
# Derandomized: the same inputs in each run, unless `HOSTILE_EXAMPLES=1000 pytest tests/test_hostile.py` tries more.
MORE = os.environ.get("HOSTILE_EXAMPLES")
FEW = settings(
    max_examples=int(MORE or 12),
    derandomize=not MORE,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
RANDOM = st.integers(0, 2**32).map(Random)


@pytest.fixture(scope="module")
def sound(trained, tmp_path_factory):
    """A folder with a sound file of each kind."""
    folder = tmp_path_factory.mktemp("hostile") / "sound"
    shutil.copytree(trained, folder)
    lay_out(folder)
    return folder


@pytest.mark.parametrize("name", TARGETS)
def test_a_spoilt_file_is_read_rightly_or_refused_with_its_name(sound, name):
    outside = sorted(sound.parent.iterdir())
    target, messages = TARGETS[name], []
    target.read(sound)

    @FEW
    @given(RANDOM)
    def spoil(random):
        messages.append(attempt(target, sound, random))

    spoil()
    refused = [message for message in messages if message is not None]
    assert len(refused) > len(messages) // 10, "spoilers that spoil nothing test nothing"
    # An image is named by who reads many of them; tensors that do not fit by the parameter that asks for them.
    if name not in ("JPEG", "PNG", "zip archive"):
        assert all(target.path.stem in message or target.path.parent.name in message for message in refused)
    assert sorted(sound.parent.iterdir()) == outside


@pytest.mark.parametrize("example", IMAGES, ids=[example.name for example in IMAGES])
def test_an_image_shows_what_it_shows_or_is_refused(example):
    if example.readable:
        assert has_halves(decode_square(example.data, SIZE))
    else:
        with pytest.raises(ImageProblem):
            decode_square(example.data, SIZE)


def data_set(folder, examples):
    """A dataset of the corpus's images, each a lesion of its own, by the ids I0, I1, …"""
    folder.mkdir()
    rows = []
    for number, example in enumerate(examples):
        (folder / f"I{number}{Path(example.name).suffix}").write_bytes(example.data)
        rows.append(f"L{number},I{number},{'mel' if number % 2 else 'nv'},histo,50,male,back,2018\n")
    (folder / "table.csv").write_text(HEADER + "".join(rows))
    return replace(PLAIN.data, data_dir=str(folder), image_size=SIZE)


def test_prepare_names_every_image_that_it_cannot_use_and_writes_nothing(tmp_path):
    config = data_set(tmp_path / "data", IMAGES)
    with pytest.raises(InputError) as caught:
        prepare_dataset(config, tmp_path / "prepared")
    lines = str(caught.value).splitlines()[1:]
    named = {line.strip().partition(":")[0].rpartition("/")[2] for line in lines}
    unusable = {
        f"I{number}{Path(example.name).suffix}" for number, example in enumerate(IMAGES) if not example.readable
    }
    assert named == unusable
    assert len(lines) == len(unusable)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_prepare_gives_each_label_the_pixels_of_its_image(tmp_path):
    usable = [example for example in IMAGES if example.readable]
    prepare_dataset(data_set(tmp_path / "data", usable), tmp_path / "prepared")
    store = PixelStore(tmp_path / "prepared")
    assert list(store.manifest["image_id"]) == [f"I{number}" for number in range(len(usable))]
    assert list(store.manifest["dataset"]) == ["2018"] * len(usable), "text, though it looks like a number"
    assert all(map(has_halves, store.read(np.arange(len(usable)))))


def test_predict_leaves_out_what_it_cannot_use_and_writes_nothing_elsewhere(sound, tmp_path, monkeypatch, bytes_below):
    monkeypatch.chdir(tmp_path)
    data_set(tmp_path / "photos", IMAGES)
    (tmp_path / "photos" / f"{FORMULA.replace('/', '_')}.png").write_bytes(encoded(halves()))
    before = bytes_below(tmp_path)
    options = ["--models", str(sound / MODELS), "--threads", "2", "--output", "out.csv", "--gradcam", "maps"]
    with pytest.raises(InputError) as caught:
        predict.main(["photos", *options])
    table = pd.read_csv("out.csv")
    usable = sum(example.readable for example in IMAGES)
    assert len(table) == usable + 1
    assert table["malignant_probability"].between(0, 1).all()
    assert str(caught.value).startswith(f"{len(IMAGES) - usable} files cannot be read:")
    after = bytes_below(tmp_path)
    new = set(after) - set(before)
    assert {name for name in new if not name.startswith("maps/")} == {"out.csv"}
    assert {name: after[name] for name in before} == before
    assert len(new) == usable + 2


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_read_or_refused_and_nothing_is_unpacked_into_a_folder(tmp_path, name):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "images.zip").write_bytes(ARCHIVES[name])
    images, problems, _ = find_images(folder)
    files, repeated = by_image_id(images)
    problems += repeated
    read = {}
    with ImageReader() as reader:
        for image_id, file in files.items():
            with suppress(ImageProblem):
                read[image_id] = decode_square(reader.read(file), SIZE)
    expected = {"paths-0": 6, "paths-8": 6, "names": 3}  # without .png, whose name hides it
    assert len(read) == expected.get(name, 0)
    assert all(map(has_halves, read.values()))
    unreadable = [problem for problem in problems if "not a readable zip archive" in problem]
    assert len(unreadable) == (name in ("no-zip", "nothing"))
    assert len(problems) == len(unreadable) + (name == "twice")
    assert all(str(file).isprintable() for file in files.values())
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "images.zip"]
    try:
        listed, unreadable, _ = predict.find_files([folder / "images.zip"])
    except InputError as error:
        assert "holds no JPEG, PNG, BMP, TIFF or WebP file" in str(error)  # noqa: PT017
        assert not files
    else:
        assert (set(listed), len(unreadable)) == (set(files.values()), name.startswith("no"))


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_claims_fewer_bytes_than_it_has_takes_no_memory_for_them(tmp_path, packing):
    (tmp_path / "images.zip").write_bytes(lying_zip(packing, size=20_000_000, claimed=1000))
    files, *_ = find_images(tmp_path)
    tracemalloc.start()
    try:
        with ImageReader() as reader, pytest.raises(ImageProblem):
            reader.read(files[0])
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_link_is_followed_to_be_read_and_leads_no_writing_astray(tmp_path):
    """DVC links a dataset's files to its cache; what else a link leads to is read as an image, or refused."""
    (tmp_path / "cache").write_bytes(encoded(halves()))
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "data"
    folder.mkdir()
    for number, target in enumerate(("cache", "secret", "gone", "data/I3.png")):
        (folder / f"I{number}.png").symlink_to(tmp_path / target)
    (folder / "again").symlink_to(folder)
    (folder / "table.csv").write_text(HEADER + "L0,I0,nv,histo,5,male,back,a\nL1,I1,nv,histo,5,male,back,a\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "prepared").symlink_to(tmp_path / "elsewhere")
    config = replace(PLAIN.data, data_dir=str(folder), image_size=SIZE)
    with pytest.raises(InputError, match=r"has 1 problem:\n  .*I1.png: is not a JPEG, PNG, BMP, TIFF or WebP image$"):
        prepare_dataset(config, tmp_path / "prepared")
    (folder / "I1.png").unlink()
    (folder / "I1.png").write_bytes(encoded(halves()))
    prepare_dataset(config, tmp_path / "prepared")
    assert (tmp_path / "cache").read_bytes() == encoded(halves())
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not (tmp_path / "prepared").is_symlink()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (f"L1,{FORMULA},nv,histo,5,male,back,a", "image_id is \"=cmd|' /C calc'!A0\""),
        ("L1,-1,nv,histo,5,male,back,a", "image_id is '-1'"),
        ("L1,../../x,nv,histo,5,male,back,a", "image_id is '../../x'"),
        ("/etc,I1,nv,histo,5,male,back,a", "lesion_id is '/etc'"),
        ('L1,"I\n1",nv,histo,5,male,back,a', r"image_id is 'I\n1'"),
        ('"L""1",I1,nv,histo,5,male,back,a', "lesion_id is 'L\"1'"),
        (f"L1,I1,nv,histo,5,male,{SCRIPT},a", "localization is '<script>"),
        ("L1,I1,nv,histo,5,male,@SUM(1),a", "localization is '@SUM(1)'"),
        ("L1,I1,nv,histo,-5,male,back,a", "age is '-5'"),
        ("L1,I1,nv,histo,1e1,male,back,a", "age is '1e1'"),
        ("L1,I1,nv,histo,1_0,male,back,a", "age is '1_0'"),
        ("L1,I1,nv,histo,\N{ARABIC-INDIC DIGIT FIVE},male,back,a", "age is '\N{ARABIC-INDIC DIGIT FIVE}'"),
        ("L1,I1,nv,histo,121,male,back,a", "age is '121'"),
    ],
)
def test_a_cell_that_would_mean_something_elsewhere_is_named_with_its_row(tmp_path, row, expected):
    (tmp_path / "table.csv").write_text(HEADER + row + "\n")
    table, problems, _ = read_metadata(tmp_path, HAM10000)
    assert len(problems) == 1
    assert problems[0].startswith(f"table.csv row 2: {expected}")
    assert table.empty


def test_mistakes_by_the_ten_thousand_are_one_message_that_can_be_read(tmp_path):
    ids = ("../" * (1000 if number < 300 else 1) for number in range(10_000))
    rows = [f"L{number},{image_id}{number},{number},histo,-1,<b>,back,a" for number, image_id in enumerate(ids)]
    (tmp_path / "table.csv").write_text(HEADER + "\n".join(rows))
    with pytest.raises(InputError) as caught:
        prepare_dataset(replace(PLAIN.data, data_dir=str(tmp_path), image_size=SIZE), tmp_path / "prepared")
    message = str(caught.value)
    assert "has 40000 problems:" in message
    assert message.count("\n") == prepare.MAX_PROBLEMS_SHOWN + 1
    assert max(map(len, message.splitlines())) < prepare.LONGEST_PROBLEM + 10


@pytest.mark.parametrize("header", [",".join(f"c{n}" for n in range(100_000)), "x" * 100_000, "x" * 100_000 + ",y"])
@pytest.mark.parametrize("columns", [{}, {"image_id": "file"}])
def test_a_header_of_any_length_is_refused_in_a_message_that_can_be_read(tmp_path, header, columns):
    (tmp_path / "table.csv").write_text(header + "\n")
    with pytest.raises(InputError) as caught:
        read_metadata(tmp_path, HAM10000, columns)
    assert len(str(caught.value)) < 7000


def test_a_name_in_an_archive_breaks_no_line_of_a_message(tmp_path):
    (tmp_path / "images.zip").write_bytes(zipped({"I1.jpg": b"no image", "a/\x1b[2J\nerror: all is well/I1.jpg": b""}))
    (tmp_path / "table.csv").write_text(HEADER + "L1,I1,nv,histo,5,male,back,a\n")
    with pytest.raises(InputError) as caught:
        prepare_dataset(replace(PLAIN.data, data_dir=str(tmp_path), image_size=SIZE), tmp_path / "prepared")
    assert r"images.zip:a/\x1b[2J\nerror: all is well/I1.jpg" in str(caught.value)
    assert "\x1b" not in str(caught.value)


YAMLS = {
    "a tag that would run a program": "!!python/object/apply:os.system [touch hostile]",
    "a date that is none": "2020-99-99",
    "a time zone that is none": "2001-12-14t21:59:43.10-99:00",
    "text as a number": "!!int x",
    "text as a truth value": "!!bool x",
    "a number of 400 digits": "9" * 400,
    "a number of 5,000 digits": "9" * 5000,
    "brackets": "[" * 600 + "]" * 600,
    "itself": "&a [*a]",
}


@pytest.mark.parametrize("name", YAMLS)
@pytest.mark.parametrize("key", ["training.learning_rate", "training.batch_size", "data.classes", "data.data_dir"])
def test_a_value_that_yaml_has_and_nobody_needs_is_refused(params, tmp_path, monkeypatch, name, key):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        load_config(params({key: YAMLS[name]}))
    assert str(tmp_path / "params.yaml") in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert not Path("hostile").exists()


def laughing(levels=10):
    """YAML of a kilobyte that stands for gigabytes."""
    lines = ['a0: &a0 "laugh"']
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


def test_aliases_that_stand_for_endless_text_are_not_written_out(params, tmp_path):
    path = params({"training.batch_size": "*a9"})
    path.write_text(laughing() + "\n" + path.read_text())
    with pytest.raises(InputError, match="its aliases stand for too much"):
        load_config(path)
    with pytest.raises(InputError, match=r"workspace:params\.yaml: its aliases stand for too much"):
        _ = Revision(WORKSPACE, tmp_path).parameters  # so that a report does not quote them


@pytest.mark.parametrize("text", ['"a\\0b"', '"a\\nb"', '"\\e[2J"', '"\\ud800"'])
@pytest.mark.parametrize("key", ["data.data_dir", "model.name", "model.weights"])
def test_a_name_with_control_characters_is_refused(params, key, text):
    with pytest.raises(InputError, match=f"{key} is .*; it must be printable text"):
        load_config(params({key: text}))


def test_parameters_by_the_thousand_are_one_message_that_can_be_read(params):
    path = params(more="\n".join(f"k{number}: 1" for number in range(2000)) + f"\n? {'k' * 10_000}\n: 1\n")
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert len(str(caught.value)) < 10_000


def test_a_params_yaml_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path)


HELD = {
    EVALUATION: {"auroc": 0.9},
    PUBLISHED[DETAILS]: {"classes": ["benign", "malignant"], "confidence": 0.9, "test": {"metrics": {}}},
    PUBLISHED[SPLIT_METRICS]: {"test": {"images": 1, "lesions": 1, "diagnoses": {"nv": {"images": 1, "lesions": 1}}}},
    ENVIRONMENT: {"training_seconds": 1.5, "gpu": None},
}


@pytest.mark.parametrize("spoilt", HELD, ids=str)
def test_what_a_revision_holds_is_looked_at_before_a_report_quotes_it(tmp_path, monkeypatch, spoilt):
    monkeypatch.chdir(tmp_path)
    # What the many reports of this test do not ask of a repository.
    monkeypatch.setattr(Revision, "stale_stages", {})
    monkeypatch.setattr(report, "run_git", lambda *_: "")
    shutil.copy(Path(__file__).parents[1] / "params.yaml", "params.yaml")
    for path, content in HELD.items():
        write_json(path, content)
    assert Revision(WORKSPACE).details == HELD[PUBLISHED[DETAILS]]
    sound = spoilt.read_bytes()

    @FEW
    @given(RANDOM)
    def spoil(random):
        spoilt.write_bytes(altered_json(sound, random))
        with suppress(InputError):
            read = Revision(WORKSPACE)
            render_report(read, read, True, {})
            draw_pictures(read, read)

    spoil()
    spoilt.write_text('{"a": ' * 100_000)
    with pytest.raises(InputError, match=spoilt.name):
        render_report(Revision(WORKSPACE), Revision(WORKSPACE), True, {})


def test_a_curve_of_a_revision_that_holds_text_is_refused(tmp_path):
    (tmp_path / PLOTS).mkdir()
    (tmp_path / PLOTS / "roc.csv").write_text(f"fpr,tpr,lower,upper\n0,{SCRIPT},0,0\n")
    with pytest.raises(InputError, match=r"workspace:plots/roc.csv: could not convert"):
        _ = Revision(WORKSPACE, tmp_path).curves


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 400])
def test_findings_with_a_number_that_is_none_are_refused(tmp_path, number):
    content = details_of(2)
    content["calibration"]["temperature"] = "here"
    (tmp_path / "details.json").write_text(json.dumps(content).replace('"here"', number))
    with pytest.raises(InputError, match=r"calibration.temperature is (nan|inf); it must be a finite number"):
        read_details(tmp_path / "details.json")


@pytest.mark.parametrize("escape", [escape_markdown, code])
@pytest.mark.parametrize(
    "text",
    [SCRIPT, MARKDOWN, "a\r\n\r\n- b", "&lt;b&gt;", "![x](http://x)", "[x]: http://x", "a|`b`|``", r"a\|b", "` `", ""],
)
def test_text_of_others_means_nothing_in_markdown(escape, text):
    from markdown_it import MarkdownIt  # of rich

    table = markdown_table([[escape(text), "1"], [escape(text), "2"]])
    page = MarkdownIt("commonmark").enable("table").render(table)
    page = page.replace("<code>", "").replace("</code>", "")
    assert page.count("<td") == 2
    assert page.count("<th") == 3
    for tag in ("script", "img", "a href", "em", "strong", "li", "h1", "code", "b>"):
        assert f"<{tag}" not in page


def test_no_module_loads_what_could_run_code():
    """What ruff's rules S102, S301, S307, S506 and S602 do not see."""
    for path in Path(prepare.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call):
                options = {option.arg: ast.unparse(option.value) for option in call.keywords}
                assert options.get("allow_pickle", "False") == "False", path
                if ast.unparse(call.func).endswith("torch.load"):
                    assert options.get("weights_only") == "True", path
                if ast.unparse(call.func) == "YAML" and "load" in path.read_text(encoding="utf-8"):
                    assert options.get("typ", "'rt'") in ("'safe'", "'rt'"), path


def test_weights_of_another_type_of_number_are_not_rounded_into_place(sound, tmp_path):
    from safetensors.torch import load_file, save_file

    for path in (sound / MODELS).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"classifier.weight": state["classifier.weight"].int()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="does not hold a baseline_cnn"):
        load_model(tmp_path)
