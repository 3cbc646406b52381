"""cross_entropy against torch's and, where torch has no such option, against its definition."""

import doctest
import inspect

import pytest
import torch
import torch.nn.functional as F
from support import OURS, TORCHS, options, reference, results
from torch import Tensor

from softmax_torch import cross_entropy, functional, maths, modules

SHAPES = [(7,), (1, 1), (5, 3), (40, 70), (4, 3, 6), (2, 5, 3, 4), (3000, 11), (2, 65, 33)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
torchs_options = pytest.mark.parametrize("chosen", TORCHS.values(), ids=TORCHS)
every_option = pytest.mark.parametrize("chosen", (TORCHS | OURS).values(), ids=TORCHS | OURS)


def rows_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:1] + shape[2:] if len(shape) > 1 else ()


def classes_of(shape: tuple[int, ...]) -> int:
    return shape[min(1, len(shape) - 1)]


def problem(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, soft: bool = False
) -> tuple[Tensor, Tensor]:
    """Logits and their targets."""
    torch.manual_seed(0)
    z = 3 * torch.randn(shape, dtype=dtype)
    if soft:
        return z, torch.randn(shape, dtype=dtype).softmax(min(1, len(shape) - 1))
    return z, torch.randint(classes_of(shape), rows_of(shape))


def near(dtype: torch.dtype) -> dict[str, float]:
    return (
        {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-5}
    )


@shapes
@torchs_options
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_class_indices(shape: tuple[int, ...], chosen: dict, dtype: torch.dtype) -> None:
    z, y = problem(shape, dtype)
    given = options(chosen, classes_of(shape), rows_of(shape), dtype)
    ours, torchs = (
        results(lambda z, f=f: f(z, y, **given), z) for f in (cross_entropy, F.cross_entropy)
    )
    torch.testing.assert_close(ours, torchs, **near(dtype))


@shapes
@torchs_options
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_class_probabilities(shape: tuple[int, ...], chosen: dict, dtype: torch.dtype) -> None:
    """differentiable in the target too"""
    z, t = problem(shape, dtype, soft=True)
    given = options(chosen, classes_of(shape), rows_of(shape), dtype)
    ours, torchs = (
        results(lambda z, t, f=f: f(z, t, **given), z, t) for f in (cross_entropy, F.cross_entropy)
    )
    torch.testing.assert_close(ours, torchs, **near(dtype))


@every_option
@pytest.mark.parametrize("ignore_index", [-100, -1, 2])
@pytest.mark.parametrize("shape", [(6, 3), (60, 70), (4, 3, 6)], ids=str)
def test_ignored_rows(shape: tuple[int, ...], ignore_index: int, chosen: dict) -> None:
    z, y = problem(shape)
    y.view(-1)[::3] = ignore_index
    given = options(chosen, shape[1], rows_of(shape), z.dtype) | {"ignore_index": ignore_index}
    ours, truth = (results(lambda z, f=f: f(z, y, **given), z) for f in (cross_entropy, reference))
    torch.testing.assert_close(ours, truth)


@every_option
def test_all_rows_ignored(chosen: dict) -> None:
    """The mean over nothing is NaN, as in torch, and its gradient 0."""
    z, y = problem((5, 3))
    y.fill_(-100)
    value, gradient = results(lambda z: cross_entropy(z, y, **options(chosen, 3, (5,), z.dtype)), z)
    if chosen.get("reduction", "mean") == "mean":
        assert value.isnan()
    else:
        assert (value == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)], ids=str)
def test_empty_batches(shape: tuple[int, ...], soft: bool, reduction: str) -> None:
    z, target = problem(shape, soft=soft)
    ours, torchs = (
        results(lambda z, f=f: f(z, target, reduction=reduction), z)
        for f in (cross_entropy, F.cross_entropy)
    )
    torch.testing.assert_close(ours, torchs, equal_nan=True)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str
)
def test_class_indices_of_any_integer_type(dtype: torch.dtype) -> None:
    z, y = problem((50, 7))
    torch.testing.assert_close(
        results(lambda z: cross_entropy(z, y.to(dtype)), z),
        results(lambda z: F.cross_entropy(z, y), z),
    )


@every_option
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(7,), (5, 3), (4, 3, 6)], ids=str)
def test_definition(shape: tuple[int, ...], soft: bool, chosen: dict) -> None:
    """in every tensor that may need a gradient: class weights and sample weights too"""
    z, target = problem(shape, soft=soft)
    given = options(chosen, classes_of(shape), rows_of(shape), z.dtype)
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in given.items() if name not in tensors}

    def call(f):
        return lambda z, *leaves: f(z, target, **dict(zip(tensors, leaves, strict=True)), **numbers)

    ours, truth = (results(call(f), z, *tensors.values()) for f in (cross_entropy, reference))
    torch.testing.assert_close(ours, truth)


def test_sample_weights_count_samples() -> None:
    """A whole weight is that many samples; 0 leaves a row out, whatever stands in it."""
    z, y = problem((6, 3))
    counts = torch.tensor([2, 1, 3, 1, 0, 0])
    z[4:] = torch.tensor([torch.nan, torch.inf, 0])
    w = torch.rand(3, dtype=z.dtype)
    for given in ({}, {"weight": w}, {"label_smoothing": 0.2, "z_loss": 0.1, "weight": w}):
        ours = cross_entropy(z, y, sample_weight=counts.double(), **given)
        repeated = cross_entropy(
            z.repeat_interleave(counts, 0), y.repeat_interleave(counts), **given
        )
        torch.testing.assert_close(ours, repeated)


LAYOUTS = {
    "transposed": lambda z: z.t().contiguous().t(),
    "every other": lambda z: z.repeat_interleave(2, 0)[::2],
    "every other class": lambda z: z.repeat_interleave(2, 1)[:, ::2],
    "part of wider rows": lambda z: torch.cat([z, z], 1)[:, : z.shape[1]],
    "flipped in memory": lambda z: z.flip(0).flip(0),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(6, 4), (40, 70), (2000, 30)], ids=str)
@pytest.mark.parametrize("chosen", [{}, {"reduction": "none"}, {"label_smoothing": 0.1}], ids=str)
def test_layouts(shape: tuple[int, ...], layout, chosen: dict) -> None:
    z, y = problem(shape)
    expected = results(lambda z: F.cross_entropy(z, y, **chosen), z)
    torch.testing.assert_close(
        results(lambda z: cross_entropy(layout(z), y, **chosen), z), expected
    )
    # and as a leaf, whose gradient has its layout
    leaf = layout(z).detach().requires_grad_()
    cross_entropy(leaf, y).backward()
    torch.testing.assert_close(leaf.grad, 2 * results(lambda z: F.cross_entropy(z, y), z)[1])


def test_expanded_logits_and_channels_last() -> None:
    z, y = problem((1, 4))
    ours, torchs = (
        results(lambda z, f=f: f(z.expand(6, 4), y.expand(6)), z)
        for f in (cross_entropy, F.cross_entropy)
    )
    torch.testing.assert_close(ours, torchs)
    z, y = problem((2, 5, 3, 4))
    last = z.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(cross_entropy(last, y), F.cross_entropy(z, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torchs_options
@pytest.mark.parametrize("soft", [False, True])
def test_half_precision(dtype: torch.dtype, chosen: dict, soft: bool) -> None:
    """The type of torch's result, and sums in float32: nearer to the truth than one rounding."""
    z, target = problem((300, 20), dtype, soft)
    given = options(chosen, 20, (300,), dtype)
    ours = results(lambda z: cross_entropy(z, target, **given), z)
    torchs = results(lambda z: F.cross_entropy(z, target, **given), z)
    assert [x.dtype for x in ours] == [x.dtype for x in torchs] == [dtype, dtype]
    double = {k: v.double() if isinstance(v, Tensor) else v for k, v in given.items()}
    target = target.double() if soft else target
    truth = results(lambda z: F.cross_entropy(z, target, **double), z.double())
    eps = torch.finfo(dtype).eps
    for x, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(
            x.double(), true, rtol=2 * eps, atol=eps * true.abs().max().item()
        )


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast(dtype: torch.dtype, soft: bool) -> None:
    z, target = problem((5, 3), dtype, soft)
    with torch.autocast("cpu", torch.bfloat16):
        ours, torchs = cross_entropy(z, target), F.cross_entropy(z, target)
    assert ours.dtype == torchs.dtype
    torch.testing.assert_close(ours, torchs)


@every_option
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(5, 3), (2000, 30), (4, 3, 6)], ids=str)
def test_arguments_are_not_written_to(shape: tuple[int, ...], soft: bool, chosen: dict) -> None:
    z, target = problem(shape, soft=soft)
    given = options(chosen, classes_of(shape), rows_of(shape), z.dtype)
    leaf = z.clone().requires_grad_()
    tensors = [leaf, target, *(v for v in given.values() if isinstance(v, Tensor))]
    before = [(t.detach().clone(), t._version) for t in tensors]
    cross_entropy(leaf, target, **given).sum().backward()
    with torch.no_grad():
        cross_entropy(leaf, target, **given)
    for tensor, (values, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, values)
        assert tensor._version == version


def test_nothing_is_asked_for_where_nothing_needs_a_gradient() -> None:
    z, y = problem((5, 3))
    assert not cross_entropy(z, y).requires_grad
    with torch.no_grad():
        loss = cross_entropy(z.requires_grad_(), y)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(z.detach(), y))


def test_signature_is_torchs() -> None:
    ours = dict(inspect.signature(cross_entropy).parameters)
    torchs = dict(inspect.signature(F.cross_entropy).parameters)
    shared = [name for name in torchs if name not in ("size_average", "reduce")]
    assert list(ours) == [*shared, "sample_weight", "z_loss"]
    assert {name: ours[name].default for name in shared} == {
        name: torchs[name].default for name in shared
    }


@pytest.mark.parametrize("module", [functional, maths, modules], ids=lambda m: m.__name__)
def test_examples_in_docstrings(module) -> None:
    found = doctest.testmod(module, extraglobs={"torch": torch})
    assert found.attempted > 0
    assert found.failed == 0
