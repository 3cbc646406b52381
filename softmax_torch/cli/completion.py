"""Scripts for completion in a shell, made once, so that a Tab needs no Python.

shtab writes them from a parser of all commands, in which fit has its settings. Lightning would take
seconds at each Tab; that is why completers that run the program, as argcomplete does, are not used.
"""

from __future__ import annotations

from argparse import Action, ArgumentParser
from typing import Any

from softmax_torch.cli.class_choices import setting_flags
from softmax_torch.cli.command_table import COMMANDS, LIGHT_COMMANDS, Command
from softmax_torch.cli.config_files import shipped_configs
from softmax_torch.cli.mistakes import UsageError
from softmax_torch.cli.value_forms import choices_of

__all__ = ["completion_script"]

PROGRAM = "softmax-torch"
"""The command that is completed; the others, such as ``python train.py``, are Python's."""

NEEDED = "softmax-torch[completion]"


CONFIG = "_softmax_torch_config"
PREAMBLE = {
    "bash": CONFIG + """() {{ compgen -f -- "$1"; compgen -W "{names}" -- "$1"; }}""",
    "zsh": CONFIG + "() {{ _alternative 'names:name:({names})' 'files:file:_files' }}",
}
"""Shell functions that complete --config: names of shipped configurations, and files."""

FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
"""shtab's completion of file names."""

SHELLS = ("bash", "zsh", "tcsh")


def completion_script(shell: str) -> str:
    """Return a script that completes commands, settings and their values.

    Raises:
        ImportError: shtab is not installed.
        UsageError: shtab does not know this shell.
    """
    try:
        import shtab
    except ImportError as error:
        raise ImportError(f"completion: expected shtab: pip install '{NEEDED}'") from error
    if shell not in SHELLS:
        raise UsageError(f"completion: expected one of {', '.join(SHELLS)}; got {shell}")
    names = " ".join(shipped_configs())
    preamble = PREAMBLE.get(shell, "").format(names=names)
    return str(shtab.complete(program_parser(), shell, preamble=preamble))


def program_parser() -> ArgumentParser:
    """Return a parser whose actions say how they are completed."""
    parser = ArgumentParser(prog=PROGRAM)
    commands = parser.add_subparsers()
    for name, command in {**COMMANDS, **LIGHT_COMMANDS}.items():
        add_arguments(commands.add_parser(name, help=command.description), command)
    return parser


def add_arguments(parser: ArgumentParser, command: Command) -> None:
    """Add the arguments and settings of a command to its parser."""
    if command.settings:
        complete_with(parser.add_argument("-c", "--config"), dict.fromkeys(PREAMBLE, CONFIG))
    for flag, options in command.arguments:
        kept: dict[str, Any] = {
            key: options[key] for key in ("action", "nargs", "metavar") if key in options
        }
        kind = options.get("type", str)
        choices = choices_of(kind.__name__ if isinstance(kind, type) else str(kind))
        if choices:
            kept["choices"] = choices
        action = parser.add_argument(flag, **kept)
        if not choices and kept.get("action") != "store_true" and kind in (str, str | None):
            complete_with(action, FILES)
    if "trainer" in command.settings:
        for key, choices in setting_flags():
            parser.add_argument(f"--{key}", choices=choices or None)


def complete_with(action: Action, how: dict[str, str]) -> None:
    """Say how shtab completes the values of an action."""
    extended: Any = action  # shtab reads an attribute that argparse does not declare
    extended.complete = how
