"""Heads and samples for tests of Laplace approximations."""

import torch
from torch import Tensor
from torch.nn import functional as F


def problem(
    n: int = 60, D: int = 3, C: int = 4, seed: int = 0, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return features (n, D) whose mean is not 0, weights (C, D), and biases (C,) or None."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 + torch.randn(n, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(C, D, generator=generator, dtype=torch.float64)
    return x, weight, torch.randn(C, generator=generator, dtype=torch.float64) if bias else None


def logits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)
