"""Errors of jsonargparse in one line each: the setting, what it expects, and what it got.

jsonargparse reports a value that fits no type of a union with every type, every reason and every
enclosing class, in ten to thirty lines. The innermost key and value are the mistake.
"""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from softmax_torch.cli.class_choices import setting_flags
from softmax_torch.cli.class_settings import settings_of
from softmax_torch.cli.command_table import COMMANDS, SETTING_KINDS
from softmax_torch.cli.given_settings import Given
from softmax_torch.cli.mistakes import UsageError, or_nearest
from softmax_torch.cli.value_forms import form_of

__all__ = ["in_one_line", "usage_errors"]


@contextmanager
def usage_errors(command: str, given: Given) -> Iterator[None]:
    """Turn errors of a parser with ``exit_on_error=False`` into UsageError.

    Args:
        command: the command that is parsed.
        given: the settings of files and flags.
    """
    try:
        yield
    except ArgumentError as error:
        raise UsageError(in_one_line(str(error), command, given)) from None


def in_one_line(message: str, command: str, given: Given) -> str:
    """Return the house's words for a message of jsonargparse, with the file of the mistake."""
    classes = given.classes
    if found := re.match(r"unrecognized arguments: (.*)", message, re.S):
        return unknown_arguments(found[1].split(), command)
    if found := re.search(r"arguments? (?:is|are) required: (.*)", message):
        names = [name.strip().rpartition(".")[2] for name in found[1].split(",")]
        if "class_path" not in message:
            flags = " and ".join(f"--{name}" for name in names)
            return f"{command}: expected {flags}, got none"
        key = parser_key(message)
        flags = " and ".join(f"--{key}.{name}" for name in names)
        return f"{key}: expected {flags} beside it, got none"
    if found := re.search(r"argument (?:\S+/)?(--[\w.]+): expected one argument", message):
        return f"{found[1]}: expected a value after it, got none"
    if found := re.search(r"does not accept option '([^']+)'", message):
        return unknown_setting(found[1], given, message)
    key = parser_key(message)
    if not key:
        return " ".join(message.split())
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        return unknown_setting(f"{key}.{found[1]}", given, message)
    if found := re.search(r"unrecognized arguments: --([\w.]+)", message):
        return unknown_setting(f"{key}.{found[1]}", given, message)
    value = re.search(r"(?:Given value|Got value): (.*?)(?:\. Got value: .*)?$", message, re.M)
    form = form_of(kind_of(key, command, classes))
    example = f", as in --{key} {form.example}" if form.example else ""
    import_error = re.search(r"No module named [^\n]*|cannot import name [^\n]*", message)
    reason = f" ({import_error[0]})" if import_error else ""
    source = given.source_of(key)
    label = f"{source}: {key}" if source else key
    return (
        f"{label}: expected {form.words}{example}; got {value[1] if value else 'another'}{reason}"
    )


def parser_key(message: str) -> str:
    """Return the innermost setting that a message is about, such as model.optimizer.lr."""
    keys = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    return keys.replace(".init_args", "").removeprefix("init_args.")


def kind_of(key: str, command: str, classes: Mapping[str, str]) -> str:
    """Return the annotation of a setting or argument; "" if it is unknown."""
    owner = owner_of(key, classes)
    if owner is not None:
        setting = settings_of(classes[owner]).get(key.removeprefix(f"{owner}."))
        return "" if setting is None else setting.kind
    for flag, options in COMMANDS[command].arguments:
        if flag.lstrip("-") == key and "type" in options:
            kind = options["type"]
            return kind.__name__ if isinstance(kind, type) else str(kind)
    return SETTING_KINDS.get(key, "")


def owner_of(key: str, classes: Mapping[str, str]) -> str | None:
    """Return the setting whose class has this setting; None for an argument of the command."""
    return max((c for c in classes if key.startswith(f"{c}.")), key=len, default=None)


def unknown_setting(key: str, given: Given, message: str) -> str:
    """Return the message about a setting that does not exist, in the innermost class."""
    owner, _, name = key.rpartition(".")
    named = re.findall(r"given class_path '([^']+)'", message)
    class_path = named[-1] if named else given.classes.get(owner, "")
    names = settings_of(class_path).keys() if class_path else ()
    source = given.source_of(key) or given.source_of(owner)
    label = f"{source}: " if source else ""
    of = f" of {class_path.rpartition('.')[2]}" if class_path else ""
    return f"{label}unknown setting {key}{of}{or_nearest(name, names, f'{owner}.')}"


def unknown_arguments(args: list[str], command: str) -> str:
    """Return the message about arguments that the command does not have."""
    flags = [arg.partition("=")[0] for arg in args if arg.startswith("-")]
    if not flags:
        return f"{command}: unexpected argument {args[0]}; options begin with --"
    known = {flag for flag, _ in COMMANDS[command].arguments if flag.startswith("--")}
    known |= {"--config"} if COMMANDS[command].settings else set()
    if "trainer" in COMMANDS[command].settings:
        known |= {f"--{key}" for key, _ in setting_flags()} | {"--seed_everything"}
    return f"{command}: unknown option {flags[0]}{or_nearest(flags[0], known)}"
