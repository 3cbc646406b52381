"""Help: whole sentences, a screen a page, and names and defaults of the real parser."""

import re
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from program import ROOT

import softmax_torch.data
import softmax_torch.training
from softmax_torch import cli
from softmax_torch.cli.class_settings import REQUIRED, TRAINER, settings_of, shipped_classes
from softmax_torch.cli.command_parsers import build_parser
from softmax_torch.cli.command_table import COMMANDS, LIGHT_COMMANDS
from softmax_torch.cli.help import COMMON_SETTINGS, PROGRAM_EXAMPLES
from softmax_torch.cli.help_request import fit_settings
from softmax_torch.cli.parser import parse
from softmax_torch.cli.settings import TRAINER_DEFAULTS, settings_parser
from softmax_torch.cli.value_forms import choices_of, form_of

ALL = {**COMMANDS, **LIGHT_COMMANDS}


@pytest.fixture(params=[80, 40])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def shown(args: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    cli.main(args)
    return capsys.readouterr().out.splitlines()


def check_width(lines: list[str], columns: int) -> None:
    """No line is wider than the terminal unless it is a single word that cannot be broken."""
    assert [line for line in lines if len(line) > columns and len(line.split()) > 2] == []


def test_the_program_lists_every_command_with_a_whole_sentence(
    columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(["--help"], capsys)
    check_width(lines, columns)
    text = " ".join(" ".join(lines).split())
    for name, command in ALL.items():
        assert f" {name} {command.description} " in text
        assert command.description.endswith(".")
    assert " fit --config table --data.file my.csv" in text.replace(" \\", "")


def test_every_command_is_in_both_overviews() -> None:
    """That of the module, and the table in which a page ends."""
    assert cli.__doc__ is not None
    listed = re.findall(r"^ {4}(\w.*?)(?:  |$)", cli.__doc__, re.M)
    assert {*ALL} <= {word for usage in listed for word in usage.split()}
    table = (ROOT / "docs" / "getting_started.md").read_text().partition("| command |")[2]
    assert [name for name in ALL if f"`{name}`" not in table] == []


def test_without_arguments_the_program_prints_its_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().out.splitlines() == shown(["--help"], capsys)


@pytest.mark.parametrize("name", [name for name in ALL if name != "fit"])
def test_a_command_shows_its_own_options_on_a_screen(
    name: str, columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown([name, "--help"], capsys)
    check_width(lines, columns)
    assert len(lines) <= (40 if columns == 80 else 70)
    text = " ".join(" ".join(lines).split())
    for flag, options in ALL[name].arguments:
        assert options.get("metavar", flag) in text
        assert options["help"] in text
    assert "--trainer." not in text
    assert "--model." not in text


def test_fit_is_a_screen(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(["fit", "--help"], capsys)
    check_width(lines, columns)
    assert len(lines) <= (40 if columns == 80 else 80)
    text = " ".join(lines)
    for part in ("--name", "--data CLASS", "--model CLASS", "--resume", "--help-all"):
        assert part in text
    for key in COMMON_SETTINGS.keys() - {"model.backbone"}:
        assert f"--{key} " in text


def test_the_settings_of_a_configuration_are_shown_with_their_meaning(
    columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(["fit", "--config", "table", "--data.seed", "7", "--help"], capsys)
    check_width(lines, columns)
    text = " ".join(" ".join(lines).split())
    for line in (
        "--data.file TEXT The table to train on. [table.csv]",
        "--data.dates LIST Columns of dates, which become days since 1970-01-01. [null]",
        "--data.seed N Of the validation split and of the order of the training samples. [7]",
        "--model.solver NAME auto, newton or lbfgs: fit to the optimum. [auto]",
    ):
        assert line in text
    assert "--model.optimizer.lr" not in text  # a solver has no optimizer


def test_a_net_has_its_own_settings(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(shown(["fit", "--config", "mnist_cnn", "--help"], capsys))
    assert "--model.backbone NAME" in text
    assert "--model.solver NAME" not in text
    assert "[AdamW]" in text


def test_all_settings_are_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(shown(["fit", "--help-all"], capsys))
    usual, net = text.split("--model LitSoftmaxRegression (the default):")[1].split(
        "--model LitClassifier:"
    )
    assert "--model.solver" in usual
    assert "inverse strength of the L2 penalty" in net
    assert "--model.backbone BACKBONE" in net
    assert "--model.in_features" not in text
    assert "--trainer.gradient_clip_val" in text


def test_settings_read_from_source_are_those_of_the_real_parser() -> None:
    """Names and defaults, of every class that is read without an import."""
    for room in (softmax_torch.data, softmax_torch.training):
        for name in shipped_classes(room.__name__):
            if not name.endswith(("DataModule", "Classifier", "Regression")):
                continue
            parser = ArgumentParser()
            parser.add_class_arguments(getattr(room, name), None, fail_untyped=False)
            check_settings(parser, f"{room.__name__}.{name}", "")
    check_settings(settings_parser("fit")[1], TRAINER, "trainer.")


def check_settings(parser: ArgumentParser, class_path: str, prefix: str) -> None:
    defaults = parser.get_defaults(skip_validation=True)
    for name, setting in settings_of(class_path).items():
        default = defaults[f"{prefix}{name}"]
        if f"{prefix}{name}" in TRAINER_DEFAULTS:
            continue
        assert default == (None if setting.default is REQUIRED else setting.default), name
        assert setting.meaning, f"{class_path}: {name} is not documented"


def test_the_common_settings_exist_with_the_shown_values() -> None:
    given, paths = fit_settings([])
    assert [path.stem for path in paths] == ["digits"]
    assert given.value("model.optimizer")[0] == "torch.optim.SGD"
    assert given.value("model.C")[0] == 10.0
    parser = settings_parser("fit")[0]
    flags = [
        *("--data.batch_size", "8", "--data.val_fraction", "0.2", "--model.C", "1"),
        *("--model.solver", "null", "--model.optimizer.lr", "0.1", "--seed_everything", "1"),
        *("--model.class_weight", "balanced", "--model.label_smoothing", "0.1"),
        *("--model.optimizer", "SGD", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"),
    ]
    assert {flag for flag in flags if flag.startswith("--")} == {
        f"--{key}" for key in COMMON_SETTINGS.keys() - {"model.backbone"}
    }
    parser.parse_args(["fit", "--config", str(paths[0]), *flags])


def test_examples_are_command_lines(here: Path) -> None:
    examples = [*PROGRAM_EXAMPLES, *(e for command in ALL.values() for e in command.examples)]
    for example in examples:
        name, *args = example.split()
        if name in COMMANDS:
            request = parse([name, *args])
            assert build_parser()[0].parse_args([name, *request.own])


@pytest.mark.parametrize(
    ("kind", "words", "placeholder"),
    [
        ("list[str] | None", "a list of texts or null", "LIST"),
        ("Optional[int]", "a whole number or null", "N"),
        ("Literal['balanced'] | list[float]", "balanced or a list of numbers", "VALUE"),
        ("Literal['epoch', 'step']", "epoch or step", "epoch|step"),
        (
            "Optional[Union[Iterable[Logger], Logger]]",
            "an Iterable[Logger], a Logger or null",
            None,
        ),
        ("", "a value", "VALUE"),
    ],
)
def test_the_form_of_a_value(kind: str, words: str, placeholder: str | None) -> None:
    assert form_of(kind).words == words
    assert form_of(kind).placeholder == (placeholder or "VALUE")


def test_the_choices_of_a_value() -> None:
    assert choices_of("Literal['auto', 'newton'] | None") == ["auto", "newton"]
    assert choices_of("bool | None") == ["true", "false"]
    assert choices_of("int") == choices_of("") == []
