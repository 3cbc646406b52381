"""Arguments that go without saying: the configuration of a checkpoint, of a run, of a first try."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch.cli import LightningCLI

from softmax_torch.training import checkpoint
from softmax_torch.training.runs import latest

__all__ = [
    "COMMANDS",
    "Resumed",
    "config_beside",
    "differences",
    "resumed",
    "with_config",
    "with_run",
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
    found: checkpoint.Found | None  # where; None for its start
    args: list[str]


def resumed(args: list[str]) -> Resumed | None:
    """What --resume asks for, and the arguments in which it is spelled out; None without it.

    Raises:
        FileNotFoundError, ValueError: there is no such run.
    """
    at = next((i for i, a in enumerate(args) if a.partition("=")[0] == "--resume"), None)
    if at is None:
        return None
    if "fit" not in args[:at]:
        raise ValueError("--resume: expected it after fit")
    after = args[at + 1 : at + 2]
    named = args[at].partition("=")[2] or next((a for a in after if not a.startswith("-")), "")
    rest = args[:at] + args[at + (2 if after == [named] else 1) :]
    if value_of("--ckpt_path", rest) is not None:
        raise ValueError("--resume: expected no --ckpt_path beside it, as it finds the last one")
    folder = Path(named) if named else latest(*place_of(rest))
    config = folder / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(
            f"--resume: expected the directory of a run, with config.yaml in it, got {folder}"
        )
    found, passed_over = checkpoint.newest(folder)
    for complaint in passed_over:
        print(f"warning: {complaint}", file=sys.stderr)
    fit = rest.index("fit") + 1
    given = [] if is_configured(rest) else ["--config", str(config)]
    path = [] if found is None else ["--ckpt_path", str(found.path)]
    return Resumed(folder, found, [*rest[:fit], *given, *path, *rest[fit:]])


def place_of(args: list[str]) -> tuple[Path, str]:
    """The folder of all runs and the name of the one that these arguments are for."""
    given = value_of("--config", args) or value_of("-c", args) or str(digits_config())
    config = yaml.safe_load(Path(given).read_text()) if Path(given).is_file() else {}
    runs = value_of("--runs", args) or config.get("runs", "runs")
    return Path(runs), value_of("--name", args) or config.get("name", "softmax_regression")


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


def is_configured(args: list[str]) -> bool:
    """Whether the arguments say which configuration to use, or ask for help."""
    told = any(a in ("-c", "--config") or a.startswith("--config=") for a in args)
    return told or asks_for_help(args)


def asks_for_help(args: list[str]) -> bool:
    """Whether the arguments ask what arguments there are."""
    return any(a == "-h" or a.startswith("--help") for a in args)


def with_run(args: list[str]) -> list[str]:
    """The arguments of ``report RUN``, with the configuration and the checkpoint that it means.

    That is the checkpoint which ``fit`` names at its end: the best one, and of a solver with one C
    the last.

    Raises:
        ValueError, FileNotFoundError: there is no such run.
    """
    at = next((i for i, a in enumerate(args) if a in COMMANDS), None)
    if at is None or args[at] != "report" or asks_for_help(args):
        return args
    named = args[at + 1] if at + 1 < len(args) else ""
    if not named or named.startswith("-"):
        raise ValueError(
            "report: expected the directory of a run after it, such as runs/digits/version_0"
        )
    path = Path(named) / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"report: expected the directory of a run, with config.yaml in it, got {named}"
        )
    rest = args[at + 2 :]
    given = ["--run", named]
    if not is_configured(args):
        given += ["--config", str(path)]
    if value_of("--ckpt_path", rest) is None:
        model = yaml.safe_load(path.read_text()).get("model") or {}
        model = model.get("init_args", model)
        solved = model.get("solver") and not isinstance(model.get("C"), list)
        given += ["--ckpt_path", str(Path(named) / ("last.ckpt" if solved else "best.ckpt"))]
    return [*args[: at + 1], *given, *rest]


def with_config(args: list[str]) -> list[str]:
    """The arguments with the --config that goes without saying.

    A checkpoint is used as its run was configured; a ``fit`` with nothing else trains on digits.

    Raises:
        ValueError, FileNotFoundError: there is no checkpoint to use, or no configuration beside it.
    """
    at = next((i for i, a in enumerate(args) if a in COMMANDS), None)
    if at is None or is_configured(args):
        return args
    path = value_of("--ckpt_path", args)
    if path is None and args[at] != "fit":
        raise ValueError(
            f"{args[at]}: expected --ckpt_path and a checkpoint, such as "
            "runs/digits/version_0/best.ckpt"
        )
    config = digits_config()
    if path is not None:
        checkpoint.check(Path(path))
        config = config_beside(Path(path))
    return [*args[: at + 1], "--config", str(config), *args[at + 1 :]]


def config_beside(path: Path) -> Path:
    """The configuration of the run that a checkpoint belongs to; FileNotFoundError without one."""
    config = path.parent / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(
            f"--ckpt_path: expected the configuration of the run beside {path}, got no {config}; "
            "give one with --config"
        )
    return config


def value_of(flag: str, args: list[str]) -> str | None:
    """What follows a flag, in either form, at its last place."""
    for argument, following in reversed(list(zip(args, [*args[1:], None], strict=False))):
        if argument == flag:
            return following
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def digits_config() -> Path:
    """configs/digits.yaml: beside the package in a checkout, within it where it is installed."""
    package = Path(__file__).parents[1]
    installed = package / "configs" / "digits.yaml"
    return installed if installed.exists() else package.parent / "configs" / "digits.yaml"
