"""New files of columns: predictions, figures, coefficients.

The suffix names the format: .csv, .jsonl or .parquet. CSV has no lists; there a list is written as
JSON, such as ["3", "8"], since a name may contain any separator. JSON has no NaN and no infinity;
there they are null.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from softmax_torch.storage.atomic_files import PARTIAL_SUFFIX, name_in_errors
from softmax_torch.storage.new_names import check_new_name, numbered_names, take_free_name

__all__ = ["WRITERS", "Columns", "appending", "new_table_file", "write_table"]

Columns = dict[str, list[Any]]


def new_table_file(output: str | None, default: Path | None = None) -> Path:
    """Return the file that --output names; without one, the first free name after ``default``.

    Raises:
        ValueError: no format has this suffix.
        FileExistsError, FileNotFoundError: the file exists, or its folder does not.
    """
    if output is None:
        assert default is not None
        path = take_free_name(numbered_names(default))
    else:
        path = Path(output)
    if path.suffix not in WRITERS:
        raise ValueError(
            f"output: expected a name that ends in {', '.join(WRITERS)}, got {path.name}"
        )
    check_new_name(path)
    return path


def write_table(columns: Columns, path: Path) -> None:
    """Write columns to a new file, whole or not at all.

    Raises:
        OSError: the file could not be written, or has been written by another process.
    """
    with appending(path) as append:
        append(columns)


@contextmanager
def appending(path: Path) -> Iterator[Callable[[Columns], None]]:
    """Yield a function that appends columns to a file, which gets its name when it is complete."""
    # Another process may be writing its own under the same name.
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        with ExitStack() as closing:
            with name_in_errors(path):
                append = closing.enter_context(WRITERS[path.suffix](partial))

            def append_named(columns: Columns) -> None:
                with name_in_errors(path):
                    append(columns)

            yield append_named
        if path.exists():
            raise FileExistsError(f"output: {path} has been written by another process")
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def without_lists(column: list[Any]) -> list[Any]:
    """Return a column with JSON in place of lists."""
    return [json.dumps(x, ensure_ascii=False) if isinstance(x, list) else x for x in column]


def without_infinities(column: list[Any]) -> list[Any]:
    """Return a column with None in place of NaN and infinity."""
    return [None if isinstance(x, float) and not math.isfinite(x) else x for x in column]


@contextmanager
def write_csv(path: Path) -> Iterator[Callable[[Columns], None]]:
    """Open a CSV file; yield a function that appends columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)

        def append(columns: Columns) -> None:
            if file.tell() == 0:
                writer.writerow(columns)
            writer.writerows(zip(*map(without_lists, columns.values()), strict=True))

        yield append


@contextmanager
def write_json_lines(path: Path) -> Iterator[Callable[[Columns], None]]:
    """Open a file of JSON lines; yield a function that appends columns."""
    with path.open("w", encoding="utf-8") as file:

        def append(columns: Columns) -> None:
            for row in zip(*map(without_infinities, columns.values()), strict=True):
                line = json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False)
                file.write(f"{line}\n")

        yield append


@contextmanager
def write_parquet(path: Path) -> Iterator[Callable[[Columns], None]]:
    """Open a Parquet file; yield a function that appends columns."""
    writer = None

    def append(columns: Columns) -> None:
        nonlocal writer
        # Lists that are all empty do not say what they are lists of.
        names = pa.list_(pa.string())
        table = pa.table(
            {
                name: pa.array(column, names) if isinstance(column[0], list) else column
                for name, column in columns.items()
            }
        )
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)

    try:
        yield append
    finally:
        if writer is not None:
            writer.close()


WRITERS = {".csv": write_csv, ".jsonl": write_json_lines, ".parquet": write_parquet}
"""Writers by the suffix of the file."""
