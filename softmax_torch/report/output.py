"""Write a report to disk: a folder with the page and its figures, complete or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

from softmax_torch.report.page import Page
from softmax_torch.storage.atomic_files import name_in_errors
from softmax_torch.storage.new_names import numbered_names, take_free_name

__all__ = ["write_report"]


def write_report(page: Page, run: Path) -> Path:
    """Write a report into the directory of a run, and return its folder.

    The folder is ``report``, or the first of ``report_1``, ``report_2``, ... that does not exist,
    with index.html, test_metrics.csv and figures/<name>.png and .svg.

    Raises:
        OSError: the report could not be written; nothing of it remains.
    """
    with (
        name_in_errors(run / "report"),
        tempfile.TemporaryDirectory(
            prefix=".report-", dir=run, ignore_cleanup_errors=True
        ) as temporary,
    ):
        folder = Path(temporary) / "report"
        (folder / "figures").mkdir(parents=True)
        (folder / "index.html").write_text(page.html, encoding="utf-8")
        (folder / "test_metrics.csv").write_bytes(page.test.csv())
        for name, content in page.files.items():
            (folder / "figures" / name).write_bytes(content)
        return take_free_name(numbered_names(run / "report"), folder.rename)
