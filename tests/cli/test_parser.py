"""The parser tells settings from arguments, and each command shows its arguments in its help."""

from typing import Any

import pytest

from softmax_torch import cli
from softmax_torch.cli.command_table import COMMANDS
from softmax_torch.cli.parser import split_settings


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


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "fit"])
def test_help_of_a_command_has_its_arguments(name: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag, options in COMMANDS[name].arguments:
        assert options.get("metavar", flag) in text
    assert COMMANDS[name].description in text
    assert "fit --help" in text


def test_help_names_all_commands(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f" {name} {command.description}" in text for name, command in COMMANDS.items())
