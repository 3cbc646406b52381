"""A report comes to disk as a whole: a folder with the page and the figures, or nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

from softmax_torch.report.page import Page
from softmax_torch.storage.atomic_files import name_in_errors

__all__ = ["write"]


def write(page: Page, run: Path) -> Path:
    """Write a report into the directory of a run: the folder.

    It is ``report``, or the first of ``report_1``, ``report_2``, ... that does not exist, with
    index.html and figures/<name>.png and .svg. It is written under another name, and renamed when
    it is complete.

    Raises:
        OSError: it could not be written; then there is none of it.
    """
    with (
        name_in_errors(run / "report"),
        tempfile.TemporaryDirectory(
            prefix=".report-", dir=run, ignore_cleanup_errors=True
        ) as folder,
    ):
        made = Path(folder) / "report"
        (made / "figures").mkdir(parents=True)
        (made / "index.html").write_text(page.html, encoding="utf-8")
        for name, content in page.files.items():
            (made / "figures" / name).write_bytes(content)
        return _moved(made, run)


def _moved(made: Path, run: Path) -> Path:
    """Give a folder the first name that is free."""
    number = 0
    while True:
        path = run / ("report" if number == 0 else f"report_{number}")
        number += 1
        if path.exists():
            continue
        try:
            made.rename(path)
        except OSError:
            if path.exists():  # another report was quicker
                continue
            raise
        return path
