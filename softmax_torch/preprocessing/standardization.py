"""Standardise the pixels of images, channel by channel.

    v = scale * pixel                  stored pixels, such as bytes, as numbers in [0, 1]
    x = (v - mean_k) / std_k           for channel k; of grey images there is one

Mean and standard deviation are those of all training pixels of a channel. Pixels of photographs
have a large mean in common; without it, solvers take fewer passes, and one list of penalties suits
dark and bright images.

>>> images = torch.tensor([[[0, 255]], [[255, 255]]], dtype=torch.uint8)  # two of 1 x 2
>>> of_training = Standardization.fit(images, 1 / 255)
>>> f"{of_training.mean[0]:.4f} {of_training.std[0]:.4f}"
'0.7500 0.4330'
>>> of_training.apply_(images / 255).flatten()
tensor([-1.7321,  0.5774,  0.5774,  0.5774])
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

__all__ = ["Standardization"]

FITTED_TOGETHER = 1 << 24
"""Pixels that are counted together: ``bincount`` converts its bytes to int64, 128 MiB."""


class Standardization(NamedTuple):
    """Mean and standard deviation of each channel, one or three, in [0, 1] as pixels are scaled."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def fit(cls, images: Tensor, scale: float) -> Self:
        """Return mean and standard deviation of the pixels of images.

        Pixels are counted by value, and the sums over the 256 values are exact. The standard
        deviation of a channel whose pixels are all equal is 1, which leaves it at 0.

        Args:
            images: bytes (n, H, W), or (n, K, H, W) with K channels; n >= 1.
            scale: factor from bytes to [0, 1].
        """
        channels = images.unsqueeze(1) if images.dim() == 3 else images
        rows = max(1, FITTED_TOGETHER // channels[0, 0].numel())
        means, stds = [], []
        for k in range(channels.shape[1]):
            counts = torch.zeros(256, dtype=torch.int64)
            for part in torch.split(channels[:, k], rows):
                counts += torch.bincount(part.flatten(), minlength=256).cpu()
            n, values = counts.sum(), torch.arange(256)
            total, squares = (counts * values).sum(), (counts * values.square()).sum()
            # n^2 var = n sum v^2 - (sum v)^2, in Python's integers, which have no largest one.
            variance = (int(n) * int(squares) - int(total) ** 2) / int(n) ** 2
            means.append(int(total) / int(n) * scale)
            stds.append(variance**0.5 * scale or 1.0)
        return cls(tuple(means), tuple(stds))

    def apply_(self, v: Tensor) -> Tensor:
        """Standardise scaled images (n, H, W), or (n, K, H, W), in place, and return them."""
        mean, std = self.columns(v)
        return v.sub_(mean).div_(std)

    def columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std, (K, 1, 1), in the dtype and on the device of a tensor."""
        mean, std = (like.new_tensor(of).view(-1, 1, 1) for of in self)
        return mean, std
