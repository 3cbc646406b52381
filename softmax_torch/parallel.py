"""Cross-entropy of a linear layer whose classes are split over the ranks of a process group.

Rank r has the rows W_r (C_r, D) and b_r (C_r,) of the layer; the input x (N, D) and the class
indices are the same on all ranks. With m_r, R_r, z_r, S_r what shard r adds to a row (see
``ops.shard_rows``), U_r the sum of its u, and one maximum and one sum over the ranks:

    m   = max_r m_r
    R   = sum_r R_r exp(m_r - m)                       of all classes but y
    z_y = sum_r z_r
    S   = sum_r S_r + U_r (m - m_r),    U = sum_r U_r

    L      = log R + (m - z_y)
    nll    = log(1 + exp(L))
    lse    = m + log(R + exp(z_y - m))                 computed as  m + log R + log(1 + exp(-L))
    smooth = U (lse - m) + S

These are the three row numbers of ``maths``, kept to their digits as there, and ``reductions`` does
the rest, the same on every rank. Without class indices R is over all classes and lse = m + log R.

A row sends, in float32, 4 bytes to the maximum and 4 to 16 to the sum (R; z_y with class indices; S
and U with smoothing or class probabilities). The backward pass sums dx over the ranks, 4 D bytes a
row, where x needs a gradient, and the gradient of class weights where they do; dW and db stay where
they are. A call begins with a reduction of 24 bytes by which ranks agree that all can go on: a
mistake on one rank is an error on all, and none waits for another. On a GPU that waits for the
device, once a call.

To differentiation there are tensors that all ranks have alike and tensors of which each has its
own part. ``to_shards`` and ``from_shards`` lead from one to the other, are each other's gradient,
and so can be differentiated any number of times. A gradient of a tensor that ranks have alike is
the whole one on every rank; that of a part is the part's.

A group of one rank does what ``functional.linear_cross_entropy`` does:

>>> import os, tempfile
>>> import torch.distributed as dist
>>> meet = os.path.join(tempfile.mkdtemp(), "meet")
>>> dist.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
>>> model = ShardedSoftmaxRegression(in_features=4, num_classes=3)
>>> model.loss(torch.zeros(2, 4), torch.tensor([0, 2]), z_loss=0.1).backward()
>>> model.weight.grad.placements, tuple(model.weight.grad.to_local().shape)
((Shard(dim=0),), (3, 4))
>>> dist.destroy_process_group()
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from softmax_torch import checks, reductions
from softmax_torch.maths import RowValues, class_sum, log1pexp, upcast
from softmax_torch.ops import backends
from softmax_torch.ops.linear_rows import Linear, pieces
from softmax_torch.ops.shard_rows import shard_numbers
from softmax_torch.reductions import Options

__all__ = [
    "ClassShard",
    "ShardedSoftmaxRegression",
    "from_shards",
    "linear_cross_entropy",
    "to_shards",
]


class ClassShard(NamedTuple):
    """The classes of this rank, [start, stop) of ``classes``, and the group that has the others."""

    group: dist.ProcessGroup
    start: int
    stop: int
    classes: int

    @classmethod
    def of(
        cls,
        size: int,
        group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
    ) -> ClassShard:
        """The shard of a rank that has ``size`` classes, those before it on lower ranks.

        A collective call, made once: ranks tell each other their sizes, which may differ and be 0.
        ``device`` is where the group communicates, a CPU if not given.
        """
        group = _initialised(group)
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(group.size())]
        own = torch.tensor([size], dtype=torch.int64, device=device)
        dist.all_gather(sizes, own, group=group)
        counts = [int(s) for s in sizes]
        start = sum(counts[: group.rank()])
        return cls(group, start, start + size, sum(counts))

    @classmethod
    def even(cls, classes: int, group: dist.ProcessGroup | None = None) -> ClassShard:
        """The shard of a rank when classes are split as ``torch.chunk`` and DTensor's Shard do."""
        group = _initialised(group)
        size = -(-classes // group.size())
        start = min(group.rank() * size, classes)
        return cls(group, start, min(start + size, classes), classes)


def _initialised(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "group: expected a process group of torch.distributed "
            "(torch.distributed.init_process_group, torchrun), got none that is initialised"
        )
    found = dist.group.WORLD if group is None else group
    if not isinstance(found, dist.ProcessGroup) or dist.get_rank(found) < 0:
        raise ValueError(
            f"group: expected a process group that this rank ({dist.get_rank()}) is in, got {found}"
        )
    return found


def _reduced(x: Tensor, op: Any, group: dist.ProcessGroup) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, op, group=group)
    return total


class _ToShards(Function):
    @staticmethod
    def forward(x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return from_shards(upcast(g), ctx.group).to(g.dtype), None


class _FromShards(Function):
    @staticmethod
    def forward(x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _reduced(x, dist.ReduceOp.SUM, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return to_shards(g, ctx.group), None


def to_shards(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """x, which all ranks have alike, where each does its own with it: gradients are summed."""
    y: Tensor = _ToShards.apply(x, group)
    return y


def from_shards(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over ranks of each rank's x, which all ranks have alike then."""
    y: Tensor = _FromShards.apply(x, group)
    return y


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    shard: ClassShard | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    z_loss: float = 0.0,
) -> Tensor:
    """``functional.linear_cross_entropy`` with the classes split over ranks.

    Args:
        input: features (..., D), the same on all ranks.
        linear_weight: the rows of this rank's classes (C_r, D), or a DTensor (C, D) with the
            placement Shard(0) on a mesh of one dimension.
        target: class indices in [0, C) (...), the same on all ranks; or class probabilities of this
            rank's classes (..., C_r).
        linear_bias: (C_r,), or a DTensor (C,) as ``linear_weight``; or None.
        shard: which classes this rank has. Needed where linear_weight is no DTensor.
        weight: class weights (C,) of all classes, the same on all ranks: they are few beside the
            layer, and every rank needs that of a row's class.
        ignore_index, reduction, label_smoothing, z_loss: as in ``functional.cross_entropy``.
        sample_weight: (...), the same on all ranks.

    Returns:
        The loss in the dtype of ``input`` (float32 under autocast), the same on all ranks.

    Raises:
        What ``functional.linear_cross_entropy`` raises, on all ranks and with the number of the
        first rank that failed; ValueError where ranks were given different arguments; RuntimeError
        under torch.compile, torch.func and forward-mode AD, where collectives would be lost.

    Logits exist in blocks of rows, at least one row of the shard's logits. Derivatives of all
    orders are right in reverse mode; ranks have to differentiate in the same tensors. Second ones
    need plain local tensors: ``DTensor.to_local`` can be differentiated once.
    """
    if not backends.plain():
        raise RuntimeError("expected plain eager code, got torch.compile, torch.func or forward AD")
    if isinstance(linear_weight, DTensor):
        shard = _shard_of(linear_weight, "linear_weight")
        linear_weight = linear_weight.to_local()
    if isinstance(linear_bias, DTensor):
        linear_bias = linear_bias.to_local()
    if shard is None:
        raise ValueError("shard: expected a ClassShard with local tensors, got None")
    options = Options(ignore_index, reduction, label_smoothing, z_loss)
    linear = Linear(input, linear_weight, linear_bias)
    error: Exception | None = None
    try:
        soft = _checked(linear, target, shard, weight, sample_weight, options)
    except Exception as e:
        soft, error = False, e
    _agree(error, _described(linear, target, weight, sample_weight, options, soft), shard, input)

    dtype = input.dtype
    if soft:
        dtype = torch.promote_types(dtype, target.dtype)
        dtype = dtype if weight is None else torch.promote_types(dtype, weight.dtype)
    if backends.autocast(input) and dtype != torch.float64:
        low = torch.get_autocast_dtype(input.device.type)
        linear = Linear(*(None if t is None else t.to(low) for t in linear))  # type: ignore[arg-type]
        dtype = torch.promote_types(dtype, torch.float32)
    if not backends.autocast(input):
        loss = _loss(linear, target, soft, shard, weight, sample_weight, options)
    else:
        with torch.autocast(input.device.type, enabled=False):
            loss = _loss(linear, target, soft, shard, weight, sample_weight, options)
    return (loss.reshape(input.shape[:-1]) if reduction == "none" else loss).to(dtype)


def _loss(
    linear: Linear,
    target: Tensor,
    soft: bool,
    shard: ClassShard,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    options: Options,
) -> Tensor:
    """The loss of arguments that fit and that ranks agree on."""
    group, start, stop, C = shard
    x, W, b = linear
    linear = Linear(x.reshape(-1, x.shape[-1]), W, b)
    N = math.prod(x.shape[:-1])
    if sample_weight is not None:
        sample_weight = sample_weight.reshape(N)
    if soft:
        w = None if weight is None else to_shards(weight, group)[start:stop]
        goal = reductions.class_probabilities(target.reshape(N, stop - start), w, options, C)
        u = goal.u
    else:
        y = target.reshape(N)
        goal = reductions.class_indices(y, C, weight, options, upcast(x[:0]).dtype)
        u = None if goal.u is None else to_shards(goal.u, group)[start:stop]
    values = _row_values(linear, goal.y, u, shard)
    return reductions.loss_of_rows(values, N, goal, sample_weight, options)


def _row_values(linear: Linear, y: Tensor | None, u: Tensor | None, shard: ClassShard) -> RowValues:
    """The row numbers over all classes, of the y and the shard's part of u: see the equations."""
    group, start, stop, _ = shard
    x, weight, bias = linear
    if y is None:
        at = torch.full((len(x),), -1, device=x.device)
    else:
        at = torch.where((y >= start) & (y < stop), y - start, -1)
    own = shard_numbers(Linear(to_shards(x, group), weight, bias), at, u)

    largest = _reduced(own.largest, dist.ReduceOp.MAX, group)
    without_rivals = largest == -torch.inf  # the one class there is, is y
    m = torch.where(without_rivals, 0.0, largest)
    columns = [own.rivals * torch.where(own.largest == -torch.inf, 0.0, (own.largest - m).exp())]
    if y is not None:
        columns.append(own.z_y)
    if u is not None:
        own_m = torch.where(own.largest == -torch.inf, 0.0, own.largest)
        own_U = class_sum(upcast(u)).to(m.dtype)
        columns += [own.spread + own_U * (m - own_m), own_U.expand_as(m)]
    sums = iter(from_shards(torch.stack(columns), group).unbind())

    log_R = torch.where(without_rivals, 1.0, next(sums)).log()
    if y is None:
        nll, above = None, log_R  # lse - m
    else:
        z_y = next(sums)
        L = log_R + (m - z_y)
        nll = torch.where(without_rivals, 0.0, log1pexp(L))
        above = torch.where(without_rivals, z_y - m, log_R + log1pexp(-L))
    smooth = None
    if u is not None:
        S, U = next(sums), next(sums)
        smooth = U * above + S
    return RowValues(nll, smooth, m + above)


def _shard_of(weight: DTensor, name: str) -> ClassShard:
    mesh = weight.device_mesh
    if tuple(weight.placements) != (Shard(0),):
        raise ValueError(
            f"{name}: expected a DTensor with placements (Shard(dim=0),) on a mesh of one "
            f"dimension, got {tuple(weight.placements)}"
        )
    return ClassShard.even(weight.shape[0], mesh.get_group())


def _checked(
    linear: Linear,
    target: Tensor,
    shard: ClassShard,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    options: Options,
) -> bool:
    """Whether ``target`` holds class probabilities, once this rank's arguments fit."""
    checks.options(options.reduction, options.label_smoothing, options.z_loss)
    checks.linear_shapes(*linear)
    x, C_r = linear.x, shard.stop - shard.start
    if linear.weight.dim() != 2 or len(linear.weight) != C_r:
        raise RuntimeError(
            f"linear_weight: expected shape ({C_r}, {x.shape[-1]}), as the shard has {C_r} classes,"
            f" got {tuple(linear.weight.shape)}"
        )
    rows = x.shape[:-1]
    whole = target
    if isinstance(target, Tensor) and target.dim() == x.dim() and target.is_floating_point():
        if target.shape != (*rows, C_r):
            raise RuntimeError(
                f"target: expected probabilities of the shard's classes of shape "
                f"{(*rows, C_r)}, got {tuple(target.shape)}"
            )
        whole = target.new_zeros(()).expand(*rows, shard.classes)  # as the whole would be checked
    soft = checks.linear_target_shapes(
        x, shard.classes, whole, weight, options.ignore_index, sample_weight
    )
    if soft and whole is target:
        raise RuntimeError(
            f"target: expected class indices of shape {tuple(rows)} or class probabilities, got "
            f"{target.dtype} of shape {tuple(target.shape)}"
        )
    if not soft:
        checks.class_indices(target, shard.classes, options.ignore_index)
    return soft


def _described(
    linear: Linear,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    options: Options,
    soft: bool,
) -> dict[str, str]:
    """What ranks have to have alike, by name."""

    def kind(x: object) -> str:
        if not isinstance(x, Tensor):
            return "None" if x is None else type(x).__name__
        grad = " requires grad" if x.requires_grad and torch.is_grad_enabled() else ""
        return f"{x.dtype} {tuple(x.shape)}{grad}"

    found = {
        "input": kind(linear.x),
        "features and type of linear_weight": kind(linear.weight[:0]),
        "linear_bias": "None" if linear.bias is None else kind(linear.bias[:0]),
        "weight": kind(weight),
        "sample_weight": kind(sample_weight),
        **{name: str(value) for name, value in options._asdict().items()},
    }
    if soft:
        found["target"] = f"{target.dtype}, class probabilities"
    else:
        found["target"] = kind(target)
        if isinstance(target, Tensor) and backends.values_at_hand(target):
            y = target.flatten().to(torch.int64)
            places = torch.arange(1, len(y) + 1)
            found["checksum of target"] = str(int((y * places).sum()))
    return found


def _agree(
    error: Exception | None, described: dict[str, str], shard: ClassShard, input: Tensor
) -> None:
    """Go on only if no rank has an error and all have the same arguments; else raise on all."""
    digest = hashlib.sha256(repr(described).encode()).digest()
    number = int.from_bytes(digest[:7])
    device = input.device if isinstance(input, Tensor) else None
    worst = torch.tensor([int(error is not None), number, -number], device=device)
    dist.all_reduce(worst, dist.ReduceOp.MAX, group=shard.group)
    failed, most, least = worst.tolist()
    if not failed and most == -least:
        return
    own = (None if error is None else (type(error), str(error)), described)
    found: list[Any] = [None] * shard.group.size()
    dist.all_gather_object(found, own, group=shard.group)
    for rank, (wrong, _) in enumerate(found):
        if wrong is not None:
            kind, message = wrong
            raise kind(f"rank {rank}: {message}") from error
    for name in dict.fromkeys(name for _, names in found for name in names):
        values = [names.get(name, "none") for _, names in found]
        if len(set(values)) > 1:
            listed = "; ".join(f"{value} on rank {rank}" for rank, value in enumerate(values))
            raise ValueError(f"{name}: expected the same on all ranks, got {listed}")


class ShardedSoftmaxRegression(nn.Module):
    """``SoftmaxRegression`` with its classes split over the ranks of a group.

    Args:
        in_features: D, the number of features of a sample.
        num_classes: C, the number of all classes; it need not be a multiple of the ranks.
        bias: whether the logits have an intercept per class.
        mesh: the ranks that share the classes: a process group, or a DeviceMesh of one dimension
            (``mesh["classes"]`` of a bigger one); None for all ranks.
        device: where the parameters live.
        dtype: floating-point type of the parameters.

    Attributes:
        weight, bias: DTensors (C, D) and (C,), split along classes as ``torch.chunk`` does. So
            optimizers work on each rank's part, and torch.distributed.checkpoint saves and loads
            them, on another number of ranks too.
        shard: the classes of this rank.

    On a CPU the first parameters are those of ``SoftmaxRegression`` with the same seed, on any
    number of ranks; no rank holds more of them than its own and a block.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        *,
        mesh: DeviceMesh | dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1:
            raise ValueError(f"in_features: expected at least 1, got {in_features}")
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
        self.in_features, self.num_classes = in_features, num_classes
        local = torch.empty(0, device=device, dtype=dtype)
        if not isinstance(mesh, DeviceMesh):
            mesh = DeviceMesh.from_group(_initialised(mesh), local.device.type)
        if mesh.ndim != 1:
            raise ValueError(
                f"mesh: expected one dimension, got {mesh.ndim}; name the one that shares the "
                f'classes, as in mesh["classes"]'
            )
        self.shard = ClassShard.even(num_classes, mesh.get_group())
        size = self.shard.stop - self.shard.start

        def parameter(*shape: int) -> nn.Parameter:
            whole = torch.Size((num_classes, *shape))
            return nn.Parameter(
                DTensor.from_local(
                    local.new_empty(size, *shape),
                    mesh,
                    (Shard(0),),
                    run_check=False,
                    shape=whole,
                    stride=(*shape, 1),
                )
            )

        self.weight = parameter(in_features)
        self.register_parameter("bias", parameter() if bias else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the parameters as ``nn.Linear`` does; every rank draws all and keeps its own."""
        D = self.in_features
        gain = nn.init.calculate_gain("leaky_relu", math.sqrt(5))
        self._draw(self.weight, math.sqrt(3.0) * (gain / math.sqrt(D)))
        if self.bias is not None:
            self._draw(self.bias, 1 / math.sqrt(D))

    def _draw(self, parameter: Tensor, bound: float) -> None:
        assert isinstance(parameter, DTensor)
        local, (_, start, stop, C) = parameter.to_local(), self.shard
        step = max(1, (8 << 20) // math.prod(local.shape[1:]))
        for first in range(0, C, step):
            last = min(first + step, C)
            drawn = local.new_empty(last - first, *local.shape[1:]).uniform_(-bound, bound)
            begin, end = max(first, start), min(last, stop)
            if begin < end:
                local[begin - start : end - start] = drawn[begin - first : end - first]

    def _linear(self, x: Tensor) -> Linear:
        """The layer of this rank's classes and its input."""
        if x.dim() < 1 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"input: expected shape (..., {self.in_features}), got {tuple(x.shape)}"
            )
        assert isinstance(self.weight, DTensor)
        bias = self.bias
        assert bias is None or isinstance(bias, DTensor)
        return Linear(x, self.weight.to_local(), None if bias is None else bias.to_local())

    def logits(self, x: Tensor, gather: bool = False) -> Tensor:
        """Logits of this rank's classes (..., C_r), or with ``gather`` of all classes (..., C)."""
        group, start, stop, C = self.shard
        x, weight, bias = self._linear(x)
        z = F.linear(to_shards(x, group), weight, bias)
        return from_shards(F.pad(z, (start, C - stop)), group) if gather else z

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities of this rank's classes, of shape (..., C_r)."""
        group = self.shard.group
        z = upcast(self.logits(x))
        largest = z.new_full((*z.shape[:-1], 1), -torch.inf)
        if z.shape[-1] > 0:
            largest = z.detach().amax(-1, keepdim=True)
        z = z - _reduced(largest, dist.ReduceOp.MAX, group)
        total = from_shards(z.exp().sum(-1, keepdim=True), group)
        return (z - to_shards(total.log(), group)).to(x.dtype)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The most probable class of each sample, int64, of shape (...), the same on all ranks."""
        group, start, stop, C = self.shard
        x, weight, bias = self._linear(x)
        linear = Linear(x.reshape(-1, x.shape[-1]), weight, bias)
        best = x.new_full((len(linear.x),), -torch.inf)
        where = torch.full((len(best),), C, device=x.device)
        for at, z, _ in pieces(linear) if stop > start else ():
            best[at], where[at] = z.max(1)
            where[at] += start
        best = torch.where(best.isnan(), torch.inf, best)  # the largest, as in argmax
        most = _reduced(best, dist.ReduceOp.MAX, group)
        where = _reduced(torch.where(best == most, where, C), dist.ReduceOp.MIN, group)
        return where.reshape(x.shape[:-1])

    def loss(self, x: Tensor, target: Tensor, **options: Any) -> Tensor:
        """Cross-entropy of the model's predictions; see ``linear_cross_entropy``.

        Args:
            x: inputs (..., D), the same on all ranks.
            target: class indices (...), or probabilities of this rank's classes (..., C_r).
            **options: ``weight``, ``ignore_index``, ``reduction``, ``label_smoothing``,
                ``sample_weight`` and ``z_loss``.

        Returns:
            A scalar, or one number a sample with ``reduction="none"``; the same on all ranks.
        """
        return linear_cross_entropy(x, self.weight, target, linear_bias=self.bias, **options)
