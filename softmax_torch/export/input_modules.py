"""The preprocessing within an exported model: from raw inputs, as tensors, to x.

    images      image     uint8 (n, H, W), or (n, 3, H, W) in colour    x = scale * image, then
                                                                        (x - mean) / std if there
                                                                        is a standardization
    features    features  float32 (n, D)                                x = scale * features
    a table     see ``softmax_torch.export.table_input``

An exported model includes the arithmetic of its preprocessing; only the decoding of files is left
to its caller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from softmax_torch.preprocessing import FeaturesPreprocessing, ImagePreprocessing
from softmax_torch.preprocessing.table import Column
from softmax_torch.readers.image_search import find_files
from softmax_torch.readers.numpy_files import Array, map_numbers
from softmax_torch.readers.table_format import TableFormat
from softmax_torch.readers.tensor_files import read_inputs

__all__ = ["FeaturesInput", "ImageInput", "InputModule", "Interface", "Runner", "TensorSpec"]

Runner = Callable[[Any], tuple[Tensor, ...]]
"""A function from samples to what a file predicts: labels (n,), probabilities (n, C) and, with
conformal sets, which classes are in the set of each sample, bool (n, C)."""


class TensorSpec(NamedTuple):
    """Name, type (as NumPy calls it) and shape of an input or output of an exported model."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        """Return a short description, such as "image uint8 (n, 28, 28)"."""
        sizes = ", ".join(map(str, self.shape))
        return f"{self.name} {self.dtype} ({sizes}{',' if len(self.shape) == 1 else ''})"


Interface = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""Inputs and outputs of an exported model."""


class InputModule(nn.Module, ABC):
    """A preprocessing as a module, from tensors of raw inputs to x (n, ...), float32.

    Attributes:
        inputs: the tensors that ``forward`` takes.
        columns: for each input that is a matrix of table columns, these columns.
        table_format: how the texts of these columns are written.
    """

    inputs: tuple[TensorSpec, ...]
    columns: Mapping[str, Sequence[Column]] = {}
    table_format: TableFormat = TableFormat()

    @abstractmethod
    def samples(self, raw: Any, rows: int) -> Any:
        """Return the first raw inputs in a form that the preprocessing takes too.

        Args:
            raw: the path of a file or folder, or raw inputs in memory.
            rows: number of samples at most.

        Raises:
            FileNotFoundError, ValueError: they cannot be read, or do not match ``inputs``.
        """

    @abstractmethod
    def tensors(self, samples: Any) -> tuple[Tensor, ...]:
        """Return samples as the tensors that ``forward`` takes."""

    def arrays(self, samples: Any) -> dict[str, Array]:
        """Return samples as arrays for onnxruntime, each column of a table under its name."""
        named = zip(self.inputs, self.tensors(samples), strict=True)
        return {spec.name: tensor.numpy() for spec, tensor in named}


class ImageInput(InputModule):
    """Bytes of images of the right size."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: ImagePreprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.inputs = (TensorSpec("image", "uint8", ("n", *(preprocessing.image_shape or ()))),)
        self.standardizes = preprocessing.standardization is not None
        if preprocessing.standardization is not None:
            mean, std = preprocessing.standardization.columns(torch.empty(0, dtype=torch.float32))
            self.register_buffer("mean", mean)
            self.register_buffer("std", std)

    def samples(self, raw: Any, rows: int) -> Tensor:
        """Return bytes (n, H, W), or (n, 3, H, W), of files, Pillow images or an array."""
        if isinstance(raw, str | Path):
            path = Path(raw)
            if path.suffix.lower() != ".npy":
                return next(self.preprocessing.decode_files(find_files(path)[:rows], rows)).pixels
            raw = np.array(map_numbers(path)[:rows])
        if isinstance(raw, Image.Image):
            raw = [raw]
        if isinstance(raw, list | tuple) and raw and isinstance(raw[0], str | Path | Image.Image):
            return torch.stack([self.preprocessing.decode(image) for image in raw[:rows]])
        x = torch.as_tensor(raw)[:rows]
        if x.dtype != torch.uint8:
            raise ValueError(f"inputs: expected images of bytes (uint8), got {x.dtype}")
        return x

    def tensors(self, samples: Tensor) -> tuple[Tensor]:
        return (samples,)

    def forward(self, image: Tensor) -> Tensor:
        """Return x (n, H, W), or (n, 3, H, W) in colour."""
        v = image * self.preprocessing.scale
        return (v - self.mean) / self.std if self.standardizes else v


class FeaturesInput(InputModule):
    """Vectors of D numbers."""

    def __init__(self, preprocessing: FeaturesPreprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.inputs = (TensorSpec("features", "float32", ("n", preprocessing.in_features)),)

    def samples(self, raw: Any, rows: int) -> Tensor:
        """Return numbers (n, D), float32, of a file with tensors or of an array (n, ...)."""
        if isinstance(raw, str | Path):
            raw = read_inputs(Path(raw))
        x = torch.as_tensor(raw)[:rows].float()
        self.preprocessing.tensor(x)  # checks the shape
        return x.flatten(1)

    def tensors(self, samples: Tensor) -> tuple[Tensor]:
        return (samples,)

    def forward(self, features: Tensor) -> Tensor:
        """Return x (n, D)."""
        return features * self.preprocessing.scale
