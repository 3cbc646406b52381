"""Fixtures for tests of kernels: the library, memory that is not zero, and numbers of threads."""

from collections.abc import Callable, Iterator

import pytest
import torch
from support import need_library
from torch import Tensor


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
