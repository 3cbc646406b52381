"""What a fit prints about its data before it trains, and about its result at the end."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from softmax_torch import metrics
from softmax_torch.cli.console import (
    LABEL,
    LINE,
    cell,
    for_line,
    format_metrics,
    format_seconds,
    is_unequal,
    print_line,
    print_metrics,
)
from softmax_torch.data.description import ColumnCounts, DataDescription
from softmax_torch.training.lit_base import LitBase

__all__ = ["DataSummary", "Result", "print_result"]

LISTED_CLASSES = 6
"""Most classes whose names are printed."""

LISTED_STRENGTHS = 25
"""Most values of C that are printed."""


class DataSummary(Callback):
    """A callback that prints what the data hold, before training starts.

    It prints nothing about data modules without a method ``describe``.

    Args:
        data: the data module of the command.
        asked: names of metrics that the user asked for.
    """

    def __init__(self, data: Any, asked: Collection[str] = ()) -> None:
        self.data, self.asked = data, asked

    @cached_property
    def description(self) -> DataDescription | None:
        """What the data hold, counted at the first access; None if they do not say."""
        describe = getattr(self.data, "describe", None)
        found: DataDescription | None = None if describe is None else describe()
        return found if found is not None and found.samples else None

    @property
    def unequal(self) -> bool:
        """Whether the classes are so unequal that balanced accuracy says more than accuracy."""
        if self.description is None:
            return False
        return is_unequal(self.description.class_counts)

    def shown(self, results: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics to print: balanced accuracy only if classes are unequal, or asked."""
        return for_line(results, self.unequal, self.asked)

    def baseline(self, split: str) -> dict[str, float]:
        """Return the metrics on a split of a model that knows the class frequencies alone.

        The dict is empty if the data have no such split.
        """
        if self.description is None or not {"train", split} <= self.description.samples.keys():
            return {}
        y = self.data.splits[split].y.cpu()
        found = metrics.baseline(self.data.class_counts, y)
        names = ("accuracy", "balanced_accuracy", "nll")
        return {f"{split}/{name}": getattr(found, name) for name in names}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the description, in the first process."""
        if not trainer.is_global_zero or self.description is None:
            return
        for label, text in data_lines(self.description):
            print_line(label, text)
        if baseline := self.baseline("val"):
            del baseline["val/balanced_accuracy"]  # 1 / C
            print_line("baseline", f"{format_metrics(baseline)}  (class frequencies, on val)")


def data_lines(data: DataDescription) -> Iterator[tuple[str, str]]:
    """Yield labels and texts of the lines about data."""
    parts = ", ".join(f"{n} {name}" for name, n in data.samples.items())
    yield "data", f"{sum(data.samples.values())} samples: {parts}"
    if data.columns is None:
        yield "features", features_text(data.in_features, data.image_shape)
    else:
        yield "columns", columns_text(data.columns)
        if data.columns.missing:
            counts = [f"{name} {n}" for name, n in data.columns.missing.items()]
            yield "missing", fitting("in train: ", counts, "columns")
    yield "classes", classes_text(data.class_names, data.class_counts)


def features_text(features: int, image_shape: tuple[int, ...] | None) -> str:
    """Return the number of features, and the size of images."""
    if image_shape is None:
        return str(features)
    *channels, H, W = image_shape
    return f"{features} ({H} x {W} {'colour' if channels else 'grey'} images)"


def columns_text(columns: ColumnCounts) -> str:
    """Return the numbers of columns by kind."""
    kinds = [
        (columns.numeric, "numeric"),
        (columns.categorical, f"categorical ({columns.one_hot} features)"),
        (columns.ignored, "ignored"),
    ]
    return ", ".join(f"{n} {kind}" for n, kind in kinds if n)


def classes_text(names: Sequence[str], counts: Tensor) -> str:
    """Return the classes with their numbers of samples, or the range of those numbers."""
    C, samples = len(names), counts.tolist()
    listed = ", ".join(f"{name} {n}" for name, n in zip(names, samples, strict=True))
    if C <= LISTED_CLASSES and len(f"{C}: {listed}") <= LINE - LABEL:
        return f"{C}: {listed}"
    few, most = min(samples), max(samples)
    if few == most:
        return f"{C}, {few} samples each"
    text = f"{C}, from {few} to {most} samples each"
    if is_unequal(counts):
        ends = [f"{n} ({names[samples.index(n)]})" for n in (few, most)]
        named = f"{C}, from {ends[0]} to {ends[1]} samples each"
        return named if len(named) <= LINE - LABEL else text
    return text


def fitting(head: str, parts: Sequence[str], noun: str) -> str:
    """Return a head and as many of the parts as fit into a line, with the number of the others."""
    for shown in range(len(parts), 0, -1):
        more = f" and {len(parts) - shown} more {noun}" if shown < len(parts) else ""
        text = head + ", ".join(parts[:shown]) + more
        if len(text) <= LINE - LABEL:
            break
    return text


class Result(NamedTuple):
    """The result of a fit.

    Attributes:
        seconds: time of its steps.
        val_label: label of the validation metrics.
        val, test: metrics of the validation and test sets; empty if one was not evaluated.
    """

    seconds: float
    val_label: str
    val: Mapping[str, float]
    test: Mapping[str, float]


def print_result(trainer: Trainer, model: LitBase, data: DataSummary, result: Result) -> None:
    """Print time, device and metrics of a fit, the values of C if there are several, and advice."""
    print_line("trained", speed_text(trainer.global_step, model.step_name, result.seconds))
    print_line("device", device_text(trainer, model))
    for label, text in model.fit_summary().items():
        print_line(label, text)
    for label, text in strength_lines(model.strengths):
        print_line(label, text)
    rows = [(result.val_label, result.val), ("test", result.test)]
    rows += [("baseline", data.baseline("test"))] if result.test else []
    print_metrics([(label, data.shown(of)) for label, of in rows if of])
    bound, nll = data.baseline("val").get("val/nll"), result.val.get("val/nll")
    if bound is not None and nll is not None and nll > bound:
        for label, text in advice(nll, bound, model):
            print_line(label, text)


def speed_text(steps: int, name: str, seconds: float) -> str:
    """Return the number of steps, their time, and the steps a second or the seconds a step."""
    text = f"{steps} {name}{'s' * (steps != 1)} in {format_seconds(seconds)}"
    if not steps or not seconds:
        return text
    rate = steps / seconds
    if rate < 1:
        each = seconds / steps
        return f"{text} ({f'{each:.3g} s' if each < 100 else format_seconds(each)} a {name})"
    return f"{text} ({rate:.{0 if rate >= 10 else 1}f} a second)"


def device_text(trainer: Trainer, model: LitBase) -> str:
    """Return the name of the training's device, and the number of GPUs or threads of a step."""
    root = trainer.strategy.root_device
    if root.type == "cuda":
        return f"{trainer.num_devices} x {torch.cuda.get_device_name(root)}"
    if root.type != "cpu":
        return root.type
    threads = torch.get_num_threads()
    if model.on_one_thread and threads > 1:
        article = "an" if model.step_name == "iteration" else "a"
        return f"cpu, 1 of {threads} threads: {article} {model.step_name} is too small for more"
    return f"cpu, {threads} thread{'s' * (threads > 1)}"


def strength_lines(fits: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, str]]:
    """Yield the lines of a table with the validation metrics of each C.

    The C with the lowest NLL is marked. If there are too many, its neighbours are shown.
    """
    rows = [fit for fit in fits if "val/nll" in fit]
    if not rows:
        return
    best = min(range(len(rows)), key=lambda i: rows[i]["val/nll"])
    first = max(0, min(best - LISTED_STRENGTHS // 2, len(rows) - LISTED_STRENGTHS))
    shown = range(first, min(first + LISTED_STRENGTHS, len(rows)))
    width = max(len(f"{rows[i]['val/nll']:.4f}") for i in shown)
    for i in shown:
        row = rows[i]
        cells = [cell("accuracy", row["val/accuracy"]), cell("nll", row["val/nll"], width)]
        yield f"C {row['C']:.4g}", "  ".join(cells) + "  best val" * (i == best)
    if len(shown) < len(rows):
        yield "", f"and {len(rows) - len(shown)} other values of C, in metrics.csv"
    if len(rows) > 1 and best in (0, len(rows) - 1):
        end, beyond = ("smallest", "smaller") if best == 0 else ("largest", "larger")
        yield "", f"the best C is the {end} of the list: a {beyond} one may be better"


def advice(nll: float, bound: float, model: LitBase) -> Iterator[tuple[str, str]]:
    """Yield a warning that the class frequencies have a lower NLL, and what to try."""
    yield "warning", f"the val nll {nll:.4f} is above the class frequencies' {bound:.4f}; try"
    if model.step_name != "step":
        yield "", "a smaller --model.C"
        return
    yield "", "a lower learning rate (--model.optimizer.lr), or features on one scale"
    if isinstance(model.backbone, nn.Identity):
        yield "", "or a solver (--model.solver auto --data.batch_size null)"
