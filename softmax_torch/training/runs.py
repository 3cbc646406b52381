"""Run directories ``<root>/<name>/version_<n>``, each made by one run and written by no other."""

from __future__ import annotations

import itertools
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

__all__ = ["RunLogger"]


class RunLogger(CSVLogger):
    """Lightning's CSV logger in a directory of its own.

    ``CSVLogger`` looks for the next free number and makes the directory later: of two runs started
    together, one deletes the other's metrics. Here the number is taken by making the directory.
    """

    def __init__(self, root: str | Path, name: str) -> None:
        super().__init__(root, name)

    @property
    def version(self) -> int:
        """Number of this run; asking for it the first time makes its directory."""
        if self._version is None:
            # Only the first process makes it; Lightning tells the others where to look.
            self._version = self._claim() or 0
        assert isinstance(self._version, int)
        return self._version

    @rank_zero_only
    def _claim(self) -> int | None:
        """Make the first directory that does not exist."""
        for number in itertools.count():
            try:
                Path(self.root_dir, f"version_{number}").mkdir(parents=True)
            except FileExistsError:
                continue
            return number
        raise AssertionError("count() does not end")
