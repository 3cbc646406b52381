"""Loggers of Lightning beside the run's own: their folder, the settings and the report's pictures.

A run always writes metrics.csv. Loggers that --trainer.logger adds get the same figures, the
settings as hyper-parameters, and at the end of the fit the pictures of the report.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as lightning_loggers
from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger

__all__ = ["RUN_FOLDER", "hyperparameters", "loggers_in_run", "with_logger_folder"]

RUN_FOLDER = "{run}"
"""Stands for the directory of the run in the arguments of a logger."""

FLAG = "--trainer.logger"


def with_logger_folder(args: list[str]) -> list[str]:
    """Return arguments, with the run's directory for a logger that needs a folder and has none."""
    if any(arg.startswith(f"{FLAG}.") and "save_dir" in arg.partition("=")[0] for arg in args):
        return args
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag == FLAG:
            end = i + (1 if equals else 2)
            name = value if equals else "".join(args[i + 1 : end])
            if _needs_folder(name):
                return [*args[:end], f"{FLAG}.save_dir", RUN_FOLDER, *args[end:]]
    return args


def _needs_folder(name: str) -> bool:
    """Return whether a name is that of a logger of Lightning without a default folder."""
    kind = getattr(lightning_loggers, name.rpartition(".")[2], None)
    if not inspect.isclass(kind):
        return False
    parameter = inspect.signature(kind).parameters.get("save_dir")
    return parameter is not None and parameter.default is parameter.empty


def loggers_in_run(loggers: list[Logger], settings: Any, folder: Path) -> list[Logger]:
    """Return the loggers; those whose arguments name ``RUN_FOLDER`` are made anew with the folder.

    Args:
        loggers: the loggers that the settings describe, which have opened no file yet.
        settings: the setting ``trainer.logger``: of one logger, of several, or a boolean.
        folder: the directory of the run.
    """
    described = settings if isinstance(settings, list) else [settings] * len(loggers)
    return [_in_folder(logger, one, folder) for logger, one in zip(loggers, described, strict=True)]


def _in_folder(logger: Logger, settings: Any, folder: Path) -> Logger:
    if not isinstance(settings, Namespace):
        return logger
    options = {**settings.get("init_args", {}), **settings.get("dict_kwargs", {})}
    placed = {
        name: value.replace(RUN_FOLDER, str(folder)) if isinstance(value, str) else value
        for name, value in options.items()
    }
    return logger if placed == options else type(logger)(**placed)


def hyperparameters(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by the name of their flag, such as ``model.C``, without unset ones."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            found |= hyperparameters(value, name)
        elif value is not None:
            found[name] = value
    return found
