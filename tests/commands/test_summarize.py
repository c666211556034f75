import subprocess
from pathlib import Path

import pytest
from scipy import stats

from stages.commands import summarize
from stages.commands.summarize import group_experiments, independent_values, render_markdown, without_repeats
from stages.errors import InputError
from stages.experiments.results import Experiment, read_experiment

OVER = summarize.OVER


def experiment(
    fold: int = 0, seed: int = 0, auroc: float | None = 0.8, rate: float = 1e-4, code: str = "a"
) -> Experiment:
    parameters = {"split.test_fold": fold, "training.learning_rate": rate, "training.seed": seed}
    return Experiment(f"run-{fold}-{seed}-{rate:g}-{code}", parameters, {"auroc": auroc}, {"stages/train.py": code})


def test_the_interval_is_that_of_the_t_test():
    values = [0.91, 0.88, 0.93, 0.9]
    summary = summarize.summarize(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert summary.interval == pytest.approx((expected.low, expected.high))
    assert (summary.mean, summary.deviation) == pytest.approx((0.905, 0.0208167), abs=1e-6)


def test_one_run_has_no_deviation_and_no_interval():
    assert summarize.summarize([0.9]) == (0.9, None, None, 1)


def test_a_group_has_all_in_common_but_the_parameters_that_are_averaged_over():
    runs = [experiment(0), experiment(1), experiment(1, rate=3e-4), experiment(2, code="b"), experiment(2, seed=1)]
    assert group_experiments(runs, OVER) == [[runs[0], runs[1], runs[4]], [runs[2]], [runs[3]]]
    # Seeds are no longer averaged over: they part the runs.
    assert len(group_experiments(runs, OVER[:1])) == 4


def test_seeds_of_one_fold_count_as_one_value():
    runs = [experiment(0, 0, 0.8), experiment(0, 1, 0.9), experiment(1, 0, 0.7)]
    assert independent_values(runs, OVER, "auroc") == pytest.approx([0.85, 0.7])
    assert independent_values(runs[:2], OVER, "auroc") == [0.8, 0.9]
    assert independent_values([experiment(auroc=None)], OVER, "auroc") == []


def test_the_same_run_twice_counts_once():
    first, again = experiment(0), experiment(0)._replace(name="again")
    assert without_repeats([first, again, experiment(1)], OVER) == ([first, experiment(1)], ["again"])


def test_the_table_names_what_its_columns_differ_in():
    runs = [experiment(fold, auroc=0.8 + fold / 10, rate=rate) for rate in (1e-4, 3e-4) for fold in (0, 1)]
    text = render_markdown(group_experiments([*runs, experiment(0, code="b")], OVER), OVER)
    lines = text.splitlines()
    head = "training.learning_rate=0.0001, code and data as in run-0-0-0.0001-"
    assert lines[0] == (
        f"| mean ± standard deviation [95 % interval] | {head}a | training.learning_rate=0.0003 | {head}b |"
    )
    cell = "0.850 ± 0.071 [0.215, 1.485]"
    assert lines[2] == f"| AUROC | {cell} | {cell} | 0.800 |"
    assert "2 runs (run-0-0-0.0003-a: test_fold 0, seed 0, run-1-0-0.0003-a: test_fold 1, seed 0)." in text
    assert "Student's t over runs" in text


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A DVC repository whose tags fold-0, fold-1 and untrained are commits with results, the last without metrics."""

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    monkeypatch.chdir(tmp_path)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@example.org")
    run("git", "init", "--quiet")
    run("dvc", "init", "--quiet")
    Path("metrics").mkdir()
    for fold, tag in enumerate(("fold-0", "fold-1", "untrained")):
        Path("params.yaml").write_text(f"split: {{test_fold: {fold}}}\ntraining: {{seed: 0, learning_rate: 3e-05}}\n")
        Path("metrics/evaluation.json").write_text(f'{{"auroc": 0.{8 + fold}, "nll": 0.5}}')
        Path("dvc.lock").write_text(
            "schema: '2.0'\nstages:\n"
            "  prepare: {cmd: a, deps: [{path: data, md5: x}], outs: [{path: data/prepared, md5: y}]}\n"
            "  train: {cmd: b, deps: [{path: data/prepared, md5: y}, {path: stages/train.py, md5: z}]}\n"
        )
        if tag == "untrained":
            Path("metrics/evaluation.json").unlink()
        run("git", "add", "--all")
        run("git", "commit", "--quiet", "--message", tag)
        run("git", "tag", tag)


def summarized(capfdbinary, *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        summarize.main(list(arguments))
    return ended.value.code, capfdbinary.readouterr().out.decode("utf-8")


def test_revisions_are_read_without_a_checkout(repository):
    assert read_experiment("fold-1") == (
        "fold-1",
        {"split.test_fold": 1, "training.seed": 0, "training.learning_rate": 3e-05},
        {"auroc": 0.9, "nll": 0.5},
        {"data": "x", "stages/train.py": "z"},
    )


def test_the_command_prints_markdown(repository, capfdbinary):
    status, text = summarized(capfdbinary, "fold-0", "fold-1", "--metric", "auroc", "--confidence", "0.9")
    assert status == 0
    assert "[90 % interval] | all runs |" in text
    assert "| AUROC | 0.850 ± 0.071 [0.534, 1.166] |" in text
    assert "Log loss" not in text


def test_what_has_no_metrics_is_named(repository, capfdbinary):
    status, text = summarized(capfdbinary, "fold-0", "untrained")
    assert status == 1
    assert "- **untrained** has no metrics and is not counted." in text
    assert "| AUROC | 0.800 |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "HEAD has no experiments"),
        (["nowhere"], "'nowhere' is no commit, branch, tag or experiment"),
        (["fold-0", "--over", "split.fold"], r"--over split\.fold is no parameter"),
        (["fold-0", "--metric", "f2"], "--metric f2 is no headline metric of these experiments; they have auroc, nll"),
        (["fold-0", "--confidence", "95"], r"--confidence is 95\.0"),
    ],
)
def test_mistakes_get_a_clear_answer(repository, arguments, message):
    with pytest.raises(InputError, match=message):
        summarize.main(arguments)


def test_outside_of_a_repository_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="run from the root of the repository"):
        summarize.main([])
