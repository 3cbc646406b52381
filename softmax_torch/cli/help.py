"""The pages of help: of the program, of fit with the settings in effect, and of other commands.

They are made from ``cli.command_table`` and from the source of the classes that have settings, and
import neither Lightning nor jsonargparse. ``fit --help-all`` is jsonargparse's own help.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from softmax_torch.cli.class_settings import REQUIRED, Setting, settings_of
from softmax_torch.cli.command_table import COMMANDS, LIGHT_COMMANDS, SETTING_KINDS, Command
from softmax_torch.cli.config_files import DEFAULT, shipped_configs
from softmax_torch.cli.console import program_name
from softmax_torch.cli.given_settings import Given
from softmax_torch.cli.value_forms import form_of

__all__ = ["COMMON_SETTINGS", "command_help", "fit_help", "program_help"]

COMMON_SETTINGS = {
    "model.C": "Inverse strength of the L2 penalty, as in scikit-learn.",
    "model.solver": "auto, newton or lbfgs: fit to the optimum.",
    "model.backbone": "The network before the softmax regression.",
    "model.optimizer": "Any optimizer of torch.optim.",
    "model.optimizer.lr": "Its learning rate.",
    "model.label_smoothing": "Share of the target that goes to all classes.",
    "model.class_weight": "balanced, or one number a class.",
    "data.batch_size": "Samples of a batch; null for all.",
    "data.val_fraction": "Share that is set aside for validation.",
    "trainer.max_epochs": "Epochs; with a solver, iterations.",
    "trainer.accelerator": "auto, cpu or gpu.",
    "seed_everything": "Seed of all random numbers.",
}
"""The settings that are changed most; a page shows those that its classes have."""

SEED = Setting("seed_everything", SETTING_KINDS["seed_everything"], 0, "")

PROGRAM_EXAMPLES = (
    "fit",
    "fit --config table --data.file my.csv --data.target species",
    "fit --config image_folder --data.root photos",
)

LEFT = 28
"""Columns of the left side of a list. A longer entry has a line of its own."""

NARROW = 60
"""Below this width, every entry has a line of its own."""


def program_help() -> str:
    """Return the page of the whole program."""
    named = {name: command.description for name, command in {**COMMANDS, **LIGHT_COMMANDS}.items()}
    return page(
        usage("COMMAND"),
        paragraph("Softmax regression (multinomial logistic regression) for PyTorch."),
        "commands:\n" + listed(named.items(), left=14),
        examples(PROGRAM_EXAMPLES),
        paragraph(f"{program_name()} COMMAND --help shows the options of a command."),
    )


def command_help(name: str) -> str:
    """Return the page of a command other than fit: its own options."""
    command = {**COMMANDS, **LIGHT_COMMANDS}[name]
    hint = ""
    if "data" in command.settings:
        flag = "--data.batch_size 512" if "trainer" in command.settings else "--data.file new.csv"
        hint = (
            f"The settings of the run can be changed too, as with {flag}; {program_name()} fit "
            "--help shows them."
        )
    options = listed(own_options(command))
    return page(
        usage(name, *positionals(command)),
        paragraph(command.description),
        options and "options:\n" + options,
        examples(command.examples),
        paragraph(hint),
    )


def fit_help(given: Given, configs: list[Path]) -> str:
    """Return the page of fit with the settings that configurations give.

    Args:
        given: the settings of these configurations and of the flags beside --help.
        configs: the YAML files; the settings of their data are listed unless they are the default.
    """
    name, command = configs[-1].stem, COMMANDS["fit"]
    data, model = (given.classes.get(key, "") for key in ("data", "model"))
    shows_data = configs != [shipped_configs()[DEFAULT]]
    chosen = [
        ("--data CLASS", f"The kind of data. [{short(data)}]"),
        ("--model CLASS", f"LitSoftmaxRegression or LitClassifier. [{short(model)}]"),
    ]
    about_data = ""
    if shows_data and data:
        lines = [setting_line(given, f"data.{s.name}", s) for s in settings_of(data).values()]
        about_data = f"settings of {short(data)}:\n" + listed(lines)
    common = [
        setting_line(given, key, setting, text)
        for key, text in COMMON_SETTINGS.items()
        if (setting := setting_of(given, key)) is not None
        and not (shows_data and key.startswith("data."))
    ]
    title = paragraph(f"settings that are changed most, with their values in {name}:")
    return page(
        usage("fit", "[--config NAME]"),
        paragraph(command.description),
        "options:\n" + listed([*fit_options(given), *chosen]),
        about_data,
        f"{title}\n{listed(common)}",
        examples(command.examples),
        listed(
            [
                (f"{program_name()} fit --config NAME --help", "shows the settings of its data."),
                (f"{program_name()} fit --help-all", "shows all settings."),
            ],
            left=len(program_name()) + 27,
            indent=0,
        ),
    )


def fit_options(given: Given) -> list[tuple[str, str]]:
    """Return the options of fit, but those that few need, with the name that the run gets."""
    name, _ = given.value("name")
    return [
        (flag, re.sub(r"\[\w+\]$", f"[{name}]", text) if flag.startswith("--name") else text)
        for flag, text in own_options(COMMANDS["fit"])
        if not flag.startswith("--checkpoint_seconds")
    ]


def setting_of(given: Given, key: str) -> Setting | None:
    """Return a setting of the classes that are given; None if they do not have it."""
    if key == SEED.name:
        return SEED
    owner, _, name = key.rpartition(".")
    return settings_of(given.classes[owner]).get(name) if owner in given.classes else None


def setting_line(given: Given, key: str, setting: Setting, text: str = "") -> tuple[str, str]:
    """Return the flag of a setting, and its meaning with the value that it has."""
    value, place = given.value(key)
    value = short(value) if place >= 0 else setting.default
    shown = "required" if value is REQUIRED else as_typed(value)
    return f"--{key} {form_of(setting.kind).placeholder}", f"{text or sentence(setting)} [{shown}]"


def sentence(setting: Setting) -> str:
    """Return the first sentence about a setting, in the words of the command line."""
    text = re.split(r"(?<=[a-z)`\]])[.] ", setting.meaning)[0].rstrip(".")
    text = re.sub(r"\bNone\b", "null", text.replace("``", ""))
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def short(value: Any) -> Any:
    """Return a class path without its module, and any other value unchanged."""
    return value.rpartition(".")[2] if re.fullmatch(r"(\w+\.)+[A-Z]\w+", str(value)) else value


def as_typed(value: Any) -> str:
    """Return a value as a user types it."""
    if isinstance(value, list):
        few = [as_typed(item) for item in value]
        return ", ".join(few if len(few) < 5 else [few[0], "...", few[-1]])
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def own_options(command: Command) -> list[tuple[str, str]]:
    """Return the arguments of a command, each with its description and default."""
    lines = [
        (options["metavar"], options["help"])
        for flag, options in command.arguments
        if not flag.startswith("-")
    ]
    if command.settings:
        text = "A YAML file of settings; by default the config.yaml of the run."
        if command is COMMANDS["fit"]:
            text = f"A YAML file of settings, or one of {', '.join(shipped_configs())}. [{DEFAULT}]"
        lines.append(("-c, --config NAME", text))
    for flag, options in command.arguments:
        if flag.startswith("-"):
            default = options.get("default")
            value = f" [{default}]" if default is not None else ""
            lines.append((f"{flag} {placeholder(flag, options)}".rstrip(), options["help"] + value))
    return lines


def placeholder(flag: str, options: dict[str, Any]) -> str:
    """Return what stands for the value of an argument, or "" if it has none."""
    if options.get("action") == "store_true":
        return ""
    name = str(options.get("metavar", flag.rpartition("_")[2].strip("-").upper()))
    kind = options.get("type")
    if isinstance(kind, type) and kind is not str:
        name = form_of(kind.__name__).placeholder
    elif str(kind).startswith("typing.Literal"):
        name = form_of(str(kind)).placeholder
    return f"[{name}]" if options.get("nargs") == "?" else name


def positionals(command: Command) -> list[str]:
    """Return what stands for the positional arguments of a command."""
    return [options["metavar"] for flag, options in command.arguments if not flag.startswith("-")]


def width() -> int:
    """Return the columns of the terminal, at most 100, which is easier to read."""
    return min(shutil.get_terminal_size().columns, 100)


def usage(*words: str) -> str:
    """Return the line that shows how a command is written."""
    return command_lines(" ".join(["usage:", program_name(), *words, "[options]"]))


def paragraph(text: str) -> str:
    """Return a text, wrapped."""
    return textwrap.fill(text, width(), break_long_words=False, break_on_hyphens=False)


def listed(entries: Iterable[tuple[str, str]], left: int = LEFT, indent: int = 2) -> str:
    """Return entries in two columns; on a narrow terminal, the second below the first."""
    lines = []
    for name, text in entries:
        below = width() < NARROW
        start = indent + (4 if below else left)
        wrapped = textwrap.wrap(
            text, width() - start, break_long_words=False, break_on_hyphens=False
        )
        first = " " * indent + name
        if below or len(name) > left - 2:
            lines.append(first)
        elif wrapped:
            lines.append(first.ljust(start) + wrapped.pop(0))
        else:
            lines.append(first)
        lines += [" " * start + line for line in wrapped]
    return "\n".join(lines)


def examples(commands: Iterable[str]) -> str:
    """Return commands that can be pasted into a shell, also where a line is continued."""
    lines = [command_lines(f"{program_name()} {command}", "  ", " \\") for command in commands]
    return "\n".join(["examples:", *lines]) if lines else ""


def command_lines(command: str, indent: str = "", end: str = "") -> str:
    """Return a command on as many lines as it needs; a flag and its value stay together."""
    joined = re.sub(r"(--[\w.]+) (?=[^-\s])", "\\1\xa0", command)
    lines = textwrap.wrap(
        joined,
        width() - len(end),
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{end}\n".join(lines).replace("\xa0", " ")


def page(*parts: str) -> str:
    """Return the parts of a page, with a blank line between them."""
    return "\n\n".join(part for part in parts if part)
