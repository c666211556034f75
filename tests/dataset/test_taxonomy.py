import pytest

from stages.dataset.taxonomy import DIAGNOSES, class_names, class_of, malignant_classes

MALIGNANT = {"akiec", "bcc", "mel"}
BENIGN = {"bkl", "df", "nv", "vasc"}


def test_the_classes_are_in_the_order_that_trained_models_rely_on():
    assert class_names(2) == ("benign", "malignant")
    assert class_names(7) == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert tuple(DIAGNOSES) == class_names(7)


@pytest.mark.parametrize("dx", sorted(MALIGNANT | BENIGN))
def test_a_diagnosis_is_benign_or_malignant(dx):
    assert class_of(dx, 2) == ("malignant" if dx in MALIGNANT else "benign")
    assert class_of(dx, 7) == dx


def test_the_malignant_classes_are_three_diagnoses_or_one_class():
    assert set(malignant_classes(7)) == MALIGNANT
    assert malignant_classes(2) == ("malignant",)
