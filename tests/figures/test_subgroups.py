import numpy as np
import pytest

from stages.figures.subgroups import draw_subgroups, flat_subgroups


@pytest.fixture
def subgroups(judged):
    """Predictions, what is said of them, and the table of their subgroups; some groups are too small to judge."""
    predictions, details = judged([0, 0, 1] * 22, 2)
    return predictions, details, flat_subgroups(details)


def test_the_table_has_a_row_a_group_with_a_name_of_its_own(subgroups):
    _, details, table = subgroups
    assert list(table["attribute"].unique()) == ["age", "sex", "localization", "dataset", "dx_type"]
    assert table["subgroup"].is_unique
    assert table.groupby("attribute")["images"].sum().eq(66).all()
    described = {group["name"]: group for group in details["test"]["subgroups"]["sex"]["groups"]}
    row = table[table["subgroup"] == "sex: male"].iloc[0]
    assert row["sensitivity"] == described["male"]["sensitivity"]["value"]
    assert [row["auroc_lower"], row["auroc_upper"]] == described["male"]["auroc"]["interval"]


def test_ages_rise_and_unknown_ones_come_last(subgroups):
    ages = subgroups[2].query("attribute == 'age'")["group"]
    assert list(ages) == ["under 30", "30-44", "45-59", "60-74", "75 and older", "unknown"]


def test_groups_that_are_too_small_are_hollow_and_grey(subgroups):
    _, _, table = subgroups
    figure = draw_subgroups(*subgroups)
    for axes, metric in zip(figure.axes, ("sensitivity", "specificity", "auroc")):
        marks = {line.get_markerfacecolor(): line for line in axes.lines if line.get_marker() == "o"}
        (hollow,) = [marks.pop(colour) for colour in list(marks) if colour == "white"]
        (filled,) = marks.values()
        judged = table[f"{metric}_judged"]
        assert sorted(filled.get_xdata()) == sorted(table[metric][judged])
        assert sorted(hollow.get_xdata()) == sorted(table[metric][~judged].dropna())
        assert hollow.get_markeredgecolor() != filled.get_markeredgecolor()


def test_a_group_stands_on_the_line_of_its_name(subgroups):
    _, _, table = subgroups
    sensitivity, axes, _ = draw_subgroups(*subgroups).axes
    names = [label.get_text() for label in sensitivity.get_yticklabels()]
    places = np.concatenate([line.get_xydata() for line in axes.lines if line.get_marker() == "o"])
    for value, line in places:
        # Its counts follow a name; "unknown" is that of several groups.
        found = [row for row in table.itertuples() if names[int(line)].startswith(f"{row.group}  ")]
        assert value in [row.specificity for row in found], names[int(line)]
    row = table[table["subgroup"] == "sex: female"].iloc[0]
    assert f"female  {row['malignant_lesions']} + {row['benign_lesions']}" in names


def test_the_value_of_all_images_is_a_line_through_every_panel(subgroups):
    _, details, _ = subgroups
    test = details["test"]
    overall = [
        test["metrics"][name]["value"] for name in ("sensitivity_at_threshold", "specificity_at_threshold", "auroc")
    ]
    for axes, value in zip(draw_subgroups(*subgroups).axes, overall):
        (line,) = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert list(line.get_xdata()) == [value, value]


def test_a_group_without_malignant_lesions_has_no_sensitivity(judged, words_of):
    predictions, details = judged([0] * 30, 2)
    words = words_of(draw_subgroups(predictions, details, flat_subgroups(details))).split("\n")
    assert words.count("none") == 2 * len(flat_subgroups(details)), "neither sensitivity nor AUROC"
