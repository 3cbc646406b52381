"""Words of a command line: flags, their values, settings and configurations."""

from __future__ import annotations

import re
from collections.abc import Iterator

from softmax_torch.cli.mistakes import UsageError

__all__ = ["split_configs", "split_flags", "split_settings"]


def split_settings(args: list[str], names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Split arguments, in order, into the command's own and settings with one of these names."""
    own: list[str] = []
    settings: list[str] = []
    value_follows = False
    for arg in args:
        if names and re.match(rf"--({'|'.join(names)})([.+=]|$)", arg):
            settings.append(arg)
            value_follows = "=" not in arg
            continue
        (settings if value_follows and not is_flag(arg) else own).append(arg)
        value_follows = False
    return own, settings


def split_configs(own: list[str]) -> tuple[list[str], list[str]]:
    """Split the command's own arguments into those without --config, and its values in order."""
    rest: list[str] = []
    configs: list[str] = []
    position = 0
    while position < len(own):
        flag, equals, value = own[position].partition("=")
        if flag in ("-c", "--config"):
            if not equals:
                position += 1
                if position == len(own) or is_flag(own[position]):
                    raise UsageError("--config: expected a file or a name after it, got none")
                value = own[position]
            configs.append(value)
        else:
            rest.append(own[position])
        position += 1
    return rest, configs


def split_flags(flags: list[str]) -> Iterator[tuple[str, str | None]]:
    """Yield key and value of each flag in a list of flags and values."""
    position = 0
    while position < len(flags):
        key, equals, value = flags[position].partition("=")
        follows = not equals and position + 1 < len(flags) and not is_flag(flags[position + 1])
        yield key.removeprefix("--"), flags[position + 1] if follows else value if equals else None
        position += 1 + follows


def is_flag(arg: str) -> bool:
    """Return whether an argument is a flag; -1 and -.5 are values."""
    return len(arg) > 1 and arg[0] == "-" and not (arg[1].isdigit() or arg[1] == ".")
