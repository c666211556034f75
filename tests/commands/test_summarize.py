import json
from types import SimpleNamespace

import pytest
from scipy import stats

from stages.commands import summarize
from stages.errors import InputError
from stages.experiments import revision
from stages.experiments.summary import OVER, group_revisions, independent_values, render_summary, without_repeats
from stages.files import EVALUATION
from tests.history import commit, git


def run(fold: int = 0, seed: int = 0, auroc: float | None = 0.8, rate: float = 1e-4, code: str = "a"):
    """As a revision, what is summarized of it."""
    parameters = {"split.test_fold": fold, "training.learning_rate": rate, "training.seed": seed}
    name, sources = f"run-{fold}-{seed}-{rate:g}-{code}", {"stages/train.py": code}
    return SimpleNamespace(name=name, parameters=parameters, metrics={"auroc": auroc}, sources=sources)


def test_the_interval_is_that_of_the_t_test():
    values = [0.91, 0.88, 0.93, 0.9]
    text = render_summary([run(fold, auroc=value) for fold, value in enumerate(values)], OVER)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert f"| AUROC | 0.905 ± 0.021 ({expected.low:.3f} to {expected.high:.3f}) |" in text


def test_a_group_has_all_in_common_but_the_parameters_that_are_averaged_over():
    runs = [run(0), run(1), run(1, rate=3e-4), run(2, code="b"), run(2, seed=1)]
    assert group_revisions(runs, OVER) == [[runs[0], runs[1], runs[4]], [runs[2]], [runs[3]]]
    # Seeds are no longer averaged over: they part the runs.
    assert len(group_revisions(runs, OVER[:1])) == 4


def test_seeds_of_one_fold_count_as_one_value():
    runs = [run(0, 0, 0.8), run(0, 1, 0.9), run(1, 0, 0.7)]
    assert independent_values(runs, OVER, "auroc") == pytest.approx([0.85, 0.7])
    assert independent_values(runs[:2], OVER, "auroc") == [0.8, 0.9]
    assert independent_values([run(auroc=None)], OVER, "auroc") == []


def test_a_run_that_decides_for_the_most_probable_class_counts_with_those_that_decide_by_cost():
    runs = [run(0), run(1), run(2)]
    runs[0].metrics = {"accuracy": 0.8, "decided_accuracy": 0.7}
    runs[1].metrics = {"accuracy": 0.6}
    assert independent_values(runs, OVER, "decided_accuracy") == [0.7, 0.6]


def test_the_same_run_twice_counts_once():
    first, again, other = run(0), run(0), run(1)
    again.name = "again"
    assert without_repeats([first, again, other], OVER) == ([first, other], ["again"])


def test_the_table_names_what_its_columns_differ_in():
    runs = [run(fold, auroc=0.8 + fold / 10, rate=rate) for rate in (1e-4, 3e-4) for fold in (0, 1)]
    text = render_summary([*runs, run(0, code="b")], OVER)
    lines = text.splitlines()
    assert max(map(len, lines[:6])) <= 100
    assert lines[0].replace("\N{NO-BREAK SPACE}", " ") == "| mean ± SD (95 % interval) | A | B |"
    cell = "**0.850 ± 0.071 (0.215 to 1.485)**"
    assert lines[2] == f"| AUROC | {cell} | {cell} |"
    assert lines[6] == "| AUROC | 0.800 |"
    assert r"- **A** training.learning\_rate=0.0001, code and data as in run-0-0-0.0001-a: 2 runs" in text
    assert r"- **B** training.learning\_rate=0.0003: " in text
    assert "Bold: the best mean of a row" in text
    assert r"2 runs (run-0-0-0.0003-a: test\_fold 0, seed 0, run-1-0-0.0003-a: test\_fold 1, seed 0)." in text
    assert "Student's t over runs" in text


def test_the_lowest_error_is_the_best():
    runs = [run(fold, rate=rate) for rate in (1e-4, 3e-4) for fold in (0, 1)]
    for each in runs:
        each.metrics = {"ece": each.parameters["training.learning_rate"]}
    [row] = [line for line in render_summary(runs, OVER).splitlines() if line.startswith("| ECE")]
    assert row.split("|")[2].strip().startswith("**")
    assert not row.split("|")[3].strip().startswith("**")


def summarized(capfdbinary, *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        summarize.main(list(arguments))
    return ended.value.code, capfdbinary.readouterr().out.decode("utf-8")


def test_the_command_prints_markdown_and_names_what_has_no_metrics(repository, capfdbinary):
    EVALUATION.write_text(json.dumps({"auroc": 0.7, "nll": 0.5}))
    commit("lower")
    over = ["--over", "training.learning_rate", "--over", "training.seed"]
    status, text = summarized(capfdbinary, "weak", "strong", *over)
    assert status == 0
    assert "(95 % interval) | all runs |" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "| AUROC | 0.740 ± 0.226 (−1.29" in text
    status, text = summarized(capfdbinary, "lower", "empty")
    assert status == 1
    assert "- **empty** has no metrics and is not counted." in text
    assert "| AUROC | 0.700 |" in text


def test_experiments_of_the_head_are_found(repository, capfdbinary):
    head = git("rev-parse", "HEAD").strip()
    EVALUATION.write_text(json.dumps({"auroc": 0.7}))
    git("commit", "--quiet", "--all", "--message", "experiment")
    git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/tuned", "HEAD")
    git("reset", "--quiet", "--hard", head)
    status, text = summarized(capfdbinary)
    assert status == 0
    assert "all runs: 1 run (tuned: " in text
    assert "| AUROC | 0.700 |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "HEAD has no experiments"),
        (["nowhere"], "'nowhere' is not a commit, branch, tag or experiment"),
        (["weak", "--over", "split.fold"], r"--over split\.fold is not a parameter"),
    ],
)
def test_mistakes_get_a_clear_answer(repository, arguments, message):
    with pytest.raises(InputError, match=message):
        summarize.main(arguments)


def test_outside_of_a_repository_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="run from the root of the repository"):
        summarize.main([])


def test_experiments_that_failed_in_the_queue_are_named(repository, capfdbinary, monkeypatch):
    """What DVC lists of a queue in which one experiment failed, and another until it was run again."""
    states = {"weak": None, "again": "failed", "lost": "failed", "now": "running"}
    listed = [{"name": name, "executor": state and {"state": state}} for name, state in states.items()]
    listed.append({"name": "again", "executor": {"state": "success"}})
    git("branch", "again", "weak")
    monkeypatch.setattr(revision, "run_dvc", lambda *_: json.dumps([{"experiments": listed}]))
    status, text = summarized(capfdbinary)
    assert status == 1
    assert "- **lost** failed and is not counted." in text
    assert text.count("not counted") == 2  # and the repeated run
