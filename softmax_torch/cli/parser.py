"""One parser for all commands, built with or without the settings of Lightning's classes.

A command has arguments of its own, declared here, such as --ckpt_path. Commands that train or
evaluate also take settings: those of a YAML, and --trainer.*, --model.* and --data.*, whose names
are the arguments of classes. A command line is parsed without settings first, which refuses a
mistake before Lightning is imported; ``cli.settings`` parses it again with them.
"""

from __future__ import annotations

import re
from argparse import SUPPRESS
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser

from softmax_torch.calibration import Method
from softmax_torch.cli.console import program_name
from softmax_torch.cli.requests import Request, read_config
from softmax_torch.storage.checkpoints import CHECKPOINT_SECONDS

__all__ = ["COMMANDS", "CONFIG_HELP", "HIDDEN_RUN_ARGUMENTS", "build_parser", "parse"]

CONFIG_HELP = "YAML with settings; by default config.yaml of the run, and for fit digits.yaml."

CLASS_SETTINGS = ("trainer", "model", "data", "seed_everything")
"""Settings that need Lightning's classes, each with everything below it."""

RUN_SETTINGS = ("name", "runs", "checkpoint_seconds")
"""Settings of fit; other commands accept and ignore them, as config.yaml holds them."""


Argument = tuple[str, dict[str, Any]]


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        description: what it does.
        arguments: its own arguments.
        settings: names of the settings it takes.
    """

    description: str
    arguments: tuple[Argument, ...]
    settings: tuple[str, ...] = (*CLASS_SETTINGS, "print_config", *RUN_SETTINGS)


def build_parser(
    command: str | None = None,
    add_settings: Callable[[ArgumentParser], None] | None = None,
    kind: type[ArgumentParser] = ArgumentParser,
) -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """Return the parser of the program, and the parsers of its commands by name.

    Args:
        command: the command that takes settings too.
        add_settings: declares them.
        kind: class of that command's parser.
    """
    parser = ArgumentParser(prog=program_name(), description="Softmax regression.")
    subcommands = parser.add_subcommands(required=True)
    parsers = {}
    for name, (description, arguments, settings) in COMMANDS.items():
        sub = (kind if name == command else ArgumentParser)(
            # The usage that argparse makes fills a screen and hides the error below it.
            usage=f"{program_name()} {name} {'RUN ' * (name == 'report')}[options]",
            description=description,
            epilog=None if name == command or not settings else settings_hint(settings),
        )
        if name == command and add_settings is not None:
            add_settings(sub)
        elif settings:
            sub.add_argument("-c", "--config", action="append", help=CONFIG_HELP)
        for flag, options in arguments:
            sub.add_argument(flag, **options)
        parsers[name] = sub
        subcommands.add_subcommand(name, sub, help=description)
    return parser, parsers


def settings_hint(settings: tuple[str, ...]) -> str:
    """Return a line of help about the settings that a command takes."""
    flags = ", ".join(f"--{name}.*" for name in settings if name in ("trainer", "model", "data"))
    return f"Settings of the run may be given too: {flags}; see {program_name()} fit --help."


def parse(args: list[str]) -> Request:
    """Parse a command line without its settings, which are only told apart.

    Raises:
        SystemExit: the command or an argument does not exist, --config names no file with settings,
            or --help was given.
    """
    name = args[0] if args else ""
    parser, parsers = build_parser()
    own, settings = split_settings(args[1:], COMMANDS[name].settings if name in COMMANDS else ())
    request = Request(name, parser.parse_args([*args[:1], *own])[name], settings, args[1:])
    if request.command != "export" and request.arguments.get("resume") is None:
        for config in request.arguments.config or []:
            check_config(parsers[name], config)
    beside_input = [
        *settings,
        *(["--config"] if name == "predict" and request.arguments.config else []),
    ]
    if request.arguments.get("input") is not None and beside_input:
        parsers[name].error(f"unrecognized arguments: {' '.join(beside_input)}")
    if (
        name == "predict"
        and request.arguments.input is None
        and request.arguments.device is not None
    ):
        parsers[name].error("--device: expected --input beside it; else see --trainer.accelerator")
    return request


def split_settings(args: list[str], names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Split arguments into those of the command itself and settings of these names, in order."""
    own: list[str] = []
    settings: list[str] = []
    value_follows = False
    for arg in args:
        if names and re.match(rf"--({'|'.join(names)})([.+=]|$)", arg):
            settings.append(arg)
            value_follows = "=" not in arg
            continue
        is_flag = re.match(r"-[^\d.]", arg)  # -1 and -.5 are values
        (settings if value_follows and not is_flag else own).append(arg)
        value_follows = False
    return own, settings


def check_config(parser: ArgumentParser, config: str) -> None:
    """Refuse a --config that is no file with settings, or has settings that do not exist.

    What is below trainer, model and data is checked with their classes. YAML in place of a path,
    and addresses of other machines, are left to jsonargparse.
    """
    if "{" in config or "://" in config:
        return
    try:
        given = read_config(Path(config))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    known = {action.dest for action in parser._actions} | {*CLASS_SETTINGS, *RUN_SETTINGS}
    for key in given:
        if str(key).partition(".")[0] not in known:
            parser.error(f"--config: {config}: Option '{key}' is not accepted")


def argument(flag: str, help: str, **options: Any) -> Argument:
    """Return an argument: its flag, and options of ``add_argument``."""
    return flag, {"help": help, **options}


CKPT_PATH = argument("--ckpt_path", "The checkpoint.", type=str | None)
CALIBRATED = argument(
    "--calibrated",
    "Apply the calibration that the command calibrate stored in the checkpoint.",
    action="store_true",
)
INPUT = argument(
    "--input",
    "Raw inputs: a file or folder of the kind that the model was trained on; without one, the test "
    "set of the run.",
    type=str | None,
)
RUN_ARGUMENTS = (
    argument("--name", "Name of the run.", default="softmax_regression"),
    argument("--runs", "Folder that runs are written to.", default="runs"),
    argument(
        "--checkpoint_seconds",
        "Time between two checkpoints within an epoch; there is one at its end.",
        type=float,
        default=CHECKPOINT_SECONDS,
    ),
)
HIDDEN_RUN_ARGUMENTS = tuple(
    argument(flag, **(options | {"help": SUPPRESS})) for flag, options in RUN_ARGUMENTS
)
"""For commands other than fit, which ignore what config.yaml says of the run."""

COMMANDS = {
    "fit": Command(
        "Train a model, and evaluate its best checkpoint.",
        (
            *RUN_ARGUMENTS,
            argument(
                "--resume",
                "Directory of a run to resume; without one, the newest run of the name.",
                nargs="?",
                const="",
            ),
            argument("--ckpt_path", "Checkpoint to continue from in a new run.", type=str | None),
        ),
        (*CLASS_SETTINGS, "print_config"),
    ),
    "validate": Command("Print the metrics of the validation set.", (CKPT_PATH, CALIBRATED)),
    "test": Command("Print the metrics of the test set.", (CKPT_PATH, CALIBRATED)),
    "predict": Command(
        "Write labels and probabilities of samples to a file.",
        (
            *(CKPT_PATH, CALIBRATED, INPUT),
            argument(
                "--output",
                "A new file that ends in .csv, .jsonl or .parquet; by default predictions.csv "
                "beside the checkpoint, or predictions_1.csv, ...",
                type=str | None,
            ),
            argument("--top_k", "Number of most probable classes to name.", type=int, default=1),
            argument(
                "--probabilities", "Write the probability of every class too.", action="store_true"
            ),
            argument("--device", "With --input: device; by default a GPU, if there is one."),
        ),
    ),
    "calibrate": Command(
        "Fit a temperature to the validation set, and store it in the checkpoint.",
        (
            CKPT_PATH,
            argument(
                "--method",
                "One temperature; or vector, a scale and a shift for each class.",
                type=Method,
                default="temperature",
            ),
        ),
    ),
    "report": Command(
        "Write a page about a run.",
        (
            argument("run", "Directory of the run.", nargs="?", metavar="RUN"),
            argument(
                "--ckpt_path",
                "The checkpoint; by default the one that fit names at its end.",
                type=str | None,
            ),
        ),
    ),
    "export": Command(
        "Write a classifier for other programs, from raw inputs to classes and probabilities, "
        "after its predictions were compared with the checkpoint's on real inputs.",
        (
            argument("--ckpt_path", "The checkpoint.", required=True),
            argument(
                "--output",
                "A new file that ends in .onnx, .pt2 or .safetensors; a name without a suffix is a "
                "folder with model.safetensors and config.json.",
                required=True,
            ),
            *(INPUT, CALIBRATED),
        ),
        ("data",),
    ),
}
"""All commands by name."""
