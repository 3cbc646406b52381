"""The GPU kernels against the formulas in float64, and through the public functions.

The same tests run on a CUDA device, and on a CPU in Triton's interpreter (TRITON_INTERPRET=1), for
which ``test_triton`` starts a process of its own. There the GPU kernels replace the CPU's, values
are not readable, as on a GPU, and tiles are small, so that few numbers fill several tiles.
"""

import importlib.util
import math
import os

import pytest
import torch
from support import OURS, TORCHS, double, in_everything, options, reference
from torch import Tensor

from softmax_torch import cross_entropy, linear_cross_entropy, maths
from softmax_torch.loss import route
from softmax_torch.maths import RowValues, RowWeights, Target
from softmax_torch.ops import backends

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None
        or not (INTERPRETED or torch.cuda.is_available()),
        reason="needs Triton and a CUDA device; on a CPU, test_triton runs it in the interpreter",
    ),
    pytest.mark.usefixtures("stale_memory"),
    # the interpreter uses numpy, which warns of inf - inf and the like
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
on_a_device = pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")

TILES = {
    "one tile": {"NARROW": 0},
    "a thread a row": {"NARROW": 32},
    "many tiles": {"NARROW": 0, "ONE_TILE": 8, "TILE": 16, "POSITIONS": (8, 8)},
}
SHAPES = [(1, 1), (131, 3), (7, 10), (3, 37), (2, 19, 5)]


@pytest.fixture
def device(monkeypatch) -> str:
    if not INTERPRETED:
        return "cuda"
    from softmax_torch.ops import gpu

    monkeypatch.setattr(backends, "kernels", lambda z: gpu)
    monkeypatch.setattr(backends, "layer_kernels", lambda x, weight: None)
    monkeypatch.setattr(backends, "_scaled_one_", gpu.scale_)
    monkeypatch.setattr(backends, "values_readable", lambda x: False)
    monkeypatch.setattr(route, "_is_mean_nll", lambda *args: False)
    return "cpu"


@pytest.fixture(params=TILES.values(), ids=TILES.keys())
def kernels(request, device, monkeypatch):
    from softmax_torch.ops import gpu

    for name, value in request.param.items():
        monkeypatch.setattr(gpu, name, value)
    return gpu


def problem(shape: tuple[int, ...], device: str, dtype=torch.float32):
    """Return logits, targets, and for each row number one positive weight per row."""
    torch.manual_seed(0)
    rows = shape[:1] + shape[2:]
    z, y = torch.randn(shape) * 3, torch.randint(shape[1], rows)
    weights = torch.rand(3, *rows).to(torch.promote_types(dtype, torch.float32)) + 0.5
    return z.to(device, dtype), y.to(device), weights.to(device)


def assert_near(ours, truth, eps: float = 3e-7) -> None:
    """Assert equality up to a few roundings; the truth is in float64."""
    for x, t in zip(ours, truth, strict=True):
        assert (x is None) == (t is None)
        if x is not None:
            size = max([1.0, *t[t.isfinite()].abs().flatten().tolist()])
            torch.testing.assert_close(x.double(), t, rtol=30 * eps, atol=eps * size)


def assert_right(kernels, z, y, u, gs, eps=3e-7, dz=None) -> None:
    """Assert that every function of the kernels equals the formulas in float64."""
    weights = (gs[0] if y is not None else None, gs[1] if u is not None else None, gs[2])
    z64, _, u64, *w64 = double(z, y, u, *weights)
    truth = [
        *maths.row_values(z64, Target(y, u64), True),
        maths.row_vjp(z64, Target(y, u64), RowValues(*w64)),
    ]
    dz64 = torch.empty_like(z64)
    truth += [maths.weighted_total(z64, Target(y, u64), RowWeights(*w64), dz64), dz64]
    values = kernels.row_values(z, Target(y, u), True)
    vjp = kernels.row_vjp(z, Target(y, u), RowValues(*weights))
    alone = kernels.weighted_total(z, Target(y, u), RowWeights(*weights))
    dz = torch.empty_like(z) if dz is None else dz
    total = kernels.weighted_total(z, Target(y, u), RowWeights(*weights), dz)
    assert vjp.dtype == dz.dtype == z.dtype
    coarse = max(eps, torch.finfo(z.dtype).eps)
    assert_near([*values, total], [*truth[:3], truth[4]], eps)
    assert_near([vjp, dz], [truth[3], truth[5]], coarse)
    torch.testing.assert_close(alone, total)
    same = z.clone()
    kernels.weighted_total(same, Target(y, u), RowWeights(*weights), same)
    torch.testing.assert_close(same, dz, equal_nan=True)
    same = z.clone()
    assert kernels.row_vjp(same, Target(y, u), RowValues(*weights), same) is same
    torch.testing.assert_close(same, vjp, equal_nan=True)


@pytest.mark.parametrize("vectors", ["no u", "class vector", "vector a row"])
@pytest.mark.parametrize("targets", [True, False], ids=["indices", "no indices"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_number_and_its_gradient(shape, targets, vectors, kernels, device):
    z, y, gs = problem(shape, device)
    u = {
        "no u": None,
        "class vector": torch.rand(shape[1]).to(device),
        "vector a row": torch.rand(shape).to(device),
    }[vectors]
    assert_right(kernels, z, y if targets else None, u, gs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(131, 3), (3, 37), (2, 19, 5)], ids=str)
def test_dtypes(shape, dtype, kernels, device):
    z, y, gs = problem(shape, device, dtype)
    eps = 4e-15 if dtype == torch.float64 else 3e-7
    assert_right(kernels, z, y, torch.rand(shape[1], dtype=gs.dtype).to(device), gs, eps)


def at_target(z: Tensor, y: Tensor, value: float) -> Tensor:
    return z.scatter(1, y.unsqueeze(1), value)


KINDS = {
    "logits of 1e4": lambda z, y: z + 1e4,
    "far apart": lambda z, y: 100 * z,
    "certain": lambda z, y: at_target(z, y, 35.0),
    "underflow at the target": lambda z, y: at_target(z, y, -300.0),
    "masked": lambda z, y: at_target(torch.where(z > 0.5, -torch.inf, z), y, 0.5),
    "only the target is left": lambda z, y: at_target(torch.full_like(z, -torch.inf), y, 0.5),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("shape", [(7, 10), (3, 37), (2, 19, 5)], ids=str)
def test_hard_logits(shape, kind, kernels, device):
    z, y, gs = problem(shape, device)
    z = kind(z, y)
    z64, g64 = double(z, gs[0])
    nll, truth = kernels.row_values(z, Target(y)).nll, maths.row_values(z64, Target(y)).nll
    # relative to each element: near-certain rows keep their digits
    torch.testing.assert_close(nll.double(), truth, rtol=1e-5, atol=1e-30)
    dz = kernels.row_vjp(z, Target(y), RowValues(gs[0]))
    true = maths.row_vjp(z64, Target(y), RowValues(g64))
    torch.testing.assert_close(dz.double(), true, rtol=3e-5, atol=1e-30)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["target", "rival", "row"])
def test_results_that_are_not_finite_are_those_of_the_formulas(bad, where, kernels, device):
    z, y, gs = problem((5, 37), device)
    if where == "row":
        z[2] = bad
    else:
        z[2, y[2] if where == "target" else (y[2] + 1) % 37] = bad
    ours, truth = kernels.row_values(z, Target(y), True), maths.row_values(z, Target(y), True)
    torch.testing.assert_close(ours.nll, truth.nll, equal_nan=True)
    torch.testing.assert_close(ours.lse, truth.lse, equal_nan=True)
    gs[:, 2] = 0  # a weight of 0 leaves the row out
    finite = problem((5, 37), device)[0]
    torch.testing.assert_close(
        kernels.weighted_total(z, Target(y), RowWeights(gs[0], None, gs[2])),
        maths.weighted_total(finite, Target(y), RowWeights(gs[0], None, gs[2])),
    )


LAYOUTS = {
    "transposed": lambda z: z.transpose(0, 1).contiguous().transpose(0, 1),
    "classes last": lambda z: z.movedim(1, -1).contiguous().movedim(-1, 1),
    "every other row": lambda z: z.repeat_interleave(2, 0)[::2],
    "every other class": lambda z: z.repeat_interleave(2, 1)[:, ::2],
    "one row for all": lambda z: z[:1].expand_as(z),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("shape", [(7, 10), (3, 37), (2, 19, 5)], ids=str)
def test_layouts(shape, layout, kernels, device):
    z, y, gs = problem(shape, device)
    u = layout(torch.rand(shape).to(device))
    gs = [layout(g.unsqueeze(1).expand(shape))[:, 0] for g in gs]  # not contiguous either
    assert_right(kernels, layout(z), y, u, gs, dz=layout_of(layout, z))


def layout_of(layout, z: Tensor) -> Tensor | None:
    """Return memory for a gradient in the same layout; None where rows share memory."""
    dz = layout(torch.empty_like(z))
    return None if 0 in dz.stride() else dz


@pytest.mark.parametrize("index", [-100, -1, 37, 2**40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_index_out_of_range_makes_only_its_row_nan(index, dtype, kernels, device):
    z, y, gs = problem((5, 37), device, dtype)
    right = kernels.row_values(z, Target(y)).nll, kernels.row_vjp(z, Target(y), RowValues(gs[0]))
    y[2] = index
    wrong = kernels.row_values(z, Target(y)).nll, kernels.row_vjp(z, Target(y), RowValues(gs[0]))
    assert kernels.weighted_total(z, Target(y), RowWeights(gs[0])).isnan()
    for before, after in zip(right, wrong, strict=True):
        assert after[2].isnan().all()
        before[2] = after[2]
        torch.testing.assert_close(after, before, equal_nan=True)


def test_the_same_call_gives_the_same_bits(kernels, device):
    z, y, gs = problem((5, 33), device)
    results = []
    for _ in range(2):
        dz = torch.empty_like(z)
        results.append(
            (kernels.weighted_total(z, Target(y), RowWeights(gs[0], None, gs[2]), dz), dz)
        )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("factor", [1.0, -0.3])
def test_scale(factor, device):
    from softmax_torch.ops import gpu

    x = torch.randn(9000).to(device)
    before = x.clone()
    assert gpu.scale_(x, torch.tensor(factor).to(device)) is x
    torch.testing.assert_close(x, before * factor)
    columns = before[:8998].view(-1, 2).t()[:, ::3]
    torch.testing.assert_close(gpu.scale_(columns.clone(), x.new_tensor(0.5)), columns * 0.5)


def moved(chosen: dict, device: str) -> dict:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in chosen.items()}


def judged(f, truth, tensors, device, **given) -> None:
    """Compare f on the device with the reference in float64 on the CPU, in value and gradients."""
    ours = in_everything(f, *(t.to(device) for t in tensors), **moved(given, device))
    expected = in_everything(
        truth, *double(*tensors), **dict(zip(given, double(*given.values()), strict=True))
    )
    assert_near([x.cpu() for x in ours], expected, 5e-7)


@pytest.mark.parametrize("chosen", (TORCHS | OURS).values(), ids=(TORCHS | OURS).keys())
@pytest.mark.parametrize("shape", [(5, 11), (2, 9, 2, 2)], ids=str)
def test_cross_entropy(shape, chosen, kernels, device):
    torch.manual_seed(0)
    rows = shape[:1] + shape[2:]
    z, y = torch.randn(shape), torch.randint(shape[1], rows)
    y.flatten()[1] = -100
    given = options(chosen, shape[1], rows, torch.float32)
    judged(
        lambda z, **o: cross_entropy(z, y.to(device), **o),
        lambda z, **o: reference(z, y, **o),
        [z],
        device,
        **given,
    )
    t = torch.rand(shape).softmax(1)
    judged(cross_entropy, reference, [z, t], device, **given)


@pytest.mark.parametrize("chosen", (TORCHS | OURS).values(), ids=(TORCHS | OURS).keys())
@pytest.mark.parametrize("C", [3, 17])
def test_linear_cross_entropy(C, chosen, kernels, device, monkeypatch):
    monkeypatch.setattr(route, "FEW", 0)
    monkeypatch.setattr(backends, "logits_budget", lambda x: 3 * C * x.element_size())
    torch.manual_seed(0)
    N, D = 8, 5
    x, W, b = torch.randn(N, D), torch.randn(C, D), torch.randn(C)
    y = torch.randint(C, (N,))
    y[1] = -100
    given = options(chosen, C, (N,), torch.float32)

    def ours(x, W, b, **o):
        return linear_cross_entropy(x, W, y.to(device), linear_bias=b, **o)

    judged(ours, lambda x, W, b, **o: reference(x @ W.t() + b, y, **o), [x, W, b], device, **given)


def test_the_weight_gradient_of_many_half_precision_blocks_is_summed_in_float32(
    device, monkeypatch
):
    N, D, C = 512, 4, 8
    monkeypatch.setattr(route, "FEW", 0)
    monkeypatch.setattr(backends, "logits_budget", lambda x: 4 * C * x.element_size())
    x = torch.ones(N, D, dtype=torch.bfloat16, device=device)
    W = torch.zeros(C, D, dtype=torch.bfloat16, device=device, requires_grad=True)
    y = torch.zeros(N, dtype=torch.long, device=device)
    linear_cross_entropy(x, W, y, reduction="sum").backward()
    torch.testing.assert_close(W.grad[1].float(), torch.full((D,), N / C, device=device))
    torch.testing.assert_close(W.grad[0].float(), torch.full((D,), N / C - N, device=device))


@pytest.mark.parametrize("frozen", ["x", "W"])
def test_a_frozen_tensor_costs_no_product(frozen, device, monkeypatch):
    monkeypatch.setattr(route, "FEW", 0)
    x, W = torch.randn(6, 4, device=device), torch.randn(9, 4, device=device)
    y = torch.randint(9, (6,), device=device)
    products = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, **k: products.append(0) or mm(*a, **k))
    leaf = (W if frozen == "x" else x).requires_grad_()
    linear_cross_entropy(x, W, y).backward()
    assert leaf.grad is not None
    assert len(products) == 2


def test_derivatives_of_the_gradient_are_those_of_the_formulas(kernels, device):
    z, y, _ = problem((4, 9), device, torch.float64)
    z.requires_grad_()

    def f(z):
        return cross_entropy(z, y, label_smoothing=0.1, z_loss=0.1)

    assert torch.autograd.gradcheck(f, z)
    assert torch.autograd.gradgradcheck(f, z)
    assert torch.autograd.gradgradcheck(lambda z: cross_entropy(z, y, reduction="none"), z)
    torch.testing.assert_close(
        torch.func.vmap(lambda z, y: cross_entropy(z, y, reduction="sum"))(z[None], y[None]),
        cross_entropy(z, y, reduction="sum")[None],
    )


def test_a_second_backward_pass_and_another_scale(kernels, device):
    z, y, _ = problem((4, 9), device)
    z.requires_grad_()
    loss = cross_entropy(z, y)
    (first,) = torch.autograd.grad(loss, z, torch.tensor(3.0, device=device), retain_graph=True)
    (second,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(first, 3 * second)


def test_an_index_out_of_range_is_never_silent(kernels, device):
    z, y, _ = problem((4, 9), device)
    y[1] = 9
    assert cross_entropy(z, y).isnan()
    nll = cross_entropy(z, y, reduction="none")
    assert nll.isnan().tolist() == [False, True, False, False]


def test_no_rows(device):
    z = torch.zeros(0, 9, device=device, requires_grad=True)
    loss = cross_entropy(z, torch.zeros(0, dtype=torch.long, device=device), reduction="sum")
    loss.backward()
    assert loss.item() == 0
    assert z.grad.shape == (0, 9)


@on_a_device
@pytest.mark.parametrize("chosen", (TORCHS | OURS).values(), ids=(TORCHS | OURS).keys())
def test_nothing_waits_for_the_device(chosen):
    z, y, _ = problem((64, 33), "cuda")
    x, W = torch.randn(64, 8, device="cuda"), torch.randn(33, 8, device="cuda", requires_grad=True)
    given = moved(options(chosen, 33, (64,), torch.float32), "cuda")
    z.requires_grad_()

    def step():
        cross_entropy(z, y, **given).sum().backward()
        linear_cross_entropy(x, W, y, **given).sum().backward()

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def sparse(tmp_path, size: int) -> Tensor:
    """Return float16 numbers in a sparse file: only those that are written take space."""
    path = tmp_path / "numbers"
    with path.open("wb") as file:
        file.truncate(2 * size)
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.float16)


@pytest.mark.skipif(not INTERPRETED, reason="only a CPU has sparse memory")
@pytest.mark.parametrize("far", ["rows", "classes", "positions"])
def test_places_beyond_31_bits(kernels, device, tmp_path, far: str):
    """Three rows, classes or positions lie 2^30 numbers apart, more than 31 bits in all."""
    shape = {"rows": (3, 5), "classes": (5, 3), "positions": (1, 5, 3)}[far]
    strides = {"rows": (1 << 30, 1), "classes": (1, 1 << 30), "positions": (0, 1, 1 << 30)}[far]
    memory = sparse(tmp_path, (2 << 30) + 8)
    z = memory.as_strided(shape, strides)
    near, y, gs = problem(shape, device, torch.float16)
    z.copy_(near)
    truth = torch.empty_like(near)
    expected = kernels.weighted_total(near, Target(y), RowWeights(gs[0], None, gs[2]), truth)
    total = kernels.weighted_total(z, Target(y), RowWeights(gs[0], None, gs[2]), z)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(z, truth)


@on_a_device
@pytest.mark.parametrize("shape", [(33000, 65536), (2**28 + 7, 10), (1, 33000, 65536)], ids=str)
def test_more_than_2_to_the_31_elements(shape):
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GB of free memory on the device")
    from softmax_torch.ops import gpu

    z = torch.zeros(shape, dtype=torch.float16, device="cuda")
    rows = shape[:1] + shape[2:]
    y = torch.full(rows, shape[1] - 1, device="cuda")
    z[-1, -1, ...] = 3.0
    q = (shape[1] - 1) / (shape[1] - 1 + math.exp(3))
    total = gpu.weighted_total(z, Target(y), RowWeights(1.0), z)  # z is its gradient now
    assert total.isfinite()
    torch.testing.assert_close(z[-1, -1].flatten()[-1].item(), -q, rtol=2e-3, atol=0)
