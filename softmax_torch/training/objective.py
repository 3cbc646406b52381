"""What training minimizes, on the training samples of a batch.

    objective = sum_i (w_{y_i} loss_i + zeta lse_i^2) / sum_i w_{y_i}  +  l2 ||W||^2

    l2        = 1 / (2 C sum_j w_{y_j})         over all training samples j
    w_c       = n / (num_classes n_c)           where they are "balanced", n_c of class c

Where several processes share out a batch, each takes the first sum over its own rows i, the second
over those of all, and the result times the number of processes: their mean is the objective.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softmax_torch.maths import upcast

__all__ = ["mean_loss", "terms_of"]


def terms_of(
    data: Any, C: float | list[float] | None, class_weight: str | list[float] | None
) -> tuple[Tensor | None, float]:
    """Class weights w (num_classes,), None for 1, and the factor l2 of the penalty.

    Args:
        data: the data module, with ``class_counts`` where something has to be counted.
        C: inverse strength of the penalty; 0 is the factor of None, and of several, which are for
            a solver.
        class_weight: "balanced", one number a class, or None.

    Raises:
        ValueError: samples cannot be counted, or there are none of a class.
    """
    counts: Tensor | None = getattr(data, "class_counts", None)
    if counts is None and (C is not None or class_weight == "balanced"):
        raise ValueError(
            'C and class_weight="balanced": expected a data module with class_counts, the training '
            f"samples of each class, got {data}"
        )
    weight = None
    if class_weight == "balanced":
        assert counts is not None, "checked above"
        if not counts.all():
            raise ValueError(
                'class_weight="balanced": expected training samples of every class, got none of '
                f"{(counts == 0).nonzero().flatten().tolist()}"
            )
        weight = counts.sum() / (len(counts) * counts)
    elif class_weight is not None:
        weight = torch.tensor(class_weight)
    if C is None or isinstance(C, list):
        return weight, 0.0
    assert counts is not None, "checked above"
    total = counts.sum() if weight is None else (weight * counts).sum()
    return weight, 1 / (2 * C * float(total))


def mean_loss(
    loss_of: Callable[..., Tensor],
    y: Tensor,
    whole: Tensor | None,
    weight: Tensor | None,
    processes: int,
    **options: Any,
) -> Tensor:
    """The objective without its penalty.

    Args:
        loss_of: ``cross_entropy`` or its like, of a target and with its options, on given rows.
        y: class indices (b,) of these rows, or class probabilities (b, num_classes).
        whole: class indices (B,) of the batch in all processes; None for y.
        weight: class weights (num_classes,), or None.
        processes: how many there are.
        **options: ``label_smoothing`` and ``z_loss``.
    """
    # The mean of ``cross_entropy`` is this one but for its z-loss, which is over rows that count 1.
    if (whole is None or whole is y) and not (options["z_loss"] and weight is not None):
        return loss_of(y, weight=weight, **options)
    whole = y if whole is None else whole
    total = len(whole) if weight is None else upcast(weight)[whole].sum()
    loss = loss_of(y, weight=weight, reduction="sum", **options)
    return loss * (processes / total)
