"""What a fit prints about its data and its result, and how lines are divided."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from program import SHORT, figures

from softmax_torch import cli
from softmax_torch.cli import console, fit_summary
from softmax_torch.cli.console import format_seconds, in_command, print_metrics, wrapped
from softmax_torch.cli.fit_summary import DataSummary, data_lines, speed_text, strength_lines
from softmax_torch.data.description import ColumnCounts, DataDescription
from softmax_torch.training import LitClassifier, LitSoftmaxRegression


def describe(counts: list[int], names: list[str] | None = None, **options: Any) -> dict[str, str]:
    """Return the lines about data with these classes."""
    names = [str(c) for c in range(len(counts))] if names is None else names
    samples = {"train": sum(counts) - 2, "val": 1, "test": 1}
    lines = list(data_lines(DataDescription(samples, 20, names, torch.tensor(counts), **options)))
    assert all(len(text) <= 68 for _, text in lines)
    return dict(lines)


@pytest.mark.parametrize(
    ("counts", "names", "expected"),
    [
        ([50, 40, 50], ["setosa", "versicolor", "virginica"], "3: setosa 50, versicolor 40, virg"),
        ([7] * 26, None, "26, 7 samples each"),
        ([174, 183, *[180] * 8], None, "10, from 174 to 183 samples each"),
        ([174, 3, *[180] * 8], None, "10, from 3 (1) to 180 (2) samples each"),
        ([5, 900], ["n" * 40, "m" * 40], "2, from 5 to 900 samples each"),
        ([5, 0, 6], None, "3: 0 5, 1 0, 2 6"),
    ],
)
def test_classes_are_listed_or_counted(
    counts: list[int], names: list[str] | None, expected: str
) -> None:
    assert describe(counts, names)["classes"].startswith(expected)


def test_inputs_are_named_by_their_kind() -> None:
    assert describe([5, 5])["features"] == "20"
    assert describe([5, 5], image_shape=(4, 5))["features"] == "20 (4 x 5 grey images)"
    assert describe([5, 5], image_shape=(3, 4, 5))["features"] == "20 (4 x 5 colour images)"
    columns = ColumnCounts(3, 2, 17, 1, {"age": 4, "city": 9})
    found = describe([5, 5], columns=columns)
    assert found["data"] == "10 samples: 8 train, 1 val, 1 test"
    assert found["columns"] == "3 numeric, 2 categorical (17 features), 1 ignored"
    assert found["missing"] == "in train: age 4, city 9"
    assert "features" not in found
    many = columns._replace(missing={f"measurement_{k}": k + 1 for k in range(30)})
    text = describe([5, 5], columns=many)["missing"]
    assert text == "in train: measurement_0 1, measurement_1 2 and 28 more columns"
    assert describe([5, 5], columns=columns._replace(categorical=0, ignored=0))["columns"] == (
        "3 numeric"
    )


@pytest.mark.parametrize(
    ("steps", "name", "seconds", "expected"),
    [
        (1230, "step", 1.16, "1230 steps in 1.2 s (1060 a second)"),
        (20, "step", 60.6, "20 steps in 60.6 s (3.03 s a step)"),
        (12, "iteration", 4.0, "12 iterations in 4.0 s (3.0 a second)"),
        (1, "fit", 7265.0, "1 fit in 2 h 1 min (2 h 1 min a fit)"),
        (0, "step", 0.0, "0 steps in 0.0 s"),
    ],
)
def test_slow_steps_are_counted_in_seconds(
    steps: int, name: str, seconds: float, expected: str
) -> None:
    assert speed_text(steps, name, seconds) == expected


def test_a_path_in_a_command_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = (tmp_path / "runs" / "digits", Path("runs/two words"))
    assert [in_command(path) for path in paths] == ["runs/digits", "'runs/two words'"]


def test_times_have_two_units_at_most() -> None:
    assert [format_seconds(t) for t in (0.04, 99.94, 100.0, 3599.0, 5400.0)] == [
        *("0.0 s", "99.9 s", "1 min 40 s", "59 min 59 s", "1 h 30 min")
    ]


def test_a_line_is_divided_between_words_below_its_text() -> None:
    text = "4 words and /a/path/longer/than/one/line/of/text"
    assert wrapped("label", text, None) == f"label       {text}"
    assert wrapped("label", text, 30) == (
        "label       4 words and\n            /a/path/longer/than/one/line/of/text"
    )
    assert wrapped("data", "1230 steps in 1.2 s (1060 a second)", 44) == (
        "data        1230 steps in 1.2 s\n            (1060 a second)"
    )
    metrics = console.format_metrics({"a/accuracy": 0.5, "a/nll": 1.0, "a/balanced_accuracy": 0.25})
    assert wrapped("test", metrics, 30) == (
        "test        accuracy 0.5000\n            nll 1.0000\n"
        "            balanced accuracy\n            0.2500"
    ).replace("accuracy\n            0.2500", "accuracy 0.2500")  # a name stays with its number


def test_a_terminal_divides_lines_but_no_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    texts = {"data": "1797 samples: 1294 train", "next": "python train.py test a/b/c/d"}
    for terminal in (False, True):
        monkeypatch.setattr("sys.stdout.isatty", lambda on=terminal: on)
        for label, text in texts.items():
            console.print_line(label, text)
    piped, shown = capsys.readouterr().out.split("test a/b/c/d\n", 1)
    assert piped == "data        1797 samples: 1294 train\nnext        python train.py "
    assert shown.splitlines() == [
        *("data        1797 samples: 1294", "            train"),
        "next        python train.py test a/b/c/d",
    ]


def test_the_same_metric_has_the_same_columns(capsys: pytest.CaptureFixture[str]) -> None:
    test = {"test/accuracy": 0.5, "test/nll": 12.0, "test/f1": 0.25}
    print_metrics([("val", {"val/nll": 1.0}), ("test", test), ("baseline", {"test/nll": 2.0})])
    assert capsys.readouterr().out.splitlines() == [
        "val         nll  1.0000",
        "test        nll 12.0000  accuracy 0.5000  f1 0.2500",
        "baseline    nll  2.0000",
    ]


def test_the_neighbours_of_the_best_c_are_listed() -> None:
    fits = [{"C": 10.0**k, "val/nll": abs(k - 30) + 0.5, "val/accuracy": 0.5} for k in range(40)]
    lines = list(strength_lines(fits))
    assert lines[0] == ("C 1e+15", "accuracy\xa00.5000  nll\xa015.5000")
    assert [label for label, text in lines if text.endswith("best val")] == ["C 1e+30"]
    assert lines[-1] == ("", "and 15 other values of C, in metrics.csv")
    assert len(lines) == 26
    assert list(strength_lines(fits[:2]))[-1] == (
        *("", "the best C is the largest of the list: a larger one may be better"),
    )
    assert len(list(strength_lines(fits[:1]))) == 1  # no list, and so no end of it
    assert list(strength_lines([{"C": 1.0}])) == []  # never validated


def test_a_path_prints_each_c_with_its_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(
        ["fit", "--model.solver", "auto", "--model.C", "[1, 30, 3000]", "--data.batch_size", "null"]
        + ["--model.optimizer", "null", "--model.lr_scheduler", "null", "--name", "path"]
    )
    out = capsys.readouterr().out
    assert "trained     3 fits in " in out
    chosen = figures(out, "C 30").removesuffix("  best val")
    assert chosen != figures(out, "C 30")
    assert chosen.split()[2:] == figures(out, "best val").split()[2:6]
    assert figures(out, "C 1") != figures(out, "C 3000")


UNEQUAL = """
import torch
from softmax_torch.data import DigitsDataModule
from softmax_torch.data.splits import Split

class Unequal(DigitsDataModule):
    def read(self):
        return tuple(Split(x[(y < 1) | (y > 8)], y[(y < 1) | (y > 8)]) for x, y in super().read())

class Silent(DigitsDataModule):
    describe = None
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data modules of a user."""
    (tmp_path / "users_data.py").write_text(UNEQUAL)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_balanced_accuracy_is_printed_where_classes_are_unequal(
    modules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["fit", *SHORT, "--data", "users_data.Unequal", "--name", "two"])
    out = capsys.readouterr().out
    printed = [figures(out, label) for label in ("best val", "test")]
    assert all(re.search(r"accuracy \S+  balanced accuracy \S+  nll ", line) for line in printed)
    assert "balanced accuracy 0.5000" in out.splitlines()[-3]  # the baseline of two classes
    for command, line in zip(("validate", "test"), printed, strict=True):
        cli.main([command, "--ckpt_path", "runs/two/version_0/best.ckpt"])
        assert capsys.readouterr().out.splitlines()[0].split()[1:] == line.split()[-9:]


def test_data_that_do_not_describe_themselves_are_trained_on(
    modules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["fit", *SHORT, "--data", "users_data.Silent", "--name", "two words"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(" test 'runs/two words/version_0'")
    labels = [line[:12].strip() for line in lines]
    assert labels[1:] == ["trained", "device", "best val", "test", "checkpoint", "next"]
    silent, results = DataSummary(object()), {"val/nll": 1.0, "val/balanced_accuracy": 0.5}
    assert silent.baseline("val") == {}
    assert silent.shown(results) == {"val/nll": 1.0}
    assert DataSummary(object(), asked=["balanced_accuracy"]).shown(results) == results


@pytest.mark.parametrize(
    ("flags", "tried"),
    [
        (["--model.optimizer.lr", "3000"], "--model.solver auto --data.batch_size null"),
        (["--model.optimizer.lr", "0.001"], None),
    ],
)
def test_a_model_that_is_worse_than_class_frequencies_is_reported(
    flags: list[str],
    tried: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["fit", *SHORT, "--model.C", "null", *flags])
    out = capsys.readouterr().out
    assert ("warning     the val nll " in out) == (tried is not None)
    assert tried is None or (tried in out and "above the class frequencies' 2.3059; try\n" in out)


def test_advice_fits_the_model() -> None:
    def tried(model: Any) -> str:
        return " ".join(text for _, text in fit_summary.advice(3.0, 2.0, model))

    assert "--model.solver" not in tried(LitClassifier(64, 10, backbone="small_cnn"))
    assert tried(LitSoftmaxRegression(64, 10, solver="auto")).endswith("a smaller --model.C")
