"""Parsers of the commands, with or without Lightning's settings.

They raise ``argparse.ArgumentError``, which ``cli.jsonargparse_errors`` words anew, and take whole
names alone: an abbreviation would mean another setting when a class gets a new one.
"""

from __future__ import annotations

from collections.abc import Callable

from jsonargparse import ArgumentParser

from softmax_torch.cli.command_table import COMMANDS, CONFIG_HELP
from softmax_torch.cli.console import program_name

__all__ = ["build_parser"]


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
    parser = ArgumentParser(prog=program_name(), exit_on_error=False, allow_abbrev=False)
    subcommands = parser.add_subcommands(required=True)
    parsers = {}
    for name, (description, arguments, settings, _) in COMMANDS.items():
        sub = (kind if name == command else ArgumentParser)(
            usage=f"{program_name()} {name} {'RUN ' * (name != 'fit')}[options]",
            description=description,
            exit_on_error=False,
            allow_abbrev=False,
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
