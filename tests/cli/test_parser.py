"""The parser tells settings, configurations and arguments from each other."""

import pytest
from lightning import Trainer

from softmax_torch.cli.arguments import split_configs, split_flags, split_settings
from softmax_torch.cli.mistakes import UsageError
from softmax_torch.cli.parser import parse
from softmax_torch.cli.settings import settings_parser


@pytest.mark.parametrize(
    ("args", "own", "settings"),
    [
        (["--ckpt_path", "a", "--trainer.x", "1"], ["--ckpt_path", "a"], ["--trainer.x", "1"]),
        (["--trainer.x=1", "run"], ["run"], ["--trainer.x=1"]),
        (["--model.C", "-1", "--top_k", "2"], ["--top_k", "2"], ["--model.C", "-1"]),
        (["--model.C", "-.5"], [], ["--model.C", "-.5"]),
        (
            ["--trainer.callbacks+=A", "--model", "B"],
            [],
            ["--trainer.callbacks+=A", "--model", "B"],
        ),
        (["--trainer.x", "--calibrated"], ["--calibrated"], ["--trainer.x"]),
        (["--modelling", "--data_of", "x"], ["--modelling", "--data_of", "x"], []),
    ],
)
def test_settings_are_told_from_arguments(
    args: list[str], own: list[str], settings: list[str]
) -> None:
    assert split_settings(args, ("trainer", "model", "data")) == (own, settings)


@pytest.mark.parametrize(
    ("own", "rest", "configs"),
    [
        (["-c", "a", "run", "--config=b"], ["run"], ["a", "b"]),
        (["--resume", "--config", "a"], ["--resume"], ["a"]),
        (["--configs", "a"], ["--configs", "a"], []),
    ],
)
def test_configurations_are_told_from_arguments(
    own: list[str], rest: list[str], configs: list[str]
) -> None:
    assert split_configs(own) == (rest, configs)


def test_flags_are_told_from_values() -> None:
    flags = ["--model.C", "-1", "--data.x=a=b", "--print_config", "--trainer.y", "3"]
    expected = [("model.C", "-1"), ("data.x", "a=b"), ("print_config", None), ("trainer.y", "3")]
    assert list(split_flags(flags)) == expected


def test_files_come_before_flags_wherever_they_stand() -> None:
    """Flags take precedence over files, and need the classes that the files name."""
    args = ["fit", "--data.target", "a", "--config", "table", "--name", "x"]
    request = parse(args)
    assert request.args[0] == "--config"
    assert request.args[2:] == ["--name", "x", "--data.target", "a"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("predict x --threshold 1.5", r"threshold: expected a number in \(0, 1\), got 1.5"),
        ("predict x --threshold 0.3 --laplace probit", "laplace: expected no threshold beside it"),
        ("test x --laplace probit --calibrated", "laplace: expected no calibration beside it"),
        ("calibrate x --method conformal --level 1", "level: expected a number above 0 and below"),
        ("calibrate x --method conformal --level 0", "level: expected a number above 0 and below"),
        ("calibrate x --method threshold --criterion cost --costs [1]", "costs: expected two"),
        ("calibrate x --method laplace --prior_precision 0", "expected a number > 0, got 0.0"),
    ],
)
def test_unusable_values_are_refused_before_any_file_is_read(args: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(args.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--level 0.9", "--level: expected --method conformal beside it, got temperature"),
        ("--score=lac", "--score: expected --method conformal beside it, got temperature"),
        ("--per_class", "--per_class: expected --method conformal beside it, got temperature"),
        (
            "--calibrated",
            "--calibrated: expected --method conformal or threshold beside it, got",
        ),
        ("--criterion f1", "--criterion: expected --method threshold beside it, got temperature"),
        ("--structure full", "--structure: expected --method laplace beside it, got temperature"),
        ("--method laplace --costs [1,5]", "--costs: expected --method threshold beside it, got l"),
        ("--method threshold --costs [1,5]", "--costs: expected --criterion cost beside it, got b"),
    ],
)
def test_an_option_that_calibrate_would_ignore_is_refused(args: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(["calibrate", "x", *args.split()])


@pytest.mark.parametrize("value", [1, 1.0])
def test_one_batch_is_told_from_all_batches(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # typing may give the Trainer the union of another module, with float first.
    annotations = Trainer.__init__.__annotations__
    monkeypatch.setitem(annotations, "limit_train_batches", float | int | None)
    flags = ["--data", "DigitsDataModule", "--trainer.limit_train_batches", str(value)]
    config = settings_parser("fit")[0].parse_args(["fit", *flags])
    found = config.fit.trainer.limit_train_batches
    assert (found, type(found)) == (value, type(value))
