import numpy as np
import pandas as pd
import pytest

from stages.dataset.encoding import AGES, LOSE_ALL, LOSE_EACH, learn_encoding


def told(*rows):
    return pd.DataFrame(rows, columns=pd.Index(["age", "sex", "localization"]))


TRAINED = told(
    (55.0, "male", "back"),
    (30.0, "female", "Lower_Extremity"),
    (np.nan, "unknown", "unknown"),
    (5.0, "male", "lower extremity"),
)


@pytest.fixture
def encoding():
    return learn_encoding("late", TRAINED)


def test_the_values_are_those_of_the_training_images(encoding):
    assert learn_encoding("none", TRAINED) is None
    assert encoding.sex == ["female", "male"]
    assert encoding.localization == ["back", "lower extremity"]
    assert encoding.encode(TRAINED).shape == (4, len(AGES) + 1 + 3 + 3) == (4, len(encoding.unknown))


def test_an_age_is_a_place_between_ages_and_the_others_are_a_one(encoding):
    back = [1, 0, 0]
    for age, shares in ((55, {55: 1.0}), (30, {25: 2 / 3, 40: 1 / 3}), (0, {10: 1.0}), (120, {85: 1.0})):
        expected = [shares.get(knot, 0) for knot in AGES.tolist()]
        [row] = encoding.encode(told((age, "female", "back")))
        assert row.tolist() == pytest.approx([*expected, 0, 1, 0, 0, *back])
    other_spelling = encoding.encode(told((55.0, "Female", "lower_extremity")))
    assert other_spelling.tolist() == encoding.encode(told((55.0, "female", "Lower Extremity"))).tolist()


def test_what_is_missing_or_was_never_seen_is_unknown(encoding):
    rows = told((np.nan, "unknown", "unknown"), (np.nan, "other", "knee"))
    assert encoding.encode(rows).tolist() == [encoding.unknown.tolist()] * 2
    assert encoding.unknown.sum() == 3
    assert encoding.unheard_of(rows) == ["sex 'other'", "localization 'knee'"]
    assert encoding.unheard_of(TRAINED) == []


def test_training_images_lose_each_attribute_and_all_of_them_at_random(encoding):
    rows = encoding.encode(told(*[(40.0, "male", "back")] * 20_000))
    lost = encoding.lose(np.random.default_rng(0), rows)
    ends = np.cumsum(encoding.widths) - 1
    unknown = lost[:, ends] == 1
    either = LOSE_ALL + (1 - LOSE_ALL) * LOSE_EACH
    assert unknown.mean(axis=0) == pytest.approx([either] * 3, abs=0.01)
    assert unknown.all(axis=1).mean() == pytest.approx(LOSE_ALL, abs=0.01)
    parts = np.split(np.arange(len(encoding.unknown)), ends[:-1] + 1)
    for part, gone in zip(parts, unknown.T):
        assert (lost[gone][:, part] == encoding.unknown[part]).all()
        assert (lost[~gone][:, part] == rows[~gone][:, part]).all()
