"""Arguments that go without saying: the configuration of a checkpoint, of a run, of a first try."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch.cli import LightningCLI

from softmax_torch.cli.console import program
from softmax_torch.storage.checkpoints import CheckpointFile, newest_checkpoint, read_checkpoint
from softmax_torch.storage.run_directories import latest_run

__all__ = [
    "COMMANDS",
    "Resumed",
    "config_beside",
    "differences",
    "known",
    "resumed",
    "settings",
    "with_config",
]

COMMANDS = (*LightningCLI.subcommands(), "calibrate", "report")
"""Commands that take a configuration."""

FREE = {"ckpt_path", "resume", "runs", "name", "checkpoint_seconds"} | {
    f"trainer.{name}"
    for name in ("max_epochs", "max_steps", "max_time", "enable_progress_bar", "profiler")
}
"""Settings that may differ in a resumed run, since its steps stay the same."""

PLACES = ("root", "download", "cache", "file", "val_file", "test_file")
"""Arguments of data modules that say where data is, not which."""


class Resumed(NamedTuple):
    """A run to go on with."""

    folder: Path
    found: CheckpointFile | None  # where; None for its start
    args: list[str]


def known(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags that are looked at before the others are parsed; and the arguments, less --resume.

    Which command has which flag is seen where its own parser gets them.
    """
    parser = argparse.ArgumentParser(
        prog=program(), usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False
    )
    parser.add_argument("--resume", nargs="?", const="")
    given, rest = parser.parse_known_args(args)
    for flag in ("--ckpt_path", "--input", "--runs", "--name"):
        parser.add_argument(flag)
    parser.add_argument("--config", "-c")
    parser.add_argument("--help", "-h", action="store_true")
    return parser.parse_known_args(rest, given)[0], rest


def resumed(args: list[str]) -> Resumed | None:
    """What --resume asks for, and the arguments in which it is spelled out; None without it.

    Raises:
        FileNotFoundError, ValueError: there is no such run.
    """
    given, rest = known(args)
    if given.resume is None:
        return None
    if "fit" not in rest:
        raise ValueError("--resume: expected it after fit")
    if given.ckpt_path is not None:
        raise ValueError("--resume: expected no --ckpt_path beside it, as it finds the last one")
    folder = Path(given.resume) if given.resume else latest_run(*place_of(given))
    config = config_of(folder, "--resume")
    found, passed_over = newest_checkpoint(folder)
    for complaint in passed_over:
        print(f"warning: {complaint}", file=sys.stderr)
    spelled = [] if given.config or given.help else ["--config", str(config)]
    if found is not None:
        spelled += ["--ckpt_path", str(found.path)]
    fit = rest.index("fit") + 1
    return Resumed(folder, found, [*rest[:fit], *spelled, *rest[fit:]])


def place_of(given: argparse.Namespace) -> tuple[Path, str]:
    """The folder of all runs and the name of the one that these arguments are for."""
    config = settings(Path(given.config or digits_config()))
    runs = given.runs or config.get("runs", "runs")
    return Path(runs), given.name or config.get("name", "softmax_regression")


def settings(path: Path) -> dict[str, Any]:
    """What a configuration sets; FileNotFoundError or ValueError where it is none."""
    if not path.is_file():
        raise FileNotFoundError(f"--config: expected a file, got {path}")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: expected YAML in {path}, got {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config: expected settings in {path}, got {config}")
    return config


def differences(saved: Any, given: Any, name: str = "") -> list[str]:
    """The settings in which two configurations differ, those aside that may: a line each."""
    if name in FREE or name.rpartition(".")[2] in PLACES:
        return []
    if isinstance(saved, dict) and isinstance(given, dict):
        # Flags are typed without it: --model.C.
        prefix = f"{name.removesuffix('.init_args')}." if name else ""
        keys = [*saved, *(key for key in given if key not in saved)]
        return [
            line
            for key in keys
            for line in differences(saved.get(key), given.get(key), f"{prefix}{key}")
        ]
    return [] if saved == given else [f"{name}: expected {saved}, got {given}"]


def with_config(args: list[str]) -> list[str]:
    """The arguments with the --config that goes without saying.

    A checkpoint is used as its run was configured, and a run is reported on so; a ``fit`` with
    nothing else trains on digits.

    Raises:
        ValueError, FileNotFoundError: there is no checkpoint or run to use, or no configuration of
            it.
    """
    at = next((i for i, a in enumerate(args) if a in COMMANDS), None)
    given, _ = known(args)
    if at is None or given.help:
        return args
    command, rest = args[at], args[at + 1 :]
    if command == "report":
        named = rest[0] if rest else ""
        if not named or named.startswith("-"):
            raise ValueError(
                "report: expected the directory of a run after it, such as runs/digits/version_0"
            )
        config = config_of(Path(named), command)
        rest = ["--run", *rest]
    elif given.config is not None:
        return args
    elif given.ckpt_path is not None:
        read_checkpoint(Path(given.ckpt_path))
        config = config_beside(Path(given.ckpt_path))
    elif command == "fit":
        config = digits_config()
    else:
        raise ValueError(
            f"{command}: expected --ckpt_path and a checkpoint, such as "
            "runs/digits/version_0/best.ckpt"
        )
    spelled = ["--config", str(config)] if given.config is None else []
    return [*args[: at + 1], *spelled, *rest]


def config_of(run: Path, asked_by: str) -> Path:
    """The configuration of a run; FileNotFoundError where that is none."""
    config = run / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(
            f"{asked_by}: expected the directory of a run, with config.yaml in it, got {run}"
        )
    return config


def config_beside(path: Path) -> Path:
    """The configuration of the run that a checkpoint belongs to; FileNotFoundError without one."""
    config = path.parent / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(
            f"--ckpt_path: expected the configuration of the run beside {path}, got no {config}; "
            "give one with --config"
        )
    return config


def digits_config() -> Path:
    """configs/digits.yaml: beside the package in a checkout, within it where it is installed."""
    package = Path(__file__).parents[1]
    installed = package / "configs" / "digits.yaml"
    return installed if installed.exists() else package.parent / "configs" / "digits.yaml"
