"""Write predictions to a file as they are computed; it is renamed into place when complete.

    id  predicted  probability  [predicted_2  probability_2  ...]  [set]  [p_<class>  ...]

One row per sample: its ``top_k`` most probable classes and their probabilities, and on request its
conformal set and the probability of every class. The suffix names the format: .csv, .jsonl or
.parquet. A set is a list of names, the most probable class first. CSV has no lists; there it is
written as JSON, such as ["3", "8"], since a name may contain any separator.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from pyarrow import parquet
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from softmax_torch import predictor
from softmax_torch.cli.console import print_line, short_path
from softmax_torch.cli.requests import Request
from softmax_torch.post_hoc import PostHoc
from softmax_torch.predictor import Predicted, PredictedRows, PredictedSets, names_in_sets
from softmax_torch.preprocessing import ImagePreprocessing
from softmax_torch.preprocessing.unknown_categories import UnknownCategories, counting_unknown
from softmax_torch.storage.atomic_files import PARTIAL_SUFFIX, name_in_errors
from softmax_torch.storage.new_names import check_new_name, numbered_names, take_free_name

__all__ = ["PredictionFile", "new_prediction_file", "predict_input"]

Columns = dict[str, list[Any]]

Batch = Predicted | PredictedSets | PredictedRows


class PredictionFile(NamedTuple):
    """A file of predictions that is not written yet.

    Attributes:
        path: the new file; its suffix is one of ``WRITERS``.
        top_k: number of classes to name for a sample, most probable first.
        probabilities: whether to write the probability of every class too.
        sets: whether the conformal set of every sample is to be predicted and written too.
    """

    path: Path
    top_k: int
    probabilities: bool
    sets: bool = False

    def write(self, batches: Iterable[Batch], class_names: Sequence[str]) -> None:
        """Write predictions as they are computed, and print the path."""
        # Another process may be writing its own under the same name.
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
        samples = 0
        try:
            with ExitStack() as closing:
                with name_in_errors(self.path):
                    append = closing.enter_context(WRITERS[self.path.suffix](partial))
                for batch in with_progress(batches):
                    with name_in_errors(self.path):
                        append(self.columns(batch, class_names))
                    samples += len(batch.ids)
            if self.path.exists():
                raise FileExistsError(f"output: {self.path} has been written by another process")
            partial.rename(self.path)
        finally:
            partial.unlink(missing_ok=True)
        print_line(
            "predictions",
            f"{short_path(self.path)} ({samples} samples, {len(class_names)} classes)",
        )

    def columns(self, batch: Batch, class_names: Sequence[str]) -> Columns:
        """Return the rows of a batch as columns by name."""
        names, p, sets, decided = PredictedRows(*batch)
        # File names that are not UTF-8 hold surrogates, which no format can encode.
        ids = [name.encode("utf-8", "backslashreplace").decode() for name in names]
        columns: Columns = {"id": ids}
        shown = min(self.top_k, p.shape[1])
        classes = p.topk(shown, dim=1).indices
        if decided is not None:  # one of two
            classes = torch.stack([decided, 1 - decided], 1)[:, :shown]
        for k in range(shown):
            number = f"_{k + 1}" if k else ""
            columns[f"predicted{number}"] = [class_names[c] for c in classes[:, k].tolist()]
            columns[f"probability{number}"] = nine_digits(p.gather(1, classes)[:, k])
        if sets is not None:
            columns["set"] = names_in_sets(p, sets, class_names)
        if self.probabilities:
            columns |= {f"p_{name}": nine_digits(p[:, c]) for c, name in enumerate(class_names)}
        return columns


def new_prediction_file(request: Request) -> PredictionFile:
    """Return the file that the arguments describe; its default lies beside the checkpoint.

    Raises:
        ValueError: ``top_k`` is below 1, or no format has this suffix.
        FileExistsError: the file exists.
        FileNotFoundError: its folder does not exist.
    """
    arguments = request.arguments
    if arguments.top_k < 1:
        raise ValueError(f"top_k: expected a number of at least 1, got {arguments.top_k}")
    if arguments.output is None:
        default = Path(arguments.ckpt_path).with_name("predictions.csv")
        path = take_free_name(numbered_names(default))
    else:
        path = Path(arguments.output)
    if path.suffix not in WRITERS:
        raise ValueError(
            f"output: expected a name that ends in {', '.join(WRITERS)}, got {path.name}"
        )
    check_new_name(path)
    return PredictionFile(path, arguments.top_k, arguments.probabilities, arguments.sets)


def predict_input(request: Request) -> None:
    """Predict a file or folder; this needs nothing but a checkpoint."""
    arguments, output = request.arguments, new_prediction_file(request)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    classifier = predictor.load(
        *(arguments.ckpt_path, arguments.calibrated, device, arguments.backbone),
        threshold=arguments.threshold,
    )
    if output.sets:
        PostHoc(conformal=classifier.conformal).require("conformal", arguments.ckpt_path)
    preprocessing, unreadable = classifier.preprocessing, dict[Path, str]()
    if arguments.skip_unreadable:
        if not isinstance(preprocessing, ImagePreprocessing):
            raise ValueError(
                f"skip_unreadable: expected a model of images, got one of {preprocessing.kind}"
            )
        preprocessing.unreadable = unreadable
    with counting_unknown(UnknownCategories(refuse=arguments.unknown == "refuse")) as unknown:
        output.write(classifier.predict_rows(arguments.input, output.sets), classifier.class_names)
    for line in unknown.messages():
        print_line("unknown", line, file=sys.stderr)
    if unreadable:
        first, *others = unreadable.values()
        more = f"; and {len(others)} more" if others else ""
        print_line("skipped", f"{first}{more}", file=sys.stderr)


def with_progress(
    batches: Iterable[Batch],
) -> Iterator[Batch]:
    """Yield the batches, and count their samples on a terminal."""
    text = TextColumn("{task.completed:.0f} samples"), BarColumn(), TimeElapsedColumn()
    with Progress(*text, transient=True, disable=not os.isatty(1)) as progress:
        task = progress.add_task("", total=None)
        for batch in batches:
            yield batch
            progress.advance(task, len(batch.ids))


def nine_digits(p: torch.Tensor) -> list[float]:
    """Return probabilities (n,) with nine digits, which tell any two float32 apart."""
    return [float(f"{x:.9g}") for x in p.tolist()]


def without_lists(column: list[Any]) -> list[Any]:
    """Return a column with JSON in place of lists."""
    return [json.dumps(x, ensure_ascii=False) if isinstance(x, list) else x for x in column]


@contextmanager
def write_csv(path: Path) -> Iterator[Callable[[Columns], None]]:
    """Open a CSV file; yield a function that appends columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)

        def append(columns: Columns) -> None:
            if file.tell() == 0:
                writer.writerow(columns)
            writer.writerows(zip(*map(without_lists, columns.values()), strict=True))

        yield append


@contextmanager
def write_json_lines(path: Path) -> Iterator[Callable[[Columns], None]]:
    """Open a file of JSON lines; yield a function that appends columns."""
    with path.open("w", encoding="utf-8") as file:

        def append(columns: Columns) -> None:
            for row in zip(*columns.values(), strict=True):
                line = json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False)
                file.write(f"{line}\n")

        yield append


@contextmanager
def write_parquet(path: Path) -> Iterator[Callable[[Columns], None]]:
    """Open a Parquet file; yield a function that appends columns."""
    writer = None

    def append(columns: Columns) -> None:
        nonlocal writer
        if "set" in columns:  # its type is not that of empty sets, which have none
            columns["set"] = pa.array(columns["set"], pa.list_(pa.string()))
        table = pa.table(columns)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)

    try:
        yield append
    finally:
        if writer is not None:
            writer.close()


WRITERS = {".csv": write_csv, ".jsonl": write_json_lines, ".parquet": write_parquet}
"""Writers by the suffix of the file."""
