"""MNIST, the penalties and the clock of both benchmarks of solvers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softmax_torch.data import MNISTDataModule

C = 1.0
L1_C = 0.01
PATH = np.logspace(-4, 0, 20).tolist()


def mnist(root: str | None, device: str) -> tuple[Tensor, Tensor]:
    """Return the training set, pixels / 255 in float32, and the classes."""
    data = MNISTDataModule(root=root)
    data.prepare_data()
    train, _ = data.read()
    return train.x.flatten(1).float().div_(255).to(device), train.y.to(device)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, result
