"""Results of a run made up for tests: of images or of a table, with any number of classes."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softmax_torch.report.run_results import EvaluatedSet, RunResults

HISTORY = [
    {"step": "10", "epoch": "0", "val/accuracy": "0.5", "val/nll": "0.9", "val/ece": "0.1"},
    {"step": "10", "epoch": "0", "train/loss": "1.5", "train/accuracy": "0.4", "train/nll": "1.4"},
    {"step": "20", "epoch": "1", "val/accuracy": "0.7", "val/nll": "0.6", "val/ece": "0.2"},
    {"step": "20", "epoch": "1", "train/loss": "0.5", "train/accuracy": "0.8", "train/nll": "0.4"},
    {"step": "20", "test/accuracy": "0.6", "test/nll": "0.7", "test/ece": "0.2"},
]


def make_set(n: int, C: int, seed: int, scale: float = 1.0) -> EvaluatedSet:
    """Return logits times ``scale``, and classes drawn from the softmax of the logits alone."""
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, C, generator=generator)
    y = torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)
    return EvaluatedSet(scale * z, y)


def make_results(
    C: int = 3, n: int = 200, shape: tuple[int, ...] = (4, 5), **fields: Any
) -> RunResults:
    """Return results of images of a shape, or of a table where the shape has one number."""
    generator = torch.Generator().manual_seed(C)
    image = len(shape) > 1
    x: Tensor
    if image:
        x = torch.randint(256, (n, *shape), generator=generator).to(torch.uint8)
    else:
        x = torch.randn(n, *shape, generator=generator) * torch.arange(1.0, 1 + shape[0])
    D = x[0].numel()
    results = RunResults(
        name="made",
        class_names=tuple(f"c{c}" for c in range(C)),
        feature_names=None if image else tuple(f"column {d}" for d in range(D)),
        image_shape=shape if image else None,
        val=make_set(150, C, 1),
        test=make_set(n, C, 2),
        ids=[f"id-{row}" for row in range(n)],
        x=x,
        scale=1 / 255 if image else 1.0,
        weight=torch.randn(C, D, generator=generator),
        history=HISTORY,
        step=20,
        calibration=None,
        facts=(("seed", "7"), ("data", "made by hand")),
        config="model:\n  C: 1.0\n",
    )
    return replace(results, **fields)
