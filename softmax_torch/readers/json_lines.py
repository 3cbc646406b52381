"""Read files of JSON lines (.jsonl) as pyarrow tables: an object a line, with the columns as keys.

Python's json module parses the lines, 200,000 of 21 columns in 3 s. pyarrow's reader is faster, but
it fixes the type of a column by its first block and turns texts that look like dates into dates. A
column with values of several types, such as numbers and text, becomes text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from softmax_torch.readers.delimited import GZIP_ERRORS, gzip_error, open_text
from softmax_torch.readers.python_values import to_arrow_or_text, to_text

__all__ = ["line_of_row", "read_tables"]


def read_tables(path: Path, rows: int) -> Iterator[pa.Table]:
    """Yield the rows of a file as tables of at most ``rows`` rows.

    All tables have the columns of all rows, in the order in which they first occur.

    Raises:
        ValueError: a line is no JSON object, or has a key that differs from an earlier one only
            in the spaces around it; the message names the line.
    """
    state = path.stat()
    kinds = kinds_of_columns(path, state.st_mtime_ns, state.st_size)
    found = records(path)
    while block := [record for _, record in islice(found, rows)]:
        columns = {}
        for name, types in kinds.items():
            values = [record.get(name) for record in block]
            columns[name] = to_text(values) if len(types) > 1 else to_arrow_or_text(values)
        yield pa.table({name.strip(): values for name, values in columns.items()})


@lru_cache(maxsize=16)
def kinds_of_columns(path: Path, changed: int, size: int) -> dict[str, set[type]]:
    """Return the types of the values in each column, where integers are floats too.

    A training table is read three times, and this takes as long as one of them.

    Args:
        path: the file.
        changed, size: its time of change and size, by which a later file of this name is told.

    Raises:
        ValueError: two keys would be one column, since spaces around names are dropped.
    """
    kinds: dict[str, set[type]] = {}
    keys: dict[str, str] = {}  # the key of each column
    for number, record in records(path):
        for key, value in record.items():
            if key not in kinds:
                kinds[key] = set()
                if (other := keys.setdefault(key.strip(), key)) != key:
                    raise ValueError(
                        f"{path}, line {number}: expected keys that differ in more than spaces, "
                        f"got {json.dumps(key)} and {json.dumps(other)}"
                    )
            if value is not None:
                kinds[key].add(float if type(value) is int else type(value))
    return kinds


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the object of each line that is not blank."""
    with open_text(path) as file:
        for number, line in enumerate(lines(path, file), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: expected a JSON object, got {error.msg} in column "
                    f"{error.colno}"
                ) from None
            if not isinstance(record, dict):
                raise ValueError(
                    f"{path}, line {number}: expected a JSON object, got {line.strip()[:40]}"
                )
            yield number, record


def lines(path: Path, file: IO[str]) -> Iterator[str]:
    """Yield the lines of a file; raise ValueError unless it can be unpacked and is UTF-8."""
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got {error.reason}") from None
    except GZIP_ERRORS as error:
        raise gzip_error(path, error) from None


def line_of_row(path: Path, row: int) -> int | None:
    """Return the line of a row, which counts from 0."""
    return next((number for number, _ in islice(records(path), row, None)), None)
