"""The settings of a class: its constructor's arguments, read from source without importing it.

    ignore: columns to leave out.                                  in the docstring: meaning
    def __init__(self, ..., ignore: list[str] | None = None, ...)  name, kind and default

Data modules, models and the Trainer need Lightning, which takes longer to import than a page of
help or a refusal may take. Their files are parsed instead. A class of another package is imported.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["REQUIRED", "TRAINER", "Setting", "base_names", "settings_of", "shipped_classes"]

PACKAGE = Path(__file__).parents[1]
TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
SHIPPED = ("softmax_torch.data", "softmax_torch.training")
"""Packages whose ``__init__`` names the classes that users choose from."""

REQUIRED: Any = inspect.Parameter.empty
"""The default of a setting without a default."""


class Setting(NamedTuple):
    """A setting of a class.

    Attributes:
        name: of the constructor's argument.
        kind: its annotation, such as "list[str] | None".
        default: its default, or ``REQUIRED``.
        meaning: its description in the docstring, or "".
    """

    name: str
    kind: str
    default: Any
    meaning: str


@cache
def shipped_classes(package: str) -> dict[str, Path]:
    """Return the classes that a package of ``SHIPPED`` exports, each with its file."""
    folder = PACKAGE.joinpath(*package.split(".")[1:])
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.name: PACKAGE.parent.joinpath(*str(node.module).split(".")).with_suffix(".py")
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@cache
def settings_of(class_path: str) -> dict[str, Setting]:
    """Return the settings of a class by name.

    Raises:
        ImportError, AttributeError: there is no such class.
    """
    node = _class_node(class_path)
    if node is None:
        return _settings_by_import(class_path)
    [init] = [
        item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"
    ]
    meanings = _meanings(ast.get_docstring(node)) | _meanings(ast.get_docstring(init))
    found = {}
    positional = init.args.args[1:]  # without self
    lacking = len(positional) - len(init.args.defaults)
    defaults: list[ast.expr | None] = [*[None] * lacking, *init.args.defaults]
    pairs = [*zip(positional, defaults, strict=True)]
    pairs += zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    for argument, default in pairs:
        kind = "" if argument.annotation is None else ast.unparse(argument.annotation)
        value = REQUIRED if default is None else _literal(default)
        meaning = _followed(meanings.get(argument.arg, ""), argument.arg, class_path)
        found[argument.arg] = Setting(argument.arg, kind, value, meaning)
    return found


def base_names(class_path: str) -> set[str]:
    """Return the names of a class and of the classes that it derives from."""
    node = _class_node(class_path)
    if node is not None:
        return {node.name, *(ast.unparse(base) for base in node.bases)}
    return {base.__name__ for base in inspect.getmro(_imported(class_path))}


def _class_node(class_path: str) -> ast.ClassDef | None:
    """Return the source of a shipped class or of the Trainer; None for a class of others."""
    module, _, name = class_path.rpartition(".")
    if module in SHIPPED:
        path = shipped_classes(module).get(name)
    elif class_path == TRAINER:
        path = _trainer_file()
    else:
        return None
    if path is None:
        raise AttributeError(f"no class {name} in {module}")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise AttributeError(f"no class {name} in {path}")


def _trainer_file() -> Path:
    """Return the file of Lightning's Trainer; ``find_spec`` of a top-level name imports nothing."""
    spec = importlib.util.find_spec("lightning")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'lightning'")
    return Path(spec.origin).with_name("pytorch") / "trainer" / "trainer.py"


def _imported(class_path: str) -> type:
    module, _, name = class_path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    if not isinstance(found, type):
        raise AttributeError(f"{class_path} is no class")
    return found


def _settings_by_import(class_path: str) -> dict[str, Setting]:
    found = _imported(class_path)
    meanings = _meanings(inspect.getdoc(found)) | _meanings(
        inspect.getdoc(vars(found).get("__init__"))
    )
    return {
        name: Setting(
            name,
            ""
            if parameter.annotation is REQUIRED
            else inspect.formatannotation(parameter.annotation).strip("'\""),
            parameter.default,
            meanings.get(name, ""),
        )
        for name, parameter in inspect.signature(found).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def _literal(node: ast.expr) -> Any:
    """Return the value of a default, or its source where it is no literal."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _meanings(docstring: str | None) -> dict[str, str]:
    """Return the descriptions in the section Args of a docstring, by name."""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n|\s*\n)+)", f"{docstring or ''}\n", re.M)
    if section is None:
        return {}
    found = {}
    for entry in re.split(r"\n(?=[ ]{4}\S)", section[1].rstrip()):
        names, _, text = entry.strip().partition(":")
        for name in names.partition("(")[0].split(","):
            found[name.strip()] = " ".join(text.split())
    return found


def _followed(meaning: str, name: str, class_path: str) -> str:
    """Return a meaning; one that refers to another class of the package is read there."""
    refers = re.match(r"see ``(\w+)``[.;]? ?", meaning)
    package = class_path.rpartition(".")[0]
    if refers is None or package not in SHIPPED or refers[1] not in shipped_classes(package):
        return meaning
    there = settings_of(f"{package}.{refers[1]}").get(name)
    return there.meaning if there is not None else meaning
