"""The arguments of all commands, and one parser for them, with or without Lightning's settings.

A command has arguments of its own, declared here, such as --ckpt_path. Commands that train or
evaluate also take settings, from a YAML and as --trainer.*, --model.* and --data.*; their names are
the arguments of classes. ``cli.settings`` adds the settings to a parser.
"""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jsonargparse import ArgumentParser

from softmax_torch.calibration import Method
from softmax_torch.cli.console import program_name
from softmax_torch.storage.checkpoints import CHECKPOINT_SECONDS

__all__ = [
    "CLASS_SETTINGS",
    "COMMANDS",
    "CONFIG_HELP",
    "HIDDEN_RUN_ARGUMENTS",
    "RUN_SETTINGS",
    "build_parser",
]

CONFIG_HELP = "YAML file of settings; by default the run's config.yaml, and digits.yaml for fit."

CLASS_SETTINGS = ("trainer", "model", "data", "seed_everything")
"""Settings that need Lightning's classes, each with everything below it."""

RUN_SETTINGS = ("name", "runs", "checkpoint_seconds")
"""Settings of fit. Other commands accept them, since config.yaml holds them, and ignore them."""

Argument = tuple[str, dict[str, Any]]


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        description: a sentence for the help.
        arguments: its own arguments.
        settings: names of the settings it takes.
    """

    description: str
    arguments: tuple[Argument, ...]
    settings: tuple[str, ...] = (*CLASS_SETTINGS, "print_config", *RUN_SETTINGS)


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
    "Raw inputs: a file or folder of the kind that the model was trained on; by default the test "
    "set of the run.",
    type=str | None,
)
UNKNOWN = argument(
    "--unknown",
    "What to do with categories in --input that training never saw: report them, or refuse them.",
    type=Literal["report", "refuse"],
    default="report",
)
BACKBONE = argument(
    "--backbone",
    "Import path of your own net, such as my_nets.Net, if the model was trained with one: a "
    "checkpoint alone imports no module.",
    type=str | None,
)
RUN_ARGUMENTS = (
    argument("--name", "Name of the run.", default="softmax_regression"),
    argument("--runs", "Folder that runs are written to.", default="runs"),
    argument(
        "--checkpoint_seconds",
        "Seconds between checkpoints within an epoch; another one is written at its end.",
        type=float,
        default=CHECKPOINT_SECONDS,
    ),
)
HIDDEN_RUN_ARGUMENTS = tuple(
    argument(flag, **(options | {"help": SUPPRESS})) for flag, options in RUN_ARGUMENTS
)
"""The same for other commands, which ignore them and do not list them in their help."""

COMMANDS = {
    "fit": Command(
        "Train a model, and evaluate its best checkpoint.",
        (
            *RUN_ARGUMENTS,
            argument(
                "--resume",
                "Directory of the run to resume; without a value, the newest run of --name.",
                nargs="?",
                const="",
            ),
            argument("--ckpt_path", "Checkpoint that a new run starts from.", type=str | None),
        ),
        (*CLASS_SETTINGS, "print_config"),
    ),
    "validate": Command("Print the metrics of the validation set.", (CKPT_PATH, CALIBRATED)),
    "test": Command(
        "Print the metrics of the test set, or of a new labelled table.",
        (
            *(CKPT_PATH, CALIBRATED),
            argument("--input", "A new table with a column of classes.", type=str | None),
            argument(
                "--target",
                "Column of --input with the classes; by default that of the training table.",
                type=str | None,
            ),
            argument(
                "--drop_unlabelled",
                "Leave out rows of --input that have no class.",
                action="store_true",
            ),
            UNKNOWN,
        ),
    ),
    "predict": Command(
        "Write labels and probabilities of samples to a file.",
        (
            *(CKPT_PATH, CALIBRATED, INPUT, BACKBONE),
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
            UNKNOWN,
            argument("--device", "Device that predicts --input; by default a GPU if there is one."),
        ),
    ),
    "calibrate": Command(
        "Fit a temperature to the validation set, and store it in the checkpoint.",
        (
            CKPT_PATH,
            argument(
                "--method",
                "temperature: one number for all logits; vector: a scale and a shift per class.",
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
                "The checkpoint; by default the one that fit printed at its end.",
                type=str | None,
            ),
        ),
    ),
    "export": Command(
        "Write a file for other programs, from raw inputs to classes and probabilities, and "
        "compare its predictions with the checkpoint's.",
        (
            argument("--ckpt_path", "The checkpoint.", required=True),
            argument(
                "--output",
                "A new file that ends in .onnx, .pt2 or .safetensors; a name without a suffix is a "
                "folder with model.safetensors and config.json.",
                required=True,
            ),
            *(INPUT, CALIBRATED, BACKBONE),
        ),
        ("data",),
    ),
}
"""All commands by name."""


def build_parser(
    command: str | None = None,
    add_settings: Callable[[ArgumentParser], None] | None = None,
    kind: type[ArgumentParser] = ArgumentParser,
) -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """Return the parser of the program, and the parsers of its commands by name.

    Args:
        command: the command whose settings are added.
        add_settings: adds the settings to the parser of that command.
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
    return f"Settings of the run are accepted too: {flags}; see {program_name()} fit --help."
