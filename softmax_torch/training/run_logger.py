"""Log the metrics of a run to the metrics.csv of its directory.

Lightning's ``CSVLogger`` deletes the file of a directory that it opens again, and takes the next
free number without creating the directory, so that of two runs started together one deletes the
other's metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from softmax_torch.storage.run_directories import RunDirectory

__all__ = ["RunLogger"]


class RunLogger(Logger):
    """A logger that owns a run directory: a new one, or the one of a run that is resumed.

    Each call of ``log_metrics`` appends a row: the step, the epoch, and the metrics logged then.

    Args:
        root: folder of all runs.
        name: name of the run.
        folder: directory of the run to resume; None for a new one, which is created on first use.

    Raises:
        BlockingIOError: another process is writing to ``folder``.
    """

    def __init__(self, root: str | Path, name: str, folder: Path | None = None) -> None:
        super().__init__()
        self._root, self._name = Path(root), name
        self.resumed = folder is not None
        self._directory: RunDirectory | None = None
        if folder is not None:
            self._reopen(folder)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._name

    @property
    def version(self) -> int | str:
        """Number of the run."""
        number = self.folder.name.removeprefix("version_")
        return int(number) if number.isdigit() else number

    @property
    def folder(self) -> Path:
        """Directory of the run; the first process creates it on first use.

        Other processes get the path from the callback that writes checkpoints.
        """
        if self._directory is None:
            self._create()
        if self._directory is None:
            return self._root / self._name / "version_0"
        return self._directory.path

    @property
    def log_dir(self) -> str:
        """Directory of the run."""
        return str(self.folder)

    @property
    def save_dir(self) -> str:
        """Folder of all runs."""
        return str(self._root)

    @property
    def path(self) -> Path:
        """Path of metrics.csv."""
        return self.folder / "metrics.csv"

    @property
    def rows(self) -> int:
        """Number of rows in metrics.csv."""
        return 0 if self._directory is None else len(self._directory.metrics.rows)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row."""
        row = {"step": str(step)}
        row |= {k: str(x) if isinstance(x, int) else repr(float(x)) for k, x in metrics.items()}
        self._opened().metrics.append(row)

    @rank_zero_only
    def sync(self) -> None:
        """Synchronize the rows with the disk, before a checkpoint records how many there are."""
        if self._directory is not None:
            self._directory.metrics.sync()

    @rank_zero_only
    def truncate(self, rows: int) -> None:
        """Keep the first rows, those that were logged before a checkpoint."""
        self._opened().metrics.truncate(rows)

    def close(self) -> None:
        """Release the directory; the end of the process does so too."""
        if self._directory is not None:
            self._directory.close()

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Log nothing: config.yaml has the hyper-parameters."""

    def _opened(self) -> RunDirectory:
        if self._directory is None:
            self._create()
        assert self._directory is not None, "the first process alone logs"
        return self._directory

    @rank_zero_only
    def _create(self) -> None:
        self._directory = RunDirectory.create(self._root, self._name)

    @rank_zero_only
    def _reopen(self, folder: Path) -> None:
        self._directory = RunDirectory.reopen(folder)
