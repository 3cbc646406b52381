"""Losses with DTensors to compare with those of the whole tensors: options, arguments, results."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from support import OURS, TORCHS, options, reference
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from softmax_torch import cross_entropy

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


def results(
    mesh: DeviceMesh,
    ours: Callable[..., Tensor],
    exact: Callable[..., Tensor],
    locals_: list[Tensor],
    wholes: list[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Return ``derivatives`` of our loss on a mesh, and of the exact one of the whole tensors."""
    vectors = [torch.randn_like(t) for t in wholes]
    laid = [
        distribute_tensor(v.to(leaf.dtype), mesh, leaf.placements, src_data_rank=None)
        if isinstance(leaf, DTensor)
        else v.to(leaf.dtype)
        for v, leaf in zip(vectors, locals_, strict=True)
    ]
    return derivatives(ours, locals_, laid), derivatives(exact, wholes, vectors)


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
