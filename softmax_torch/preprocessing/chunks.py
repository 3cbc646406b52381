"""Tables, from disk or memory, as some rows at a time, with the place of each row for messages.

    .csv .tsv .tab   text, in UTF-8; the first line names the columns
    .parquet         as its types are
    .npz             an array a column, by its name; a matrix is columns name_0, name_1, ...
    .npy             fields of a structured array, or a matrix with columns 0, 1, ...

A column can be looked at as numbers or as text, whatever its type, by the same rules everywhere:
spaces around a text are no part of it; a text in ``MISSING`` is a missing value, and so are null
and NaN; numbers without a fraction are written as integers, and booleans as true and false.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from softmax_torch.preprocessing import arrays, delimited
from softmax_torch.storage.safe_read import require_file

__all__ = ["MISSING", "NUMBER", "SUFFIXES", "Chunk", "Source", "chunks", "in_memory", "listed"]

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
"""Texts that stand for a missing value."""

NUMBER = r"^[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:inf|infinity|nan))$"
"""Texts that are numbers."""

SUFFIXES = (*delimited.DELIMITERS, ".parquet", ".npz", ".npy")
"""What the name of a table ends in."""


@dataclass(frozen=True)
class Source:
    """Where a table comes from.

    Args:
        name: of the file, or what it is called in messages.
        delimiter: between the columns of a text file; None for others.
    """

    name: str
    delimiter: str | None = None

    @classmethod
    def of(cls, path: str | Path, delimiter: str | None = None) -> Source:
        """That of a file.

        Args:
            path: ends in one of ``SUFFIXES``.
            delimiter: of a .csv, where it is not a comma.

        Raises:
            FileNotFoundError, ValueError: it is not there, or of another kind.
        """
        path = Path(path)
        require_file(path, "a table")
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")
        if suffix == ".csv" and delimiter is not None:
            return cls(str(path), delimiter)
        return cls(str(path), delimited.DELIMITERS.get(suffix))

    def place(self, row: int) -> str:
        """How a row is called in messages: its line in a text file, or its number, from 0."""
        line = None
        if self.delimiter is not None:
            line = delimited.line_of(Path(self.name), self.delimiter, row + 1)
        return f"{self.name}, " + (f"row {row}" if line is None else f"line {line}")


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table: a pyarrow Table, the first of whose rows has this number in it all."""

    table: pa.Table
    source: Source
    first: int = 0

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.table.num_rows)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self.table.column_names)

    @property
    def ids(self) -> list[str]:
        """Numbers of the rows, as text."""
        return [str(row) for row in range(self.first, self.first + len(self))]

    def place(self, row: int) -> str:
        """How a row of this chunk is called in messages."""
        return self.source.place(self.first + row)

    def require(self, names: Sequence[str]) -> None:
        """Whether there are columns of these names; ValueError if not."""
        there = set(self.names)  # made once: a table may have thousands of columns
        lacking = [name for name in names if name not in there]
        if lacking:
            delimiter = self.source.delimiter
            hint = delimited.hint(self.names, delimiter) if delimiter else ""
            raise ValueError(
                f"{self.source.name}: expected {listed(lacking)}, got {listed(self.names)}{hint}"
            )

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of numbers, booleans or text, with null where a text says that it is missing.

        Raises:
            ValueError: it is of another type.
        """
        column = plain(self.table.column(name))
        t, types = column.type, pa.types
        if types.is_string(t):
            return without_missing(column)
        known = types.is_boolean, types.is_integer, types.is_floating, types.is_decimal
        if not any(is_known(t) for is_known in (*known, types.is_null)):
            raise ValueError(
                f"{self.source.name}, column {name}: expected numbers, text or booleans, got {t}; "
                "leave the column out (ignore), or turn it into one of those"
            )
        return column

    def numbers(self, name: str) -> np.ndarray[Any, Any]:
        """A column as float64 (n,), NaN where a value is missing.

        Raises:
            ValueError: a text that is no number, infinity, or a type that cannot be one.
        """
        column = self.column(name)
        try:
            values: np.ndarray[Any, Any] = column.cast(pa.float64(), safe=False).to_numpy()
        except pa.ArrowInvalid:
            row = pc.index(pc.match_substring_regex(column, NUMBER), False).as_py()
            raise ValueError(
                f"{self.place(row)}, column {name}: expected a number, got {column[row]}"
            ) from None
        infinite = np.flatnonzero(np.isinf(values))
        if len(infinite):
            raise ValueError(
                f"{self.place(int(infinite[0]))}, column {name}: expected a finite number, got "
                f"{values[infinite[0]]}"
            )
        return values

    def text(self, name: str) -> pa.ChunkedArray:
        """A column as text (n,), null where a value is missing.

        What is equal as a number or a boolean is the same text, whatever type it comes in.

        Raises:
            ValueError: a type that cannot be text.
        """
        column = without_missing(self.column(name).cast(pa.string()))  # NaN is text by now
        column = pc.replace_substring_regex(column, r"^([+-]?\d+)\.0*$", r"\1")
        lower = pc.utf8_lower(column)
        return pc.if_else(pc.is_in(lower, pa.array(["true", "false"])), lower, column)

    def labels(self, name: str) -> list[str]:
        """A column as what rows are called: text as it stands, where NA may be somebody's name."""
        column = plain(self.table.column(name))
        column = column if pa.types.is_string(column.type) else self.text(name)
        return [label or "" for label in column.to_pylist()]

    def codes(self, name: str, known: dict[str, int]) -> np.ndarray[Any, Any]:
        """A column as int64 (n,): the number of each text among those known, to which new ones are
        added, and -1 where a value is missing.
        """
        column = self.text(name).combine_chunks().dictionary_encode()
        values = column.dictionary.to_pylist()
        numbers = np.array([known.setdefault(value, len(known)) for value in values] + [-1])
        codes: np.ndarray[Any, Any] = numbers[pc.fill_null(column.indices, len(values)).to_numpy()]
        return codes

    def kinds(self, name: str) -> tuple[int | None, int | None]:
        """The first row in which a column has a number, and the first in which it has none."""
        column = self.column(name)
        valid = pc.index(pc.is_valid(column), True).as_py()
        if valid < 0:
            return None, None
        if pa.types.is_boolean(column.type):
            return None, valid
        try:
            column.cast(pa.float64(), safe=False)
        except pa.ArrowInvalid:
            fits = pc.match_substring_regex(column, NUMBER)
            number, text = (pc.index(fits, value).as_py() for value in (True, False))
            return None if number < 0 else number, text
        return valid, None


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column with one type of text, and no dictionaries."""
    if pa.types.is_dictionary(column.type):
        column = pa.chunked_array(
            [plain_array(part.dictionary).take(part.indices) for part in column.chunks],
            plain_array(pa.array([], column.type.value_type)).type,
        )
    return column.cast(pa.string()) if is_text(column.type) else column


def plain_array(array: pa.Array) -> pa.Array:
    return array.cast(pa.string()) if is_text(array.type) else array


def is_text(t: pa.DataType) -> bool:
    """Whether a type of pyarrow is one of text."""
    return bool(pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t))


def without_missing(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text without spaces around it, null where it stands for a missing value."""
    column = pc.utf8_trim_whitespace(column)
    missing = pc.is_in(column, pa.array(MISSING))
    return pc.if_else(missing, pa.scalar(None, pa.string()), column)


def listed(names: Sequence[str]) -> str:
    """Names of columns in a message, the first 20 of them."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"column{'s' if len(names) > 1 else ''} {', '.join(names[:20])}{more}"


def chunks(source: Source, rows: int) -> Iterator[Chunk]:
    """The rows of a file, at most so many at once.

    Raises:
        ValueError: it cannot be read, or has no rows.
    """
    path, first = Path(source.name), 0
    if source.delimiter is not None:
        tables = delimited.tables(path, source.delimiter)
    elif path.suffix.lower() == ".parquet":
        tables = parquet_tables(path, rows)
    else:
        tables = arrays.tables(path, rows)
    for table in tables:
        check_names(source, table)
        for at in range(0, table.num_rows, rows):
            yield Chunk(table.slice(at, rows), source, first + at)
        first += table.num_rows
    if first == 0:
        raise ValueError(f"{path}: expected at least one row, got none")


def check_names(source: Source, table: pa.Table) -> None:
    """Whether no two columns have one name; ValueError if they have."""
    twice = [name for name, times in Counter(table.column_names).items() if times > 1]
    if twice:
        raise ValueError(
            f"{source.name}: expected a name of its own for each column, got two called {twice[0]}"
        )


def parquet_tables(path: Path, rows: int) -> Iterator[pa.Table]:
    """The rows of a Parquet file."""
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(rows):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: expected a Parquet file, got another: {error}") from None


def in_memory(raw: Any, names: Sequence[str]) -> Chunk:
    """A table in memory as one chunk.

    Args:
        raw: a data frame of pandas or polars, or whatever else has ``__arrow_c_stream__``; a dict
            of columns; a list of dicts, one a row.
        names: the columns that are looked at.

    Raises:
        TypeError, ValueError: it is something else, or its columns have no type.
    """
    if isinstance(raw, list | tuple) and raw and all(isinstance(row, Mapping) for row in raw):
        present = [name for name in names if any(name in row for row in raw)]
        raw = {name: [row.get(name) for row in raw] for name in present}
    one = hasattr(raw, "iloc") and not hasattr(raw, "columns")  # a column of pandas, or a row
    if one or not (isinstance(raw, Mapping) or hasattr(raw, "__arrow_c_stream__")):
        raise TypeError(
            "inputs: expected a data frame, a dict of columns, a list of dicts or the path of a "
            f"table, got {type(raw).__name__}"
        )
    if isinstance(raw, Mapping):
        raw = {name: raw[name] for name in names if name in raw}
    elif hasattr(raw, "iloc") and raw.columns.is_unique:
        # Other columns of pandas may hold objects of any type, which pyarrow would refuse.
        wanted = set(names)
        raw = raw.loc[:, [str(name) in wanted for name in raw.columns]]
    try:
        table = pa.table(raw)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ValueError(f"inputs: expected columns of one type each, got: {error}") from None
    source = Source("inputs")
    check_names(source, table)
    return Chunk(table, source)
