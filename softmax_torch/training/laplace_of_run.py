"""What the Laplace approximation of a run is made of: its prior, and its training samples.

The objective of the run, times the sum of the weights of all training samples, is

    sum_i w_i nll_i  +  ||W||^2 / (2 C)  +  decay sum_i w_i ||theta||^2 / 2

with the inverse strength C of its L2 penalty, and the weight decay of its optimizer. The precision
of the prior is therefore 1 / C + decay sum_i w_i. Decoupled weight decay (AdamW) is no part of an
objective and has no place here. Label smoothing and the z-loss have none either: the Hessian is
that of the NLL.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from softmax_torch.data import TensorDataModule
from softmax_torch.training.lit_base import LitBase
from softmax_torch.training.training_objective import weight_and_penalty

__all__ = ["UNPENALISED", "Prior", "prior_of_run", "training_features"]

UNPENALISED = 1.0
"""Precision of the prior for a run without a penalty: that of scikit-learn's default C of 1."""


class Prior(NamedTuple):
    """The precision of a prior, and where it comes from."""

    precision: float
    source: str


def prior_of_run(model: LitBase, data: TensorDataModule, content: dict[str, Any]) -> Prior:
    """Return the prior that belongs to the penalty of a run.

    Args:
        model: a model of the run's configuration.
        data: its data.
        content: the content of the checkpoint, which knows the C that a list was chosen from.
    """
    state = (content.get("optimizer_states") or [{}])[0]
    fits = state.get("fits")
    C = fits[-1]["C"] if fits else model.criterion.C
    decay = _weight_decay(state.get("param_groups", []))
    sources = [] if C is None else [f"C {C:g}"]
    precision = 0.0 if C is None else 1 / C
    if decay:
        weight, _ = weight_and_penalty(data, None, model.criterion.class_weight)
        counts = data.class_counts
        total = counts.sum() if weight is None else (weight * counts).sum()
        precision += decay * float(total)
        sources.append(f"weight decay {decay:g}")
    if not sources:
        return Prior(UNPENALISED, "the run has no penalty")
    return Prior(precision, f"from {' and '.join(sources)} of the run")


def _weight_decay(groups: list[dict[str, Any]]) -> float:
    """Return the weight decay that all parameters have as a part of the objective, else 0."""
    coupled = (
        "dampening" in group or group.get("decoupled_weight_decay") is False for group in groups
    )
    decays = {float(group.get("weight_decay", 0)) for group in groups}
    return decays.pop() if len(decays) == 1 and all(coupled) else 0.0


@torch.no_grad()
def training_features(model: LitBase, data: TensorDataModule) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features (b, D) that the head sees of all training samples, with weights (b,).

    The samples are neither shuffled nor augmented, and the net is in evaluation mode.
    """
    weight, _ = weight_and_penalty(data, None, model.criterion.class_weight)
    device = model.trainer.strategy.root_device
    model.to(device).eval()
    for batch in data.training_rows():
        x, y = cast(tuple[Tensor, Tensor], batch)
        features = model.features(x.to(device)).flatten(1)
        yield features, torch.ones(len(y)) if weight is None else weight[y.cpu()]
