"""One flag is enough: what follows from it is filled in, with a line that says so."""

import re
from pathlib import Path

import pytest
import yaml

from softmax_torch import cli
from softmax_torch.cli.config_files import find_config, read_config, shipped_configs
from softmax_torch.cli.given_settings import given_settings
from softmax_torch.cli.implied_settings import CONFIG_OF_DATA, implied_config, solver_settings
from softmax_torch.cli.mistakes import UsageError
from softmax_torch.data import DigitsDataModule

TABLE = "size,color,class\n" + "".join(f"{k},{'ab'[k % 2]},{'xy'[k % 2]}\n" for k in range(40))


class OwnDataModule(DigitsDataModule):
    """A data module of a user."""


@pytest.mark.parametrize(
    ("flags", "config"),
    [
        ([], "digits"),
        (["--data.batch_size", "8", "--model.C", "1"], "digits"),
        (["--data", "DigitsDataModule"], "digits"),
        (["--data", "TableDataModule"], "table"),
        (["--data=softmax_torch.data.MNISTDataModule"], "mnist"),
        (["--data.file", "a.csv", "--data.target", "b"], "table"),
        (["--data.variant", "KMNIST"], "mnist"),
        (["--data.root", "a", "--data.size", "[8, 8]"], "image_folder"),
        (["--data.train", "a.npy"], "features"),
        (["--data.source.variant", "KMNIST"], "linear_probe"),
    ],
)
def test_the_data_implies_a_configuration(flags: list[str], config: str) -> None:
    found = implied_config(flags)
    assert found.path.stem == config
    assert bool(found.note) == (config != "digits")


def test_the_settings_that_chose_a_configuration_are_named() -> None:
    note = implied_config(["--data.train", "a"]).note
    assert note.startswith("features, which has data.train;")
    note = implied_config(["--data.target", "a", "--data.file", "b"]).note
    assert note.startswith("table, which has data.file, data.target;")


def test_every_kind_of_data_has_a_configuration_of_its_own() -> None:
    for name, config in CONFIG_OF_DATA.items():
        settings = read_config(shipped_configs()[config])
        assert settings["data"]["class_path"] == f"softmax_torch.data.{name}"
        assert settings["name"] == config


def test_own_data_gets_a_run_name_of_its_own() -> None:
    path, flags, _ = implied_config(["--data", f"{__name__}.OwnDataModule"])
    assert path.stem == "digits"
    assert flags == ["--name", "own"]


@pytest.mark.parametrize(
    ("config", "flags", "expected"),
    [
        ("digits", ["--model.C", "1"], []),
        (
            "digits",
            ["--model.solver", "newton"],
            [
                *("--data.batch_size", "null", "--model.optimizer", "null"),
                *("--trainer.max_epochs", "200", "--model.lr_scheduler", "null"),
            ],
        ),
        (
            "digits_gradient_descent",  # batch_size is null there
            ["--model.solver", "newton", "--trainer.max_epochs", "5"],
            ["--model.optimizer", "null"],
        ),
        ("table", ["--model.solver", "newton"], []),
        ("table", ["--model.solver", "null"], []),
        # What is given beside the solver stays, for the model to refuse.
        (
            "mnist_newton",
            ["--model.solver", "lbfgs", "--model.optimizer", "Adam", "--data.batch_size", "7"],
            [],
        ),
    ],
)
def test_a_solver_implies_what_it_needs(config: str, flags: list[str], expected: list[str]) -> None:
    found, note = solver_settings(given_settings([shipped_configs()[config]], flags, ["name"]))
    assert found == expected
    assert bool(note) == bool(expected)


def test_a_solver_in_a_file_without_a_batch_size_gets_all_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("data: DigitsDataModule\nmodel: {solver: newton}\n")
    found, note = solver_settings(given_settings([path], [], []))
    assert found == ["--data.batch_size", "null"]
    assert note == "newton takes all samples in each step: batch_size null (it was 32)"


def test_newton_alone_is_enough(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["fit", "--model.solver", "newton"])
    output = capsys.readouterr().out
    assert output.startswith(
        "solver      newton takes all samples in each step: batch_size null (it was 32), no "
        "optimizer, at most 200 iterations (epochs were 30), no learning-rate schedule\n"
    )
    assert re.search(r"^optimum ", output, re.M)
    settings = yaml.safe_load((here / "runs/digits/version_0/config.yaml").read_text())
    assert settings["data"]["init_args"]["batch_size"] is None


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--data", "TableDataModule"], "which shows TableDataModule"),
        (["--data.missing", "['?']"], "which has data.file, data.missing"),
    ],
)
def test_a_table_alone_is_enough(
    flags: list[str], reason: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "t.csv").write_text(TABLE)
    cli.main(["fit", "--data.file", "t.csv", *flags])  # its column "class" is the default target
    line = f"config      table, {reason}; --config chooses another\n"
    assert capsys.readouterr().out.startswith(line)
    assert (here / "runs" / "table" / "version_0" / "last.ckpt").exists()


def test_the_configuration_is_printed_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit", "--model.solver", "newton", "--print_config"])
    assert stopped.value.code == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["model"]["init_args"]["optimizer"] is None


def test_names_in_a_configuration_are_relative_to_it(here: Path) -> None:
    """Of other YAML files; data files are relative to the current folder."""
    (here / "sub").mkdir()
    (here / "sub" / "data.yaml").write_text(
        "class_path: softmax_torch.data.TableDataModule\n"
        "init_args: {file: t.csv, target: class, batch_size: null}\n"
    )
    (here / "sub" / "own.yaml").write_text(
        "name: own\ndata: data.yaml\nmodel: {C: 1, solver: newton}\n"
    )
    (here / "t.csv").write_text(TABLE)
    cli.main(["fit", "--config", "sub/own.yaml", "--trainer.max_epochs", "50"])
    settings = yaml.safe_load((here / "runs/own/version_0/config.yaml").read_text())
    assert settings["data"]["init_args"]["file"] == "t.csv"


def test_a_shipped_configuration_is_found_by_name(here: Path) -> None:
    shipped = find_config("table")
    assert shipped == shipped_configs()["table"]
    assert shipped.is_file()
    (here / "table.yaml").write_text("name: mine\n")
    assert find_config("table") == Path("table.yaml")  # a file of that name wins
    (here / "table").mkdir()
    assert find_config("table") == Path("table.yaml")
    (here / "digits").write_text("name: mine\n")
    assert find_config("digits") == Path("digits")
    with pytest.raises(UsageError, match="got here, which does not exist"):
        find_config("here")
