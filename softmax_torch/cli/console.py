"""What the program says, and what it keeps others from saying."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch.trainer import Trainer
from lightning.pytorch.utilities import rank_zero_only

from softmax_torch.training.run_checkpoint import Stopped

__all__ = [
    "device",
    "figures",
    "ours",
    "program",
    "quiet",
    "say",
    "say_how_to_go_on",
    "shown",
]


@rank_zero_only
def say(label: str, text: str) -> None:
    """A line of the report."""
    print(f"{label:12s}{text}")


@rank_zero_only
def say_how_to_go_on(stopped: Stopped) -> None:
    """What became of a run that a signal ended."""
    print(f"{stopped.message}; go on with", file=sys.stderr)
    print(f"    {program()} fit --resume {shown(stopped.path.parent)}", file=sys.stderr)


def figures(results: Mapping[str, float]) -> str:
    """The figures of a stage, without its name."""
    named = {name.partition("/")[2]: value for name, value in results.items() if "/" in name}
    return "  ".join(f"{name} {value:.4f}" for name, value in named.items())


def device(trainer: Trainer) -> str:
    """What the training ran on."""
    root = trainer.strategy.root_device
    if root.type == "cuda":
        return f"{trainer.num_devices} x {torch.cuda.get_device_name(root)}"
    return f"{root.type}, {torch.get_num_threads()} threads" if root.type == "cpu" else root.type


def shown(path: str | Path) -> str:
    """A path as short as it can be typed here."""
    path, here = Path(path).absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def program() -> str:
    """How this program was started, as the user would type it."""
    name = Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else "softmax-torch"


def ours(error: BaseException | None) -> BaseException | None:
    """The error of this package that led to ``error``, if one did: its message says it all."""
    while error is not None:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).startswith("softmax_torch."):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning without its notes and advertisements; warnings still come through."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # Lightning's own use of a torch interface that torch 2.15 deprecates.
        warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
        # A checkpoint holds the state of callbacks that evaluation has no use for.
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        # Figures are the same in all processes by the time they are logged.
        warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
