"""Log the metrics of a run to the metrics.csv of its directory.

Lightning's ``CSVLogger`` deletes the file when it opens a directory again. It also takes the next
free number without creating the directory, so that two runs started together share one, and the
second deletes the first one's metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from softmax_torch.storage.atomic_files import name_in_errors
from softmax_torch.storage.run_directories import (
    METRICS_FILE,
    RunDirectory,
    create_run_directory,
)

__all__ = ["RunLogger"]


class RunLogger(Logger):
    """A logger that owns a run directory: a new one, or that of a resumed run.

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
        self._create()
        found = self._directory
        return self._root / self._name / "version_0" if found is None else found.path

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
        return self.folder / METRICS_FILE

    @property
    def rows(self) -> int:
        """Number of rows in metrics.csv."""
        return 0 if self._directory is None else len(self._directory.rows)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row."""
        row = {"step": str(step)}
        row |= {k: str(x) if isinstance(x, int) else repr(float(x)) for k, x in metrics.items()}
        self._created().append(row)

    @rank_zero_only
    def sync(self) -> None:
        """Synchronize the rows with the disk, before a checkpoint records how many there are."""
        self._created().sync()

    @rank_zero_only
    def truncate(self, rows: int) -> None:
        """Keep the first rows, those that were logged before a checkpoint."""
        self._created().truncate(rows)

    def close(self) -> None:
        """Release the directory; the end of the process does so too."""
        if self._directory is not None:
            self._directory.close()

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Log nothing: config.yaml has the hyper-parameters."""

    @rank_zero_only
    def _create(self) -> None:
        if self._directory is None:
            with name_in_errors(self._root / self._name):
                self._directory = create_run_directory(self._root, self._name)

    def _created(self) -> RunDirectory:
        self._create()
        assert self._directory is not None, "called in the first process alone"
        return self._directory

    @rank_zero_only
    def _reopen(self, folder: Path) -> None:
        self._directory = RunDirectory(folder)
