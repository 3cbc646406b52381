"""Configurations: YAML files of settings, those that come with the package known by name.

--config table        ./table, else ./table.yaml, else the shipped configs/table.yaml
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from softmax_torch.cli.mistakes import UsageError, or_nearest

__all__ = ["DEFAULT", "find_config", "read_config", "shipped_configs"]

DEFAULT = "digits"
"""The configuration of a fit whose arguments name no data."""


@cache
def shipped_configs() -> dict[str, Path]:
    """Return the shipped configurations by name.

    They are in the folder configs, which stands beside the package in a checkout and within an
    installed one.
    """
    package = Path(__file__).parents[1]
    installed = package / "configs"
    folder = installed if installed.is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(given: str) -> Path:
    """Return the file that --config names: a path, or the name of a shipped configuration.

    Raises:
        UsageError: there is no such file, and none of that name is shipped.
    """
    shipped = shipped_configs()
    for path in (Path(given), Path(f"{given}.yaml")):
        if path.is_file():
            return path
    if given in shipped:
        return shipped[given]
    name = Path(given).stem
    near = f"; nearest: {name}" if name in shipped else or_nearest(name, shipped)
    what = "a folder" if Path(given).is_dir() else "which does not exist"
    raise UsageError(
        f"--config: expected a file or one of {', '.join(shipped)}; got {given}, {what}"
        + (near if near.startswith("; nearest") else "")
    )


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML.

    Raises:
        UsageError: the file is no YAML, or holds no settings.
    """
    import yaml  # the help of a command does without, and so works without this package

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "it"
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UsageError(f"--config: expected YAML in {path}, got in {where}: {problem}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--config: expected UTF-8 text in {path}, got {error}") from None
    except OSError as error:
        raise UsageError(f"--config: expected to read {path}, got {error.strerror}") from None
    if not isinstance(config, dict):
        got = "an empty file" if config is None else f"a {KINDS.get(type(config), 'single value')}"
        raise UsageError(
            f"--config: expected settings in {path}, as in 'name: {DEFAULT}', got {got}"
        )
    return config


KINDS = {list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
"""Names of YAML's kinds of values in messages."""
