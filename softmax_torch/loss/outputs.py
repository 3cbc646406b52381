"""Further outputs of a call of cross-entropy: numbers of each row that its pass over z knows.

``lse`` and ``log_prob`` are row numbers of the loss itself, and so is their derivative. The others
are ``maths.RowStatistics``, taken from each block of logits while it is there. Without a derivative
row numbers are taken there too, so that they do not change how the loss is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.loss.arguments import Problem
from softmax_torch.loss.weights import LossTerms, loss_of_values
from softmax_torch.maths import RowStatistics, RowValues, RowWeights, Target
from softmax_torch.ops.interfaces import Kernels

__all__ = ["NAMES", "Collector", "CrossEntropyOutputs", "Request"]

ROW_NUMBERS = ("lse", "log_prob")
STATISTICS = ("z_loss", "argmax", "in_top_k", "entropy")
NAMES = ROW_NUMBERS + STATISTICS
"""What can be asked for."""


class CrossEntropyOutputs(NamedTuple):
    """A loss and what was asked for beside it; None for the rest.

    Rows have the shape of the unreduced loss. All numbers are those of the logits that the softmax
    sees: after ``softcap`` and ``logit_scale``. lse, log_prob and entropy are float32, or float64
    for float64 logits.

    Attributes:
        loss: the loss, as ``cross_entropy`` returns it.
        lse: the log-sum-exp of each row. Differentiable unless detached.
        log_prob: the log-probability of each row's class index, 0 in ignored rows. Differentiable
            unless detached.
        z_loss: the part of the loss that the z-loss makes, reduced as the loss is.
        argmax: the class with the largest logit of each row, int64, the first of equals.
        in_top_k: whether fewer than ``top_k`` classes come before the row's class index, where a
            class with a larger logit comes before, and one with an equal logit and a lower number.
            False in ignored rows.
        entropy: -sum_c p_c log p_c of each row, in nats.
    """

    loss: Tensor
    lse: Tensor | None = None
    log_prob: Tensor | None = None
    z_loss: Tensor | None = None
    argmax: Tensor | None = None
    in_top_k: Tensor | None = None
    entropy: Tensor | None = None


class Request(NamedTuple):
    """The outputs that are asked for, by name; ``detach`` to have them without a graph."""

    names: tuple[str, ...]
    top_k: int
    detach: bool = False

    @classmethod
    def checked(cls, names: Sequence[str], top_k: int, detach: bool = False) -> Request:
        """Return a request.

        Raises:
            ValueError: an unknown name, or ``top_k`` below 1.
            TypeError: ``names`` is a string, not a sequence of strings.
        """
        if isinstance(names, str):
            raise TypeError(f'outputs: expected a sequence of names as ("lse",), got {names!r}')
        unknown = [name for name in names if name not in NAMES]
        if unknown:
            raise ValueError(f"outputs: expected names among {', '.join(NAMES)}; got {unknown[0]}")
        if type(top_k) is not int or top_k < 1:
            raise ValueError(f"top_k: expected an integer of at least 1, got {top_k!r}")
        return cls(tuple(names), top_k, detach)

    def needs_values(self) -> bool:
        """Return whether row numbers are asked for."""
        return any(name in self.names for name in ROW_NUMBERS)

    def needs_statistics(self) -> bool:
        """Return whether statistics are asked for."""
        return any(name in self.names for name in STATISTICS)

    def check(self, problem: Problem) -> None:
        """Raise ValueError where an output needs class indices and the target has none."""
        for name in ("log_prob", "in_top_k"):
            if name in self.names and problem.soft:
                raise ValueError(
                    f"outputs: {name} needs class indices, got class probabilities of shape "
                    f"{tuple(problem.target.shape)}"
                )


class Collector:
    """The row numbers and statistics of a call while it is computed.

    Args:
        request: what is asked for.
        problem: the call.
        kernels: compute the numbers of a block.
        gives_values: whether the rule of the loss gives the row numbers; if not, they are taken
            from each block.
    """

    def __init__(
        self, request: Request, problem: Problem, kernels: Kernels, gives_values: bool
    ) -> None:
        self.request, self.problem, self.kernels = request, problem, kernels
        self.takes_values = request.needs_values() and not gives_values
        self.takes_statistics = request.needs_statistics()
        self.values = RowValues()
        self.value_parts: list[RowValues] = []
        self.parts: list[RowStatistics] = []

    def observes(self) -> bool:
        """Return whether the blocks of logits have to be shown to ``observe``."""
        return self.takes_values or self.takes_statistics

    def observe(self, at: slice, z: Tensor) -> None:
        """Take the statistics, and row numbers if the loss has none, of a block of logits."""
        y = None if self.problem.soft else self.problem.target[at]
        z = z.detach()
        if self.takes_statistics:
            self.parts.append(self.kernels.row_statistics(z, y))
        if self.takes_values:
            y = y if "log_prob" in self.request.names else None
            lse = "lse" in self.request.names
            self.value_parts.append(self.kernels.row_values(z, Target(y), lse))

    def outputs(self, loss: Tensor, terms: LossTerms) -> CrossEntropyOutputs:
        """Return the loss with the outputs that are asked for."""
        problem, names = self.problem, self.request.names
        rows, counted = problem.shape, problem.counted
        found: dict[str, Tensor] = {}
        nll, _, lse = RowValues.joined(self.value_parts) if self.value_parts else self.values
        if lse is not None:
            found["lse"] = lse.reshape(rows)
        if nll is not None:
            nll = nll if counted is None else torch.where(counted, nll, 0.0)
            found["log_prob"] = -nll.reshape(rows)
        if self.parts:
            lse, entropy, argmax, rank = RowStatistics.joined(self.parts)
            if "z_loss" in names:
                found["z_loss"] = _z_loss(lse, terms, problem)
            found["argmax"], found["entropy"] = argmax.reshape(rows), entropy.reshape(rows)
            if rank is not None:
                hit = rank < self.request.top_k
                found["in_top_k"] = (hit if counted is None else hit & counted).reshape(rows)
        if self.request.detach:
            found = {name: value.detach() for name, value in found.items()}
        return CrossEntropyOutputs(loss, **{name: found[name] for name in names})


@torch.no_grad()
def _z_loss(lse: Tensor, terms: LossTerms, problem: Problem) -> Tensor:
    """Return the part of the loss that the z-loss makes: the loss of lse alone."""
    reduction, c = problem.options.reduction, terms.weights.c
    shape = problem.shape if reduction == "none" else ()
    if c is None:
        return lse.new_zeros(shape, dtype=problem.dtype)
    terms = terms._replace(weights=RowWeights(c=c))
    return loss_of_values(RowValues(lse=lse), terms, reduction).reshape(shape).to(problem.dtype)
