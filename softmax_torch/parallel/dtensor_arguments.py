"""Check the arguments of a loss with DTensors on all ranks, and parse this rank's parts of them.

Meshes and placements are the same on all ranks: each rank checks them, and all raise the same
error. Everything else may differ between ranks by mistake, and is compared before the loss sends
anything. On a CPU each call compares it. On a GPU, where reading values would wait for the device,
only the first call with a mesh and placements does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from softmax_torch.loss import arguments, checks
from softmax_torch.loss.arguments import Problem
from softmax_torch.loss.checks import Options
from softmax_torch.ops import modes
from softmax_torch.ops.linear_rows import Linear
from softmax_torch.parallel.layout import (
    FSDP_HINT,
    Layout,
    Splits,
    check_local_shape,
    splits_of,
    stand_in,
)
from softmax_torch.parallel.rank_checks import parsed_on_all_ranks, properties, same_values

__all__ = ["linear_problem", "logits_problem"]

COMPARED: set[tuple[DeviceMesh, tuple[object, ...]]] = set()
"""Meshes of GPUs, with placements, whose ranks had the same arguments in one call."""


def logits_problem(
    input: Tensor, target: Tensor, options: Options
) -> tuple[Layout, torch.Size, Problem]:
    """Return the layout, the whole shape of the unreduced loss, and this rank's problem.

    A problem with one shard of the classes has logits (N, C_r).

    Raises:
        RuntimeError: placements or meshes that do not fit each other; code that is not plain.
        Exception: on all ranks, the error of the first rank whose arguments do not fit.
    """
    _check_plain()
    given = {"input": input, "target": target} | options._asdict()
    z = _distributed("input", input, given)
    shape, class_dim = z.shape, min(1, z.dim() - 1)
    rows = shape[:class_dim] + shape[class_dim + 1 :]
    splits = splits_of("input", z)
    layout = Layout(
        z.device_mesh,
        tuple(None if s is None or s == class_dim else s - (s > class_dim) for s in splits),
        tuple(s is not None and s == class_dim for s in splits),
    )
    soft = isinstance(target, Tensor) and target.shape == shape
    _check_placements(layout, target, class_dim if soft else None, options)

    def parse() -> Problem:
        checks.check_options(options)
        check_local_shape("input", z)
        local = layout.local(z, splits)
        if not shape:
            return arguments.logits_problem(local, target, options)  # raises
        y, own = _parts(layout, local, shape, class_dim, soft, target, options)
        if not any(layout.classes):
            return arguments.logits_problem(local, y, own)
        whole = _of_all_classes(y, class_dim, shape[class_dim]) if soft else None
        problem = arguments.logits_problem(local, y, own, shape[class_dim], whole)
        return _as_rows(problem)

    return layout, rows, _parsed(layout, parse, given, z.device)


def linear_problem(
    linear: Linear, target: Tensor, options: Options
) -> tuple[Layout, torch.Size, Problem]:
    """Return the layout, the whole shape of the unreduced loss, and this rank's problem.

    The input of the layer may be a plain tensor, the same on all ranks.

    Raises:
        RuntimeError, Exception: as ``logits_problem``.
    """
    _check_plain()
    layer = {"input": linear.x, "linear_weight": linear.weight, "linear_bias": linear.bias}
    given = layer | {"target": target} | options._asdict()
    x = linear.x
    weight = _distributed("linear_weight", linear.weight, given)
    bias = None if linear.bias is None else _distributed("linear_bias", linear.bias, given)
    whole: Splits = (None,) * weight.device_mesh.ndim
    splits = splits_of("linear_weight", weight)
    classes = tuple(s == 0 for s in splits)
    rows = splits_of("input", x) if isinstance(x, DTensor) else whole
    layout = Layout(weight.device_mesh, rows, classes)
    _check_layer(layout, x, weight, bias)
    shape = x.shape[:-1] if isinstance(x, Tensor) else torch.Size()
    C, class_dim = len(weight), len(shape)
    soft = isinstance(target, Tensor) and target.shape == (*shape, C)
    _check_placements(layout, target, class_dim if soft else None, options)

    def parse() -> Problem:
        checks.check_options(options)
        checks.check_linear(Linear(*(stand_in(tensor) for tensor in layer.values())))
        for name, tensor in layer.items():
            check_local_shape(name, tensor)
        own_layer = Linear(
            layout.local(x, rows),
            layout.local(weight, splits, layout.by_row),
            None if bias is None else layout.local(bias, splits, layout.by_row),
        )
        size = torch.Size((*shape, C))
        y, own = _parts(layout, own_layer.x, size, class_dim, soft, target, options)
        all_classes = _of_all_classes(y, class_dim, C) if soft and any(classes) else None
        return arguments.linear_problem(own_layer, y, own, C, all_classes)

    return layout, shape, _parsed(layout, parse, given, weight.device)


def _check_plain() -> None:
    if not modes.plain():
        raise RuntimeError(
            "expected plain eager code with DTensors, got torch.compile, torch.func or forward AD"
        )


def _distributed(name: str, value: object, given: dict[str, Any]) -> DTensor:
    """Return the value if it is a DTensor, as another of the given arguments is."""
    if isinstance(value, DTensor):
        return value
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")
    other, found = next((n, v) for n, v in given.items() if isinstance(v, DTensor))
    raise RuntimeError(
        f"{name}: expected a DTensor as {other}, which has placements {found.placements}, got a "
        f"plain tensor. {FSDP_HINT}"
    )


def _check_layer(layout: Layout, x: Tensor, weight: DTensor, bias: DTensor | None) -> None:
    """Raise RuntimeError unless the meshes and placements of a layer and its input fit."""
    splits = splits_of("linear_weight", weight)
    if weight.dim() != 2 or any(split not in (None, 0) for split in splits):
        raise RuntimeError(
            "linear_weight: expected a DTensor (C, D) with placements Shard(dim=0) or Replicate, "
            f"got shape {tuple(weight.shape)} with placements {weight.placements}. {FSDP_HINT}"
        )
    if bias is not None:
        layout.check("linear_bias", bias, splits)
        if splits_of("linear_bias", bias) != splits:
            raise RuntimeError(
                f"linear_bias: expected a DTensor with placements {weight.placements} as "
                f"linear_weight, got {bias.placements}"
            )
    if not isinstance(x, DTensor):
        return
    layout.check("input", x, layout.rows)
    for row, split in zip(layout.rows, layout.classes, strict=True):
        if row is not None and (split or row == x.dim() - 1):
            raise RuntimeError(
                "input: expected a DTensor that is replicated where classes of linear_weight are "
                f"split, and with whole features, got {x.placements} with {weight.placements} of "
                f"linear_weight. {FSDP_HINT}"
            )


def _check_placements(
    layout: Layout, target: object, class_dim: int | None, options: Options
) -> None:
    """Raise RuntimeError unless the placements of target and options fit.

    ``class_dim`` is the class dimension of class probabilities, or None for class indices.
    """
    if layout.mesh.get_coordinate() is None:
        raise RuntimeError(f"expected a mesh that this rank is in, got {layout.mesh}")
    if isinstance(target, DTensor):
        layout.check("target", target, layout.splits(class_dim))
    for name, value in options._asdict().items():
        if isinstance(value, DTensor):
            layout.check(name, value, layout.rows if name == "sample_weight" else layout.whole)


def _parts(
    layout: Layout,
    local: Tensor,
    shape: torch.Size,
    class_dim: int,
    soft: bool,
    target: Tensor,
    options: Options,
) -> tuple[Tensor, Options]:
    """Check target and options as a whole; return this rank's parts of them.

    ``shape`` is that of all logits. ``local`` is this rank's part of them or of a layer's input.
    """
    tensors = {name: v for name, v in options._asdict().items() if isinstance(v, Tensor)}
    wholes: dict[str, Any] = {name: stand_in(value) for name, value in tensors.items()}
    rows = shape[:class_dim] + shape[class_dim + 1 :]
    whole_options = options._replace(**wholes)
    checks.check_target(local, shape, shape[class_dim], rows, stand_in(target), whole_options)
    for name, tensor in {"target": target, **tensors}.items():
        check_local_shape(name, tensor)
    parts: dict[str, Any] = {
        name: layout.local(value, layout.rows)
        if name == "sample_weight"
        else layout.local(value, layout.whole, layout.by_row)
        for name, value in tensors.items()
    }
    return layout.local(target, layout.splits(class_dim if soft else None)), options._replace(
        **parts
    )


def _of_all_classes(t: Tensor, class_dim: int, classes: int) -> Tensor:
    """Return a tensor of the shape that class probabilities of all classes have on this rank."""
    shape = (*t.shape[:class_dim], classes, *t.shape[class_dim + 1 :])
    return t.new_zeros(()).expand(shape)


def _as_rows(problem: Problem) -> Problem:
    """Return the problem of logits (N, C, M) as one of N M rows."""
    z, options = problem.source, problem.options
    assert isinstance(z, Tensor)
    if z.dim() == 2:
        return problem

    def rows_of(x: Tensor) -> Tensor:
        return x.movedim(1, 2).flatten(0, 1) if x.dim() == 3 else x.flatten()

    weight = options.sample_weight
    return problem._replace(
        source=rows_of(z),
        target=rows_of(problem.target),
        counted=None if problem.counted is None else problem.counted.flatten(),
        options=options._replace(sample_weight=None if weight is None else weight.flatten()),
    )


def _parsed(
    layout: Layout, parse: Callable[[], Problem], given: dict[str, Any], device: torch.device
) -> Problem:
    """Return the problem of this rank; compare the arguments of all ranks on a CPU, or once."""
    mesh, on_cpu = layout.mesh, layout.mesh.device_type == "cpu"
    placements = tuple(v.placements for v in given.values() if isinstance(v, DTensor))
    if not on_cpu and (mesh, placements) in COMPARED:
        return parse()
    groups = layout.groups([True] * mesh.ndim)
    problem = parsed_on_all_ranks(
        parse, lambda _: properties(**given), groups, device, f". {FSDP_HINT}"
    )
    plain = {
        name: value
        for name, value in given.items()
        if isinstance(value, Tensor) and not isinstance(value, DTensor) and value.numel() > 0
    }
    floating = {name: value for name, value in plain.items() if value.is_floating_point()}
    same_values(floating, groups, FSDP_HINT)
    if not on_cpu:
        COMPARED.add((mesh, placements))
    return problem
