"""The command inference: a summary, a test of each column and a file, with or without a run."""

import csv
import json
import math
from pathlib import Path

import pytest
from pages import write_iris, write_passengers

from softmax_torch import cli
from softmax_torch.cli import coefficients
from softmax_torch.cli.coefficients import WIDEST
from softmax_torch.report.table_inference import ColumnTest, TableInference

TABLE = ["--data.file", "passengers.csv", "--data.target", "survived", "--data.ignore", '["ship"]']


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with an invented table, and iris, whose classes can be separated."""
    monkeypatch.chdir(tmp_path)
    write_passengers(tmp_path)
    write_iris(tmp_path)


def test_a_table_without_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["inference", *TABLE, "--reference", "yes"])
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert "compared    with sex=female, cabin=first" in out
    assert "no vs yes" in out
    assert lines["written"][1:] == ["coefficients.csv", "(6", "coefficients)"]
    with Path("coefficients.csv").open(newline="") as file:
        rows = {row["feature"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["sex=male", "cabin=second", "cabin=third", "age", "fare", "intercept"]
    for row in rows.values():
        ratio = math.exp(float(row["coefficient"]))
        assert float(row["odds_ratio"]) == pytest.approx(ratio, rel=1e-12)
        assert float(row["lower"]) < float(row["coefficient"]) < float(row["upper"])
    # The table was drawn with a change of the log-odds by 0.03 for each year.
    assert float(rows["age"]["lower"]) < 0.03 < float(rows["age"]["upper"])
    head = ["column", "chi2", "df", "P>chi2"]
    assert lines["column"] == head
    assert [line.split()[2] for line in out.splitlines() if line.startswith("cabin ")] == ["2"]
    flags = ["--odds_ratios", "--covariance", "HC1", "--confidence", "0.9", "--output", "a.jsonl"]
    cli.main(["inference", *TABLE, *flags])
    out = capsys.readouterr().out
    assert "odds ratio" in out
    assert "Wald test that a column has no effect on any class" in out
    first = json.loads(Path("a.jsonl").read_text().splitlines()[0])
    assert (first["class"], first["feature"]) == ("yes", "sex=male")


def test_a_long_name_of_a_column_is_cut_in_the_table_of_tests() -> None:
    tests = [ColumnTest(name, 1.0, 2, 0.25) for name in ("a" * WIDEST, "b" * (WIDEST + 1))]
    found = TableInference(None, tests, "Wald", {}, 10)  # type: ignore[arg-type]
    _, head, *rows = coefficients.tests_text(found).splitlines()
    assert [row.split()[0] for row in rows] == ["a" * WIDEST, "b" * (WIDEST - 1) + "…"]
    assert {len(row) for row in rows} == {len(head)}


@pytest.mark.slow
def test_classes_that_can_be_separated_need_a_penalty(capsys: pytest.CaptureFixture[str]) -> None:
    iris = ["inference", "--data.file", "iris.csv", "--data.target", "species"]
    with pytest.raises(ValueError, match=r"can be separated: .*; fit with --penalty firth"):
        cli.main(iris)
    assert not Path("coefficients.csv").exists()
    cli.main([*iris, "--penalty", "firth"])
    assert "virginica vs setosa" in capsys.readouterr().out
    assert Path("coefficients.csv").exists()


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (
            [],
            ValueError,
            "expected a run or a checkpoint .* or a table, as in --data.file",
        ),
        (["--config", "digits"], ValueError, "expected a table, .* got DigitsDataModule"),
        ([*TABLE, "--output", "passengers.csv"], FileExistsError, "passengers.csv, which exists"),
        (
            [*TABLE, "--output", "a.txt"],
            ValueError,
            r"a name that ends in .csv, .* a\.txt",
        ),
        ([*TABLE, "--reference", "maybe"], ValueError, "reference: expected .*'maybe'"),
        ([*TABLE, "--confidence", "95"], ValueError, r"confidence: expected a number in \(0, 1\)"),
        ([*TABLE, "--covariance", "cluster"], ValueError, "as in --data.group_column site"),
    ],
)
def test_mistakes(args: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cli.main(["inference", *args])
    assert not Path("coefficients.csv").exists()
