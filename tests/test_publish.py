"""The copies of outputs that Git keeps."""

import pytest

from stages.errors import InputError
from stages.files import DETAILS, PLOTS, PUBLISHED, TABLES, TRAINING_METRICS
from stages.publish import main


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    """What the stages before have written, read-only as DVC leaves it."""
    monkeypatch.chdir(tmp_path)
    folders = {TRAINING_METRICS: "plots/loss.tsv", TABLES: "roc.csv"}
    for path in (source / folders.get(source, "") for source in (*PUBLISHED, TABLES)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"of {path}")
        path.chmod(0o444)


def test_copies_replace_those_of_before_and_may_be_written(bytes_below, tmp_path):
    main()
    old = PUBLISHED[TRAINING_METRICS] / "plots/old.tsv"
    old.write_text("of a training before")
    (PLOTS / "roc.csv").write_text("of before")
    main()
    assert not old.exists()
    for source, copy in (PUBLISHED | {TABLES / "roc.csv": PLOTS / "roc.csv"}).items():
        if source.is_dir():
            assert bytes_below(copy) == bytes_below(source)
        else:
            assert copy.read_bytes() == source.read_bytes()
            copy.write_text("edited")


@pytest.mark.parametrize("missing", [DETAILS, TABLES])
def test_without_what_it_copies_it_names_it_and_copies_nothing(missing, tmp_path):
    missing.rename("elsewhere")
    with pytest.raises(InputError, match=f"{missing} does not exist; run `dvc repro` to regenerate it"):
        main()
    assert not (tmp_path / "metrics").exists()
