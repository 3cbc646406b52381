"""Mixup and CutMix: training on mixtures of two images, with class probabilities as targets.

    Mixup (Zhang et al. 2018)    x = lam x_i + (1 - lam) x_j
    CutMix (Yun et al. 2019)     x = x_i but for a box of x_j at a random place, which covers
                                 1 - lam of the image; lam is recomputed if the border clips it
    both                         t = lam e_{y_i} + (1 - lam) e_{y_j},     lam ~ Beta(alpha, alpha)

with one lam a batch, and j the sample before i. Each sample is once i and once j, so that the sum
of a batch's targets is unchanged. Numbers are drawn from torch's global generator, whose state is
in checkpoints. Processes with the same seed draw the same numbers, each for its own rows.
"""

from __future__ import annotations

import torch
from torchvision.transforms import v2

from softmax_torch.data.batches import Batch

__all__ = ["Mixing"]


class Mixing:
    """Mixup, CutMix or both for batches, by torchvision's transforms.

    Args:
        mixup, cutmix: alpha of each, 0 to disable it, not both 0; where both are used, each batch
            gets either with probability 1/2.
        num_classes: C.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int) -> None:
        assert mixup or cutmix
        self.mixup = v2.MixUp(alpha=mixup, num_classes=num_classes) if mixup else None
        self.cutmix = v2.CutMix(alpha=cutmix, num_classes=num_classes) if cutmix else None

    def __call__(self, batch: Batch) -> Batch:
        """Return a mixed batch, whose y are class probabilities (b, C).

        Args:
            batch: images x (b, H, W) or (b, 3, H, W) and class indices y (b,).

        Raises:
            ValueError: x has another shape.
        """
        mix = self.mixup or self.cutmix
        if self.mixup and self.cutmix and torch.rand(()) < 0.5:
            mix = self.cutmix
        assert mix is not None
        x = batch.x.unsqueeze(1) if batch.x.dim() == 3 else batch.x
        if x.dim() != 4:
            raise ValueError(
                f"mixup and cutmix: expected images (N, H, W) or (N, 3, H, W), got "
                f"{tuple(batch.x.shape)}"
            )
        x, t = mix(x, batch.y)
        return batch._replace(x=x.view(batch.x.shape), y=t)
