"""Choose how a call of cross-entropy is computed.

A call is parsed into a ``Problem``; ``route`` chooses its rule and kernels, which ``compute`` runs.
Shortcuts come first (``shortcuts``), which skip parsing and weights, because on small batches calls
cost more than arithmetic; a layer with few logits keeps them. No other file decides about routes.

``route_of`` returns the route of a call without running it:

>>> import torch
>>> from softmax_torch import cross_entropy
>>> z, y = torch.zeros(4, 3, requires_grad=True), torch.zeros(4, dtype=torch.long)
>>> print(route_of(cross_entropy, z, y))  # doctest: +ELLIPSIS
mean NLL of logits given, by softmax_torch.ops...: the default options, float32 on a CPU
>>> print(route_of(cross_entropy, z, y, reduction="none"))  # doctest: +ELLIPSIS
row values of logits given, by softmax_torch.ops...: one loss per row
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from softmax_torch import maths
from softmax_torch.loss import arguments, checks, shortcuts
from softmax_torch.loss.arguments import Problem
from softmax_torch.loss.checks import Options
from softmax_torch.loss.compute import Route, compute, compute_outputs
from softmax_torch.loss.outputs import CrossEntropyOutputs, Request
from softmax_torch.loss.weights import index_terms
from softmax_torch.ops import backends, index_rows, linear_rows, modes, rows
from softmax_torch.ops.cpu import FEW
from softmax_torch.ops.interfaces import Kernels
from softmax_torch.ops.linear_rows import Linear
from softmax_torch.ops.transformed import TransformedKernels

__all__ = [
    "Route",
    "linear_loss",
    "linear_outputs",
    "logits_loss",
    "logits_outputs",
    "route",
    "route_of",
]


DEFAULT = "the default options, float32 on a CPU"
ON_GPU = "a mean or sum of class indices on a GPU"


def route(problem: Problem, request: Request | None = None) -> Route:
    """Choose the rule and kernels of a problem, with what is asked for beside the loss."""
    source, options, reduction = problem.source, problem.options, problem.options.reduction
    given = source if isinstance(source, Linear) else (source,)
    whole: Literal["kept", "given"] = "kept" if isinstance(source, Linear) else "given"
    if not modes.plain():
        if modes.traced():
            return Route("formulas", whole, maths, "traced, or with forward-mode tangents")
        kernels = backends.kernels(problem.target)
        return Route("row values", whole, kernels, "under a torch.func transform")
    kernels = _kernels(problem)
    if problem.transform is not None:
        if _needs_gradient(problem.transform.scale):
            return Route("row values", whole, kernels, "the scale of the logits needs a gradient")
        kernels = TransformedKernels(kernels, problem.transform)
    if _needs_gradient(problem.target, options.weight, options.sample_weight, options.normalizer):
        return Route("row values", whole, kernels, "a target or a weight needs a gradient")
    per_row = "one loss per row" if reduction == "none" else None
    if request is not None and request.needs_values() and not request.detach:
        per_row = "numbers of each row are asked for"
    if torch.is_grad_enabled() and given[0].dtype is torch.float16:
        per_row = "float16, whose gradient waits for the scale of the loss"
    if isinstance(source, Linear) and source.x.numel() > 0:
        if per_row is None:
            one_pass = linear_rows.one_pass_kernels(source, kernels, request is not None)
            where: Literal["in one pass", "in blocks"] = (
                "in blocks" if one_pass is None else "in one pass"
            )
            return Route("weighted total", where, kernels, "a scalar loss")
        if source.weight.shape[0] > source.x.shape[1]:
            return Route("row values", "in blocks", kernels, f"{per_row}; more C than D")
        # The logits are smaller than x: it is cheapest to keep them.
        return Route("row values", "kept", kernels, f"{per_row}; at most D classes")
    if per_row is not None:
        return Route("row values", whole, kernels, per_row)
    if math.prod(problem.shape) == 0:
        return Route("row values", whole, kernels, "no rows")
    return Route("weighted total", whole, kernels, "a scalar loss")


def _needs_gradient(*arguments: object) -> bool:
    """Return whether one of the arguments is a tensor that needs a gradient."""
    return torch.is_grad_enabled() and any(
        isinstance(a, Tensor) and a.requires_grad for a in arguments
    )


def _kernels(problem: Problem) -> Kernels:
    """Return the kernels of a problem; the formulas for subclasses of tensors."""
    source, options = problem.source, problem.options
    given = source if isinstance(source, Linear) else (source,)
    tensors = (*given, problem.target, options.weight, options.sample_weight)
    if all(t is None or type(t) in shortcuts.PLAIN_TYPES for t in tensors):
        return backends.kernels(problem.target)
    return maths


def _keeps_logits(linear: Linear, options: Options) -> bool:
    """Return whether ``logits_loss`` computes a layer: it has positions, or few logits."""
    x, W, _ = linear
    return W.dim() > 2 or (
        modes.plain()
        and options.weight is None
        and options.sample_weight is None
        and x.dim() == 2
        and len(x) * W.shape[0] <= FEW
        and (
            options.reduction == "none"
            or type(x) not in shortcuts.PLAIN_TYPES
            or backends.layer_kernels(x, W) is None
        )
    )


def logits_loss(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """Return the loss of logits: ``functional.cross_entropy``."""
    if shortcuts.is_mean_nll(input, target, options) and input.requires_grad:
        try:
            return rows.mean_nll(input, target, backends.cpu_backend())
        except (IndexError, RuntimeError):  # the general route names the index
            pass
    found = shortcuts.index_loss(input, target, options)
    if found is not None:
        gpu, loss_of_indices = found
        return index_rows.logits_loss(input, target, loss_of_indices, gpu, index_terms)
    if checks.distributed(input, target, *options):
        loss: Tensor = _dtensors().logits_loss(input, target, options)
        return loss
    problem = arguments.logits_problem(input, target, options)
    return compute(problem, route(problem))


def _dtensors() -> Any:
    """Return ``parallel.dtensors``: importing DTensor takes 0.7 s."""
    return importlib.import_module("softmax_torch.parallel.dtensors")


def linear_loss(linear: Linear, target: Tensor, options: Options) -> Tensor:
    """Return the loss of a linear layer: ``functional.linear_cross_entropy``."""
    kernels = shortcuts.mean_nll_kernels(linear, target, options)
    if kernels is not None:
        try:
            return linear_rows.mean_nll(linear, target, kernels)
        except IndexError:  # the general route names the index
            pass
    found = shortcuts.layer_index_loss(linear, target, options)
    if found is not None:
        layer, gpu, loss_of_indices = found
        return index_rows.layer_loss(layer, target, loss_of_indices, gpu, index_terms)
    if checks.distributed(*linear, target, *options):
        loss: Tensor = _dtensors().linear_loss(linear, target, options)
        return loss
    linear, options = _checked_layer(linear, options)
    if _keeps_logits(linear, options):
        return logits_loss(_layer_logits(linear), target, options)
    problem = arguments.linear_problem(linear, target, options)
    return compute(problem, route(problem))


def logits_outputs(
    input: Tensor, target: Tensor, options: Options, request: Request
) -> CrossEntropyOutputs:
    """Return the loss of logits and what is asked for: ``functional.cross_entropy_outputs``."""
    _refuse_distributed(input, target, *options)
    problem = arguments.logits_problem(input, target, options)
    return compute_outputs(problem, route(problem, request), request)


def linear_outputs(
    linear: Linear, target: Tensor, options: Options, request: Request
) -> CrossEntropyOutputs:
    """Return the same of a linear layer: ``functional.linear_cross_entropy_outputs``."""
    _refuse_distributed(*linear, target, *options)
    linear, options = _checked_layer(linear, options)
    if _keeps_logits(linear, options):
        return logits_outputs(_layer_logits(linear), target, options, request)
    problem = arguments.linear_problem(linear, target, options)
    return compute_outputs(problem, route(problem, request), request)


def _refuse_distributed(*given: object) -> None:
    if checks.distributed(*given):
        raise RuntimeError(
            "expected plain tensors, got a DTensor: cross_entropy takes DTensors, but gives the "
            "loss alone"
        )


def _checked_layer(linear: Linear, options: Options) -> tuple[Linear, Options]:
    """Check layer and options; return the layer with scaled logits, where nothing caps them.

    s (x W^T + b) is the layer of s x and s b, or of s W and s b: the smaller product is made.
    """
    checks.check_options(options)
    checks.check_linear(linear)
    if options.softcap is not None or not options.scales():
        return linear, options
    (x, W, b), s = linear, options.logit_scale
    scaled_bias = None if b is None else b * s
    if x.numel() < W.numel():
        return Linear(x * s, W, scaled_bias), options._replace(logit_scale=1.0)
    return Linear(x, W * s, scaled_bias), options._replace(logit_scale=1.0)


def _layer_logits(linear: Linear) -> Tensor:
    """Return the logits (N, C) of a layer, or (N, C, d1, ..., dK) of one with positions."""
    x, W, b = linear
    if W.dim() == 2:
        return F.linear(x, W, b)
    z = F.linear(x, W.flatten(0, -2), None if b is None else b.flatten())
    return z.view(*x.shape[:-1], *W.shape[:-1])


def route_of(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Route:
    """Return the route that ``function(*args, **kwargs)`` would take.

    Args:
        function: ``cross_entropy``, ``linear_cross_entropy``, or one of the two that return
            outputs too.
        *args, **kwargs: the arguments of the call.

    Returns:
        The rule, where the logits are, the kernels, and the reason; ``print`` shows them as a line.

    Raises:
        ValueError, IndexError, TypeError, RuntimeError: as the call, for arguments that do not fit.
    """
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    request = None
    if "outputs" in given:
        request = Request.checked(given["outputs"], given["top_k"], given["detach"])
        options = Options(**given["options"])
    else:
        options = Options(**{name: given[name] for name in Options._fields})
    target = given["target"]
    if "linear_weight" not in given:
        return _logits_route(given["input"], target, options, request)
    linear = Linear(given["input"], given["linear_weight"], given["linear_bias"])
    if request is None and shortcuts.mean_nll_kernels(linear, target, options) is not None:
        return Route("mean NLL", "in one pass", backends.cpu_backend(), DEFAULT)
    found = None if request is not None else shortcuts.layer_index_loss(linear, target, options)
    if found is not None:
        return Route("index loss", "kept", found[1], ON_GPU)
    linear, options = _checked_layer(linear, options)
    if _keeps_logits(linear, options):
        z = _layer_logits(linear)
        return _logits_route(z, target, options, request)._replace(logits="kept")
    return route(arguments.linear_problem(linear, target, options), request)


def _logits_route(
    input: Tensor, target: Tensor, options: Options, request: Request | None
) -> Route:
    if request is None and shortcuts.is_mean_nll(input, target, options) and input.requires_grad:
        return Route("mean NLL", "given", backends.cpu_backend(), DEFAULT)
    found = None if request is not None else shortcuts.index_loss(input, target, options)
    if found is not None:
        return Route("index loss", "given", found[0], ON_GPU)
    return route(arguments.logits_problem(input, target, options), request)
