"""The samples with which torch tests its own operators, run through ours."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db

from softmax_torch import cross_entropy, linear_cross_entropy

pytestmark = pytest.mark.usefixtures("kernels")  # every test, with both kernels

OPS = {op.name: op for op in op_db}
OURS = {
    "nn.functional.cross_entropy": cross_entropy,
    "nn.functional.linear_cross_entropy": linear_cross_entropy,
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
names = pytest.mark.parametrize("name", OURS)


def op_named(name: str):
    if name not in OPS:
        pytest.skip(f"torch {torch.__version__} has no {name}")
    return OPS[name]


def arguments(sample) -> tuple[list, dict]:
    """Return the arguments of a sample, without torch's options for blocks.

    torch has no gradient in class weights.
    """
    given = {k: v for k, v in sample.kwargs.items() if k not in ("options", "chunking_method")}
    if isinstance(given.get("weight"), Tensor):
        given["weight"] = given["weight"].detach()
    return [sample.input, *sample.args], given


def torchs(op) -> Callable[..., Tensor]:
    """Return torch's operator; the linear one by its definition, so that it has all options."""
    if not op.name.endswith("linear_cross_entropy"):
        return op.op

    def f(input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias=None, **given):
        classes_and_positions = linear_weight.shape[:-1]
        bias = None if linear_bias is None else linear_bias.flatten()
        z = F.linear(input, linear_weight.flatten(0, -2), bias)
        if len(classes_and_positions) > 1:
            z = z.unflatten(-1, classes_and_positions)
        elif z.dim() > 2:
            z, target = z.flatten(0, -2), target.flatten()
        return F.cross_entropy(z, target, **given)

    return f


def value_and_gradients(f: Callable[..., Tensor], args: list, given: dict) -> list[Tensor]:
    """Return the value and the gradient in each tensor that requires one, 0 if it has no effect."""
    tensors = [x for x in [*args, *given.values()] if isinstance(x, Tensor)]
    leaves = [x for x in tensors if x.requires_grad]
    value = f(*args, **given)
    if not leaves or not value.requires_grad:
        return [value, *(torch.zeros_like(x) for x in leaves)]
    return [value, *torch.autograd.grad(value.sum(), leaves, materialize_grads=True)]


def samples(name: str, dtype: torch.dtype) -> Iterator:
    op = op_named(name)
    if dtype not in op.supported_dtypes("cpu"):
        pytest.skip(f"torch has no {name} in {dtype} on a CPU")
    return op.sample_inputs("cpu", dtype, requires_grad=True)


@names
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples(name: str, dtype: torch.dtype) -> None:
    reference, count = torchs(op_named(name)), 0
    for sample in samples(name, dtype):
        args, given = arguments(sample)
        ours = value_and_gradients(OURS[name], args, given)
        theirs = value_and_gradients(reference, args, given)
        assert [x.shape for x in ours] == [x.shape for x in theirs]
        eps = torch.finfo(dtype).eps
        for x, y in zip(ours, theirs, strict=True):
            assert x.dtype == y.dtype
            size = max(1.0, y.detach().nan_to_num().abs().max().item()) if y.numel() else 1.0
            torch.testing.assert_close(x, y, rtol=16 * eps, atol=16 * eps * size, equal_nan=True)
        count += 1
    assert count > 20


def capped(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function of logits that caps and scales them before f, by torch."""
    return lambda z, *rest, **given: f(0.7 * 2.0 * (z / 2.0).tanh(), *rest, **given)


def test_samples_with_softcap_scale_and_mask() -> None:
    name, count = "nn.functional.cross_entropy", 0
    reference = capped(op_named(name).op)
    options = {"softcap": 2.0, "logit_scale": 0.7}
    for sample in samples(name, torch.float64):
        args, given = arguments(sample)
        ours = value_and_gradients(cross_entropy, args, given | options)
        torch.testing.assert_close(
            ours, value_and_gradients(reference, args, given), equal_nan=True
        )
        z = args[0]
        if z.dim() == 1 or given.get("reduction") == "none":
            continue
        mask = torch.arange(len(z)) % 2 == 0
        rows = mask.view(-1, *(1 for _ in z.shape[2:])).expand(z.shape[:1] + z.shape[2:])
        ours = value_and_gradients(cross_entropy, args, given | {"sample_weight": rows})
        kept = value_and_gradients(
            lambda z, t, m=mask, **g: cross_entropy(z[m], t[m], **g), args, given
        )
        torch.testing.assert_close(ours, kept, equal_nan=True)
        count += 1
    assert count > 10


@names
def test_error_inputs(name: str) -> None:
    op = op_named(name)
    if op.error_inputs_func is None:
        pytest.skip(f"torch {torch.__version__} has no error inputs for {name}")
    count = 0
    for error in op.error_inputs("cpu"):
        args, given = arguments(error.sample_input)
        # Ours accepts inputs of any dimension; the target of this sample does not fit its input,
        # which is a ValueError in F.cross_entropy.
        kind = ValueError if "dimensionality 1 or 2" in error.error_regex else error.error_type
        with pytest.raises(kind):
            OURS[name](*args, **given)
        count += 1
    assert count > 0
