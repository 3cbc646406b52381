"""Settings that follow from those that are given, so that one flag is enough.

--data TableDataModule     the configuration of tables, and its name
--data.file x.csv          the same: of the shipped data modules, one has a setting file
--model.solver newton      all samples in one batch, and no optimizer and schedule
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from softmax_torch.cli.class_choices import class_names, resolved_class
from softmax_torch.cli.class_settings import settings_of
from softmax_torch.cli.config_files import DEFAULT, shipped_configs
from softmax_torch.cli.given_settings import Given, as_source, flag_items
from softmax_torch.cli.mistakes import UsageError

__all__ = ["ImpliedConfig", "implied_config", "solver_settings"]

CONFIG_OF_DATA = {
    "DigitsDataModule": "digits",
    "TableDataModule": "table",
    "ImageFolderDataModule": "image_folder",
    "MNISTDataModule": "mnist",
    "FeaturesDataModule": "features",
    "BackboneFeaturesDataModule": "linear_probe",
}
"""The shipped configuration that shows each kind of data."""

SOLVER_EPOCHS = 200
"""Outer iterations of a solver at most, where the configuration has epochs of an optimizer."""


class ImpliedConfig(NamedTuple):
    """The configuration of a fit without --config.

    Attributes:
        path: a shipped configuration.
        flags: settings that differ from it.
        note: a line about it for the user, or "" where it is the default.
    """

    path: Path
    flags: list[str]
    note: str


def implied_config(flags: list[str]) -> ImpliedConfig:
    """Return the configuration that the flags of a fit imply, by the data that they name.

    Raises:
        UsageError: several kinds of data have these settings, or the data does not exist.
    """
    source = as_source("", flag_items(flags))
    names = {key.split(".")[1] for key in source.values if key.startswith("data.")}
    if "data" in source.classes:
        class_path = resolved_class("", "data", source.classes["data"])
        package, _, name = class_path.rpartition(".")
        if package != "softmax_torch.data":  # a class of the user's, with a run name of its own
            own = name.removesuffix("DataModule") or name
            own = "".join(f"_{c.lower()}" if c.isupper() else c for c in own).strip("_")
            return ImpliedConfig(shipped_configs()[DEFAULT], ["--name", own], "")
        chosen = CONFIG_OF_DATA.get(name, DEFAULT)
        reason = f"which shows {name}"
    else:
        fitting = {
            name: CONFIG_OF_DATA[name]
            for name in class_names("data")
            if names <= settings_of(f"softmax_torch.data.{name}").keys()
        }
        if not fitting or "DigitsDataModule" in fitting:
            return ImpliedConfig(shipped_configs()[DEFAULT], [], "")
        told = ", ".join(f"--data.{name}" for name in sorted(names))
        if len(fitting) > 1:
            raise UsageError(
                f"{told}: expected --config beside it, such as --config "
                + " or --config ".join(sorted(fitting.values()))
            )
        [chosen] = fitting.values()
        reason = f"which has {told.replace('--', '')}"
    note = "" if chosen == DEFAULT else f"{chosen}, {reason}; --config chooses another"
    return ImpliedConfig(shipped_configs()[chosen], [], note)


def solver_settings(given: Given) -> tuple[list[str], str]:
    """Return the flags that a solver needs beside it, and a line about them for the user.

    What is given together with the solver, or after it, stays: the model refuses it if it does not
    fit.
    """
    solver, chosen = given.value("model.solver")
    if solver in (None, "null") or "data" not in given.classes:
        return [], ""
    flags, parts = [], []
    batch_size, place = given.value("data.batch_size")
    known = settings_of(given.classes["data"])
    if place < 0 and "batch_size" in known:
        batch_size = known["batch_size"].default
    if place < chosen and "batch_size" in known and batch_size not in (None, "null"):
        flags += ["--data.batch_size", "null"]
        parts.append(f"batch_size null (it was {batch_size})")
    for name, what in (("optimizer", "optimizer"), ("lr_scheduler", "learning-rate schedule")):
        value, place = given.value(f"model.{name}")
        if 0 <= place < chosen and value not in (None, "null"):
            flags += [f"--model.{name}", "null"]
            parts.append(f"no {what}")
            epochs, place = given.value("trainer.max_epochs")
            if name == "optimizer" and 0 <= place < chosen:
                flags += ["--trainer.max_epochs", str(SOLVER_EPOCHS)]
                parts.append(f"at most {SOLVER_EPOCHS} iterations (epochs were {epochs})")
    if not parts:
        return [], ""
    return flags, f"{solver} takes all samples in each step: {', '.join(parts)}"
