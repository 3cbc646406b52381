"""Export of trained classifiers: to ONNX, to a torch.export program, or to safetensors weights.

    raw inputs  ->  preprocessing  ->  net  ->  calibration  ->  label, probabilities
                                           ->  sets, if the classifier has conformal sets

An exported file holds all of that, and the class names:

    .onnx           a graph that onnxruntime runs, without torch and without this package
    .pt2            a program that torch runs, without this package
    .safetensors    weights and configuration, which ``softmax_torch.load`` reads
    a folder        the same in Hugging Face's layout, model.safetensors and config.json

The file is written under a temporary name and read again. It is renamed into place only after its
predictions for real inputs match those of the classifier.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from softmax_torch.export.comparison import TOLERANCE, check_predictions, check_sets, tolerance_of
from softmax_torch.export.input_modules import (
    FeaturesInput,
    ImageInput,
    InputModule,
    Interface,
    Runner,
    TensorSpec,
)
from softmax_torch.export.table_input import TableInput
from softmax_torch.predictor import Predictor, load
from softmax_torch.preprocessing import (
    FeaturesPreprocessing,
    ImagePreprocessing,
    Preprocessing,
    TablePreprocessing,
)
from softmax_torch.preprocessing.unknown_categories import UnknownCategories, counting_unknown
from softmax_torch.storage.atomic_files import name_in_errors
from softmax_torch.storage.new_names import check_new_name

__all__ = ["FORMATS", "Exported", "FormatModule", "check_output", "export"]


class FormatModule(Protocol):
    """The functions that the module of a format defines."""

    def write(self, path: Path, predictor: Predictor, input_module: InputModule) -> None:
        """Write a new file or folder."""

    def open_runner(self, path: Path, input_module: InputModule) -> Runner:
        """Open a file for predictions."""

    def interface(self, input_module: InputModule, predictor: Predictor) -> Interface:
        """Return inputs and outputs; none if the file is no program."""

    def usage(self, path: Path, input_module: InputModule, outputs: Sequence[TensorSpec]) -> str:
        """Return a line of Python that uses the file."""


class Format(NamedTuple):
    """A format: its title, the module here that writes it, and the packages that it needs."""

    title: str
    module: str
    packages: tuple[str, ...] = ()


FORMATS = {
    ".onnx": Format("ONNX", "onnx_file", ("onnx", "onnxscript", "onnxruntime")),
    ".pt2": Format("torch.export", "torch_program"),
    ".safetensors": Format("safetensors", "safetensors_file", ("safetensors",)),
    "": Format("folder, safetensors", "safetensors_file", ("safetensors",)),
}
"""Format of each suffix of the output."""


class Exported(NamedTuple):
    """The result of an export.

    Attributes:
        path: the file or folder.
        title: name of the format.
        inputs: tensors that the exported program takes; none for weights, which are no program.
        outputs: tensors that it returns; none for weights.
        samples: number of real inputs on which it was compared with the classifier.
        difference: largest difference of a probability in this comparison.
        usage: a line of Python that uses the file.
    """

    path: Path
    title: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: int
    difference: float
    usage: str


def export(source: Predictor | str | Path, output: str | Path, inputs: Any) -> Exported:
    """Write a classifier in the format that the suffix of the output names.

    Args:
        source: the classifier, on a CPU; or its checkpoint, which is used without a calibration.
        output: a new name with a suffix of ``FORMATS``; a name without a suffix is a folder.
        inputs: real raw inputs, a file or folder or in memory. The exported file and the classifier
            must agree on the first ``Predictor.rows`` of them.

    Raises:
        ValueError, FileExistsError, FileNotFoundError: the output cannot have this name, or the
            inputs do not fit the classifier.
        OSError: the output could not be written; nothing is left of it.
        ImportError: the format needs packages that are not installed.
        ArithmeticError: the written file predicts something else; it is deleted.
    """
    output = Path(output)
    format = check_output(output)
    predictor = source if isinstance(source, Predictor) else load(source)
    if predictor.device.type != "cpu":
        raise ValueError(f"source: expected a classifier on a CPU, got {predictor.device}")
    with counting_unknown(UnknownCategories()):  # no warnings: the inputs serve a comparison
        return write_compared(output, format, predictor, inputs)


def write_compared(output: Path, format: Format, predictor: Predictor, inputs: Any) -> Exported:
    """Write a file, compare its predictions with the classifier's, and give it its name."""
    input_module = input_module_of(predictor.preprocessing)
    samples = input_module.samples(inputs, predictor.rows)
    x = predictor.preprocessing.tensor(samples)
    expected = predictor.logits(x).softmax(1)
    if len(expected) == 0:
        raise ValueError("inputs: expected at least one sample, got none")
    module = cast(FormatModule, import_module(f"{__name__}.{format.module}"))
    partial = output.with_name(f".{output.stem}.partial{output.suffix}")  # torch checks suffixes
    delete(partial)  # left by an export that was killed
    try:
        with name_in_errors(output):
            module.write(partial, predictor, input_module)
        run = module.open_runner(partial, input_module)
        predicted = run(samples)
        difference = float((predicted[1].double() - expected.double()).abs().max())
        # Also the first sample alone: a graph may have fixed the batch size.
        first = run(input_module.samples(samples, 1))
        tolerance = TOLERANCE
        applied = None if predictor.laplace_method is None else predictor.laplace
        if difference > TOLERANCE:
            tolerance = tolerance_of(predictor, x, predictor.calibration, applied)
        check_predictions(output, predicted, expected, tolerance)
        check_predictions(output, first, expected[:1], tolerance)
        if predictor.conformal is not None:
            sets, z = predictor.conformal, predictor.uncalibrated_logits(x)
            tolerance = tolerance_of(predictor, x, sets.calibration)
            check_sets(output, predicted[2], sets, z, tolerance)
            check_sets(output, first[2], sets, z[:1], tolerance)
        partial.rename(output)
    finally:
        delete(partial)
    takes, gives = module.interface(input_module, predictor)
    usage = module.usage(output, input_module, gives)
    return Exported(output, format.title, takes, gives, len(expected), difference, usage)


def check_output(output: Path) -> Format:
    """Return the format of an output; raise the errors of ``export`` for a name it cannot have."""
    if output.suffix not in FORMATS:
        known = ", ".join(filter(None, FORMATS))
        raise ValueError(
            f"output: expected a name that ends in {known}, or one without a suffix for a folder; "
            f"got {output.name}"
        )
    check_new_name(output)
    format = FORMATS[output.suffix]
    missing = [name for name in format.packages if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"output: expected the packages {', '.join(format.packages)} for {output.name}, got no "
            f"{', '.join(missing)}: pip install 'softmax-torch[export]'"
        )
    return format


def input_module_of(preprocessing: Preprocessing) -> InputModule:
    """Return a preprocessing as a module; raise ValueError for a kind that cannot be exported."""
    if isinstance(preprocessing, ImagePreprocessing):
        return ImageInput(preprocessing)
    if isinstance(preprocessing, FeaturesPreprocessing):
        return FeaturesInput(preprocessing)
    if isinstance(preprocessing, TablePreprocessing):
        return TableInput(preprocessing)
    raise ValueError(
        "preprocessing: expected one of images, features or a table, got "
        f"{type(preprocessing).__name__}"
    )


def delete(path: Path) -> None:
    """Remove a file or folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
