"""DTensors over gloo ranks against the whole tensors: losses and two orders of derivatives.

A case is a mesh, the shape of logits or of features and classes, and the dimensions that the mesh
splits. The reference is F.cross_entropy, and with this package's own options the definition.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import OURS, TORCHS, in_group, options, reference
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)

from softmax_torch import cross_entropy, cross_entropy_outputs, linear_cross_entropy

CASES = (
    TORCHS
    | OURS
    | {
        "ignored": {"ignore_index": 1, "label_smoothing": 0.2},
        "ignored, weight, sample weight": {
            "ignore_index": 1,
            "weight": True,
            "sample_weight": True,
        },
        "ignored, none": {"ignore_index": 1, "reduction": "none"},
        "all ignored": {"ignore_index": 1, "z_loss": 0.1},
    }
)
FEW_CASES = ("plain", "weight, smoothing", "all", "all, none", "softcap, scale", "ignored")

Splits = tuple[int | None, ...]


def placements(splits: Splits) -> tuple[Placement, ...]:
    return tuple(Replicate() if split is None else Shard(split) for split in splits)


def split(t: Tensor, mesh: DeviceMesh, splits: Splits) -> DTensor:
    return distribute_tensor(t.detach(), mesh, placements(splits), src_data_rank=None)


def whole(t: Tensor) -> Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t


def derivatives(
    loss: Callable[..., Tensor], leaves: list[Tensor], vectors: list[Tensor]
) -> list[Tensor]:
    """Return value, gradients, and the derivatives of their product with vectors."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    value = loss(*leaves)
    upstream = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).view(value.shape)
    if isinstance(value, DTensor):
        upstream = distribute_tensor(upstream, value.device_mesh, value.placements)
    first = torch.autograd.grad(value, leaves, upstream, retain_graph=True)
    again = torch.autograd.grad(value, leaves, upstream, create_graph=True)
    second = torch.autograd.grad(again, leaves, vectors)
    for gradients in (first, again, second):
        for g, leaf in zip(gradients, leaves, strict=True):
            assert getattr(g, "placements", None) == getattr(leaf, "placements", None)
    return [t.detach() for t in (value, *first, *again, *second)]


def exact(*arguments: Any, **given: Any) -> Tensor:
    """Return the loss of whole tensors; F.cross_entropy has no derivative in class weights."""
    if "ignore_index" in given and bool((arguments[1] == given["ignore_index"]).all()):
        return cross_entropy(*arguments, **given)  # NaN with a gradient of 0, as in torch
    own = ("sample_weight", "z_loss", "softcap", "logit_scale", "normalizer")
    if given.keys() & {"weight", *own}:
        return reference(*arguments, **given)
    return F.cross_entropy(*arguments, **given)


def close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype, what: object) -> None:
    """Compare relative to the largest magnitude, or to 1 if that is smaller: both sides round."""
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for i, (a, e) in enumerate(zip(found, expected, strict=True)):
        a = whole(a)
        largest = max([1.0, *e.abs().nan_to_num(0.0).flatten().tolist()])
        near = torch.allclose(a.double(), e, rtol=0, atol=tolerance * largest, equal_nan=True)
        assert a.dtype == dtype, (what, i, a.dtype)
        assert near, f"{what}, result {i}: {a} for {e}"


OTHERS = ("split", "plain", "replicated")
"""The tensors besides logits and layer: DTensors with the splits that fit, plain, or replicated."""


def lay_out(t: Tensor, splits: Splits, mesh: DeviceMesh, others: str, dtype: torch.dtype) -> Tensor:
    """Return an argument of a case as ``others`` says."""
    t = t.to(dtype) if t.is_floating_point() else t
    if others == "plain":
        return t
    return split(t, mesh, splits if others == "split" else (None,) * mesh.ndim)


class Case:
    """Random arguments: the whole tensors in float64, and which of them are leaves."""

    def __init__(
        self, shape: tuple[int, ...], class_dim: int, chosen: dict[str, Any], soft: bool
    ) -> None:
        torch.manual_seed(0)
        rows = shape[:class_dim] + shape[class_dim + 1 :]
        C = shape[class_dim]
        self.given = options(chosen, C, rows, torch.float64)
        self.soft = soft
        if soft:
            self.target = torch.rand(shape, dtype=torch.float64).softmax(class_dim)
        else:
            # The first rows are ignored, and with them all rows of a rank.
            self.target = torch.randint(C, rows)
            if "ignore_index" in chosen:
                self.target.flatten()[: max(1, self.target.numel() // 2)] = chosen["ignore_index"]


def fits(shape: tuple[int, ...], class_dim: int, chosen: dict[str, Any], soft: bool) -> bool:
    return "ignore_index" not in chosen or not (soft or shape[class_dim] < 2)


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

    vectors = [torch.randn_like(t) for t in wholes]
    laid_vectors = [
        distribute_tensor(v.to(dtype), mesh, placed.placements, src_data_rank=None)
        if isinstance(placed, DTensor)
        else v.to(dtype)
        for v, placed in zip(vectors, locals_, strict=True)
    ]
    expected = derivatives(loss(exact, case.target), wholes, vectors)
    found = derivatives(loss(cross_entropy, target), locals_, laid_vectors)
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

    vectors = [torch.randn_like(t) for t in wholes]
    laid_vectors = [
        distribute_tensor(v.to(dtype), mesh, placed.placements, src_data_rank=None)
        if isinstance(placed, DTensor)
        else v.to(dtype)
        for v, placed in zip(vectors, locals_, strict=True)
    ]
    expected = derivatives(loss(False, case.target), wholes, vectors)
    found = derivatives(loss(True, target), locals_, laid_vectors)
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
    torch.save(errors(mesh), f"{folder}/{rank}.pt")


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


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return "none"


def errors(mesh: DeviceMesh) -> dict[str, str]:
    """Return the errors of this rank, by the pattern that is expected of them."""
    last = mesh.get_rank() == mesh.size() - 1
    torch.manual_seed(0)
    z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    x, W, b = torch.randn(4, 5), torch.randn(3, 5), torch.randn(3)
    rows, classes = split(z, mesh, (0,)), split(z, mesh, (1,))
    W_0, W_1, W_all = split(W, mesh, (0,)), split(W, mesh, (1,)), split(W, mesh, (None,))
    wrong = torch.tensor([0, 1, 2, 7])
    unsummed = DTensor.from_local(z, mesh, (Partial(),))
    flat = init_device_mesh("cpu", (1, 2))
    uneven = DTensor.from_local(
        z[: 1 if last else 3], mesh, (Shard(0),), run_check=False, shape=z.shape, stride=(3, 1)
    )
    negative = split(torch.tensor([1.0, 1, 1, -2]), mesh, (0,))
    own = x + 1 if last else x

    def layer(*arguments: Any, **given: Any) -> Callable[[], Tensor]:
        return lambda: linear_cross_entropy(*arguments, **given)

    def logits(*arguments: Any, **given: Any) -> Callable[[], Tensor]:
        return lambda: cross_entropy(*arguments, **given)

    calls = {
        "IndexError: rank 1: target: .* got 7": logits(rows, split(wrong, mesh, (0,))),
        r"IndexError: rank 0: target: expected class indices in \[0, 3\)": logits(classes, wrong),
        "ValueError: checksum of target: expected the same": logits(rows, y.flip(0) if last else y),
        r"ValueError: rank 0: target: .* of shape \(4,\)": logits(rows, y[:2]),
        "RuntimeError: input: expected a DTensor with placements Shard or R": logits(unsummed, y),
        r"RuntimeError: target: .* placements \(Replicate\(\),\), as": logits(
            classes, split(y, mesh, (0,))
        ),
        r"RuntimeError: target: .* placements \(Shard\(dim=0\),\), as": logits(rows, classes),
        "RuntimeError: input: expected a DTensor as target": logits(z, split(y, mesh, (0,))),
        "RuntimeError: weight: .* or replicated": logits(rows, y, split(b, mesh, (0,))),
        "RuntimeError: target: expected a DTensor on the mesh": logits(
            rows, split(y, flat, (None, 0))
        ),
        "ValueError: rank 0: input: expected a local part": logits(uneven, y),
        "ValueError: rank 1: sample_weight: .* got -2": logits(rows, y, sample_weight=negative),
        "ValueError: rank 0: reduction: expected": logits(rows, y, reduction="median"),
        "RuntimeError: expected plain tensors, got a DTensor": lambda: (
            cross_entropy_outputs(rows, y, outputs=("lse",)).loss
        ),
        "ValueError: weight: expected the same values": logits(rows, y, own[:3, 0].contiguous()),
        "ValueError: input: expected the same on all ranks": logits(
            rows.detach().requires_grad_(last), y
        ),
        "TypeError: rank 1: target: expected a Tensor": logits(rows, None if last else y),
        "RuntimeError: linear_weight: expected a DTensor as": layer(split(x, mesh, (0,)), W, y),
        "RuntimeError: input: .* replicated where classes .* FSDP2": layer(
            split(x, mesh, (0,)), W_0, y
        ),
        "RuntimeError: input: .* whole features": layer(split(x, mesh, (1,)), W_all, y),
        r"RuntimeError: linear_weight: .* \(C, D\)": layer(x, W_1, y),
        "ValueError: input: expected the same values .* FSDP2": layer(own, W_0, y),
        "ValueError: input: .* that differ. With": layer(own, W_all, y),
        "RuntimeError: linear_bias: expected a DTensor as": layer(x, W_0, y, linear_bias=b),
        r"RuntimeError: linear_bias: .* placements \(Shard\(dim=0\),\) as": layer(
            x, W_0, y, linear_bias=split(b, mesh, (None,))
        ),
        "RuntimeError: rank 0: input: expected 5 features": layer(x[:, 1:], W_0, y),
        "RuntimeError: expected plain eager code with DTensors": lambda: torch.func.grad(
            lambda z: cross_entropy(z, y)
        )(rows),
        "none": logits(rows, y),
    }
    return {pattern: error_of(call) for pattern, call in calls.items()}


def test_losses_and_errors_of_two_ranks(tmp_path: Path) -> None:
    in_group(some_cases, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second  # the same error on all ranks
    for pattern, error in first.items():
        assert re.match(pattern, error), f"{pattern}: {error}"
