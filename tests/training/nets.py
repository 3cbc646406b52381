"""Nets with a backbone, and few samples, for tests of LitClassifier."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from softmax_torch.data import DigitsDataModule
from softmax_torch.training import LitClassifier

SGD = partial(torch.optim.SGD, lr=0.05)


class Few(DigitsDataModule):
    """120 of the digits, which are quick to train on."""

    def read(self) -> Any:
        train, test = super().read()
        return train.rows(torch.arange(120)), test.rows(torch.arange(50))


class Own(nn.Module):
    """A user's backbone, with dropout and batch statistics."""

    def __init__(self, out_features: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.out_features = out_features
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, out_features), nn.BatchNorm1d(out_features), nn.Dropout(0.3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def classifier(**options: Any) -> LitClassifier:
    torch.manual_seed(0)
    return LitClassifier(64, 10, **({"optimizer": SGD} | options))


def data() -> Few:
    return Few(batch_size=30)


def parts(lit: LitClassifier) -> dict[str, dict[str, Tensor]]:
    """Copies of the parameters and buffers of backbone and head."""
    return {
        name: {k: v.clone() for k, v in getattr(lit, name).state_dict().items()}
        for name in ("backbone", "model")
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())
