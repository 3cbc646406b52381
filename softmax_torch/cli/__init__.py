"""The command line: every command takes a YAML and flags, and is declared in ``cli.command_table``.

    fit                         train; without --config: on scikit-learn's digits
    fit --resume [RUN]          resume a run, by default the newest of its name
    validate | test RUN         metrics of a run
    predict RUN [--input PATH]  label and probability of each sample of a file or folder, or of the
                                test set, as CSV, JSON or Parquet
    calibrate RUN               fit a temperature, and store it in the checkpoint
    report RUN                  a page about a run, in RUN/report, and its metrics
    export RUN --output FILE    a file for other programs: ONNX, torch.export or safetensors

RUN is the directory of a run, runs/NAME for the newest run of that name, or a checkpoint.

A run writes ``runs/<name>/version_<n>``: config.yaml, metrics.csv, best.ckpt (lowest validation
NLL), last.ckpt and previous.ckpt. A checkpoint is used with the config.yaml beside it unless
--config is given; validate, test, predict and export apply its calibration with --calibrated.
SIGTERM and SIGINT end a run after one more checkpoint, with status 143 and 130.

Lightning takes three times as long to import as torch. It is imported only by the commands that
train or evaluate, and only after their own arguments, files and checkpoint were accepted.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from softmax_torch.cli.console import error_of_this_package
from softmax_torch.cli.process_exit import end_with_parent, leave_group

NEEDS = "The command line needs more than the operator does: pip install 'softmax-torch[train]'"

try:
    from softmax_torch.cli.parser import parse
    from softmax_torch.cli.requests import Request
except ImportError as error:
    raise ImportError(f"{error}. {NEEDS}") from error

__all__ = ["main"]

CALLERS_MISTAKES = (ValueError, IndexError, OSError, ArithmeticError, ImportError)
"""What this package raises for unusable input and for missing packages."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the program with these arguments, by default those of the command line.

    Raises:
        SystemExit: the arguments are unusable. If the program was started from the command line,
            unusable input raises it too, with a message instead of a traceback.
    """
    if args is None:
        # Lightning would exit with status 0 or 1.
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda signum, _: sys.exit(128 + signum))
        end_with_parent()
    with ExitStack() as closing:  # run directories are unlocked at the end
        try:
            run(parse(list(sys.argv[1:] if args is None else args)), closing)
        except CALLERS_MISTAKES as error:
            mistake = error_of_this_package(error)
            if args is not None or mistake is None:
                raise
            sys.exit(f"error: {mistake}")
    if args is None:
        leave_group()


def run(request: Request, closing: ExitStack) -> None:
    """Run a command, and import only the modules that it needs."""
    request = request.located()
    if request.command == "export":
        from softmax_torch.cli.exporting import export_checkpoint

        export_checkpoint(request)
    elif request.command == "predict" and request.arguments.input is not None:
        from softmax_torch.cli.predictions import predict_input

        predict_input(request)
    else:
        request = request.resolved()
        if request.command == "predict":
            from softmax_torch.cli.predictions import new_prediction_file

            new_prediction_file(request)  # an unusable --output is refused first
        try:
            from softmax_torch.cli.commands import run_with_lightning
        except ImportError as error:
            raise ImportError(f"{error}. {NEEDS}") from error
        run_with_lightning(request, closing)
