"""Run directories ``<root>/<name>/version_<n>``, each written by one process at a time.

A directory is made by one run and belongs to it: the number is taken by making it. While a run goes
on its directory is locked, which ends with the process, however it ends.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from softmax_torch.files import PARTIAL, lock, named, replace

__all__ = ["RunLogger", "latest", "logged"]


class RunLogger(Logger):
    """Writes ``metrics.csv`` in a directory of its own, and goes on with it in a resumed run.

    A row is one call: the step, the epoch, and the figures that were logged then. Lightning's
    ``CSVLogger`` deletes the file of a directory that it opens again, and takes the next free
    number without making the directory, so that of two runs started together one deletes the
    other's metrics.

    Args:
        root: folder of all runs.
        name: of this run.
        folder: the directory of a run to go on with; by default a new one is made.
    """

    def __init__(self, root: str | Path, name: str, folder: Path | None = None) -> None:
        super().__init__()
        self._root, self._name = Path(root), name
        self.resumed = folder is not None
        self._folder: Path | None = None
        self._lock: int | None = None
        self._columns: list[str] = []
        self._rows: list[dict[str, str]] = []  # that are in the file
        if folder is not None:
            self._open(folder)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._name

    @property
    def version(self) -> int | str:
        """Number of this run; asking for it the first time makes its directory."""
        number = self.folder.name.removeprefix("version_")
        return int(number) if number.isdigit() else number

    @property
    def folder(self) -> Path:
        """Directory of this run."""
        if self._folder is None:
            # Only the first process makes it; the callback that writes to it tells the others.
            self._claim()
        return self._folder or self._root / self._name / "version_0"

    @property
    def log_dir(self) -> str:
        """Directory of this run."""
        return str(self.folder)

    @property
    def save_dir(self) -> str:
        """Folder of all runs."""
        return str(self._root)

    @property
    def path(self) -> Path:
        """The file of metrics."""
        return self.folder / "metrics.csv"

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return len(self._rows)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row."""
        row = {"step": str(step)}
        row |= {k: str(x) if isinstance(x, int) else repr(float(x)) for k, x in metrics.items()}
        self._rows.append(row)
        if row.keys() <= set(self._columns) and self.path.exists():
            with named(self.path), self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:  # new columns
            self._columns += [name for name in row if name not in self._columns]
            self._write()

    @rank_zero_only
    def settle(self) -> None:
        """Make the rows last, before a checkpoint that counts them."""
        if self._rows:
            with named(self.path), self.path.open("rb") as file:
                os.fsync(file.fileno())

    @rank_zero_only
    def rewind(self, rows: int) -> None:
        """Leave so many rows, those of before a checkpoint."""
        if rows > len(self._rows):
            warnings.warn(
                f"{self.path}: expected the {rows} rows that were there when the checkpoint was "
                f"written, got {len(self._rows)}",
                stacklevel=2,
            )
        self._rows = self._rows[:rows]
        if self._columns:
            self._write()

    def close(self) -> None:
        """Let go of the directory, which the end of the process does too."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them all."""

    def _write(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._rows)
        replace(self.path, text.getvalue().encode())

    @rank_zero_only
    def _claim(self) -> None:
        """Make the first directory that does not exist."""
        for number in itertools.count():
            folder = self._root / self._name / f"version_{number}"
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                if not self._root.is_dir() or not folder.parent.is_dir():
                    raise
                continue
            self._take(folder)
            return

    @rank_zero_only
    def _open(self, folder: Path) -> None:
        """Take the directory of an earlier run, and read what it logged."""
        self._take(folder)
        for partial in folder.glob(f".*{PARTIAL}"):
            partial.unlink()
        if self.path.exists():
            self._columns, self._rows = logged(self.path)

    def _take(self, folder: Path) -> None:
        """Lock the directory.

        Raises:
            BlockingIOError: another process has it.
        """
        self._folder = folder
        try:
            self._lock = lock(folder)
        except BlockingIOError:
            raise BlockingIOError(
                f"{folder}: expected a run directory that is free, got one that another process is "
                "writing to"
            ) from None


def logged(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a metrics.csv, and its rows, of which each has what was logged then."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        return columns, [{k: v for k, v in row.items() if k and v} for row in reader]


def latest(root: Path, name: str) -> Path:
    """The directory of the newest run of this name that has a configuration.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [
        (int(folder.name.removeprefix("version_")), folder)
        for folder in (root / name).glob("version_*")
        if folder.name.removeprefix("version_").isdigit() and (folder / "config.yaml").is_file()
    ]
    if not found:
        raise FileNotFoundError(
            f"--resume: expected an earlier run in {root / name}, got none; leave --resume out to "
            "begin one"
        )
    return max(found)[1]
