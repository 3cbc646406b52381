"""scikit-learn's handwritten digits: 1,797 images of 8 x 8, installed with scikit-learn."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from softmax_torch.data.splits import Split, random_split
from softmax_torch.data.tensor_data_module import TensorDataModule
from softmax_torch.preprocessing import ImagePreprocessing

__all__ = ["DigitsDataModule"]


class DigitsDataModule(TensorDataModule):
    """Handwritten digits without a download: 64 pixels in [0, 1], 10 classes.

    The data set has no official test set. A fifth of the images, drawn with a fixed seed, is the
    test set.

    Args:
        batch_size, val_fraction, seed: see ``TensorDataModule``.
    """

    def __init__(
        self, batch_size: int | None = 32, val_fraction: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__(64, 10, batch_size, val_fraction, seed, scale=1 / 16)

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """Grey images of 8 x 8 in which white is 16."""
        return ImagePreprocessing((8, 8), False, tuple("0123456789"), self.scale)

    def read(self) -> tuple[Split, Split]:
        """Return the images, split into training and test set."""
        digits = load_digits()
        x = torch.from_numpy(digits.images).to(torch.uint8)
        return random_split(Split(x, torch.from_numpy(digits.target)), fraction=0.2, seed=1797)
