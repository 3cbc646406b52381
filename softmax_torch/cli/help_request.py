"""The settings that the help of fit is about: those of the configuration beside --help."""

from __future__ import annotations

from pathlib import Path

from softmax_torch.cli.arguments import split_configs, split_settings
from softmax_torch.cli.command_table import COMMANDS
from softmax_torch.cli.config_files import find_config
from softmax_torch.cli.given_settings import Given, given_settings
from softmax_torch.cli.implied_settings import implied_config

__all__ = ["fit_settings"]


def fit_settings(args: list[str]) -> tuple[Given, list[Path]]:
    """Return the settings that the arguments of a fit give, and their configurations.

    Raises:
        UsageError: a configuration, setting or class does not exist.
    """
    command = COMMANDS["fit"]
    own, settings = split_settings(args, command.settings)
    _, configs = split_configs(own)
    paths = [find_config(config) for config in configs] or [implied_config(settings).path]
    own = [flag.removeprefix("--") for flag, _ in command.arguments]
    return given_settings(paths, settings, own), paths
