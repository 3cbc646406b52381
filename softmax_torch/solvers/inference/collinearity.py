"""Collinear columns, which leave coefficients undetermined without a penalty on their squares."""

from __future__ import annotations

import math

import torch

from softmax_torch.solvers.conversion import column
from softmax_torch.solvers.inference.information import rows_of
from softmax_torch.solvers.inference.weighted_grams import WeightedGrams
from softmax_torch.solvers.objective import Objective

__all__ = ["refuse_collinear"]

SINGULAR = 1e-12
"""Columns are collinear if their correlation matrix has an eigenvalue below this."""

NAMED = 10
"""Collinear columns that an error names, at most."""


def refuse_collinear(objective: Objective) -> None:
    """Raise ValueError if a column is a combination of others, or there are too few samples."""
    D, w, names = objective.samples.d, objective.weights, objective.feature_names
    used = int(objective.summed((w > 0).sum()))
    if used < objective.shape[1]:
        raise ValueError(
            f"X: expected at least as many samples of weight > 0 as coefficients of a class, got "
            f"{used} samples for {D} columns{' and the intercept' * objective.bias}; drop "
            "columns, or fit with a penalty"
        )
    # With a bias the columns are centred: they are collinear if a combination of them is constant.
    grams, mean = WeightedGrams(1, D, objective.samples.device), objective.zeros().new_zeros(D)
    for x, at in rows_of(objective):
        x = x[:, :D]
        grams.add(x, w[at].unsqueeze(1))
        mean += w[at] @ x
    gram = objective.summed(grams.result())[0]
    mean = objective.summed(mean) / objective.divisor
    size = gram.diagonal().sqrt()
    if objective.bias:
        gram -= objective.divisor * torch.outer(mean, mean)
    scale = gram.diagonal().clamp_min(0).sqrt()
    constant = scale <= math.sqrt(SINGULAR) * size
    if constant.any():
        j = int(constant.nonzero()[0])
        if size[j] == 0 and (objective.offset is None or objective.offset[j] == 0):
            raise ValueError(
                f"X: expected columns that are not all 0, got zeros in {column(j, names)}; drop it"
            )
        raise _collinear([column(j, names), "the intercept"])
    values, vectors = torch.linalg.eigh(gram / scale / scale.unsqueeze(1))
    if values[0] < SINGULAR:
        v = vectors[:, 0]
        involved = (v.abs() > 0.01 * v.abs().max()).nonzero().flatten().tolist()
        named = [column(i, names) for i in involved]
        level = mean if objective.offset is None else mean + objective.offset
        terms = level * v / scale
        if objective.bias and terms.sum().abs() > 1e-6 * terms.abs().max():
            named.append("the intercept")
        raise _collinear(named)


def _collinear(names: list[str]) -> ValueError:
    """Return the error for columns that are linearly dependent."""
    if len(names) > NAMED:
        names = [*names[:NAMED], f"{len(names) - NAMED} more"]
    return ValueError(
        "X: expected linearly independent columns, got a column that is a combination of "
        f"others ({', '.join(names)} are involved); drop one of them"
    )
