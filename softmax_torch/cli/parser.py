"""Parse a command line without its settings, which refuses a mistake before Lightning is imported.

``cli.settings`` parses it again with the settings.
"""

from __future__ import annotations

import re
from pathlib import Path

from jsonargparse import ArgumentParser

from softmax_torch.cli.command_table import CLASS_SETTINGS, COMMANDS, RUN_SETTINGS, build_parser
from softmax_torch.cli.requests import Request, read_config

__all__ = ["parse"]


def parse(args: list[str]) -> Request:
    """Parse the command's own arguments, and split off its settings unparsed.

    Raises:
        SystemExit: the command or an argument does not exist, --config names no file with settings,
            or --help was given.
    """
    name = args[0] if args else ""
    if name == "fit" and {"-h", "--help"} & set(args):  # its help lists the settings
        from softmax_torch.cli.settings import settings_parser

        settings_parser(name)[0].parse_args(args)
    parser, parsers = build_parser()
    own, settings = split_settings(args[1:], COMMANDS[name].settings if name in COMMANDS else ())
    request = Request(name, parser.parse_args([*args[:1], *own])[name], settings, args[1:])
    if request.command != "export" and request.arguments.get("resume") is None:
        for config in request.arguments.config or []:
            check_config(parsers[name], config)
    beside_input = [
        *settings,
        *(["--config"] if name in ("predict", "test") and request.arguments.config else []),
    ]
    if request.arguments.get("input") is not None and beside_input:
        parsers[name].error(f"unrecognized arguments: {' '.join(beside_input)}")
    if (
        name == "predict"
        and request.arguments.input is None
        and request.arguments.device is not None
    ):
        parsers[name].error("--device: expected --input beside it; else see --trainer.accelerator")
    if name in ("predict", "test") and request.arguments.input is None:
        flags = {arg.partition("=")[0] for arg in own}
        for flag in ("--unknown", "--target", "--drop_unlabelled"):
            if flag in flags:
                setting = flag.replace("--", "--data.")
                parsers[name].error(f"{flag}: expected --input beside it; else see {setting}")
    if name == "predict" and request.arguments.input is None and request.arguments.backbone:
        parsers[name].error("--backbone: expected --input beside it; else see --model.backbone")
    return request


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
        is_flag = re.match(r"-[^\d.]", arg)  # -1 and -.5 are values
        (settings if value_follows and not is_flag else own).append(arg)
        value_follows = False
    return own, settings


def check_config(parser: ArgumentParser, config: str) -> None:
    """Refuse a --config that is not a file of settings, or has settings that do not exist.

    Settings below trainer, model and data are checked later, with their classes. YAML in place of
    a path, and URLs, are left to jsonargparse.
    """
    if "{" in config or "://" in config:
        return
    try:
        given = read_config(Path(config))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    known = {action.dest for action in parser._actions} | {*CLASS_SETTINGS, *RUN_SETTINGS}
    for key in given:
        if str(key).partition(".")[0] not in known:
            parser.error(f"--config: {config}: Option '{key}' is not accepted")
