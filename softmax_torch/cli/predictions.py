"""Predictions become a file: a row a sample, written as they come, in its place when all are there.

    id  predicted  probability  [predicted_2  probability_2  ...]  [p_<class>  ...]

The most probable class and its probability, the next ones down to ``top_k``, and where it was asked
for the probability of every class. The suffix says which format: .csv, .jsonl or .parquet.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from pyarrow import parquet
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from softmax_torch import predictor
from softmax_torch.cli.console import say, shown
from softmax_torch.predictor import Predicted
from softmax_torch.storage.atomic_files import PARTIAL_SUFFIX, name_in_errors

__all__ = ["Wanted", "add_arguments", "predict_input"]

Columns = dict[str, list[Any]]


class Wanted(NamedTuple):
    """What is to be written, and where to."""

    output: Path
    top_k: int
    probabilities: bool

    @classmethod
    def of(cls, ckpt_path: str, output: str | None, top_k: int, probabilities: bool) -> Wanted:
        """From what was given; by default predictions.csv beside the checkpoint.

        Raises:
            ValueError, FileExistsError: it cannot be written so.
        """
        if top_k < 1:
            raise ValueError(f"top_k: expected a number of at least 1, got {top_k}")
        path = free(Path(ckpt_path).parent) if output is None else Path(output)
        if path.suffix not in FORMATS:
            raise ValueError(
                f"output: expected a name that ends in {', '.join(FORMATS)}, got {path.name}"
            )
        if path.exists():
            raise FileExistsError(f"output: expected a new name, got {path}, which exists")
        if not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"output: expected a folder {path.parent}, got none")
        return cls(path, top_k, probabilities)

    def write(self, batches: Iterable[Predicted], class_names: Sequence[str]) -> None:
        """Write predictions as they come, and say so."""
        # Another process may be writing its own under the same name.
        partial = self.output.with_name(f".{self.output.name}.{os.getpid()}{PARTIAL_SUFFIX}")
        samples = 0
        try:
            with ExitStack() as closing:
                with name_in_errors(self.output):
                    append = closing.enter_context(FORMATS[self.output.suffix](partial))
                for batch in counted(batches):
                    with name_in_errors(self.output):
                        append(self.columns(batch, class_names))
                    samples += len(batch.ids)
            if self.output.exists():
                raise FileExistsError(f"output: {self.output} has been written by another process")
            partial.rename(self.output)
        finally:
            partial.unlink(missing_ok=True)
        say("predictions", f"{shown(self.output)} ({samples} samples, {len(class_names)} classes)")

    def columns(self, batch: Predicted, class_names: Sequence[str]) -> Columns:
        """The rows of some samples, column by column."""
        p = batch.probabilities
        # A name of a file that is not UTF-8 comes in surrogates, which nothing can write.
        ids = [name.encode("utf-8", "backslashreplace").decode() for name in batch.ids]
        columns: Columns = {"id": ids}
        top = p.topk(min(self.top_k, p.shape[1]), dim=1)
        for k in range(top.indices.shape[1]):
            number = f"_{k + 1}" if k else ""
            columns[f"predicted{number}"] = [class_names[c] for c in top.indices[:, k].tolist()]
            columns[f"probability{number}"] = shortened(top.values[:, k])
        if self.probabilities:
            columns |= {f"p_{name}": shortened(p[:, c]) for c, name in enumerate(class_names)}
        return columns


def add_arguments(parser: Any) -> None:
    """The arguments of a prediction, for any parser that is like argparse's."""
    parser.add_argument(
        "--input",
        help="What to predict: a file or folder of what the model was trained on; without one, "
        "the test set of the run.",
    )
    parser.add_argument(
        "--output",
        help="A new file that ends in .csv, .jsonl or .parquet; by default predictions.csv beside "
        "the checkpoint, or predictions_1.csv, ...",
    )
    parser.add_argument(
        "--top_k", type=int, default=1, help="How many of the most probable classes to name."
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="Write the probability of every class too."
    )
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="Use the calibration that the command calibrate has put into the checkpoint.",
    )


def predict_input(
    ckpt_path: str, path: str, calibrated: bool, wanted: Wanted, device: str | None = None
) -> None:
    """Predict a file or folder with nothing but a checkpoint."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = predictor.load(ckpt_path, calibrated, device)
    wanted.write(found.predict_file(path), found.class_names)


def counted(batches: Iterable[Predicted]) -> Iterator[Predicted]:
    """The batches, with a count of samples on a terminal."""
    text = TextColumn("{task.completed:.0f} samples"), BarColumn(), TimeElapsedColumn()
    with Progress(*text, transient=True, disable=not os.isatty(1)) as progress:
        task = progress.add_task("", total=None)
        for batch in batches:
            yield batch
            progress.advance(task, len(batch.ids))


def shortened(p: torch.Tensor) -> list[float]:
    """Probabilities with the nine digits that tell any two floats apart."""
    return [float(f"{x:.9g}") for x in p.tolist()]


def free(folder: Path) -> Path:
    """predictions.csv, or the first of predictions_1.csv, ... that does not exist."""
    path, number = folder / "predictions.csv", 0
    while path.exists():
        number += 1
        path = folder / f"predictions_{number}.csv"
    return path


@contextmanager
def as_csv(path: Path) -> Iterator[Callable[[Columns], None]]:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)

        def append(columns: Columns) -> None:
            if file.tell() == 0:
                writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

        yield append


@contextmanager
def as_json_lines(path: Path) -> Iterator[Callable[[Columns], None]]:
    with path.open("w", encoding="utf-8") as file:

        def append(columns: Columns) -> None:
            for row in zip(*columns.values(), strict=True):
                line = json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False)
                file.write(f"{line}\n")

        yield append


@contextmanager
def as_parquet(path: Path) -> Iterator[Callable[[Columns], None]]:
    writer = None

    def append(columns: Columns) -> None:
        nonlocal writer
        table = pa.table(columns)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)

    try:
        yield append
    finally:
        if writer is not None:
            writer.close()


FORMATS = {".csv": as_csv, ".jsonl": as_json_lines, ".parquet": as_parquet}
"""How a file is written, by its suffix: something that appends columns to it."""
