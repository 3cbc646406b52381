"""The command test --input: score a new labelled table with a checkpoint, which is all it needs."""

from __future__ import annotations

import torch

from softmax_torch import predictor
from softmax_torch.cli.console import (
    for_line,
    format_metrics,
    is_unequal,
    print_line,
    short_path,
)
from softmax_torch.cli.data_progress import ConsoleReporter
from softmax_torch.cli.evaluations import new_figure_file, print_evaluation
from softmax_torch.cli.requests import Request
from softmax_torch.data.labelled_rows import read_labelled
from softmax_torch.data.progress import reporting_to
from softmax_torch.preprocessing import TablePreprocessing
from softmax_torch.report.run_results import EvaluatedSet, Groups
from softmax_torch.training.epoch_metrics import EvaluationMetrics

__all__ = ["test_labelled_file"]


def test_labelled_file(request: Request) -> None:
    """Print the metrics of a checkpoint on a labelled table.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint or file, the model was not
            trained on a table, or the file does not fit it.
    """
    arguments, output = request.arguments, new_figure_file(request)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classifier = predictor.load(
        *(arguments.ckpt_path, arguments.calibrated, device, arguments.backbone),
        laplace=arguments.laplace,
    )
    preprocessing = classifier.preprocessing
    if not isinstance(preprocessing, TablePreprocessing):
        raise ValueError(
            f"test: expected the checkpoint of a table beside --input, got {preprocessing.kind}"
        )
    with reporting_to(ConsoleReporter()):
        read = read_labelled(
            preprocessing,
            arguments.input,
            arguments.target,
            arguments.drop_unlabelled,
            arguments.unknown == "refuse",
            arguments.group_column,
        )
    samples = read.splits["test"]
    evaluation = EvaluationMetrics()
    for first in range(0, len(samples), classifier.rows):
        together = slice(first, first + classifier.rows)
        y = samples.y[together].to(classifier.device)
        evaluation.add(classifier.logits(samples.x[together]), y)
    logits, y = (tensor.cpu() for tensor in evaluation.samples())
    found = evaluation.result(reduce=lambda total: total)
    result = {f"test/{name}": float(value) for name, value in found.items()}
    names = preprocessing.class_names
    unequal = is_unequal(torch.bincount(samples.y, minlength=len(names)))
    column = arguments.group_column or preprocessing.group_column
    groups = Groups(column, read.groups["test"]) if column and read.groups else None
    file = short_path(arguments.input)
    print_line("evaluated", f"{file} ({len(samples)} samples, {len(names)} classes)")
    print_line("test", format_metrics(for_line(result, unequal)))
    print_evaluation(EvaluatedSet(logits, y), names, groups, unequal, output)
