from pathlib import Path

import pytest

from stages.commands import audit
from stages.errors import InputError
from stages.files import read_csv
from tests.cross_validation import images


def test_doubtful_lesions_are_listed_with_their_pictures(cross_validation, capsys):
    audit.main(["fold-0", "fold-1", "fold-2", "--output", "doubtful", "--most", "2"])
    table = read_csv(Path("doubtful/labels.csv"), ["lesion_id", "label", "suggested", "margin", "image_ids"])
    assert len(table) > 2
    of_lesion = images().groupby("lesion_id")["dx"].first()
    assert table["label"].tolist() == of_lesion[table["lesion_id"]].tolist()
    page = Path("doubtful/labels.html").read_text(encoding="utf-8")
    assert page.count("<li>") == 2
    assert page.count("data:image/jpeg;base64,") == 4
    assert f"1. {table['lesion_id'][0]}: labelled {table['label'][0]}, perhaps {table['suggested'][0]}" in page
    assert f"The label of {len(table)} of 63\N{NO-BREAK SPACE}lesions is contradicted by the two networks" in page
    assert "the first 2 are here" in page
    assert "nv: melanocytic nevus" in page
    assert '<p class="known">histopathology, back, ' in page
    assert "unknown" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert f"{len(table)} of 63 lesions are doubtful" in capsys.readouterr().out


def test_a_folder_that_exists_is_not_written_to(cross_validation):
    Path("there").mkdir()
    with pytest.raises(InputError, match="--output is 'there', which exists"):
        audit.main(["--output", "there"])
