"""Messages and progress bars of data modules, on the console."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities import rank_zero_only
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from softmax_torch.cli.console import print_line
from softmax_torch.data.progress import Reporter

__all__ = ["ConsoleReporter"]


class ConsoleReporter(Reporter):
    """A reporter that prints messages and bars in the columns of the program's other output."""

    @rank_zero_only
    def message(self, label: str, text: str) -> None:
        """Print one line."""
        print_line(label, text)

    @contextmanager
    def bar(
        self, label: str, text: str, done: int, total: int, transient: bool = False
    ) -> Iterator[Callable[[int], None]]:
        """Draw a progress bar; a transient one only on a terminal."""
        columns = (
            TextColumn(f"{label:12s}{{task.description}}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        hidden = transient and not os.isatty(1)
        with Progress(
            *columns, auto_refresh=False, transient=transient, disable=hidden
        ) as progress:
            task = progress.add_task(text, completed=done, total=total)
            yield lambda steps: progress.update(task, advance=steps, refresh=True)
