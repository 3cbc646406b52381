"""Parse a command line without its settings, which refuses a mistake before Lightning is imported.

``cli.settings`` parses it again with the settings.
"""

from __future__ import annotations

from jsonargparse import Namespace

from softmax_torch.cli.arguments import split_configs, split_settings
from softmax_torch.cli.command_parsers import build_parser
from softmax_torch.cli.command_table import COMMANDS, METHOD_OPTIONS
from softmax_torch.cli.config_files import find_config
from softmax_torch.cli.given_settings import Given
from softmax_torch.cli.jsonargparse_errors import usage_errors
from softmax_torch.cli.mistakes import UsageError
from softmax_torch.cli.requests import Request
from softmax_torch.conformal import check_level
from softmax_torch.decision_threshold import check_costs, check_threshold
from softmax_torch.laplace import check_prior_precision
from softmax_torch.post_hoc import refuse_beside_laplace

__all__ = ["parse"]


BESIDE_INPUT = {
    "--unknown",
    "--target",
    "--group_column",
    "--drop_unlabelled",
    "--backbone",
    "--skip_unreadable",
}
"""Flags that concern --input alone; without it, the settings of the data and the model serve."""


def parse(args: list[str]) -> Request:
    """Parse the command's own arguments, and split off its settings unparsed.

    Args:
        args: a command and its arguments.

    Raises:
        UsageError: an argument does not exist, or --config names no file.
    """
    name = args[0]
    command = COMMANDS[name]
    own, settings = split_settings(args[1:], command.settings)
    own, configs = split_configs(own) if command.settings else (own, [])
    configs = [config if is_inline(config) else str(find_config(config)) for config in configs]
    with usage_errors(name, Given([], {})):
        flags = [part for config in configs for part in ("--config", config)]
        arguments = build_parser()[0].parse_args([name, *flags, *own])[name]
    given = {arg.partition("=")[0] for arg in own}
    if name == "calibrate":
        check_method(arguments, given)
        check_level(arguments.level)
        check_costs(arguments.costs)
        if arguments.prior_precision is not None:
            check_prior_precision(arguments.prior_precision)
    if isinstance(arguments.get("threshold"), float):
        check_threshold(arguments.threshold)
    refuse_beside_laplace(*map(arguments.get, ("laplace", "calibrated", "threshold")))
    has_input = arguments.get("input") is not None
    beside_input = [*settings, *(["--config"] if name in ("predict", "test") and configs else [])]
    if has_input and beside_input:
        raise UsageError(
            f"{name}: expected no settings beside --input, got {' '.join(beside_input)}"
        )
    if name == "predict" and not has_input and arguments.device is not None:
        raise UsageError("--device: expected --input beside it; else see --trainer.accelerator")
    if name in ("predict", "test") and not has_input:
        for flag in given & BESIDE_INPUT:
            setting = flag.replace("--", "--model." if flag == "--backbone" else "--data.")
            raise UsageError(f"{flag}: expected --input beside it; else see {setting}")
    return Request(name, arguments, settings, own, configs)


def check_method(arguments: Namespace, given: set[str]) -> None:
    """Raise UsageError for an option of calibrate that its method or its criterion ignores.

    Args:
        arguments: those of the command.
        given: the flags among them that were typed.
    """
    for flag in given:
        methods = [name for name, options in METHOD_OPTIONS.items() if flag in options]
        if methods and arguments.method not in methods:
            expected = " or ".join(methods)
            raise UsageError(
                f"{flag}: expected --method {expected} beside it, got {arguments.method}"
            )
    if "--costs" in given and arguments.criterion != "cost":
        raise UsageError(f"--costs: expected --criterion cost beside it, got {arguments.criterion}")


def is_inline(config: str) -> bool:
    """Return whether --config has YAML in place of a path, or a URL; jsonargparse reads them."""
    return "{" in config or "://" in config
