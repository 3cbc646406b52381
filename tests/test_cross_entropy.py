"""cross_entropy against torch's and, where torch has no such option, against its definition."""

import doctest
import inspect
import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support import TORCHS, every_option, in_everything, options, reference, results
from torch import Tensor
from torch._subclasses import FakeTensorMode

from softmax_torch import cross_entropy, functional, maths, modules

pytestmark = pytest.mark.usefixtures("kernels")  # every test, with both kernels

SHAPES = [(7,), (1, 1), (5, 3), (40, 70), (4, 3, 6), (2, 5, 3, 4), (3000, 11), (2, 65, 33)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
torchs_options = pytest.mark.parametrize("chosen", TORCHS.values(), ids=TORCHS)


def rows_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:1] + shape[2:] if len(shape) > 1 else ()


def classes_of(shape: tuple[int, ...]) -> int:
    return shape[min(1, len(shape) - 1)]


def problem(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, soft: bool = False
) -> tuple[Tensor, Tensor]:
    """Return logits and their targets."""
    torch.manual_seed(0)
    z = 3 * torch.randn(shape, dtype=dtype)
    if soft:
        return z, torch.randn(shape, dtype=dtype).softmax(min(1, len(shape) - 1))
    return z, torch.randint(classes_of(shape), rows_of(shape))


def both(call: Callable[..., Tensor], *leaves: Tensor) -> list[list[Tensor]]:
    """Return value and gradients of a call of our function, and of torch's."""
    return [results(partial(call, f), *leaves) for f in (cross_entropy, F.cross_entropy)]


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
    ours, torchs = both(lambda f, z: f(z, y, **given), z)
    torch.testing.assert_close(ours, torchs, **near(dtype))


@shapes
@torchs_options
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_class_probabilities(shape: tuple[int, ...], chosen: dict, dtype: torch.dtype) -> None:
    """The loss is differentiable in the target too."""
    z, t = problem(shape, dtype, soft=True)
    given = options(chosen, classes_of(shape), rows_of(shape), dtype)
    ours, torchs = both(lambda f, z, t: f(z, t, **given), z, t)
    torch.testing.assert_close(ours, torchs, **near(dtype))


@every_option
@pytest.mark.parametrize("ignore_index", [-100, -1, 2])
@pytest.mark.parametrize("shape", [(6, 3), (60, 70), (4, 3, 6)], ids=str)
def test_ignored_rows(shape: tuple[int, ...], ignore_index: int, chosen: dict) -> None:
    z, y = problem(shape)
    y.view(-1)[::3] = ignore_index
    given = options(chosen, shape[1], rows_of(shape), z.dtype) | {"ignore_index": ignore_index}
    ours, truth = (
        in_everything(lambda z, f=f, **k: f(z, y, **k), z, **given)
        for f in (cross_entropy, reference)
    )
    torch.testing.assert_close(ours, truth)


@torchs_options
@pytest.mark.parametrize("target", ["indices", "some ignored", "probabilities"])
@pytest.mark.parametrize("shape", [(7,), (6, 3), (4, 3, 6), (2, 5, 3, 4)], ids=str)
def test_the_reference_is_torchs(shape: tuple[int, ...], target: str, chosen: dict) -> None:
    """The reference of the other tests equals torch's function for torch's options."""
    z, t = problem(shape, soft=target == "probabilities")
    if target == "some ignored" and len(shape) > 1:
        t.view(-1)[::3] = -100
    given = options(chosen, classes_of(shape), rows_of(shape), z.dtype)
    ours, torchs = (
        results(lambda z, f=f: f(z, t, **given), z) for f in (reference, F.cross_entropy)
    )
    torch.testing.assert_close(ours, torchs, **near(z.dtype))


@every_option
def test_all_rows_ignored(chosen: dict) -> None:
    """The mean over nothing is NaN, as in torch, and its gradient 0; another divisor gives 0."""
    z, y = problem((5, 3))
    y.fill_(-100)
    value, gradient = results(lambda z: cross_entropy(z, y, **options(chosen, 3, (5,), z.dtype)), z)
    if chosen.get("reduction", "mean") == "mean" and "normalizer" not in chosen:
        assert value.isnan()
    else:
        assert (value == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("soft", [False, True])
def test_sample_weights_of_nothing(soft: bool) -> None:
    z, target = problem((5, 3), soft=soft)
    none = torch.zeros(5, dtype=z.dtype)
    value, gradient = results(lambda z: cross_entropy(z, target, sample_weight=none), z)
    if not soft:
        assert value.isnan()
    assert (gradient == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)], ids=str)
def test_empty_batches(shape: tuple[int, ...], soft: bool, reduction: str) -> None:
    z, target = problem(shape, soft=soft)
    ours, torchs = both(lambda f, z: f(z, target, reduction=reduction), z)
    torch.testing.assert_close(ours, torchs, equal_nan=True)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str
)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_class_indices_of_any_integer_type(dtype: torch.dtype, label_smoothing: float) -> None:
    """Ignored rows are included; in uint8 they need a number such as 255."""
    z, y = problem((50, 7))
    ignore_index = -100 if dtype.is_signed else 255
    y[::3] = ignore_index
    given = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    torch.testing.assert_close(
        results(lambda z: cross_entropy(z, y.to(dtype), **given), z),
        results(lambda z: F.cross_entropy(z, y, **given), z),
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_one_sample_with_a_target_of_one_element(reduction: str, label_smoothing: float) -> None:
    """F.cross_entropy accepts a target (1,) for logits (C,), and its loss has no dimension."""
    z, y = problem((7,))
    given = {"reduction": reduction, "label_smoothing": label_smoothing}
    ours = results(lambda z: cross_entropy(z, y.view(1), **given), z)
    torch.testing.assert_close(ours, results(lambda z: F.cross_entropy(z, y, **given), z))


@every_option
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(7,), (5, 3), (4, 3, 6)], ids=str)
def test_definition(shape: tuple[int, ...], soft: bool, chosen: dict) -> None:
    """The loss is differentiable in every tensor: class weights and sample weights too."""
    z, target = problem(shape, soft=soft)
    given = options(chosen, classes_of(shape), rows_of(shape), z.dtype)
    leaves, fixed = ((z, target), ()) if soft else ((z,), (target,))
    ours, truth = (
        in_everything(lambda *t, f=f, **k: f(*t, *fixed, **k), *leaves, **given)
        for f in (cross_entropy, reference)
    )
    torch.testing.assert_close(ours, truth)


def test_sample_weights_count_samples() -> None:
    """A whole-number weight equals that many samples; 0 leaves a row out even if not finite."""
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
    ours, torchs = both(lambda f, z: f(z.expand(6, 4), y.expand(6)), z)
    torch.testing.assert_close(ours, torchs)
    z, y = problem((2, 5, 3, 4))
    last = z.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(cross_entropy(last, y), F.cross_entropy(z, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torchs_options
@pytest.mark.parametrize("soft", [False, True])
def test_half_precision(dtype: torch.dtype, chosen: dict, soft: bool) -> None:
    """The dtype is torch's; sums are in float32: within one rounding of the truth."""
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


FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("probabilities", FLOATS, ids=str)
@pytest.mark.parametrize("logits", FLOATS, ids=str)
@pytest.mark.parametrize("weight", [None, torch.float64], ids=str)
def test_class_probabilities_of_another_type(
    logits: torch.dtype, probabilities: torch.dtype, weight: torch.dtype | None
) -> None:
    z, t = problem((5, 3), soft=True)
    z, t = z.to(logits), t.to(probabilities)
    w = None if weight is None else torch.tensor([1.0, 2.0, 0.5], dtype=weight)
    ours, torchs = both(lambda f, z, t: f(z, t, w), z, t)
    assert [x.dtype for x in ours] == [x.dtype for x in torchs]
    coarsest = max(torch.finfo(d).eps for d in (logits, probabilities))
    torch.testing.assert_close(ours, torchs, rtol=0, atol=8 * coarsest)


UNDER_AUTOCAST = [
    *((dtype, None) for dtype in FLOATS),
    (torch.float64, torch.float64),
    *itertools.product(FLOATS[1:], FLOATS[1:]),
]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("dtype", "weight"), UNDER_AUTOCAST, ids=str)
def test_autocast(dtype: torch.dtype, weight: torch.dtype | None, soft: bool) -> None:
    """Logits are in half precision there, class weights in any dtype."""
    z, t = problem((5, 3), dtype, soft)
    w = None if weight is None else torch.tensor([1.0, 2.0, 0.5], dtype=weight)
    under = torch.autocast("cpu", torch.bfloat16)
    ours, torchs = both(under(lambda f, z: f(z, t, w)), z)
    assert [x.dtype for x in ours] == [x.dtype for x in torchs]
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


def test_a_loss_without_gradients_requires_none() -> None:
    z, y = problem((5, 3))
    assert not cross_entropy(z, y).requires_grad
    with torch.no_grad():
        loss = cross_entropy(z.requires_grad_(), y)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(z.detach(), y))


@pytest.mark.parametrize("chosen", [{}, {"label_smoothing": 0.1}, {"reduction": "none"}], ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (200, 200), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("with_gradient", [True, False])
def test_another_default_device(shape: tuple[int, ...], chosen: dict, with_gradient: bool) -> None:
    """Results are on the device of the logits, not on the default device."""
    z, y = problem(shape, torch.float32)
    leaves = [z] if with_gradient else []
    expected = results(lambda z=z: F.cross_entropy(z, y, **chosen), *leaves)

    def on_meta(z: Tensor = z) -> Tensor:
        with torch.device("meta"):
            return cross_entropy(z, y, **chosen)

    torch.testing.assert_close(results(on_meta, *leaves), expected, **near(torch.float32))


@pytest.mark.parametrize("chosen", [{}, {"label_smoothing": 0.1}, {"reduction": "none"}], ids=str)
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_tensors_without_values(kind: str, chosen: dict) -> None:
    """Shapes and dtypes are those of torch's operator."""
    with FakeTensorMode() if kind == "fake" else torch.device("meta"):
        z, y = torch.randn(5, 3, requires_grad=True), torch.zeros(5, dtype=torch.long)
        ours, torchs = (f(z, y, **chosen) for f in (cross_entropy, F.cross_entropy))
        ours.sum().backward()
    assert (ours.shape, ours.dtype, ours.device) == (torchs.shape, torchs.dtype, torchs.device)
    assert z.grad.shape == z.shape


def test_signature_is_torchs() -> None:
    ours = dict(inspect.signature(cross_entropy).parameters)
    torchs = dict(inspect.signature(F.cross_entropy).parameters)
    shared = [name for name in torchs if name not in ("size_average", "reduce")]
    own = ["sample_weight", "z_loss", "softcap", "logit_scale", "normalizer"]
    assert list(ours) == [*shared, *own]
    assert {name: ours[name].default for name in shared} == {
        name: torchs[name].default for name in shared
    }


@pytest.mark.parametrize("module", [functional, maths, modules], ids=lambda m: m.__name__)
def test_examples_in_docstrings(module) -> None:
    found = doctest.testmod(module, extraglobs={"torch": torch})
    assert found.attempted > 0
    assert found.failed == 0
