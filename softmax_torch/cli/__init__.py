"""The command line: every command takes a YAML and flags, and is declared in ``cli.command_table``.

    fit                         train; without --config: on scikit-learn's digits
    fit --resume [RUN]          resume a run, by default the newest of its name
    validate | test RUN         metrics of a run
    test RUN --input FILE       metrics of a run on a new labelled table
    predict RUN [--input PATH]  label and probability of each sample of a file or folder, or of the
                                test set, as CSV, JSON or Parquet
    calibrate RUN               fit a temperature, conformal sets, a threshold or a Laplace
                                approximation
    report RUN                  a page about a run, in RUN/report, and its metrics
    inference [RUN]             coefficients of a table with standard errors, intervals and tests
    export RUN --output FILE    a file for other programs: ONNX, torch.export or safetensors
    info                        versions, kernels, threads and devices
    completion SHELL            a script that completes commands and settings

RUN is the directory of a run, runs/NAME for the newest run of that name, or a checkpoint.

A run writes ``runs/<name>/version_<n>``: config.yaml, metrics.csv, best.ckpt (lowest validation
NLL), last.ckpt and previous.ckpt. A checkpoint is used with the config.yaml beside it unless
--config is given; validate, test, predict and export apply its calibration with --calibrated, and
its Laplace approximation with --laplace.
SIGTERM and SIGINT end the program with status 143 and 130, a run after one more checkpoint.

Lightning takes three times as long to import as torch. It is imported only by the commands that
train or evaluate, and only after their own arguments, files and checkpoint were accepted. This file
does not even import torch: signals are handled before it is imported.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from softmax_torch.cli.console import error_of_this_package, program_name, show_warning
from softmax_torch.cli.mistakes import UsageError, or_nearest
from softmax_torch.cli.process_exit import end_on_signals, end_with_parent, leave_group

if TYPE_CHECKING:
    from softmax_torch.cli.requests import Request

__all__ = ["main"]

NEEDS = "The command line needs more than the operator does: pip install 'softmax-torch[train]'"

CALLERS_MISTAKES = (ValueError, IndexError, OSError, ArithmeticError, ImportError)
"""What this package raises for unusable input and for missing packages."""

HELP = ("-h", "--help")


def main(args: Sequence[str] | None = None) -> None:
    """Run the program with these arguments, by default those of the command line.

    Raises:
        SystemExit: the arguments are unusable, which has the status 2. If the program was started
            from the command line, unusable input raises it too, with a message instead of a
            traceback.
    """
    if args is None:
        end_on_signals()
        end_with_parent()
        warnings.showwarning = show_warning
        # Classes of the user's own files. They come last: a file here hides no package.
        sys.path.append("")
    given = list(sys.argv[1:] if args is None else args)
    with ExitStack() as closing:  # run directories are unlocked at the end
        try:
            run(given, closing)
        except UsageError as mistake:
            print(f"error: {mistake}\n{help_hint(given)}", file=sys.stderr)
            sys.exit(2)
        except CALLERS_MISTAKES as error:
            shown = error_of_this_package(error)
            if args is not None or shown is None:
                raise
            sys.exit(f"error: {shown}")
    if args is None:
        leave_group()


def run(args: list[str], closing: ExitStack) -> None:
    """Run a command, and import only the modules that it needs."""
    from softmax_torch.cli.command_table import COMMANDS, LIGHT_COMMANDS

    if not args or args[0] in HELP:
        from softmax_torch.cli.help import program_help

        print(program_help())
        if not args:
            sys.exit(2)
        return
    name = args[0]
    if name not in {**COMMANDS, **LIGHT_COMMANDS}:
        raise UsageError(f"unknown command {name}{or_nearest(name, [*COMMANDS, *LIGHT_COMMANDS])}")
    if {*HELP, "--help-all"} & {*args}:
        show_help(args)
    elif name == "info":
        from softmax_torch.loss.config import show_config

        expect_arguments(args, 0)
        show_config()
    elif name == "completion":
        expect_arguments(args, 1)
        with needing_train():
            from softmax_torch.cli.completion import completion_script

            print(completion_script(args[1]))
    else:
        with needing_train():
            from softmax_torch.cli.parser import parse
        run_request(parse(args), closing)


def run_request(request: Request, closing: ExitStack) -> None:
    """Run a command that is parsed."""
    request = request.located()
    if request.command == "export":
        with needing_train():
            from softmax_torch.cli.exporting import export_checkpoint

        export_checkpoint(request)
    elif request.command == "predict" and request.arguments.input is not None:
        with needing_train():
            from softmax_torch.cli.predictions import predict_input

        predict_input(request)
    elif request.command == "test" and request.arguments.input is not None:
        with needing_train():
            from softmax_torch.cli.labelled_file import test_labelled_file

        test_labelled_file(request)
    else:
        with needing_train():  # names of settings are read in Lightning's files
            request = request.resolved()
        if request.command == "predict":
            with needing_train():
                from softmax_torch.cli.predictions import new_prediction_file

            new_prediction_file(request)  # an unusable --output is refused first
        with needing_train():
            from softmax_torch.cli.commands import run_with_lightning
        run_with_lightning(request, closing)


def show_help(args: list[str]) -> None:
    """Print the page of a command; of fit, for the configuration among the arguments."""
    from softmax_torch.cli.command_table import COMMANDS
    from softmax_torch.cli.help import command_help, fit_help

    name = args[0]
    if "--help-all" in args and name in COMMANDS and "trainer" in COMMANDS[name].settings:
        with needing_train():
            from softmax_torch.cli.settings import settings_parser

            settings_parser(name)[1].print_help()
    elif name == "fit":
        with needing_train():
            from softmax_torch.cli.help_request import fit_settings

            print(fit_help(*fit_settings(args[1:])))
    else:
        print(command_help(name))


def expect_arguments(args: list[str], number: int) -> None:
    """Raise UsageError unless a command has so many arguments."""
    if len(args) != 1 + number:
        raise UsageError(
            f"{args[0]}: expected {number or 'no'} argument{'s' * (number != 1)}, got "
            f"{' '.join(args[1:]) or 'none'}"
        )


def help_hint(args: list[str]) -> str:
    """Return a line that says where the right arguments are listed."""
    from softmax_torch.cli.command_table import COMMANDS

    name = f" {args[0]}" if args and args[0] in COMMANDS else ""
    return f"see: {program_name()}{name} --help"


@contextmanager
def needing_train() -> Iterator[None]:
    """Say which installation has the package that an import inside lacks."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{error}. {NEEDS}") from error
