import pandas as pd
import pytest

from stages.figures.calibration import draw_reliability, reliability_table
from stages.files import read_csv, write_csv


def test_the_table_has_a_row_a_bin_and_both_sides_of_temperature_scaling(judged, tmp_path):
    predictions, details = judged([0, 1] * 25, 2)
    table = reliability_table(details)
    assert table["images"].sum() == table["images_before"].sum() == 50
    weighted = (table["observed"] * table["images"]).sum() / 50
    assert weighted == pytest.approx(predictions.is_malignant.mean(), abs=1e-6)
    assert (table["lower"] <= table["observed"]).all()
    assert (table["predicted"] != table["predicted_before"]).any()

    del details["test"]["calibration"]["reliability"]["before"][3:]
    write_csv(tmp_path / "reliability.csv", reliability_table(details))
    read = read_csv(tmp_path / "reliability.csv", ["predicted", "observed"])
    assert len(read) == len(table)
    assert read["predicted_before"].isna().sum() == len(table) - 3
    assert (tmp_path / "reliability.csv").read_text().splitlines()[1].split(",")[9] == "5", "whole images"


def test_bins_stand_where_they_were_observed_with_their_intervals(judged, words_of):
    predictions, details = judged([0, 1] * 25, 2)
    bins = reliability_table(details)
    figure = draw_reliability(predictions, details, bins)
    axes = figure.axes[0]
    (errorbar,) = axes.containers
    points, _, (bars,) = errorbar.lines
    pd.testing.assert_frame_equal(
        pd.DataFrame(points.get_xydata(), columns=["predicted", "observed"]), bins[["predicted", "observed"]]
    )
    drawn = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert drawn == [pytest.approx(bounds) for bounds in bins[["lower", "upper"]].to_numpy().tolist()]
    after = details["test"]["calibration"]["after"]["ece"]["value"]
    assert f"after: ECE {after:.3f} (" in words_of(figure)


def test_the_histogram_counts_every_image_once(judged):
    predictions, details = judged([0, 1] * 25, 2)
    below = draw_reliability(predictions, details, reliability_table(details)).axes[1]
    benign, malignant = below.containers
    assert sum(bar.get_height() for bar in benign) == 25
    assert sum(bar.get_height() for bar in malignant) == 25
