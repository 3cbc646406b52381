"""The command test --input: score a new labelled table with a checkpoint, which is all it needs."""

from __future__ import annotations

import torch

from softmax_torch import predictor
from softmax_torch.cli.console import (
    format_metrics,
    is_unequal,
    print_line,
    short_path,
    without_balance,
)
from softmax_torch.cli.data_progress import ConsoleReporter
from softmax_torch.cli.requests import Request
from softmax_torch.data.labelled_rows import read_labelled
from softmax_torch.data.progress import reporting_to
from softmax_torch.preprocessing import TablePreprocessing
from softmax_torch.training.epoch_metrics import EvaluationMetrics

__all__ = ["test_labelled_file"]


def test_labelled_file(request: Request) -> None:
    """Print the metrics of a checkpoint on a labelled table.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint or file, the model was not
            trained on a table, or the file does not fit it.
    """
    arguments = request.arguments
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classifier = predictor.load(
        arguments.ckpt_path, arguments.calibrated, device, arguments.backbone
    )
    preprocessing = classifier.preprocessing
    if not isinstance(preprocessing, TablePreprocessing):
        raise ValueError(
            f"test: expected the checkpoint of a table beside --input, got {preprocessing.kind}"
        )
    with reporting_to(ConsoleReporter()):
        samples, _ = read_labelled(
            preprocessing,
            arguments.input,
            arguments.target,
            arguments.drop_unlabelled,
            arguments.unknown == "refuse",
        )
    evaluation = EvaluationMetrics()
    for first in range(0, len(samples), classifier.rows):
        together = slice(first, first + classifier.rows)
        y = samples.y[together].to(classifier.device)
        evaluation.add(classifier.logits(samples.x[together]), y)
    found = evaluation.result(reduce=lambda total: total)
    result = {f"test/{name}": float(value) for name, value in found.items()}
    if not is_unequal(torch.bincount(samples.y, minlength=len(preprocessing.class_names))):
        result = without_balance(result)
    file, classes = short_path(arguments.input), len(preprocessing.class_names)
    print_line("evaluated", f"{file} ({len(samples)} samples, {classes} classes)")
    print_line("test", format_metrics(result))
