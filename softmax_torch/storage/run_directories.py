"""Run directories ``<root>/<name>/version_<n>`` and the metrics.csv in each.

Creating a directory claims its number, so that runs started together never share one. A process
locks the directory that it writes to; the kernel releases the lock when the process ends.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import warnings
from contextlib import suppress
from pathlib import Path

from softmax_torch.storage.atomic_files import (
    PARTIAL_SUFFIX,
    lock_folder,
    name_in_errors,
    write_atomically,
)
from softmax_torch.storage.new_names import take_free_name

__all__ = [
    "CONFIG_FILE",
    "METRICS_FILE",
    "RunDirectory",
    "create_run_directory",
    "latest_run",
    "read_metrics",
]

CONFIG_FILE, METRICS_FILE = "config.yaml", "metrics.csv"
"""Files of a run directory, besides its checkpoints."""


class RunDirectory:
    """The directory of a run and its metrics.csv, locked until it is closed.

    A row with new names adds columns.

    Args:
        path: an existing directory; partial files of an earlier process are deleted.

    Attributes:
        metrics: path of metrics.csv, which need not exist.
        rows: its rows, each without its empty values.

    Raises:
        BlockingIOError: another process is writing to it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.metrics = path, path / METRICS_FILE
        self.rows: list[dict[str, str]] = []
        self._columns: list[str] = []
        try:
            self._lock = lock_folder(path)
        except BlockingIOError:
            raise BlockingIOError(
                f"{path}: expected a free run directory, got one that another process is writing to"
            ) from None
        for partial in path.glob(f".*{PARTIAL_SUFFIX}"):
            partial.unlink()
        if self.metrics.exists():
            self._columns, self.rows = read_metrics(self.metrics)

    def append(self, row: dict[str, str]) -> None:
        """Append a row."""
        self.rows.append(row)
        if row.keys() <= set(self._columns) and self.metrics.exists():
            with name_in_errors(self.metrics), self.metrics.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:
            self._columns += [name for name in row if name not in self._columns]
            self._write()

    def sync(self) -> None:
        """Synchronize the rows with the disk, before a checkpoint records how many there are."""
        if self.rows:
            with name_in_errors(self.metrics), self.metrics.open("rb") as file:
                os.fsync(file.fileno())

    def truncate(self, rows: int) -> None:
        """Keep the first rows, those that were logged before a checkpoint."""
        if rows > len(self.rows):
            warnings.warn(
                f"{self.metrics}: expected the {rows} rows that the checkpoint recorded, got "
                f"{len(self.rows)}",
                stacklevel=2,
            )
        self.rows = self.rows[:rows]
        if self._columns:
            self._write()

    def close(self) -> None:
        """Remove the directory if nothing was written to it, and release the lock.

        The end of the process releases it too.
        """
        with suppress(OSError):  # most directories are not empty
            self.path.rmdir()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.metrics, text.getvalue().encode())


def create_run_directory(root: Path, name: str) -> RunDirectory:
    """Create and open the first version of this name that does not exist.

    Raises:
        OSError: the directory could not be created.
    """
    names = (root / name / f"version_{number}" for number in itertools.count())
    with name_in_errors(root / name):
        return RunDirectory(take_free_name(names, lambda path: path.mkdir(parents=True)))


def read_metrics(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns of a metrics.csv, and its rows without their empty values."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        return columns, [{k: v for k, v in row.items() if k and v} for row in reader]


def latest_run(root: Path, name: str) -> Path:
    """Return the newest directory of this name that has a config.yaml.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [
        (int(folder.name.removeprefix("version_")), folder)
        for folder in (root / name).glob("version_*")
        if folder.name.removeprefix("version_").isdigit() and (folder / CONFIG_FILE).is_file()
    ]
    if not found:
        raise FileNotFoundError(f"expected an earlier run in {root / name}, got none")
    return max(found)[1]
