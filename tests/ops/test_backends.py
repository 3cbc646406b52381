"""The choice of kernels, and the questions about torch's mode in every mode."""

from types import SimpleNamespace

import pytest
import torch
from support import need_library
from torch.autograd import forward_ad

from softmax_torch import maths
from softmax_torch.ops import backends, budgets, cpu, modes


def seen(x: torch.Tensor) -> tuple[bool, bool, bool, bool]:
    return (
        modes.traced(),
        modes.plain(),
        modes.last_backward(x),
        backends.values_readable(x),
    )


def seen_within(transform) -> tuple[bool, bool, bool, bool]:
    """Return ``seen`` within a function that ``transform`` runs."""
    answers = []

    def f(x: torch.Tensor) -> torch.Tensor:
        answers.append(seen(x))
        return x * 1

    transform(f)
    return answers[-1]


def test_kernels_of_a_cpu_and_formulas_elsewhere():
    with backends.cpu_kernels("torch"):  # test_library.py has the other choices
        assert backends.kernels(torch.empty(2, 3)) is cpu
    assert backends.kernels(torch.empty(2, 3, device="meta")) is maths


def test_passes_are_native_on_a_cpu_alone():
    with backends.cpu_kernels("torch"):
        assert backends.passes(torch.device("cpu")) is None
    with backends.cpu_kernels("auto"):
        found = backends.passes(torch.device("cpu"))
        there = backends.kernels(torch.empty(0)) is not cpu
    assert (found is not None) == there
    assert found is None or found.__name__ == "softmax_torch.ops.native.passes"
    assert backends.passes(torch.device("meta")) is None


def test_a_layer_in_one_pass_is_native_float_and_has_few_classes():
    x, W = torch.zeros(5, 3), torch.zeros(64, 3)
    with backends.cpu_kernels("torch"):
        assert backends.layer_kernels(x, W) is None
    need_library()
    with backends.cpu_kernels("native"):
        for dtype in (torch.float32, torch.float64):
            found = backends.layer_kernels(x.to(dtype), W.to(dtype))
            assert found.__name__ == "softmax_torch.ops.native.linear"
        others = {
            "half precision": (x.bfloat16(), W.bfloat16()),
            "65 classes": (x, torch.zeros(65, 3)),
            "more dimensions": (torch.zeros(2, 5, 3), W),
            "positions": (x, torch.zeros(4, 2, 3)),
            "another device": (x.to("meta"), W.to("meta")),
            "a weight on another device": (x, W.to("meta")),
        }
        for name, layer in others.items():
            assert backends.layer_kernels(*layer) is None, name


def test_the_backend_of_a_cpu_is_the_one_of_the_fixture(kernels):
    assert backends.cpu_backend() is backends.kernels(torch.empty(0)) is kernels


class OnGPU:
    """The attribute of logits on a GPU that the choice of kernels reads."""

    device = torch.device("cuda")


@pytest.fixture
def import_module(monkeypatch):
    """Replace the import of the GPU kernels, whose result is cached."""
    backends._gpu.cache_clear()
    yield lambda do: monkeypatch.setattr(backends.importlib, "import_module", do)
    backends._gpu.cache_clear()


def test_kernels_of_a_gpu(import_module):
    gpu = SimpleNamespace(check=lambda: None)
    import_module({"softmax_torch.ops.gpu": gpu}.get)
    assert backends.kernels(OnGPU()) is gpu


def test_a_gpu_whose_kernels_do_not_compile_is_warned_of_once(import_module):
    def check():
        raise RuntimeError("Failed to find C compiler")

    import_module(lambda name: SimpleNamespace(check=check))
    message = (
        r"compiles no kernels here \(RuntimeError: Failed to find C compiler\): .* torch's own"
    )
    with pytest.warns(UserWarning, match=message):
        assert backends.kernels(OnGPU()) is maths
    assert backends.kernels(OnGPU()) is maths  # a second warning would be an error here


def test_a_gpu_without_triton_is_warned_of_once(import_module):
    def missing(name):
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    import_module(missing)
    with pytest.warns(UserWarning, match="triton is not installed: .* torch's own"):
        assert backends.kernels(OnGPU()) is maths
    assert backends.kernels(OnGPU()) is maths  # a second warning would be an error here


def test_another_missing_module_is_an_error(import_module):
    def missing(name):
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    import_module(missing)
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        backends.kernels(OnGPU())


def test_values_on_a_gpu_are_read_only_where_checks_are_wanted(import_module, monkeypatch):
    gpu = SimpleNamespace(check=lambda: None)
    import_module({"softmax_torch.ops.gpu": gpu}.get)
    z = SimpleNamespace(is_cuda=True, is_cpu=False)
    assert (backends.index_kernels(z), backends.values_readable(z)) == (gpu, False)
    monkeypatch.setattr(backends, "CHECKS", True)
    assert (backends.index_kernels(z), backends.values_readable(z)) == (None, True)


def test_plain_eager_code():
    x = torch.ones(())
    assert seen(x) == (False, True, False, True)  # not the last backward: gradients are on
    with torch.no_grad():
        assert seen(x) == (False, True, True, True)
        assert modes.last_backward(None, x)


TRANSFORMS = {
    "vmap": lambda f: torch.func.vmap(f)(torch.ones(2)),
    "grad": lambda f: torch.func.grad(f)(torch.ones(())),
    "vjp": lambda f: torch.func.vjp(f, torch.ones(())),
    "functionalize": lambda f: torch.func.functionalize(f)(torch.ones(())),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_a_transform_is_neither_plain_nor_traced(transform):
    assert seen_within(transform) == (False, False, False, False)


TRACERS = {
    "jvp": lambda f: torch.func.jvp(f, (torch.ones(()),), (torch.ones(()),)),
    "jacfwd of grad": lambda f: torch.func.jacfwd(torch.func.grad(f))(torch.ones(())),
    "export": lambda f: torch.export.export(Calls(f), (torch.ones(3),), strict=False),
}


class Calls(torch.nn.Module):
    def __init__(self, f) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(x)


@pytest.mark.parametrize("transform", TRACERS.values(), ids=TRACERS.keys())
def test_forward_mode_and_tracing_need_formulas(transform):
    assert seen_within(transform) == (True, False, False, False)


def test_a_dual_level_needs_formulas():
    with forward_ad.dual_level():
        assert seen(torch.ones(())) == (True, False, False, False)
    assert not modes.traced()


def test_compiled_code_is_traced():
    @torch.compile(backend="eager", fullgraph=True)
    def f(x: torch.Tensor) -> torch.Tensor:
        assert modes.traced()
        assert not modes.plain()
        return x + modes.traced()

    assert f(torch.zeros(())).item() == 1
    assert not modes.traced()


def test_a_batch_hidden_in_gradients_is_not_the_last_backward():
    answers = []

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            answers.append(modes.last_backward(g))
            return g

    x = torch.ones(2, requires_grad=True)
    y = Identity.apply(x)
    torch.autograd.grad(y, x, torch.ones(2), retain_graph=True)
    torch.autograd.grad(y, x, torch.eye(2), is_grads_batched=True, retain_graph=True)
    torch.autograd.grad(y, x, torch.ones(2), create_graph=True)
    assert answers == [True, False, False]


def test_a_gradient_is_scaled_in_place_unless_the_scale_is_1():
    gradient = torch.tensor([1.0, 2.0])
    address = gradient.data_ptr()
    for scale, expected in ((1.0, [1.0, 2.0]), (3.0, [3.0, 6.0])):
        version = gradient._version
        first, second = backends.scaled_(torch.tensor(scale), gradient, None)
        assert (first is gradient, second) == (True, None)
        assert gradient.tolist() == expected
        assert gradient.data_ptr() == address
        assert (gradient._version == version) == (scale == 1.0)  # 1 costs nothing


def test_the_budget_of_logits_depends_on_the_device():
    here, there = torch.empty(1), torch.empty(1, device="meta")
    assert 0 < budgets.logits_budget(here) < budgets.logits_budget(there)
