"""Compute the loss of a problem on the route that was chosen for it.

``weights`` turns the options into weights of row numbers; the rule of the route computes the
weighted total of these numbers, or the numbers themselves, from which ``weights`` makes the loss.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from softmax_torch import maths
from softmax_torch.loss.arguments import Problem
from softmax_torch.loss.outputs import Collector, CrossEntropyOutputs, Request
from softmax_torch.loss.weights import LossTerms, loss_of_values, loss_terms
from softmax_torch.ops import linear_rows, modes, rows
from softmax_torch.ops.interfaces import Kernels
from softmax_torch.ops.linear_rows import Linear
from softmax_torch.ops.transformed import TransformedKernels

__all__ = ["Route", "compute", "compute_outputs"]


class Route(NamedTuple):
    """How a call of cross-entropy is computed.

    Attributes:
        rule: "mean NLL" (value and gradient of the mean NLL in the fewest calls), "index loss" (a
            mean or sum of class indices in the fewest launches of a GPU), "weighted total" (a
            scalar loss whose gradient is formed in the forward pass), "row values" (three
            numbers per row, differentiable in every argument and under torch.func), or "formulas"
            (the same in plain torch, for tracers and forward-mode AD).
        logits: "given" by the caller; of a linear layer "kept" as a whole, "in blocks", or "in one
            pass" with both of its products.
        kernels: what computes them: the module ``ops.native``, ``ops.cpu``, ``ops.gpu`` or
            ``maths``, or one of these within ``ops.transformed.TransformedKernels``.
        reason: why this rule.
    """

    rule: Literal["mean NLL", "index loss", "weighted total", "row values", "formulas"]
    logits: Literal["given", "kept", "in blocks", "in one pass"]
    kernels: Kernels
    reason: str

    def __str__(self) -> str:
        return f"{self.rule} of logits {self.logits}, by {self.kernels.__name__}: {self.reason}"


def compute(problem: Problem, chosen: Route, terms: LossTerms | None = None) -> Tensor:
    """Return the loss of a problem, computed on the chosen route, with these terms if given."""
    return _loss_and_terms(problem, chosen, None, terms)[0]


def compute_outputs(problem: Problem, chosen: Route, request: Request) -> CrossEntropyOutputs:
    """Return the loss of a problem, computed on the chosen route, and what is asked for.

    Raises:
        ValueError: an output needs class indices, and the target has class probabilities.
    """
    request.check(problem)
    kernels = chosen.kernels if modes.plain() else maths
    collector = Collector(request, problem, kernels, chosen.rule != "weighted total")
    return collector.outputs(*_loss_and_terms(problem, chosen, collector))


def _loss_and_terms(
    problem: Problem,
    chosen: Route,
    collector: Collector | None,
    terms: LossTerms | None = None,
) -> tuple[Tensor, LossTerms]:
    """Return the loss and its terms; the collector gets the numbers of rows."""
    if problem.autocast:
        with torch.autocast(problem.target.device.type, enabled=False):
            return _loss_and_terms(problem._replace(autocast=False), chosen, collector, terms)
    source = problem.source
    if chosen.logits == "kept":
        assert isinstance(source, Linear)
        source = source.logits().to(problem.dtype)
    if problem.transform is not None and not isinstance(chosen.kernels, TransformedKernels):
        assert isinstance(source, Tensor)
        source = problem.transform.apply(source)
    terms = loss_terms(problem) if terms is None else terms
    target, weights = terms.target, terms.weights
    observe = lse = None
    if collector is not None:
        observe = collector.observe if collector.observes() else None
        lse = collector.request.needs_values()
    lse = lse or weights.c is not None
    # mypy cannot see that each module of rules gets the source of its own routes.
    rule: Any = rows
    rest: tuple[Any, ...] = (chosen.kernels,)
    if chosen.logits in ("in blocks", "in one pass"):
        rule, rest = linear_rows, (chosen.kernels, observe)
    elif observe is not None and isinstance(source, Tensor):
        observe(slice(None), source)
    loss: Tensor
    if chosen.rule == "weighted total":
        loss = rule.weighted_total(source, target, weights, *rest)
    else:
        if chosen.rule == "formulas":
            assert isinstance(source, Tensor)
            values = maths.row_values(source, target, lse)
        else:
            values = rule.row_values(source, target, lse, *rest)
        loss = loss_of_values(values, terms, problem.options.reduction)
        if collector is not None:
            collector.values = values
    if terms.nan_if_empty is not None:
        loss = loss + terms.nan_if_empty
    if problem.options.reduction == "none":
        loss = loss.reshape(problem.shape)
    return loss.to(problem.dtype), terms
