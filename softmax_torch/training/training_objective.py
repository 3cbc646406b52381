"""The objective that training minimizes, on the training samples of a batch.

    objective = sum_i (w_{y_i} loss_i + zeta lse_i^2) / sum_i w_{y_i}  +  l2 ||W||^2

    l2        = 1 / (2 C sum_j w_{y_j})         over all training samples j
    w_c       = n / (num_classes n_c)           for "balanced" class weights, n_c samples of class c

loss is the cross-entropy with label smoothing, lse the log-sum-exp of the logits, zeta the weight
of the z-loss, C the inverse strength of the L2 penalty as in scikit-learn's LogisticRegression: the
smaller C, the stronger. The penalty is on the weight W of the head alone, neither on its bias nor
on a backbone; for the backbone there is the optimizer's weight decay.

Where several processes share a batch, each takes the first sum over its own rows i and the second
over the rows of all processes, and multiplies the result by the number of processes: the mean over
the processes is the objective.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from softmax_torch.maths import upcast
from softmax_torch.training.options import check_objective

__all__ = ["TrainingObjective", "mean_loss", "weight_and_penalty"]


class TrainingObjective(nn.Module):
    """The objective with its options, and with the numbers that depend on the training set.

    Args:
        num_classes: number of classes.
        C: inverse strength of the L2 penalty; None for none.
        label_smoothing: share of the target that is spread over all classes, in [0, 1].
        z_loss: zeta >= 0.
        class_weight: "balanced", one number a class, or None.

    Attributes:
        weight: class weights (num_classes,) in float32, a buffer that checkpoints omit; None for
            weights of 1.
        penalty: the factor l2 of ||W||^2.
        processes: how many processes share a batch.

    Raises:
        ValueError: an option is out of range.
    """

    weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        C: float | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        class_weight: str | list[float] | None = None,
    ) -> None:
        super().__init__()
        check_objective(num_classes, C, label_smoothing, class_weight, z_loss)
        self.C, self.class_weight = C, class_weight
        self.label_smoothing, self.z_loss = label_smoothing, z_loss
        self.penalty, self.processes = 0.0, 1
        self.register_buffer("weight", None, persistent=False)

    def prepare(self, data: Any, processes: int, device: torch.device) -> None:
        """Set class weights and penalty from the training set; see ``weight_and_penalty``."""
        weight, self.penalty = weight_and_penalty(data, self.C, self.class_weight)
        self.weight = None if weight is None else weight.to(device, torch.float32)
        self.processes = processes

    def value(
        self,
        loss_of: Callable[..., Tensor],
        W: Tensor,
        y: Tensor,
        whole: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Return the objective, a scalar.

        Args:
            loss_of, y, whole: see ``mean_loss``.
            W: weight (num_classes, D) of the head.
            dtype: dtype of the rows, to which class weights are cast.
        """
        weight = None if self.weight is None else self.weight.to(dtype)
        options = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss}
        loss = mean_loss(loss_of, y, whole, weight, self.processes, **options)
        if self.penalty:
            loss = loss + self.penalty * W.square().sum()
        return loss


def weight_and_penalty(
    data: Any, C: float | None, class_weight: str | list[float] | None
) -> tuple[Tensor | None, float]:
    """Return class weights w (num_classes,), None for 1, and the factor l2 of the penalty.

    Args:
        data: the data module. C and "balanced" need its ``class_counts``, the number of training
            samples of each class, int64 (num_classes,).
        C: inverse strength of the penalty; None for no penalty, a factor of 0.
        class_weight: "balanced", one number a class, or None.

    Raises:
        ValueError: data has no ``class_counts``; or weights are to be balanced, and a class has no
            samples.
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
    if C is None:
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
    """Return the objective without its penalty, a scalar.

    Args:
        loss_of: cross-entropy as a function of the target and options, for given rows.
        y: class indices (b,) of these rows, or class probabilities (b, num_classes).
        whole: class indices (B,) of the batch in all processes; None for y.
        weight: class weights (num_classes,), or None.
        processes: how many processes share the batch.
        **options: ``label_smoothing`` and ``z_loss``.
    """
    # With class weights the mean of ``cross_entropy`` divides the z-loss by the number of rows, not
    # by the sum of their weights.
    if (whole is None or whole is y) and not (options["z_loss"] and weight is not None):
        return loss_of(y, weight=weight, **options)
    whole = y if whole is None else whole
    total = len(whole) if weight is None else upcast(weight)[whole].sum()
    loss = loss_of(y, weight=weight, reduction="sum", **options)
    return loss * (processes / total)
