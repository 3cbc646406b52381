"""The program by its names: python -m softmax_torch, info, and what is missing without extras."""

import runpy
import sys
from pathlib import Path

import pytest
from support import in_forks

import softmax_torch
from softmax_torch import cli
from softmax_torch.cli.console import program_name, show_warning
from softmax_torch.solvers import ConvergenceWarning

WITHOUT = """
import json, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = {argv}
from softmax_torch.cli import main
main()
"""

TRAIN = ["lightning", "jsonargparse", "yaml", "torchmetrics", "pyarrow", "rich", "sklearn"]


def without(missing: list[str], *args: str) -> tuple[str, dict[str, str]]:
    """A program that runs the command line where packages are not installed."""
    return WITHOUT.format(missing=missing, argv=["softmax-torch", *args]), {}


@pytest.fixture(scope="module")
def bare() -> dict[str, tuple[int, str, str]]:
    """Status, output and errors of commands where torch alone is installed."""
    wanted = {
        " ".join(args): without(TRAIN, *args)
        for args in (["info"], ["--help"], ["test", "--help"], ["fit"], ["predict", "--input", "x"])
    }
    wanted["without lightning"] = without(["lightning"], "fit", "--data.batch_size", "8")
    done = in_forks(wanted)
    return {name: (end.code, end.stdout, end.stderr) for name, end in done.items()}


def test_info_and_help_need_torch_alone(bare: dict[str, tuple[int, str, str]]) -> None:
    for command, start in {
        "info": f"softmax_torch {softmax_torch.__version__}, torch ",
        "--help": "usage: softmax-torch COMMAND [options]",
        "test --help": "usage: softmax-torch test RUN [options]",
    }.items():
        code, output, errors = bare[command]
        assert code == 0, errors
        assert output.startswith(start)


@pytest.mark.parametrize("command", ["fit", "predict --input x", "without lightning"])
def test_other_commands_say_what_to_install(
    command: str, bare: dict[str, tuple[int, str, str]]
) -> None:
    code, _, errors = bare[command]
    assert code == 1
    [line] = errors.splitlines()
    assert line.startswith("error: No module named '")
    assert line.endswith("pip install 'softmax-torch[train]'")


def test_the_module_is_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = str(Path(softmax_torch.__file__).with_name("__main__.py"))
    monkeypatch.setattr(sys, "argv", [main, "test", "--nonsense"])
    monkeypatch.setattr(cli, "end_with_parent", lambda: None)
    monkeypatch.setattr(cli, "end_on_signals", lambda: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("softmax_torch", run_name="__main__")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: test: unknown option --nonsense\nsee: python -m softmax_torch test --help\n"
    )


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/usr/bin/softmax-torch", "softmax-torch"),
        ("train.py", "python train.py"),
        ("/lib/softmax_torch/__main__.py", "python -m softmax_torch"),
        ("/lib/pytest/__main__.py", "softmax-torch"),
    ],
)
def test_the_program_has_the_name_that_the_user_typed(
    path: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [path])
    assert program_name() == name


def test_own_classes_are_found_in_the_current_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an installed script does not by itself; files here come after all packages."""
    (here / "own_digits.py").write_text(
        "from softmax_torch.data import DigitsDataModule\n\n"
        "class SmallDigitsDataModule(DigitsDataModule):\n    pass\n"
    )
    monkeypatch.setattr(sys, "argv", ["softmax-torch", "fit", "--trainer.max_epochs", "1"])
    sys.argv += ["--data", "own_digits.SmallDigitsDataModule", "--trainer.accelerator", "cpu"]
    monkeypatch.setattr(cli, "end_with_parent", lambda: None)
    monkeypatch.setattr(cli, "leave_group", lambda: None)
    monkeypatch.setattr(cli, "end_on_signals", lambda: None)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    cli.main()
    assert sys.path[-1] == ""
    assert (here / "runs" / "small_digits" / "version_0" / "last.ckpt").exists()


def test_warnings_of_this_package_are_labelled_and_others_keep_their_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_warning("no optimum", ConvergenceWarning, "call.py", 177)
    show_warning("old name", DeprecationWarning, "call.py", 177)
    own, other = capsys.readouterr().err.split("\n", 1)
    assert own == "warning     no optimum"
    assert other.startswith("call.py:177:")
    assert "old name" in other
