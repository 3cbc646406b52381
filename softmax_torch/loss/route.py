"""Choose how a call of cross-entropy is computed, and compute it.

A call is parsed into a ``Problem``; ``route`` chooses its rule and kernels; ``weights`` turns its
options into weights of row numbers; the rule runs. Two shortcuts come first, for small batches, on
which calls cost more than arithmetic: they skip parsing and weights. No other file decides about
routes.
``route_of`` returns the route of a call without running it:

>>> import torch
>>> from softmax_torch import cross_entropy
>>> z, y = torch.zeros(4, 3, requires_grad=True), torch.zeros(4, dtype=torch.long)
>>> print(route_of(cross_entropy, z, y))
mean NLL of logits given, by softmax_torch.ops.cpu: the default options, float32 on a CPU
>>> print(route_of(cross_entropy, z, y, reduction="none"))
row values of logits given, by softmax_torch.ops.cpu: one loss per row
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from softmax_torch import maths
from softmax_torch.loss import arguments
from softmax_torch.loss.arguments import Options, Problem
from softmax_torch.loss.weights import loss_of_values, loss_terms
from softmax_torch.ops import backends, cpu, linear_rows, rows
from softmax_torch.ops.backends import Kernels
from softmax_torch.ops.cpu import FEW
from softmax_torch.ops.linear_rows import Linear

__all__ = ["Route", "linear_loss", "logits_loss", "route", "route_of"]


class Route(NamedTuple):
    """How a call of cross-entropy is computed.

    Attributes:
        rule: "mean NLL" (value and gradient of the mean NLL in the fewest calls), "weighted total"
            (a scalar loss whose gradient is formed in the forward pass), "row values" (three
            numbers per row, differentiable in every argument and under torch.func), or "formulas"
            (the same in plain torch, for tracers and forward-mode AD).
        logits: "given" by the caller; of a linear layer "kept" as a whole, or "in blocks".
        kernels: the module that computes them: ``ops.cpu``, ``ops.gpu`` or ``maths``.
        reason: why this rule.
    """

    rule: Literal["mean NLL", "weighted total", "row values", "formulas"]
    logits: Literal["given", "kept", "in blocks"]
    kernels: Kernels
    reason: str

    def __str__(self) -> str:
        return f"{self.rule} of logits {self.logits}, by {self.kernels.__name__}: {self.reason}"


# The reasons are constants, so that a call of a few us pays nothing for them.
MEAN_NLL = Route("mean NLL", "given", cpu, "the default options, float32 on a CPU")


def route(problem: Problem) -> Route:
    """Choose the rule and kernels of a problem."""
    source, options, reduction = problem.source, problem.options, problem.options.reduction
    whole: Literal["kept", "given"] = "kept" if isinstance(source, Linear) else "given"
    if not backends.plain():
        if backends.traced():
            return Route("formulas", whole, maths, "traced, or with forward-mode tangents")
        kernels = backends.kernels(problem.target)
        return Route("row values", whole, kernels, "under a torch.func transform")
    kernels = backends.kernels(problem.target)
    if torch.is_grad_enabled() and (
        problem.target.requires_grad
        or (options.weight is not None and options.weight.requires_grad)
        or (options.sample_weight is not None and options.sample_weight.requires_grad)
    ):
        return Route("row values", whole, kernels, "a target or a weight needs a gradient")
    if isinstance(source, Linear) and source.x.numel() > 0:
        if reduction != "none":
            return Route("weighted total", "in blocks", kernels, "a scalar loss")
        if source.weight.shape[0] > source.x.shape[1]:
            return Route("row values", "in blocks", kernels, "one loss per row, more C than D")
        # The logits are smaller than x: it is cheapest to keep them.
        return Route("row values", "kept", kernels, "one loss per row, at most D classes")
    if reduction == "none":
        return Route("row values", whole, kernels, "one loss per row")
    if math.prod(problem.shape) == 0:
        return Route("row values", whole, kernels, "no rows")
    return Route("weighted total", whole, kernels, "a scalar loss")


def _takes_mean_nll(input: Tensor, target: Tensor, options: Options) -> bool:
    """Return whether a call takes the route MEAN_NLL: the common case, before anything is parsed.

    The general route has the same result, 20 us later, and names a wrong class index.
    """
    if not (
        options.is_mean_nll()
        and isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.dtype is torch.float32
        and target.dtype is torch.int64
        and input.is_cpu
        and target.is_cpu
        and input.requires_grad
        and torch.is_grad_enabled()
        and backends.plain()
    ):
        return False
    shape = input.shape
    if len(shape) != 2:
        return False
    N, C = shape
    if target.shape != (N,) or N == 0 or C == 0 or input.stride(1) != 1:
        return False
    return not (0 <= options.ignore_index < C or torch.is_autocast_enabled("cpu"))


def _keeps_few_logits(linear: Linear, options: Options) -> bool:
    """Return whether a layer has so few logits that not keeping them would cost more."""
    x, W, _ = linear
    return (
        backends.plain()
        and options.weight is None
        and options.sample_weight is None
        and x.dim() == 2
        and len(x) * W.shape[0] <= FEW
    )


def logits_loss(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """Return the loss of logits: ``functional.cross_entropy``."""
    if _takes_mean_nll(input, target, options):
        try:
            return rows.mean_nll(input, target)
        except (IndexError, RuntimeError):  # the general route names the index
            pass
    problem = arguments.logits_problem(input, target, options)
    return _computed(problem, route(problem))


def linear_loss(linear: Linear, target: Tensor, options: Options) -> Tensor:
    """Return the loss of a linear layer: ``functional.linear_cross_entropy``."""
    arguments.check_options(options)
    arguments.check_linear(linear)
    if linear.weight.dim() > 2 or _keeps_few_logits(linear, options):
        return logits_loss(_logits_second(linear), target, options)
    problem = arguments.linear_problem(linear, target, options)
    return _computed(problem, route(problem))


def _logits_second(linear: Linear) -> Tensor:
    """Return the logits (N, C) of a layer, or (N, C, d1, ..., dK) of one with positions."""
    x, W, b = linear
    if W.dim() == 2:
        return F.linear(x, W, b)
    z = F.linear(x, W.flatten(0, -2), None if b is None else b.flatten())
    return z.view(*x.shape[:-1], *W.shape[:-1])


def _computed(problem: Problem, chosen: Route) -> Tensor:
    """Return the loss of a problem, computed on the chosen route."""
    if problem.autocast:
        with torch.autocast(problem.target.device.type, enabled=False):
            return _computed(problem._replace(autocast=False), chosen)
    source = problem.source
    if chosen.logits == "kept":
        assert isinstance(source, Linear)
        source = source.logits().to(problem.dtype)
    terms = loss_terms(problem)
    target, weights = terms.target, terms.weights
    lse = weights.c is not None
    # Each module of rules takes the source of its own routes, which mypy cannot see.
    rule: Any = linear_rows if chosen.logits == "in blocks" else rows
    loss: Tensor
    if chosen.rule == "weighted total":
        loss = rule.weighted_total(source, target, weights, chosen.kernels)
    else:
        if chosen.rule == "formulas":
            assert isinstance(source, Tensor)
            values = maths.row_values(source, target, lse)
        else:
            values = rule.row_values(source, target, lse, chosen.kernels)
        loss = loss_of_values(values, terms, problem.options.reduction)
    if terms.of_no_rows is not None:
        loss = loss + terms.of_no_rows
    if problem.options.reduction == "none":
        loss = loss.reshape(problem.shape)
    return loss.to(problem.dtype)


def route_of(function: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Route:
    """Return the route that ``function(*args, **kwargs)`` would take.

    Args:
        function: ``cross_entropy`` or ``linear_cross_entropy``.
        *args, **kwargs: the arguments of the call.

    Returns:
        The rule, where the logits are, the kernels, and the reason; ``print`` shows them as a line.

    Raises:
        ValueError, IndexError, TypeError, RuntimeError: as the call, for arguments that do not fit.
    """
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    options = Options(**{name: given[name] for name in Options._fields})
    target = given["target"]
    if "linear_weight" not in given:
        return _logits_route(given["input"], target, options)
    linear = Linear(given["input"], given["linear_weight"], given["linear_bias"])
    arguments.check_options(options)
    arguments.check_linear(linear)
    if linear.weight.dim() > 2 or _keeps_few_logits(linear, options):
        logits = _logits_second(linear)
        return _logits_route(logits, target, options)._replace(logits="kept")
    return route(arguments.linear_problem(linear, target, options))


def _logits_route(input: Tensor, target: Tensor, options: Options) -> Route:
    if _takes_mean_nll(input, target, options):
        return MEAN_NLL
    return route(arguments.logits_problem(input, target, options))
