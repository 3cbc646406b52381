"""Write predictions to a file as they are computed; it is renamed into place when complete.

    id  predicted  probability  [predicted_2  probability_2  ...]  [set]  [p_<class>  ...]

One row per sample: its ``top_k`` most probable classes and their probabilities, and on request its
conformal set and the probability of every class. A set is a list of names, the most probable class
first. ``cli.table_files`` has the formats.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from softmax_torch import predictor
from softmax_torch.cli.console import print_line, short_path
from softmax_torch.cli.requests import Request
from softmax_torch.cli.table_files import Columns, appending, new_table_file
from softmax_torch.predictor import PredictedRows, names_in_sets
from softmax_torch.preprocessing import ImagePreprocessing
from softmax_torch.preprocessing.unknown_categories import UnknownCategories, counting_unknown

__all__ = ["PredictionFile", "new_prediction_file", "predict_input"]


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

    def write(self, batches: Iterable[PredictedRows], class_names: Sequence[str]) -> None:
        """Write predictions as they are computed, and print the path."""
        samples = 0
        with appending(self.path) as append:
            for batch in with_progress(batches):
                append(self.columns(batch, class_names))
                samples += len(batch.ids)
        print_line(
            "predictions",
            f"{short_path(self.path)} ({samples} samples, {len(class_names)} classes)",
        )

    def columns(self, batch: PredictedRows, class_names: Sequence[str]) -> Columns:
        """Return the rows of a batch as columns by name."""
        names, p, sets, decided = batch
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
    path = new_table_file(arguments.output, Path(arguments.ckpt_path).with_name("predictions.csv"))
    return PredictionFile(path, arguments.top_k, arguments.probabilities, arguments.sets)


def predict_input(request: Request) -> None:
    """Predict a file or folder; this needs nothing but a checkpoint."""
    arguments, output = request.arguments, new_prediction_file(request)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    classifier = predictor.load(
        *(arguments.ckpt_path, arguments.calibrated, device, arguments.backbone),
        threshold=arguments.threshold,
        laplace=arguments.laplace,
    )
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


def with_progress(batches: Iterable[PredictedRows]) -> Iterator[PredictedRows]:
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
