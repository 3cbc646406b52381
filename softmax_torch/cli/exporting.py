"""The command export: write a checkpoint for other programs, and print what was written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from softmax_torch import predictor
from softmax_torch.cli.command_parsers import build_parser
from softmax_torch.cli.config_files import read_config
from softmax_torch.cli.console import NO_BREAK, print_line, short_path
from softmax_torch.cli.jsonargparse_errors import usage_errors
from softmax_torch.cli.requests import Request, config_beside
from softmax_torch.export import check_output, export
from softmax_torch.export.input_modules import TensorSpec

__all__ = ["export_checkpoint"]

PRINTED_VALUES = 4
"""Most inputs or outputs to print by name."""


def export_checkpoint(request: Request) -> None:
    """Export a checkpoint, and print the file, its interface and the comparison."""
    arguments = request.arguments
    output = Path(arguments.output)
    check_output(output)
    classifier = predictor.load(
        *(arguments.ckpt_path, arguments.calibrated),
        backbone=arguments.backbone,
        laplace=arguments.laplace,
    )
    inputs = test_inputs(request, classifier.rows) if arguments.input is None else arguments.input
    written = export(classifier, output, inputs)
    print_line("exported", f"{short_path(written.path)} ({written.title}, {size_of(written.path)})")
    for label, values in (("takes", written.inputs), ("gives", written.outputs)):
        if values:
            print_line(label, listed(values))
    print_line(
        "compared",
        f"{written.samples} samples: the same classes, probabilities within "
        f"{written.difference:.2g}",
    )
    print_line("use", written.usage)


def listed(specs: Sequence[TensorSpec]) -> str:
    """Return the first inputs or outputs in the text of a line, which is divided between them."""
    shown = [str(spec).replace(" ", NO_BREAK) for spec in specs[:PRINTED_VALUES]]
    hidden = len(specs) - len(shown)
    return ", ".join(shown) + (f" and {hidden} more" if hidden else "")


def test_inputs(request: Request, rows: int) -> Any:
    """Return the first raw inputs of the test set of the run.

    Raises:
        FileNotFoundError, ValueError: the configuration is missing, or has no settings under data.
    """
    arguments = request.arguments
    config = Path(
        request.configs[-1] if request.configs else config_beside(Path(arguments.ckpt_path))
    )
    data_settings = read_config(config).get("data")
    if data_settings is None:
        raise ValueError(f"--config: expected settings of data in {config}, got none")
    # These import Lightning.
    from softmax_torch.cli.data_progress import ConsoleReporter
    from softmax_torch.data import TensorDataModule
    from softmax_torch.data.progress import reporting_to

    def add_settings(parser: ArgumentParser) -> None:
        parser.add_argument("-c", "--config", action="append")
        parser.add_subclass_arguments(TensorDataModule, "data")

    parser, parsers = build_parser(request.command, add_settings)
    args = [request.command, "--data", yaml.dump(data_settings), *request.args]
    with usage_errors(request.command, request._replace(configs=[str(config)]).given()):
        given = parser.parse_args(args)[request.command]
    data: TensorDataModule = parsers[request.command].instantiate_classes(given)["data"]
    with reporting_to(ConsoleReporter()):
        data.prepare_data()
        data.setup("test")
    return data.test_inputs(rows)


def size_of(path: Path) -> str:
    """Return the size of a file, or of the files in a folder, with its unit."""
    files = path.iterdir() if path.is_dir() else [path]
    total = sum(file.stat().st_size for file in files)
    return f"{total / 1e6:.1f} MB" if total >= 1e5 else f"{total / 1e3:.1f} kB"
