import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from PIL import Image

from stages.commands import compare
from stages.commands.report import main
from stages.errors import InputError
from stages.experiments.report import draw_pictures, render_report
from stages.experiments.revision import Revision
from stages.files import DETAILS, EVALUATION, PLOTS, PREDICTIONS, PUBLISHED, write_json
from tests.history import IMAGES, change_parameter, commit, git, replace, write_run

ROOT = Path(__file__).parents[2]


def parts(text):
    """A report by headings; what is before the first has an empty one."""
    found = re.split(r"^### (.*)\n", text, flags=re.MULTILINE)
    return {"": found[0]} | dict(zip(found[1::2], found[2::2]))


def rendered(base, new="workspace"):
    """The parts of a report without pictures."""
    return parts(render_report(Revision(base), Revision(new), False, {}))


def test_the_verdict_comes_first_and_all_sections_and_pictures_follow(repository, capsys):
    Path("out").mkdir()
    main(["weak", "strong", "--output", "out/the report (1).md"])
    first = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r"\*\*`weak` → `strong`: better; AUROC \+0\.\d+ \(0\.\d+ to 0\.\d+\), better\*\*", first)
    report = parts(Path("out/the report (1).md").read_text(encoding="utf-8"))
    assert list(report)[1:] == ["Parameters", "Curves", "Data", "Cost"]
    compare.main(["weak", "strong", "--md"])
    assert report[""].startswith(capsys.readouterr().out)
    assert "No DVC remote is configured" in report[""]
    assert "rate` | `0.003` | `0.01` |" in report["Parameters"]
    assert report["Parameters"].count("\n| `") == 1
    assert "The same 112 images of 56 lesions" in report["Data"]
    assert "| training speed [images/s] | 100.0 | 150.0 | +50 % |" in report["Cost"]
    links = re.findall(r"!\[.*?\]\((.*?)\)", report["Curves"])
    assert links == [
        f"the%20report%20%281%29_pictures/{name}.png"
        for name in ("roc", "precision_recall", "reliability", "confusion_matrix")
    ]
    for link in links:
        with Image.open(Path("out") / unquote(link)) as picture:
            assert picture.width == 900


def test_the_workspace_is_compared_with_main_where_nothing_is_said(repository, quick_pictures):
    write_run(0.4, range(8, IMAGES))
    main([])
    report = Path("report.md").read_text(encoding="utf-8")
    assert "`main` → `workspace`: worse" in report
    assert re.search(r"\| sex: `male` \| AUROC \|.*\| 56 \|", report)


def test_images_lesions_and_diagnoses_that_came_and_went_are_counted(repository):
    report = rendered("strong", "more_images")
    assert "not compared" in report[""]
    assert "evaluated on different test images" in report[""]
    assert "| images | 112 | 118 | 8 | 2 |" in report["Data"]
    assert "| lesions | 56 | 59 | 4 | 1 |" in report["Data"]
    assert "| images of `bkl` | 28 | 29 | 3 | 2 |" in report["Data"]
    assert "Images (lesions) of each split: test 112 (56) → test 118 (59)." in report["Data"]


def test_without_predictions_it_says_so_and_shows_what_git_has(repository):
    PUBLISHED[PREDICTIONS].unlink()
    commit("bare")
    shutil.rmtree(".dvc/cache")
    report = rendered("weak", "bare")
    assert report[""].startswith("**`weak` → `bare`: not compared; AUROC 0.580 → 0.900**")
    assert "bare has no metrics/predictions.csv" in report[""]
    assert "| AUROC | 0.580 (0.500 to 0.900) | 0.900 (0.500 to 0.900) | +0.320 |" in report[""]
    assert len(draw_pictures(Revision("weak"), Revision("bare"))) == 4
    assert report["Data"].strip().startswith("Which images differ is unknown")
    assert "of each split: test 112 (56) → test 118 (59)." in rendered("strong", "more_images")["Data"]


def test_a_commit_from_before_there_was_anything_is_shown_as_such(repository):
    report = rendered("empty", "strong")
    assert "not compared" in report[""]
    assert "| AUROC | – | 0.900 (0.500 to 0.900) | – |" in report[""]
    assert "No curve is in Git in both revisions." in report["Curves"]
    assert "– → test 112 (56)." in report["Data"]
    assert "Unknown" in report["Cost"]


def test_names_and_values_mean_nothing_but_themselves(repository):
    git("branch", "a|b<i>_$x$", "weak")
    change_parameter("weights: null", 'weights: "<script>|![x](http://x)\\u202e"')
    report = rendered("a|b<i>_$x$", "workspace")
    text = "".join(report.values())
    page = MarkdownIt("commonmark").enable("table").render(text)
    assert "<code>a|b&lt;i&gt;_$x$</code>" in page
    assert r"<code>&lt;script&gt;|![x](http://x)\u202e</code>" in page
    assert "<img" not in page
    # A client that reads Markdown and writes it again, as CML does, keeps a backslash in code only.
    assert "\\" not in re.sub("`.*?`", "", text)
    for block in ("", "Parameters", "Cost"):
        table = [line.replace(r"\|", "") for line in report[block].splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in table}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "'nonsense' is not a commit"),
        ([""], "the name of a revision is empty"),
        (["weak", "--output", "data"], "data is not a file"),
        (["weak", "--output", "pipe"], "pipe is not a file"),
        (["weak", "--output", "params.yaml/report.md"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_clear_line(repository, arguments, message):
    os.mkfifo("pipe")  # as /dev/null, which is nothing to replace either
    with pytest.raises(InputError, match=message):
        main(arguments)


def test_pictures_replace_those_of_a_report_and_nothing_else(repository, quick_pictures):
    pictures = Path("thesis_pictures")
    pictures.write_text("mine")
    with pytest.raises(InputError, match=r"thesis.md cannot be written \(.*thesis_pictures'\)"):
        main(["weak", "strong", "--output", "thesis.md"])
    assert pictures.read_text() == "mine"
    pictures.unlink()
    pictures.mkdir()
    for name in ("photo.jpg", "roc.png"):
        (pictures / name).write_text("mine")
    main(["weak", "strong", "--output", "thesis.md"])
    assert (pictures / "photo.jpg").read_text() == "mine"
    assert (pictures / "roc.png").read_bytes().startswith(b"\x89PNG")


def test_a_damaged_file_is_named_as_git_names_it(repository):
    PUBLISHED[DETAILS].write_text("{")
    commit("damaged")
    with pytest.raises(InputError, match=r"^damaged:metrics/details\.json is not JSON \(Expecting property name"):
        main(["damaged"])
    git("checkout", "--quiet", "HEAD~1", "--", str(PUBLISHED[DETAILS]))
    (PLOTS / "roc.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"^workspace:plots/roc\.csv lacks the column fpr"):
        main(["strong"])


def test_parameters_that_are_damaged_are_not_to_be_made_by_a_run(repository):
    Path("params.yaml").write_text("a: [\n")
    with pytest.raises(InputError, match=r"^workspace:params\.yaml: ") as caught:
        main(["strong"])
    assert "dvc repro" not in str(caught.value)


def test_of_two_and_seven_classes_there_is_no_confusion_matrix(repository):
    details = json.loads(PUBLISHED[DETAILS].read_text())
    write_json(PUBLISHED[DETAILS], details | {"classes": ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]})
    assert draw_pictures(Revision("strong"), Revision("workspace")).keys() == {"roc", "precision_recall", "reliability"}


def test_what_no_run_has_made_yet_is_not_asked_to_be_pushed(pipeline):
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    Path("dvc.lock").unlink()
    EVALUATION.unlink()
    commit("no_run")
    report = render_report(Revision("no_run"), Revision("workspace"), True, {})
    assert report.startswith("**`no_run` → `workspace`: not compared")
    assert "no_run has no metrics/predictions.csv; name a revision in which a `dvc repro` is committed" in report
    assert "push" not in report


def test_results_of_other_code_are_told_first_and_pass_no_gate(pipeline, capsys):
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    commit("sound")
    replace("stage.py", "import json", "import  json")
    line = "Not of this code, these parameters and data: the results of `{}`, where dvc repro would run compute again"
    report = render_report(Revision("sound"), Revision("workspace"), True, {})
    assert report.splitlines()[0] == f"**{line.format('workspace')}**"
    git("commit", "--quiet", "--all", "--message", "edited")
    git("branch", "edited")
    report = render_report(Revision("edited"), Revision("sound"), True, {})
    assert report.splitlines()[0] == f"**{line.format('edited')}**"
    assert "would run" not in render_report(Revision("sound"), Revision("sound"), True, {})
    git("rm", "--quiet", "--force", "dvc.lock")
    commit("unlocked")
    assert line.format("unlocked") in render_report(Revision("sound"), Revision("unlocked"), True, {})


def test_a_commit_is_named_by_its_first_letters_and_the_workspace_by_its_commit(repository):
    weak, strong = (git("rev-parse", name).strip() for name in ("weak", "strong"))
    report = rendered(weak)[""]
    assert report.startswith(f"**`{weak[:7]}` → `workspace`: better")
    assert f"`{weak[:7]}` is commit {weak[:7]}; `workspace` is commit {strong[:7]}.\n" in report
    assert weak not in report
    change_parameter("weights: null", "weights: x")
    assert f"`workspace` is commit {strong[:7]} and what is not committed.\n" in rendered("weak")[""]


def test_identical_predictions_are_called_so_without_a_table_of_zeros(repository):
    report = rendered("strong")[""]
    assert report.startswith("**`strong` → `workspace`: identical predictions**\n\n- All probabilities of the 112 test")
    assert "|" not in report


def test_images_are_not_named_where_their_ids_are_private(repository, capsys, monkeypatch):
    monkeypatch.setattr("stages.experiments.report.draw_pictures", lambda *_: {})
    for base, new in (("weak", "strong"), ("strong", "more_images")):
        main([base, new])
        assert re.search(r"\bI\d{3}\b", Path("report.md").read_text(encoding="utf-8"))
        main([base, new, "--no-ids"])
        assert not re.search(r"\bI\d{3}\b", Path("report.md").read_text(encoding="utf-8"))
    compare.main(["weak", "strong", "--no-ids"])
    assert not re.search(r"\bI\d{3}\b", capsys.readouterr().out)
    with pytest.raises(InputError, match="2 only in strong and 8 only in more_images; ") as caught:
        compare.main(["strong", "more_images", "--no-ids"])
    assert "I0" not in str(caught.value)


def test_two_and_seven_classes_are_shown_as_models_of_malignancy(repository):
    def estimates(**values):
        return {"metrics": {name: {"value": value, "interval": [0, 1]} for name, value in values.items()}}

    PUBLISHED[PREDICTIONS].unlink()
    of_seven = estimates(malignant_auroc=0.8, brier=0.5, ece=0.3)
    classes = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    for test, own in ((estimates(auroc=0.7, brier=0.2, ece=0.05, renamed=1), classes[:2]), (of_seven, classes)):
        malignancy = {"malignancy": estimates(auroc=0.8, brier=0.1, ece=0.07)} if own is classes else {}
        write_json(PUBLISHED[DETAILS], {"classes": own, "test": test | malignancy})
        git("commit", "--quiet", "--all", "--message", "details")
    shutil.rmtree(".dvc/cache")
    report = rendered("HEAD~1", "HEAD")[""]
    assert "not compared; AUROC 0.700 → 0.800**" in report
    assert "| metric, both of malignancy |" in report
    assert "| Brier score | 0.200 (0.000 to 1.000) | 0.100 (0.000 to 1.000) | −0.100 |" in report
    assert "| `renamed` | 1.000 (0.000 to 1.000) | – | – |" in report
    figures = draw_pictures(Revision("HEAD~1"), Revision("HEAD"))
    legend = [text.get_text() for text in figures["reliability"].legends[0].get_texts()]
    assert "ECE 0.050 " in legend[0]
    assert "ECE 0.070 " in legend[1]


def test_what_is_long_makes_no_comment_too_wide_or_too_long_for_a_forge(repository):
    git("branch", name := "feature/" + "long-" * 20, "weak")
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text + "".join(f"unknown_{number}: {'v' * 100}\n" for number in range(900)))
    many = {f"metric_{number}": {"value": 0.5, "interval": [0, 1]} for number in range(2000)}
    write_json(PUBLISHED[DETAILS], {"test": {"metrics": many}})
    report = rendered(name)
    assert "| parameter | `feature/long-long-long-long-l…` | `workspace` |\n" in report["Parameters"]
    assert re.search(r"\| `unknown_\d+` .* \|\n\n… and \d+ more lines\.\n*$", report["Parameters"])
    assert "params.yaml: unknown_0 is unknown" in report[""]
    assert sum(map(len, report.values())) < 65_536


def test_a_merge_with_conflicts_is_not_taken_for_what_was_not_pushed(repository):
    Path("dvc.yaml").write_text("<<<<<<< HEAD\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "conflict")
    with pytest.raises(InputError, match=r"dvc\.yaml' validation failed[^;]*$"):
        main(["HEAD", "strong"])
