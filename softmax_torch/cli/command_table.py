"""The commands of the program, with the arguments of each.

A command has arguments of its own, declared here, such as --ckpt_path. Commands that train or
evaluate also take settings, from a YAML and as --trainer.*, --model.* and --data.*; their names are
the arguments of classes. ``cli.command_parsers`` makes parsers of this table, ``cli.help`` pages.
"""

from __future__ import annotations

from argparse import SUPPRESS
from typing import Any, Literal, NamedTuple

from softmax_torch.calibration import Method
from softmax_torch.conformal import LEVEL, Score
from softmax_torch.decision_threshold import Criterion
from softmax_torch.laplace import Method as LaplaceMethod
from softmax_torch.laplace import Structure
from softmax_torch.storage.checkpoints import CHECKPOINT_SECONDS

__all__ = [
    "CLASS_SETTINGS",
    "COMMANDS",
    "CONFIG_HELP",
    "HIDDEN_RUN_ARGUMENTS",
    "LIGHT_COMMANDS",
    "METHOD_OPTIONS",
    "RUN_SETTINGS",
    "SETTING_KINDS",
    "Command",
]

CONFIG_HELP = (
    "A YAML file of settings, or the name of a shipped one; by default the run's config.yaml."
)

CLASS_SETTINGS = ("trainer", "model", "data", "seed_everything")
"""Settings that need Lightning's classes, each with everything below it."""

RUN_SETTINGS = ("name", "runs", "checkpoint_seconds")
"""Settings of fit. Other commands accept them, since config.yaml holds them, and ignore them."""

SETTING_KINDS = {"seed_everything": "int | bool"}
"""Types of the settings that are no arguments of a class."""

Argument = tuple[str, dict[str, Any]]

CalibrateMethod = Literal[Method, "conformal", "threshold", "laplace"]
"""Methods of the command calibrate; ``cli.calibrating`` has a function for each."""

METHOD_OPTIONS = {
    "conformal": ("--level", "--score", "--per_class", "--calibrated"),
    "threshold": ("--criterion", "--costs", "--calibrated"),
    "laplace": ("--structure", "--prior_precision"),
}
"""Options of methods of calibrate that not all methods have."""


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        description: a sentence for the help.
        arguments: its own arguments.
        settings: names of the settings it takes.
        examples: what follows the name of the program in some examples.
    """

    description: str
    arguments: tuple[Argument, ...]
    settings: tuple[str, ...] = (*CLASS_SETTINGS, "print_config", *RUN_SETTINGS)
    examples: tuple[str, ...] = ()


def argument(flag: str, help: str, **options: Any) -> Argument:
    """Return an argument: its flag, and options of ``add_argument``."""
    return flag, {"help": help, **options}


RUN_OR_CHECKPOINT = (
    argument(
        "run",
        "A run, such as runs/digits/version_0, or one of its checkpoints. runs/digits is the "
        "newest run of that name. A run stands for the checkpoint that fit printed at its end.",
        nargs="?",
        metavar="RUN",
    ),
    argument("--ckpt_path", "The checkpoint, in place of RUN.", type=str | None),
)
CALIBRATED = argument(
    "--calibrated",
    "Apply the calibration in the checkpoint.",
    action="store_true",
)
LAPLACE = argument(
    "--laplace",
    "Use the Laplace approximation: probit, sampling.",
    type=LaplaceMethod | None,
    metavar="METHOD",
)
INPUT = argument(
    "--input",
    "Raw inputs: a file or folder of the kind that the model was trained on; by default the test "
    "set of the run.",
    type=str | None,
    metavar="PATH",
)
UNKNOWN = argument(
    "--unknown",
    "Report or refuse categories in --input that training never saw.",
    type=Literal["report", "refuse"],
    default="report",
)
BACKBONE = argument(
    "--backbone",
    "Import path of your own net, such as my_nets.Net, if the model was trained with one.",
    type=str | None,
    metavar="PATH",
)
RUN_ARGUMENTS = (
    argument("--name", "Name of the run.", default="softmax_regression"),
    argument("--runs", "Folder that runs are written to.", default="runs", metavar="FOLDER"),
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
                metavar="RUN",
            ),
            argument("--ckpt_path", "Checkpoint that a new run starts from.", type=str | None),
        ),
        (*CLASS_SETTINGS, "print_config"),
        (
            "fit --model.solver newton",
            "fit --config table --data.file my.csv --data.target species",
            "fit --resume",
        ),
    ),
    "validate": Command(
        "Print the metrics of the validation set.",
        (*RUN_OR_CHECKPOINT, CALIBRATED, LAPLACE),
        examples=("validate runs/digits",),
    ),
    "test": Command(
        "Print the metrics of the test set, or of a new labelled table.",
        (
            *(*RUN_OR_CHECKPOINT, CALIBRATED, LAPLACE),
            argument(
                "--input",
                "A new table with a column of classes.",
                type=str | None,
                metavar="PATH",
            ),
            argument(
                "--target",
                "Column of --input with the classes; by default that of the training table.",
                type=str | None,
                metavar="COLUMN",
            ),
            argument(
                "--group_column",
                "Column of --input with groups; by default that of the training table.",
                type=str | None,
                metavar="COLUMN",
            ),
            argument(
                "--drop_unlabelled",
                "Leave out rows of --input that have no class.",
                action="store_true",
            ),
            *(UNKNOWN, BACKBONE),
            argument(
                "--output",
                "A new file that ends in .csv, .jsonl or .parquet, for all figures of the set, its "
                "classes and its groups, with intervals.",
                type=str | None,
                metavar="FILE",
            ),
        ),
        examples=(
            "test runs/digits",
            "test --calibrated runs/digits/version_0/best.ckpt",
            "test runs/table --input labelled.csv",
        ),
    ),
    "predict": Command(
        "Write labels and probabilities of samples to a file.",
        (
            *(*RUN_OR_CHECKPOINT, CALIBRATED, LAPLACE, INPUT, BACKBONE),
            argument(
                "--output",
                "A new .csv, .jsonl or .parquet file; by default predictions.csv beside the "
                "checkpoint, or predictions_1.csv, ...",
                type=str | None,
                metavar="FILE",
            ),
            argument("--top_k", "Most probable classes to name.", type=int, default=1),
            argument("--probabilities", "Write all class probabilities too.", action="store_true"),
            argument(
                "--sets",
                "Write conformal sets too.",
                action="store_true",
            ),
            argument(
                "--threshold",
                "Predict the second of two classes from P on.",
                type=Literal["stored"] | float | None,
                metavar="P|stored",
            ),
            UNKNOWN,
            argument(
                "--skip_unreadable",
                "Leave out unreadable images.",
                action="store_true",
            ),
            argument("--device", "Device for --input; by default a GPU, if any."),
        ),
        examples=(
            "predict runs/digits",
            "predict runs/table --input new.csv --output answers.csv",
        ),
    ),
    "calibrate": Command(
        "Fit a temperature, or what --method names, and store it in the checkpoint.",
        (
            *RUN_OR_CHECKPOINT,
            argument(
                "--method",
                "temperature: one number for all logits; vector: a scale and a shift per class; "
                "conformal: sets that hold the true class with a given probability; threshold: "
                "decides between two classes; laplace: a distribution of the weights.",
                type=CalibrateMethod,
                default="temperature",
            ),
            argument(
                "--level",
                "conformal: that probability.",
                type=float,
                default=LEVEL,
            ),
            argument(
                "--score",
                "conformal: lac for the smallest sets, some of them empty; aps for larger sets of "
                "harder samples; raps for many classes.",
                type=Score,
                default="aps",
            ),
            argument(
                "--per_class",
                "conformal: hold the level within each class.",
                action="store_true",
            ),
            argument(
                "--calibrated",
                "conformal, threshold: for the probabilities with the temperature in the "
                "checkpoint.",
                action="store_true",
            ),
            argument(
                "--criterion",
                "threshold: what is to be best.",
                type=Criterion,
                default="balanced_accuracy",
            ),
            argument(
                "--costs",
                "threshold: costs of a false positive and a false negative, for --criterion cost.",
                type=list[float],
                default=[1.0, 1.0],
            ),
            argument(
                "--structure",
                "laplace: kronecker for any size, or full for few classes and features.",
                type=Structure,
                default="kronecker",
            ),
            argument(
                "--prior_precision",
                "laplace: precision of the prior; by default that of the run's penalty, or 1.",
                metavar="X",
                type=float | None,
            ),
        ),
        examples=("calibrate runs/digits", "calibrate runs/digits --method conformal"),
    ),
    "report": Command(
        "Write a page about a run.", RUN_OR_CHECKPOINT, examples=("report runs/digits",)
    ),
    "inference": Command(
        "Fit the training samples of a table without a penalty; show coefficients in the units of "
        "the file, with standard errors, intervals and tests.",
        (
            *RUN_OR_CHECKPOINT,
            argument(
                "--penalty",
                "firth: Firth's penalty, which is small and has an optimum where classes can be "
                "separated.",
                type=Literal["none", "firth"],
                default="none",
            ),
            argument(
                "--covariance",
                "nonrobust: the model holds; HC0, HC1: it may not; cluster: the rows of a group "
                "(--data.group_column) depend on each other.",
                type=Literal["nonrobust", "HC0", "HC1", "cluster"],
                default="nonrobust",
            ),
            argument(
                "--reference",
                "The class that the others are compared with; by default the first.",
                type=str | None,
                metavar="CLASS",
            ),
            argument(
                "--confidence", "Probability that an interval holds.", type=float, default=0.95
            ),
            argument(
                "--odds_ratios",
                "Show exp(coefficient): the factor of the odds for one more unit.",
                action="store_true",
            ),
            argument(
                "--output",
                "A new file that ends in .csv, .jsonl or .parquet; by default coefficients.csv "
                "beside the checkpoint, or else here.",
                type=str | None,
                metavar="FILE",
            ),
        ),
        examples=(
            "inference runs/table",
            "inference --data.file my.csv --data.target species --odds_ratios",
        ),
    ),
    "export": Command(
        "Write a file for other programs, from raw inputs to classes and probabilities, and "
        "compare its predictions with the checkpoint's.",
        (
            *RUN_OR_CHECKPOINT,
            argument(
                "--output",
                "A new file that ends in .onnx, .pt2 or .safetensors; a name without a suffix is a "
                "folder with model.safetensors and config.json.",
                required=True,
                metavar="FILE",
            ),
            *(INPUT, CALIBRATED, LAPLACE, BACKBONE),
        ),
        ("data",),
        ("export runs/digits --output digits.onnx",),
    ),
}
"""The commands that work on models, by name."""

LIGHT_COMMANDS = {
    "info": Command(
        "Show versions, kernels, threads and devices, for reports of bugs.", (), settings=()
    ),
    "completion": Command(
        "Print a script that completes commands and settings in a shell.",
        (argument("shell", "The shell: bash, zsh or tcsh.", metavar="SHELL"),),
        settings=(),
        examples=("completion bash",),
    ),
}
"""The commands that need no model and no parser, by name."""
