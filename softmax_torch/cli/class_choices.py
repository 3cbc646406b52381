"""Classes that settings name: data modules, models, optimizers and schedules.

--data TableDataModule           softmax_torch.data.TableDataModule
--data my_data.WineDataModule    of a file my_data.py, which is imported
--model.optimizer AdamW          torch.optim.AdamW
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import NamedTuple

from softmax_torch.cli.class_settings import (
    TRAINER,
    Setting,
    base_names,
    settings_of,
    shipped_classes,
)
from softmax_torch.cli.mistakes import UsageError, or_nearest
from softmax_torch.cli.value_forms import choices_of

__all__ = ["CLASS_KEYS", "MODEL", "ClassKey", "class_names", "resolved_class", "setting_flags"]


class ClassKey(NamedTuple):
    """A setting whose value is a class.

    Attributes:
        package: where a name without dots is looked up.
        base: the class that it derives from, or "" where any will do.
        what: its name in messages.
        linked: arguments that are not given by users.
    """

    package: str
    base: str
    what: str
    linked: tuple[str, ...] = ()


CLASS_KEYS = {
    "trainer": ClassKey("", "", "the Trainer"),
    "data": ClassKey("softmax_torch.data", "TensorDataModule", "a data module"),
    "data.source": ClassKey("softmax_torch.data", "TensorDataModule", "a data module"),
    "model": ClassKey(
        "softmax_torch.training", "LitBase", "a model", ("in_features", "num_classes")
    ),
    "model.optimizer": ClassKey("torch.optim", "Optimizer", "an optimizer", ("params",)),
    "model.lr_scheduler": ClassKey(
        "torch.optim.lr_scheduler", "LRScheduler", "a schedule", ("optimizer",)
    ),
}
"""Settings with settings of their own that are checked here; jsonargparse checks the others."""

MODEL = "softmax_torch.training.LitSoftmaxRegression"
"""The model of a configuration that names none."""


def resolved_class(source: str, key: str, given: str) -> str:
    """Return the path of the class that a setting names.

    Raises:
        UsageError: there is no such class, or it is of another kind.
    """
    package, base, what, _ = CLASS_KEYS[key]
    label = f"{source}: {key}.class_path" if source else f"--{key}"
    class_path = given if "." in given else f"{package}.{given}"
    try:
        settings_of(class_path)
        bases = base_names(class_path)
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        if "." not in given:
            loaded = loaded_class(given, base)
            if loaded is not None:
                return loaded
            raise UsageError(
                f"{label}: unknown class {given}{or_nearest(given, class_names(key))}"
            ) from None
        raise UsageError(
            f"{label}: expected {what} that can be imported, got {given}: {error}"
        ) from error
    if base and base not in bases:
        raise UsageError(f"{label}: expected {what}, a subclass of {base}, got {given}")
    return class_path


def class_names(key: str) -> list[str]:
    """Return the names of the classes that a setting may name without their module."""
    package, base, _, _ = CLASS_KEYS[key]
    if package.startswith("softmax_torch."):
        return [name for name in shipped_classes(package) if base in shipped_bases(package, name)]
    exported = vars(importlib.import_module(package))
    kind = exported[base]
    return [
        name
        for name, value in exported.items()
        if isinstance(value, type) and issubclass(value, kind) and not name.startswith("_")
    ]


def setting_flags() -> Iterator[tuple[str, list[str]]]:
    """Yield each setting of the Trainer, the models and the data, with the values it may have."""
    for key in ("data", "model", "model.optimizer", "model.lr_scheduler"):
        yield key, class_names(key)
    classes: dict[str, list[str]] = {"trainer": [TRAINER], "model.optimizer": ["torch.optim.SGD"]}
    for key in ("data", "model"):
        classes[key] = [f"{CLASS_KEYS[key].package}.{name}" for name in class_names(key)]
    for key, class_paths in classes.items():
        found: dict[str, Setting] = {}
        for class_path in class_paths:
            found |= settings_of(class_path)
        hidden = {*CLASS_KEYS[key].linked, *(k.rpartition(".")[2] for k in CLASS_KEYS)}
        for name, setting in found.items():
            if name not in hidden:
                yield f"{key}.{name}", choices_of(setting.kind)


def shipped_bases(package: str, name: str) -> set[str]:
    """Return the classes that a shipped class derives from, without itself."""
    return base_names(f"{package}.{name}") - {name}


def loaded_class(name: str, base: str) -> str | None:
    """Return the path of a class that the running program defined, by its name."""
    rooms = {"TensorDataModule": "softmax_torch.data", "LitBase": "softmax_torch.training.lit_base"}
    module = sys.modules.get(rooms.get(base, ""))
    pending = [] if module is None else [getattr(module, base)]
    while pending:
        found = pending.pop()
        if found.__name__ == name:
            return f"{found.__module__}.{name}"
        pending += found.__subclasses__()
    return None
