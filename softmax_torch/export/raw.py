"""What an exported model is given: raw inputs, as near to the user's as tensors come.

    images      image     uint8 (n, H, W), or (n, 3, H, W) in colour    x = scale * image
    features    features  float32 (n, D)                                x = scale * features
    a table     see ``softmax_torch.export.table``

The arithmetic of a preprocessing goes along with the net; only files are decoded outside of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from softmax_torch.preprocessing import FeaturesPreprocessing, ImagePreprocessing
from softmax_torch.preprocessing.columns import Column
from softmax_torch.preprocessing.images import files_of
from softmax_torch.preprocessing.tensor_files import mapped, read_inputs

__all__ = ["FeaturesFront", "Front", "ImageFront", "Value"]


class Value(NamedTuple):
    """An input or output of an exported model: its name, numpy's name of its type, its shape."""

    name: str
    type: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        """In a few words."""
        sizes = ", ".join(map(str, self.shape))
        return f"{self.name} {self.type} ({sizes}{',' if len(self.shape) == 1 else ''})"


class Front(nn.Module, ABC):
    """The arithmetic of a preprocessing, from tensors of raw inputs to x (n, ...), float32.

    Attributes:
        inputs: the tensors that ``forward`` takes.
        columns: the columns of a table, for each of those that is put together from some.
    """

    inputs: tuple[Value, ...]
    columns: Mapping[str, Sequence[Column]] = {}

    @abstractmethod
    def samples(self, raw: Any, rows: int) -> Any:
        """The first of some real raw inputs, in a form that the preprocessing takes as well.

        Args:
            raw: the path of a file or folder, or raw inputs in memory.
            rows: how many of them at most.

        Raises:
            FileNotFoundError, ValueError: they cannot be read, or do not fit the inputs.
        """

    @abstractmethod
    def tensors(self, samples: Any) -> tuple[Tensor, ...]:
        """The same as ``forward`` takes them."""

    def arrays(self, samples: Any) -> dict[str, np.ndarray[Any, Any]]:
        """The same as onnxruntime takes them, with each column of a table by its name."""
        named = zip(self.inputs, self.tensors(samples), strict=True)
        return {one.name: tensor.numpy() for one, tensor in named}


class ImageFront(Front):
    """Bytes of images that have the right size."""

    def __init__(self, preprocessing: ImagePreprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.inputs = (Value("image", "uint8", ("n", *(preprocessing.image_shape or ()))),)

    def samples(self, raw: Any, rows: int) -> Tensor:
        """Bytes (n, H, W), or (n, 3, H, W) in colour, of files, Pillow images or an array."""
        if isinstance(raw, str | Path):
            path = Path(raw)
            if path.suffix.lower() != ".npy":
                return next(self.preprocessing.decoded(files_of(path)[:rows], rows))
            raw = np.array(mapped(path)[:rows])
        if isinstance(raw, Image.Image):
            raw = [raw]
        if isinstance(raw, list | tuple) and raw and isinstance(raw[0], str | Path | Image.Image):
            return torch.stack([self.preprocessing.decode(image) for image in raw[:rows]])
        x = torch.as_tensor(raw)[:rows]
        if x.dtype != torch.uint8:
            raise ValueError(f"inputs: expected images of bytes (uint8), got {x.dtype}")
        return x

    def tensors(self, samples: Tensor) -> tuple[Tensor]:
        """The bytes."""
        return (samples,)

    def forward(self, image: Tensor) -> Tensor:
        """x (n, H, W), or (n, 3, H, W) in colour."""
        return image * self.preprocessing.scale


class FeaturesFront(Front):
    """Vectors of D numbers."""

    def __init__(self, preprocessing: FeaturesPreprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.inputs = (Value("features", "float32", ("n", preprocessing.in_features)),)

    def samples(self, raw: Any, rows: int) -> Tensor:
        """Numbers (n, D), float32, of a file (see ``tensor_files``) or an array (n, ...)."""
        if isinstance(raw, str | Path):
            raw = read_inputs(Path(raw))
        x = torch.as_tensor(raw)[:rows].float()
        self.preprocessing.tensor(x)  # which looks at its shape
        return x.flatten(1)

    def tensors(self, samples: Tensor) -> tuple[Tensor]:
        """The numbers."""
        return (samples,)

    def forward(self, features: Tensor) -> Tensor:
        """x (n, D)."""
        return features * self.preprocessing.scale
