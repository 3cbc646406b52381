"""Fixtures for tests of kernels: the library, memory that is not zero, threads, and a GPU."""

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from gpu_cases import INTERPRETED, TILES
from support import need_library
from torch import Tensor

from softmax_torch.loss import shortcuts
from softmax_torch.ops import backends


@pytest.fixture
def native_library() -> None:
    """Skip a test where there are no native kernels."""
    need_library()


@pytest.fixture
def stale_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new memory with NaN, so that numbers that are not written show."""

    def filled(new: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args, **kw) -> Tensor:
            tensor = new(*args, **kw)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.fill_(-1)

        return made

    for module, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(module, name, filled(getattr(module, name)))


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Return ``torch.set_num_threads``; the number before is restored after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def interpreter_of_one_language() -> Iterator[None]:
    """Replace Triton's builtins by the interpreter's once, not again in each launch and call.

    It searches every module that a function uses for them: half of the time of these tests.
    """
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    replace, modules = interpreter._patch_lang, set()

    def replace_once(function: Callable[..., object]) -> object:
        if function.__module__ not in modules:
            modules.add(function.__module__)
            replace(function)
        return interpreter._LangPatchScope()  # nothing is taken back after a launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", replace_once)
        yield


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, interpreter_of_one_language: None) -> str:
    """The device of the tests of a GPU; in Triton's interpreter GPU kernels serve a CPU."""
    if not INTERPRETED:
        return "cuda"
    from softmax_torch.ops import gpu

    monkeypatch.setattr(backends, "kernels", lambda z: gpu)
    monkeypatch.setattr(backends, "layer_kernels", lambda x, weight: None)
    monkeypatch.setattr(backends, "_scaled_one_", gpu.scale_)
    monkeypatch.setattr(backends, "index_kernels", lambda z: gpu)
    monkeypatch.setattr(backends, "values_readable", lambda x: False)
    monkeypatch.setattr(shortcuts, "is_mean_nll", lambda *args: False)
    return "cpu"


@pytest.fixture(params=TILES.values(), ids=TILES.keys())
def gpu_kernels(
    request: pytest.FixtureRequest, device: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    """The GPU kernels, with all the ways in which they cut rows into tiles."""
    from softmax_torch.ops import gpu

    for name, value in request.param.items():
        monkeypatch.setattr(gpu, name, value)
    gpu._tiling_of.cache_clear()
    yield gpu
    gpu._tiling_of.cache_clear()
