"""A trained classifier leaves the house: as an ONNX file, a program of torch.export, or weights.

    raw inputs  ->  preprocessing  ->  net  ->  calibration  ->  label, probabilities

All of that is in what is written, with the names of the classes:

    .onnx           a graph that onnxruntime runs, without torch and without this package
    .pt2            a program that torch runs, without this package
    .safetensors    weights and configuration, which ``softmax_torch.load`` reads
    a folder        the same as Hugging Face lays it out, model.safetensors and config.json

It is written under another name, read again, compared with the classifier on real inputs, and has
its own name only after that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from softmax_torch.export.raw import FeaturesFront, Front, ImageFront, Value
from softmax_torch.export.table import TableFront
from softmax_torch.predictor import Predictor, load
from softmax_torch.preprocessing import (
    FeaturesPreprocessing,
    ImagePreprocessing,
    Preprocessing,
    TablePreprocessing,
)
from softmax_torch.storage.atomic_files import name_in_errors

__all__ = ["FORMATS", "Exported", "Writer", "check_output", "export"]

TOLERANCE = 1e-5
"""How far probabilities may be from those of the classifier: some 80 units of float32 at 1."""

ROUNDINGS = 4
"""How far they may be in any case, in errors of the classifier itself: with logits of 1e4, whose
digits end at 1e-3, another order of summation alone makes differences of 1e-4."""


class Writer(Protocol):
    """What a module for a format has."""

    def write(self, path: Path, predictor: Predictor, front: Front) -> None:
        """Write a new file or folder."""

    def opened(self, path: Path, front: Front) -> Callable[[Any], tuple[Tensor, Tensor]]:
        """What the file or folder makes of samples: labels (n,) and probabilities (n, C)."""

    def interface(self, front: Front, C: int) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        """Inputs and outputs, for C classes; none, if it is no program."""

    def usage(self, path: Path, front: Front) -> str:
        """How to use it, in a line of Python."""


class Format(NamedTuple):
    """A format: what it is called, the module here that writes it, and the packages it takes."""

    title: str
    module: str
    packages: tuple[str, ...] = ()


FORMATS = {
    ".onnx": Format("ONNX", "onnx_file", ("onnx", "onnxscript", "onnxruntime")),
    ".pt2": Format("torch.export", "torch_program"),
    ".safetensors": Format("safetensors", "weights", ("safetensors",)),
    "": Format("folder, safetensors", "weights", ("safetensors",)),
}
"""By the suffix of the output."""


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: the file or folder.
        title: what its format is called.
        inputs: what it takes; none for weights, which take what the classifier takes.
        outputs: what it gives; likewise.
        samples: real inputs on which it was compared with the classifier.
        difference: the largest difference of a probability there.
        usage: a line of Python that uses it.
    """

    path: Path
    title: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    samples: int
    difference: float
    usage: str


def export(source: Predictor | str | Path, output: str | Path, inputs: Any) -> Exported:
    """Write a classifier in the format that the suffix of the output names.

    Args:
        source: the classifier, on a CPU; or its checkpoint, which is used without a calibration.
        output: a new name that ends in one of ``FORMATS``; one without a suffix is a folder.
        inputs: real raw inputs, a file or folder or in memory, as many as there are up to
            ``Predictor.rows``: on them the classifier and what was written have to agree.

    Raises:
        ValueError, FileExistsError, FileNotFoundError: the output cannot be written so, or the
            inputs do not fit the classifier.
        OSError: the disk is full, for example; nothing is left of the output.
        ImportError: the format takes packages that are not installed.
        ArithmeticError: what was written predicts something else; it is deleted.
    """
    output = Path(output)
    how = check_output(output)
    predictor = source if isinstance(source, Predictor) else load(source)
    if predictor.device.type != "cpu":
        raise ValueError(f"source: expected a classifier on a CPU, got {predictor.device}")
    front = front_of(predictor.preprocessing)
    samples = front.samples(inputs, predictor.rows)
    expected = predictor.predict_proba(samples)
    if len(expected) == 0:
        raise ValueError("inputs: expected at least one sample, got none")
    format = cast(Writer, import_module(f"{__name__}.{how.module}"))
    partial = output.with_name(f".{output.stem}.partial{output.suffix}")  # torch looks at suffixes
    delete(partial)  # what an export that was killed has left
    try:
        with name_in_errors(output):
            format.write(partial, predictor, front)
        run = format.opened(partial, front)
        got = run(samples)
        difference = float((got[1].double() - expected.double()).abs().max())
        tolerance = TOLERANCE
        if difference > TOLERANCE:
            tolerance = max(TOLERANCE, ROUNDINGS * rounding(predictor, samples, expected))
        compare(output, got, expected, tolerance)
        # And the first alone: a graph may have taken the size of a batch for a constant.
        compare(output, run(front.samples(samples, 1)), expected[:1], tolerance)
        partial.rename(output)
    finally:
        delete(partial)
    takes, gives = format.interface(front, expected.shape[1])
    usage = format.usage(output, front)
    return Exported(output, how.title, takes, gives, len(expected), difference, usage)


def check_output(output: Path) -> Format:
    """The format of an output that can be written; see ``export`` for the errors."""
    if output.suffix not in FORMATS:
        known = ", ".join(filter(None, FORMATS))
        raise ValueError(
            f"output: expected a name that ends in {known}, or one without a suffix for a folder; "
            f"got {output.name}"
        )
    if output.exists():
        raise FileExistsError(f"output: expected a new name, got {output}, which exists")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"output: expected a folder {output.parent}, got none")
    how = FORMATS[output.suffix]
    missing = [name for name in how.packages if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"output: expected the packages {', '.join(how.packages)} for {output.name}, got no "
            f"{', '.join(missing)}: pip install 'softmax-torch[export]'"
        )
    return how


def front_of(preprocessing: Preprocessing) -> Front:
    """The arithmetic of a preprocessing; ValueError if it is of a kind that is not exported."""
    if isinstance(preprocessing, ImagePreprocessing):
        return ImageFront(preprocessing)
    if isinstance(preprocessing, FeaturesPreprocessing):
        return FeaturesFront(preprocessing)
    if isinstance(preprocessing, TablePreprocessing):
        return TableFront(preprocessing)
    raise ValueError(
        "preprocessing: expected that of images, features or a table, got "
        f"{type(preprocessing).__name__}"
    )


def rounding(predictor: Predictor, samples: Any, expected: Tensor) -> float:
    """How far probabilities of the classifier are from those that it has in float64."""
    x = predictor.preprocessing.tensor(samples).double()
    with torch.inference_mode():
        z = deepcopy(predictor.network).double()(x)
        z = z if predictor.calibration is None else predictor.calibration(z)
        return float((z.softmax(1) - expected.double()).abs().max())


def compare(
    output: Path, got: tuple[Tensor, Tensor], expected: Tensor, tolerance: float = TOLERANCE
) -> None:
    """Whether labels (n,) and probabilities (n, C) are those of the classifier.

    Where the classifier itself finds two classes as probable, rounding says which one is named.

    Raises:
        ArithmeticError: they are not.
    """
    labels, p = got
    differences = (p.double() - expected.double()).abs().amax(1)
    best = expected.amax(1) - expected.gather(1, labels[:, None])[:, 0]
    # Not ``>``, which NaN never is.
    wrong = ~((differences <= tolerance) & (best <= 2 * tolerance))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ArithmeticError(
            f"{output}: expected the predictions of the classifier, with probabilities within "
            f"{tolerance:.2g}, got others for {int(wrong.sum())} of {len(wrong)} samples, the "
            f"first of them sample {row}: class {int(labels[row])} instead of "
            f"{int(expected[row].argmax())}, probabilities up to {float(differences.max()):.2g} "
            "apart; nothing was written"
        )


def delete(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
