"""The command export: a checkpoint becomes a file for others to run, if both agree."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from softmax_torch import predictor
from softmax_torch.cli.arguments import config_beside, settings
from softmax_torch.cli.console import program, say, shown
from softmax_torch.data import TensorDataModule
from softmax_torch.export import check_output, export

__all__ = ["export_checkpoint"]

SHOWN = 4
"""Inputs that are named on the console."""


def export_checkpoint(args: list[str]) -> None:
    """Export the checkpoint that these arguments name, and say what came of it."""
    parser = argparse.ArgumentParser(
        prog=f"{program()} export",
        description="Write a classifier for others to run, from raw inputs to classes and "
        "probabilities. Before it has its name it is compared with the checkpoint on real inputs.",
        epilog="Without --input, settings of the run's data may be given too, such as --data.root.",
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt_path", required=True, help="The checkpoint.")
    parser.add_argument(
        "--output",
        required=True,
        help="A new file that ends in .onnx, .pt2 or .safetensors; a name without a suffix is a "
        "folder with model.safetensors and config.json.",
    )
    parser.add_argument(
        "--input",
        help="Real inputs: a file or folder of what the model was trained on; without one, the "
        "test set of the run.",
    )
    parser.add_argument(
        "--config", help="Configuration of the run; by default config.yaml beside the checkpoint."
    )
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="Use the calibration that the command calibrate has put into the checkpoint.",
    )
    given, rest = parser.parse_known_args(args)
    if given.input is not None and rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    output = Path(given.output)
    check_output(output)
    found = predictor.load(given.ckpt_path, given.calibrated)
    inputs = given.input
    if inputs is None:
        config = Path(given.config) if given.config else config_beside(Path(given.ckpt_path))
        inputs = test_inputs(config, rest, found.rows)
    written = export(found, output, inputs)
    say("exported", f"{shown(written.path)} ({written.title}, {size(written.path)})")
    for label, values in (("takes", written.inputs), ("gives", written.outputs)):
        if values:
            more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
            say(label, ", ".join(map(str, values[:SHOWN])) + more)
    say(
        "compared",
        f"{written.samples} samples: the same classes, probabilities within "
        f"{written.difference:.2g}",
    )
    say("use", written.usage)


def test_inputs(config: Path, args: list[str], rows: int) -> Any:
    """The first raw inputs of the test set of a run; the arguments are settings of its data."""
    parser = ArgumentParser(prog=f"{program()} export")
    parser.add_subclass_arguments(TensorDataModule, "data")
    data_of = settings(config).get("data")
    if data_of is None:
        raise ValueError(f"--config: expected settings of data in {config}, got none")
    given = parser.parse_args(["--data", yaml.dump(data_of), *args])
    data = parser.instantiate_classes(given).data
    data.prepare_data()
    data.setup("test")
    return data.test_inputs(rows)


def size(path: Path) -> str:
    """Of a file, or of what is in a folder."""
    files = path.iterdir() if path.is_dir() else [path]
    total = sum(file.stat().st_size for file in files)
    return f"{total / 1e6:.1f} MB" if total >= 1e5 else f"{total / 1e3:.1f} kB"
