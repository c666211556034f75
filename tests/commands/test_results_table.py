from types import SimpleNamespace

import pytest

from stages.commands.sweep import results_table
from stages.experiments import revision
from stages.reporting import TERMINAL

METRICS = {"auroc": 0.9, "sensitivity_at_threshold": None, "specificity_at_threshold": 0.7, "nll": 0.5, "ece": 0.1}


@pytest.fixture
def table(monkeypatch):
    """A function that gives the lines of the table of experiments with these parameters and validation losses."""

    def make(*runs):
        known = {
            name: SimpleNamespace(name=name, parameters=p, metrics=METRICS, val_loss=loss) for name, p, loss in runs
        }
        known["HEAD"] = SimpleNamespace(name="HEAD", parameters=dict.fromkeys(runs[0][1]), metrics={}, val_loss=None)
        monkeypatch.setattr(revision, "Revision", known.get)
        return results_table([name for name, *_ in runs]).splitlines()

    return make


def test_the_best_is_that_of_the_lowest_validation_loss(table):
    lines = table(
        ("one", {"training.seed": 1}, 0.5), ("two", {"training.seed": 2}, 0.4), ("three", {"training.seed": 3}, None)
    )
    assert lines[0].split() == ["experiment", "seed", "val.", "loss", "AUROC", "sens.", "spec.", "ECE"]
    assert [line.split()[2] for line in lines[1:4]] == ["0.500", "0.400*", "–"]
    assert lines[1].split()[3:] == ["0.900", "–", "0.700", "0.100"]
    assert lines[4].startswith("*: the lowest validation loss")


def test_any_table_fits_a_terminal(table):
    parameters = {f"training.parameter_{number}": "x" * 50 for number in range(9)}
    lines = table(("a" * 80, parameters, 0.5))
    assert max(map(len, lines[:2])) <= TERMINAL
    assert "they also differ in training.parameter_" in lines[-1]
    assert "training.parameter_8" in lines[-1]
