"""scikit-learn's handwritten digits: 1,797 images of 8 x 8, installed with it."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from softmax_torch.data.module import Split, TensorDataModule, carve
from softmax_torch.preprocessing import ImagePreprocessing

__all__ = ["DigitsDataModule"]


class DigitsDataModule(TensorDataModule):
    """Handwritten digits with no download: 64 pixels in [0, 1], 10 classes.

    The test set is a fifth of the images, drawn with a seed of its own that nothing changes, as the
    data set comes without one.

    Args:
        batch_size, val_fraction, seed: see ``TensorDataModule``.
    """

    def __init__(
        self, batch_size: int | None = 32, val_fraction: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__(64, 10, batch_size, val_fraction, seed, scale=1 / 16)

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """Grey images of 8 x 8, in which white is 16."""
        return ImagePreprocessing((8, 8), False, tuple("0123456789"), self.scale)

    def read(self) -> tuple[Split, Split]:
        """The images, split into training and test set."""
        digits = load_digits()
        x = torch.from_numpy(digits.images).to(torch.uint8)
        return carve(Split(x, torch.from_numpy(digits.target)), fraction=0.2, seed=1797)
