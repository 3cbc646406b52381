"""The settings of Trainer, model and data as arguments; their classes need Lightning."""

from __future__ import annotations

from argparse import SUPPRESS, HelpFormatter
from typing import Any, NamedTuple

import lightning
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import seed_everything
from lightning.pytorch.cli import LightningArgumentParser

from softmax_torch.cli.class_choices import MODEL
from softmax_torch.cli.command_parsers import build_parser
from softmax_torch.cli.command_table import CONFIG_HELP, HIDDEN_RUN_ARGUMENTS
from softmax_torch.cli.console import error_of_this_package
from softmax_torch.cli.jsonargparse_errors import usage_errors
from softmax_torch.cli.mistakes import UsageError
from softmax_torch.cli.requests import Request
from softmax_torch.cli.run_loggers import with_logger_folder
from softmax_torch.data import TensorDataModule
from softmax_torch.lightning_compat import whole_numbers_first
from softmax_torch.report.trainer import ReportingTrainer
from softmax_torch.training import LitClassifier, LitSoftmaxRegression
from softmax_torch.training.lit_base import LitBase

__all__ = ["Instances", "instantiate", "log_steps", "parse_settings", "settings_parser"]

SIZES = ("in_features", "num_classes")
"""Arguments of a model that follow from the data."""

TRAINER_DEFAULTS = {
    "trainer.devices": 1,  # a second device costs more than it gives at this size
    "trainer.enable_model_summary": False,
    "trainer.num_sanity_val_steps": 0,  # the data is checked as a whole
}


class SettingsParser(LightningArgumentParser):
    """A parser whose help lists the settings of both model classes."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Return the help, with the settings of each class that --model may name."""
        text: str = super().format_help(formatter)
        for kind in (LitSoftmaxRegression, LitClassifier):
            default = " (the default)" if kind is LitSoftmaxRegression else ""
            parser = ArgumentParser(prog="", usage=SUPPRESS, add_help=False)
            parser.add_class_arguments(kind, "model", skip=set(SIZES))
            settings = parser.format_help().partition("\n")[2]
            text += f"\n--model {kind.__name__}{default}:\n{settings}"
        return text


class Instances(NamedTuple):
    """The model and the data that the settings describe, and the arguments of the Trainer."""

    model: LitBase
    data: TensorDataModule
    trainer: Namespace


def settings_parser(command: str) -> tuple[ArgumentParser, ArgumentParser]:
    """Return the parser of the program and of one command, which has its settings."""

    def add_settings(parser: ArgumentParser) -> None:
        assert isinstance(parser, LightningArgumentParser)
        parser.dump_header = [f"lightning.pytorch=={lightning.__version__}"]
        parser.add_argument("-c", "--config", action="config", help=CONFIG_HELP)
        parser.add_argument(
            "--seed_everything",
            type=bool | int,
            default=0,
            help="Seed of all random number generators; true for a random one, false for none.",
        )
        whole_numbers_first()
        parser.add_lightning_class_args(ReportingTrainer, "trainer")
        parser.set_defaults(TRAINER_DEFAULTS)
        parser.add_lightning_class_args(LitBase, "model", subclass_mode=True)
        parser.add_lightning_class_args(TensorDataModule, "data", subclass_mode=True)
        parser.set_defaults({"model": MODEL})
        for size in SIZES:
            parser.link_arguments(f"data.{size}", f"model.init_args.{size}", apply_on="instantiate")
        if command != "fit":
            for flag, options in HIDDEN_RUN_ARGUMENTS:
                parser.add_argument(flag, **options)

    parser, parsers = build_parser(command, add_settings, SettingsParser)
    return parser, parsers[command]


def parse_settings(request: Request) -> tuple[ArgumentParser, Namespace]:
    """Return the command's parser, and all of its arguments.

    Raises:
        UsageError: a setting does not exist or has a value that it cannot have.
    """
    parser, command_parser = settings_parser(request.command)
    args = with_logger_folder(request.args)
    with usage_errors(request.command, request.given()):
        config = parser.parse_args([request.command, *args])[request.command]
    given = config["model"].get("init_args", {})
    for size in SIZES:
        if given.get(size) is not None:
            raise UsageError(
                f"model.{size}: expected it to follow from the data, got {given[size]}"
            )
    return command_parser, config


def instantiate(parser: ArgumentParser, config: Namespace) -> Instances:
    """Seed the random number generators, and make the model, the data and the Trainer's arguments.

    A random seed is written into ``config``.
    """
    seed = config["seed_everything"]
    if seed is not False:
        config["seed_everything"] = seed_everything(None if seed is True else seed, workers=True)
    try:
        made: Any = parser.instantiate_classes(config)
    except ValueError as error:
        # jsonargparse wraps what a constructor raises into the reasons of a union.
        mistake = error_of_this_package(error)
        if mistake is None or mistake is error:
            raise
        raise mistake from None
    return Instances(made["model"], made["data"], made["trainer"])


def log_steps(config: Namespace) -> None:
    """Let the model log every n-th step, where only ``trainer.log_every_n_steps`` says so.

    Lightning writes the metrics that a module logs in a step. The models here make many steps in
    one such step, and write the metrics themselves.
    """
    every, model = config["trainer"]["log_every_n_steps"], config["model"].get("init_args")
    if every and model is not None and model.get("log_every_n_steps", 0) is None:
        model["log_every_n_steps"] = every
