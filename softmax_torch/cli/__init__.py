"""The command line: commands that are each made of a YAML and flags, and one that draws.

    fit                                    train; without --config: on scikit-learn's digits
    fit --resume [RUN]                     go on with a run, by default the newest of its name
    validate | test --ckpt_path CKPT       figures of a checkpoint
    predict --ckpt_path CKPT [--input PATH]
                                           label and probability of each sample of a file or
                                           folder, or of the test set, as CSV, JSON or Parquet
    calibrate --ckpt_path CKPT             fit a temperature, and keep it in the checkpoint
    report RUN                             a page about a run, in RUN/report, and its figures
    export --ckpt_path CKPT --output FILE  for others to run: ONNX, torch.export or safetensors
    plot DIAGRAM [--output FILE]           softmax, cross-entropy or gradient-descent, as PNG or SVG

A run writes ``runs/<name>/version_<n>``: config.yaml, metrics.csv, best.ckpt (lowest validation
NLL), last.ckpt and previous.ckpt. A checkpoint is used with the config.yaml beside it unless
--config is given; with its calibration where validate, test, predict or export have --calibrated.
SIGTERM and SIGINT end a run after one more checkpoint, with status 143 and 130.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch.distributed as dist

try:
    from softmax_torch.cli import predictions
    from softmax_torch.cli.arguments import known, resumed, with_config
    from softmax_torch.cli.commands import CLI
    from softmax_torch.cli.console import ours, program, quiet, say, say_how_to_go_on, shown
    from softmax_torch.cli.data_progress import ConsoleReporter
    from softmax_torch.cli.exporting import export_checkpoint
    from softmax_torch.cli.predictions import Wanted, predict_input
    from softmax_torch.data.progress import reporting_to
    from softmax_torch.report import diagrams
    from softmax_torch.training.saving import Stopped
except ImportError as error:
    raise ImportError(
        f"{error}. The command line needs more than the operator does: "
        "pip install 'softmax-torch[train]'"
    ) from error

__all__ = ["main"]

PARENT, PR_SET_PDEATHSIG = "SOFTMAX_TORCH_PARENT", 1
"""Variable by which a process knows the one that started it, and a number of <linux/prctl.h>."""

CALLERS_MISTAKES = (ValueError, IndexError, OSError, ArithmeticError, ImportError)
"""What this package raises for input that cannot be used, and for packages that are missing."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the program with these arguments, by default those of the command line.

    Raises:
        SystemExit: arguments that cannot be used, and, started from the command line, input that
            cannot: with a message instead of a traceback.
    """
    given = list(sys.argv[1:] if args is None else args)
    if args is None:
        # Lightning would leave with status 0 or 1.
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda signum, _: sys.exit(128 + signum))
        end_with_parent()
    with quiet(), reporting_to(ConsoleReporter()):
        closing = ExitStack()  # run directories are free again afterwards
        try:
            if given[:1] == ["plot"]:
                plot(given[1:])
                return
            if given[:1] == ["export"]:
                export_checkpoint(given[1:])
                return
            if given[:1] == ["predict"] and known(given)[0].input is not None:
                predict(given[1:])
                return
            run = resumed(given)
            CLI(with_config(given if run is None else run.args), closing, run)
        except Stopped as stopped:
            say_how_to_go_on(stopped)
            raise
        except CALLERS_MISTAKES as error:
            mistake = ours(error)
            if args is not None or mistake is None:
                raise
            sys.exit(f"error: {mistake}")
        finally:
            closing.close()
    if args is None and dist.is_available() and dist.is_initialized():
        leave()


def leave() -> None:
    """End this process of a group at once, with status 0.

    Lightning leaves gloo groups alive. While Python shuts down, one of their threads may then abort
    the process after all work is done (https://github.com/pytorch/pytorch/issues/190489).
    """
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def plot(args: Sequence[str]) -> None:
    """Draw the diagram that these arguments name."""
    parser = argparse.ArgumentParser(
        prog=f"{program()} plot",
        description="Draw a diagram of the method.",
        allow_abbrev=False,
    )
    parser.add_argument("diagram", help=", ".join(diagrams.DIAGRAMS))
    parser.add_argument(
        "--output",
        type=Path,
        help="A new file that ends in .png or .svg; by default DIAGRAM.svg, or DIAGRAM_1.svg, ...",
    )
    given = parser.parse_args(args)
    say("diagram", shown(diagrams.plot(given.diagram, given.output)))


def predict(args: list[str]) -> None:
    """Predict the file or folder that these arguments name, with a checkpoint and nothing else."""
    parser = argparse.ArgumentParser(prog=f"{program()} predict", allow_abbrev=False)
    parser.add_argument("--ckpt_path", required=True, help="The checkpoint.")
    predictions.add_arguments(parser)
    parser.add_argument("--device", help="Where to; by default a GPU, if there is one.")
    given = parser.parse_args(args)
    wanted = Wanted.of(given.ckpt_path, given.output, given.top_k, given.probabilities)
    predict_input(given.ckpt_path, given.input, given.calibrated, wanted, given.device)


def end_with_parent() -> None:
    """Let the processes that Lightning starts from this one, for other devices, end with it.

    One that waits for the first to meet it would go on waiting for half an hour. (Linux only.)
    """
    if os.environ.get(PARENT) == str(os.getppid()):
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ[PARENT] = str(os.getpid())
