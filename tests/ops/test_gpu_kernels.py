"""The GPU kernels against the formulas in float64: every number, dtype, layout and place."""

import math

import pytest
import torch
from gpu_cases import INTERPRETED, assert_near, gpu_marks, on_a_device, problem
from support import double
from torch import Tensor

from softmax_torch import maths
from softmax_torch.maths import RowValues, RowWeights, Target

pytestmark = gpu_marks

SHAPES = [(1, 1), (131, 3), (3, 10), (2, 37), (2, 19, 5)]


def assert_right(gpu_kernels, z, y, u, gs, eps=3e-7, dz=None) -> None:
    """Assert that every function of the kernels equals the formulas in float64."""
    weights = (gs[0] if y is not None else None, gs[1] if u is not None else None, gs[2])
    z64, _, u64, *w64 = double(z, y, u, *weights)
    truth = [
        *maths.row_values(z64, Target(y, u64), True),
        maths.row_vjp(z64, Target(y, u64), RowValues(*w64)),
    ]
    dz64 = torch.empty_like(z64)
    truth += [maths.weighted_total(z64, Target(y, u64), RowWeights(*w64), dz64), dz64]
    values = gpu_kernels.row_values(z, Target(y, u), True)
    vjp = gpu_kernels.row_vjp(z, Target(y, u), RowValues(*weights))
    alone = gpu_kernels.weighted_total(z, Target(y, u), RowWeights(*weights))
    dz = torch.empty_like(z) if dz is None else dz
    total = gpu_kernels.weighted_total(z, Target(y, u), RowWeights(*weights), dz)
    assert vjp.dtype == dz.dtype == z.dtype
    coarse = max(eps, torch.finfo(z.dtype).eps)
    assert_near([*values, total], [*truth[:3], truth[4]], eps)
    assert_near([vjp, dz], [truth[3], truth[5]], coarse)
    torch.testing.assert_close(alone, total)
    same = z.clone()
    gpu_kernels.weighted_total(same, Target(y, u), RowWeights(*weights), same)
    torch.testing.assert_close(same, dz, equal_nan=True)
    same = z.clone()
    assert gpu_kernels.row_vjp(same, Target(y, u), RowValues(*weights), same) is same
    torch.testing.assert_close(same, vjp, equal_nan=True)


@pytest.mark.parametrize("vectors", ["no u", "class vector", "vector a row"])
@pytest.mark.parametrize("targets", [True, False], ids=["indices", "no indices"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_number_and_its_gradient(shape, targets, vectors, gpu_kernels, device):
    z, y, gs = problem(shape, device)
    u = {
        "no u": None,
        "class vector": torch.rand(shape[1]).to(device),
        "vector a row": torch.rand(shape).to(device),
    }[vectors]
    assert_right(gpu_kernels, z, y if targets else None, u, gs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(131, 3), (2, 37), (2, 19, 5)], ids=str)
def test_dtypes(shape, dtype, gpu_kernels, device):
    z, y, gs = problem(shape, device, dtype)
    eps = 4e-15 if dtype == torch.float64 else 3e-7
    assert_right(gpu_kernels, z, y, torch.rand(shape[1], dtype=gs.dtype).to(device), gs, eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 130)], ids=str)
def test_statistics(shape, dtype, gpu_kernels, device):
    z, y, _ = problem(shape, device, dtype)
    if shape[1] > 2:
        z[0, 1] = z[0, -1] = z[0].max()
        z[-1, 0] = -torch.inf
    for target in (y, None):
        found = gpu_kernels.row_statistics(z, target)
        truth = maths.row_statistics(z.double(), target)
        torch.testing.assert_close(found.lse.double(), truth.lse, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.entropy.double(), truth.entropy, rtol=1e-5, atol=1e-30)
        assert torch.equal(found.argmax, truth.argmax)
        assert (found.rank is None) == (target is None)
        assert target is None or torch.equal(found.rank, truth.rank)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_statistics_of_rows_that_are_not_finite(value, gpu_kernels, device):
    z, y, _ = problem((5, 37), device)
    z[2, 3], z[4] = value, value
    y[0] = 99
    found, truth = gpu_kernels.row_statistics(z, y), maths.row_statistics(z, y.clamp(max=36))
    torch.testing.assert_close(found.lse, truth.lse, equal_nan=True)
    torch.testing.assert_close(found.entropy, truth.entropy, equal_nan=True)
    assert torch.equal(found.argmax, truth.argmax)
    assert found.rank.tolist() == [37, *truth.rank.tolist()[1:]]


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
@pytest.mark.parametrize("shape", [(3, 10), (2, 37), (2, 19, 5)], ids=str)
def test_hard_logits(shape, kind, gpu_kernels, device):
    z, y, gs = problem(shape, device)
    z = kind(z, y)
    z64, g64 = double(z, gs[0])
    nll, truth = gpu_kernels.row_values(z, Target(y)).nll, maths.row_values(z64, Target(y)).nll
    # relative to each element: near-certain rows keep their digits
    torch.testing.assert_close(nll.double(), truth, rtol=1e-5, atol=1e-30)
    dz = gpu_kernels.row_vjp(z, Target(y), RowValues(gs[0]))
    true = maths.row_vjp(z64, Target(y), RowValues(g64))
    torch.testing.assert_close(dz.double(), true, rtol=3e-5, atol=1e-30)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["target", "rival", "row"])
def test_results_that_are_not_finite_are_those_of_the_formulas(bad, where, gpu_kernels, device):
    z, y, gs = problem((5, 37), device)
    if where == "row":
        z[2] = bad
    else:
        z[2, y[2] if where == "target" else (y[2] + 1) % 37] = bad
    ours, truth = gpu_kernels.row_values(z, Target(y), True), maths.row_values(z, Target(y), True)
    torch.testing.assert_close(ours.nll, truth.nll, equal_nan=True)
    torch.testing.assert_close(ours.lse, truth.lse, equal_nan=True)
    gs[:, 2] = 0  # a weight of 0 leaves the row out
    finite = problem((5, 37), device)[0]
    torch.testing.assert_close(
        gpu_kernels.weighted_total(z, Target(y), RowWeights(gs[0], None, gs[2])),
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
@pytest.mark.parametrize("shape", [(3, 10), (2, 37), (2, 19, 5)], ids=str)
def test_layouts(shape, layout, gpu_kernels, device):
    z, y, gs = problem(shape, device)
    u = layout(torch.rand(shape).to(device))
    gs = [layout(g.unsqueeze(1).expand(shape))[:, 0] for g in gs]  # not contiguous either
    assert_right(gpu_kernels, layout(z), y, u, gs, dz=layout_of(layout, z))


def layout_of(layout, z: Tensor) -> Tensor | None:
    """Return memory for a gradient in the same layout; None where rows share memory."""
    dz = layout(torch.empty_like(z))
    return None if 0 in dz.stride() else dz


@pytest.mark.parametrize("index", [-100, -1, 17, 2**40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_index_out_of_range_makes_only_its_row_nan(index, dtype, gpu_kernels, device):
    z, y, gs = problem((3, 17), device, dtype)
    right = (
        gpu_kernels.row_values(z, Target(y)).nll,
        gpu_kernels.row_vjp(z, Target(y), RowValues(gs[0])),
    )
    y[1] = index
    wrong = (
        gpu_kernels.row_values(z, Target(y)).nll,
        gpu_kernels.row_vjp(z, Target(y), RowValues(gs[0])),
    )
    assert gpu_kernels.weighted_total(z, Target(y), RowWeights(gs[0])).isnan()
    for before, after in zip(right, wrong, strict=True):
        assert after[1].isnan().all()
        before[1] = after[1]
        torch.testing.assert_close(after, before, equal_nan=True)


def test_the_same_call_gives_the_same_bits(gpu_kernels, device):
    z, y, gs = problem((5, 33), device)
    results = []
    for _ in range(2):
        dz = torch.empty_like(z)
        results.append(
            (gpu_kernels.weighted_total(z, Target(y), RowWeights(gs[0], None, gs[2]), dz), dz)
        )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("small", [0, 1 << 16], ids=["by Triton", "by torch"])
@pytest.mark.parametrize("factor", [1.0, -0.3])
def test_scale(factor, small, device, monkeypatch):
    from softmax_torch.ops import gpu

    monkeypatch.setattr(gpu, "SMALL", small)
    x = torch.randn(9000).to(device)
    before = x.clone()
    assert gpu.scale_(x, torch.tensor(factor).to(device)) is x
    torch.testing.assert_close(x, before * factor)
    columns = before[:8998].view(-1, 2).t()[:, ::3]
    torch.testing.assert_close(gpu.scale_(columns.clone(), x.new_tensor(0.5)), columns * 0.5)


def test_the_factor_of_a_bfloat16_gradient_is_not_rounded(device, monkeypatch):
    from softmax_torch.ops import gpu

    launch, launched = gpu.launch, []
    monkeypatch.setattr(gpu, "launch", lambda *args: launched.append(args) or launch(*args))
    x, factor = torch.full((8,), 200.0, dtype=torch.bfloat16), torch.tensor(1.005)
    scaled = gpu.scale_(x.to(device), factor.to(device))
    assert scaled.tolist() == [201.0] * 8  # 202 with a factor of bfloat16, 1.0078125
    assert len(launched) == 1  # by torch it would be rounded, though not on a CPU


def sparse(tmp_path, size: int) -> Tensor:
    """Return float16 numbers in a sparse file: only those that are written take space."""
    path = tmp_path / "numbers"
    with path.open("wb") as file:
        file.truncate(2 * size)
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.float16)


@pytest.mark.skipif(not INTERPRETED, reason="only a CPU has sparse memory")
@pytest.mark.parametrize("far", ["rows", "classes", "positions"])
def test_places_beyond_31_bits(gpu_kernels, device, tmp_path, far: str):
    """Three rows, classes or positions lie 2^30 numbers apart, more than 31 bits in all."""
    shape = {"rows": (3, 5), "classes": (5, 3), "positions": (1, 5, 3)}[far]
    strides = {"rows": (1 << 30, 1), "classes": (1, 1 << 30), "positions": (0, 1, 1 << 30)}[far]
    memory = sparse(tmp_path, (2 << 30) + 8)
    z = memory.as_strided(shape, strides)
    near, y, gs = problem(shape, device, torch.float16)
    z.copy_(near)
    truth = torch.empty_like(near)
    expected = gpu_kernels.weighted_total(near, Target(y), RowWeights(gs[0], None, gs[2]), truth)
    total = gpu_kernels.weighted_total(z, Target(y), RowWeights(gs[0], None, gs[2]), z)
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
