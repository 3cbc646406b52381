"""Nets whose heads are replaced, and their gradients, for the tests of heads."""

import warnings
from typing import Any

import torch
import torch.nn.utils.prune
import torchvision
from torch import Tensor, nn

N, D, C = 6, 8, 5


def build(name: str, **settings: Any) -> nn.Module:
    with warnings.catch_warnings():  # googlenet and inception_v3 warn that scipy is slow
        warnings.simplefilter("ignore", FutureWarning)
        return torchvision.models.get_model(name, weights=None, **settings)


def net(bias: bool = True, classes: int = C) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, D), nn.ReLU(), nn.Linear(D, classes, bias=bias))


def batch(n: int = N) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, 4), torch.randint(C, (n,))


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, parameters), strict=True))
