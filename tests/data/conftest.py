"""An empty working folder, and the messages of data modules."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from reporters import Messages

from softmax_torch.data.progress import reporting_to


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def messages() -> Iterator[list[str]]:
    reporter = Messages()
    with reporting_to(reporter):
        yield reporter.lines
