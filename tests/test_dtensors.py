"""DTensors over gloo ranks against the whole tensors: losses and two orders of derivatives.

A case is a mesh, the shape of logits or of features and classes, and the dimensions that the mesh
splits. The reference is F.cross_entropy, and with this package's own options the definition.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dtensor_cases import (
    CASES,
    FEW_CASES,
    OTHERS,
    Case,
    Splits,
    close,
    exact,
    fits,
    lay_out,
    placements,
    results,
    split,
    whole,
)
from support import in_group
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Replicate,
    Shard,
)

from softmax_torch import cross_entropy, linear_cross_entropy


def compare_logits(
    mesh: DeviceMesh,
    shape: tuple[int, ...],
    splits: Splits,
    name: str,
    soft: bool,
    dtype: torch.dtype,
    others: str,
) -> None:
    """Compare one case of logits; the others of ``OTHERS`` are the other arguments."""
    class_dim = min(1, len(shape) - 1)
    chosen = CASES[name]
    if not fits(shape, class_dim, chosen, soft):
        return
    case = Case(shape, class_dim, chosen, soft)
    if name == "all ignored":
        case.target.fill_(1)
    rows = tuple(None if s in (None, class_dim) else s - (s > class_dim) for s in splits)
    none = (None,) * mesh.ndim
    tensors = {k: v for k, v in case.given.items() if torch.is_tensor(v) and v.is_floating_point()}
    numbers = {k: v for k, v in case.given.items() if k not in tensors}
    z = torch.randn(shape, dtype=torch.float64)

    of = {"sample_weight": rows}
    laid = partial(lay_out, mesh=mesh, others=others, dtype=dtype)
    target = laid(case.target, splits if soft else rows)
    wholes = [z, *tensors.values(), *([case.target] if soft else [])]
    locals_ = [
        split(z.to(dtype), mesh, splits),
        *(laid(t, of.get(k, none)) for k, t in tensors.items()),
        *([target] if soft else []),
    ]

    def loss(function: Callable[..., Tensor], y: Tensor) -> Callable[..., Tensor]:
        def of_leaves(z: Tensor, *rest: Tensor) -> Tensor:
            more = dict(zip(tensors, rest, strict=False)) | numbers
            return function(z, rest[-1] if soft else y, **more)

        return of_leaves

    losses = loss(cross_entropy, target), loss(exact, case.target)
    found, expected = results(mesh, *losses, locals_, wholes)
    what = f"logits {shape} split {splits} on {mesh.shape}, {name}, soft {soft}, {others}"
    assert isinstance(found[0], DTensor), what
    none_or_rows = rows if numbers.get("reduction") == "none" else none
    assert tuple(found[0].placements) == placements(none_or_rows), what
    close(found, expected, dtype, what)


def compare_layer(
    mesh: DeviceMesh,
    shape: tuple[int, ...],
    classes: int,
    x_splits: Splits | None,
    w_splits: Splits,
    name: str,
    soft: bool,
    dtype: torch.dtype,
    others: str,
) -> None:
    """Compare one case of a layer; without ``x_splits`` its input is a plain tensor."""
    *rows_shape, D = shape
    class_dim = len(rows_shape)
    chosen = CASES[name]
    if not fits((*rows_shape, classes), class_dim, chosen, soft):
        return
    case = Case((*rows_shape, classes), class_dim, chosen, soft)
    none = (None,) * mesh.ndim
    rows = none if x_splits is None else x_splits
    tensors = {k: v for k, v in case.given.items() if torch.is_tensor(v) and v.is_floating_point()}
    numbers = {k: v for k, v in case.given.items() if k not in tensors}
    x = torch.randn(shape, dtype=torch.float64)
    W = torch.randn(classes, D, dtype=torch.float64)
    b = torch.randn(classes, dtype=torch.float64)

    of = {"sample_weight": rows}
    by_class = tuple(class_dim if w == 0 else r for w, r in zip(w_splits, rows, strict=True))
    laid = partial(lay_out, mesh=mesh, others=others, dtype=dtype)
    target = laid(case.target, by_class if soft else rows)
    biases = [] if others == "plain" else [b]
    wholes = [x, W, *biases, *tensors.values(), *([case.target] if soft else [])]
    locals_ = [
        x.to(dtype) if x_splits is None else split(x.to(dtype), mesh, x_splits),
        split(W.to(dtype), mesh, w_splits),
        *(split(b.to(dtype), mesh, w_splits) for b in biases),
        *(laid(t, of.get(k, none)) for k, t in tensors.items()),
        *([target] if soft else []),
    ]

    def loss(ours: bool, y: Tensor) -> Callable[..., Tensor]:
        def of_leaves(x: Tensor, W: Tensor, *rest: Tensor) -> Tensor:
            b, rest = (rest[0], rest[1:]) if biases else (None, rest)
            more = dict(zip(tensors, rest, strict=False)) | numbers
            t = rest[-1] if soft else y
            if ours:
                return linear_cross_entropy(x, W, t, linear_bias=b, **more)
            z = F.linear(x, W, b).flatten(0, -2)
            if "sample_weight" in more:
                more["sample_weight"] = more["sample_weight"].flatten()
            value = exact(z, t.flatten(0, -2) if soft else t.flatten(), **more)
            return value.view(rows_shape) if value.dim() > 0 else value

        return of_leaves

    losses = loss(True, target), loss(False, case.target)
    found, expected = results(mesh, *losses, locals_, wholes)
    what = f"x {shape} {x_splits}, W {w_splits} on {mesh.shape}, {name}, soft {soft}, {others}"
    assert isinstance(found[0], DTensor) == (x_splits is not None), what
    close(found, expected, dtype, what)


LOGITS: dict[tuple[int, ...], list[tuple[tuple[int, ...], Splits]]] = {
    (1,): [((5, 3), (0,)), ((5, 3), (1,))],
    (2,): [
        ((7, 5), (0,)),
        ((7, 5), (1,)),
        ((7, 5), (None,)),
        ((3, 5, 4), (1,)),
        ((3, 4, 2, 3), (3,)),
    ],
    (4,): [((6, 5), (0,)), ((6, 5), (1,)), ((2, 3, 5), (2,)), ((5,), (0,))],
    (2, 2): [
        ((7, 5), (0, 1)),
        ((7, 5), (1, 0)),
        ((7, 5), (0, 0)),
        ((3, 7), (1, 1)),
        ((5, 3, 3), (0, 2)),
        ((7, 5), (None, 1)),
        ((7, 5), (0, None)),
    ],
}
"""For each mesh the shapes of logits, and which dimension each dimension of the mesh splits."""

EMPTY: dict[tuple[int, ...], list[tuple[tuple[int, ...], Splits]]] = {
    (1,): [((0, 3), (0,)), ((0, 3), (1,))],
    (2,): [((1, 5), (0,)), ((4, 1), (1,)), ((0, 3), (0,)), ((0, 3), (1,)), ((5,), (0,))],
    (4,): [((5, 4), (0,)), ((4, 5), (1,))],
    (2, 2): [((1, 3), (0, 1)), ((3, 1), (1, 0)), ((2, 3), (0, 0)), ((0, 3), (0, 1))],
}
"""Shapes of which some ranks have no row or no class, and logits of a single row."""

LAYERS: dict[tuple[int, ...], list[tuple[tuple[int, ...], int, Splits | None, Splits]]] = {
    (1,): [((5, 4), 3, (0,), (None,)), ((5, 4), 3, None, (0,))],
    (2,): [
        ((7, 4), 5, (0,), (None,)),
        ((7, 4), 5, (None,), (0,)),
        ((3, 2, 4), 5, (1,), (None,)),
        ((7, 4), 5, None, (0,)),
        ((7, 4), 5, None, (None,)),
        ((1, 4), 3, (0,), (None,)),
    ],
    (4,): [((6, 4), 5, (0,), (None,)), ((6, 4), 5, None, (0,)), ((6, 2), 5, (None,), (0,))],
    (2, 2): [
        ((7, 4), 5, (0, None), (None, 0)),
        ((7, 4), 5, (None, 0), (0, None)),
        ((7, 4), 5, (0, 0), (None, None)),
        ((1, 4), 1, (0, None), (None, 0)),
        ((7, 4), 5, None, (None, 0)),
    ],
}
"""For each mesh the shapes of x, the number of classes, and the splits of x and of the weight."""


def compare(mesh: DeviceMesh, names: tuple[str, ...], dtype: torch.dtype, part: int) -> None:
    """Compare every ``part``-th case of a mesh with these sets of options."""
    shape = tuple(mesh.shape)
    turn = 0
    others = cycle(OTHERS)
    for soft in (False, True):
        for name in names:
            of_logits = LOGITS[shape] + (EMPTY[shape] if name in FEW_CASES else [])
            for logits, splits in of_logits:
                turn += 1
                if turn % part == 0:
                    compare_logits(mesh, logits, splits, name, soft, dtype, next(others))
            for x, C, x_splits, w_splits in LAYERS[shape]:
                turn += 1
                if turn % part == 0:
                    compare_layer(mesh, x, C, x_splits, w_splits, name, soft, dtype, next(others))


def all_cases(rank: int, folder: str, shapes: list[tuple[int, ...]]) -> None:
    for shape in shapes:
        mesh = init_device_mesh("cpu", shape)
        compare(mesh, tuple(CASES), torch.float64, 2 if mesh.size() < 4 else 3)
        compare(mesh, FEW_CASES, torch.float32, 3)


@pytest.mark.slow
@pytest.mark.parametrize("shapes", [[(1,)], [(2,)], [(4,), (2, 2)]], ids=str)
def test_losses_of_all_layouts(shapes: list[tuple[int, ...]], tmp_path: Path) -> None:
    in_group(all_cases, math.prod(shapes[0]), tmp_path, shapes)


def some_cases(rank: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (2,))
    compare(mesh, FEW_CASES, torch.float64, 5)  # of 16 layouts, so that each has its turn
    compare(mesh, ("all, none",), torch.float32, 3)
    gradients(mesh)


def gradients(mesh: DeviceMesh) -> None:
    """Check ``backward`` from each reduction, autocast, and gradients that arrive partial."""
    z, y = torch.randn(7, 5), torch.randint(5, (7,))
    expected = torch.autograd.functional.jacobian(lambda z: F.cross_entropy(z, y), z)
    for split_dim in (0, 1):
        leaf = split(z, mesh, (split_dim,)).requires_grad_()
        for loss in (cross_entropy(leaf, y), cross_entropy(leaf, y, reduction="none").mean()):
            leaf.grad = None
            torch.autograd.backward(loss)
            assert isinstance(leaf.grad, DTensor)
            assert leaf.grad.placements == (Shard(split_dim),)
            torch.testing.assert_close(leaf.grad.full_tensor(), expected)
        turned = split(z.t().contiguous(), mesh, (1 - split_dim,)).t()
        torch.testing.assert_close(whole(cross_entropy(turned, y)), F.cross_entropy(z, y))
        low = whole(cross_entropy(leaf.bfloat16(), y))
        assert low.equal(cross_entropy(z.bfloat16(), y))  # rounded once
        with torch.autocast("cpu", torch.bfloat16):
            low = cross_entropy(leaf.bfloat16(), y, label_smoothing=0.1)
            one = cross_entropy(z.bfloat16(), y, label_smoothing=0.1)
        assert low.dtype == torch.float32
        torch.testing.assert_close(whole(low), one)
    late = split(z, mesh, (0,)).redistribute(mesh, (Replicate(),), async_op=True)
    torch.testing.assert_close(whole(cross_entropy(late, y)), F.cross_entropy(z, y))
    large = split(torch.full((7, 5), 1e4), mesh, (1,))
    assert cross_entropy(large, y).item() == pytest.approx(math.log(5), rel=1e-6)


@pytest.mark.slow
def test_losses_of_two_ranks(tmp_path: Path) -> None:
    in_group(some_cases, 2, tmp_path)
