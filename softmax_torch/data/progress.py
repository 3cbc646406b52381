"""Messages and progress bars of slow data preparation, for a program to show.

Data modules print nothing. They report to the current reporter, which by default logs messages at
level INFO and draws no bars. A program installs its own with ``reporting_to``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

__all__ = ["Reporter", "current_reporter", "reporting_to"]

logger = logging.getLogger(__name__)


class Reporter:
    """A receiver of messages and progress."""

    def message(self, label: str, text: str) -> None:
        """Show one line; the label names the data in preparation, such as "features"."""
        logger.info("%s: %s", label, text)

    def bar(
        self, label: str, text: str, done: int, total: int, transient: bool = False
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Return a context that shows a progress bar and gives the function that advances it.

        Args:
            label, text: as for ``message``.
            done: steps that are complete at the start.
            total: number of steps.
            transient: whether the bar disappears at the end.
        """
        return nullcontext(lambda steps: None)


CURRENT: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


def current_reporter() -> Reporter:
    """Return the reporter that data modules report to."""
    return CURRENT.get() or Reporter()


@contextmanager
def reporting_to(reporter: Reporter) -> Iterator[None]:
    """Install a reporter within a context."""
    token = CURRENT.set(reporter)
    try:
        yield
    finally:
        CURRENT.reset(token)
