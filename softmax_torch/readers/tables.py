"""Read tables, from files or memory, in chunks of rows that keep their location for messages.

    .csv .tsv .tab   text in UTF-8; the first line names the columns
    .parquet         columns keep their types
    .npz .npy        arrays; see ``readers.numpy_tables`` for the names of their columns

A column of any type can be read as numbers or as text. The rules are the same for all formats:
spaces around a text are dropped; a text in ``MISSING_TEXTS`` is a missing value, and so are null
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

from softmax_torch.readers import delimited, numpy_tables
from softmax_torch.readers.numpy_files import Array
from softmax_torch.storage.safe_read import require_file

__all__ = [
    "MISSING_TEXTS",
    "NUMBER_PATTERN",
    "TABLE_SUFFIXES",
    "Chunk",
    "Source",
    "chunk_in_memory",
    "format_columns",
    "read_chunks",
]

MISSING_TEXTS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
"""Texts that stand for a missing value."""

NUMBER_PATTERN = r"^[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:inf|infinity|nan))$"
"""Regular expression of the texts that are numbers."""

TABLE_SUFFIXES = (*delimited.DELIMITERS, ".parquet", ".npz", ".npy")
"""Suffixes of the table files that can be read."""


@dataclass(frozen=True)
class Source:
    """The origin of a table, to read it and to name it in messages.

    Args:
        name: path of the file, or a word for a table in memory.
        delimiter: between the columns of a text file; None for other formats.
    """

    name: str
    delimiter: str | None = None

    @classmethod
    def from_path(cls, path: str | Path, delimiter: str | None = None) -> Source:
        """Return the source for a file.

        Args:
            path: a file with one of the ``TABLE_SUFFIXES``.
            delimiter: between the columns of a .csv; None for a comma.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file has another suffix.
        """
        path = Path(path)
        require_file(path, "a table")
        suffix = path.suffix.lower()
        if suffix not in TABLE_SUFFIXES:
            raise ValueError(f"{path}: expected a name that ends in {', '.join(TABLE_SUFFIXES)}")
        if suffix == ".csv" and delimiter is not None:
            return cls(str(path), delimiter)
        return cls(str(path), delimited.DELIMITERS.get(suffix))

    def locate(self, row: int) -> str:
        """Return the location of a row for messages: its line in a text file, else its number."""
        line = None
        if self.delimiter is not None:
            line = delimited.line_of_row(Path(self.name), self.delimiter, row + 1)
        return f"{self.name}, " + (f"row {row}" if line is None else f"line {line}")


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a table.

    Args:
        table: the rows.
        source: the table that they come from.
        first: number of the first row within the source, from 0.
    """

    table: pa.Table
    source: Source
    first: int = 0

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.table.num_rows)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self.table.column_names)

    @property
    def row_numbers(self) -> list[str]:
        """Numbers of the rows within the source, as text."""
        return [str(row) for row in range(self.first, self.first + len(self))]

    def locate(self, row: int) -> str:
        """Return the location, for messages, of a row of this chunk."""
        return self.source.locate(self.first + row)

    def require(self, names: Sequence[str]) -> None:
        """Raise ValueError unless there are columns of these names."""
        present = set(self.names)  # built once: a table may have thousands of columns
        missing = [name for name in names if name not in present]
        if missing:
            delimiter = self.source.delimiter
            hint = delimited.delimiter_hint(self.names, delimiter) if delimiter else ""
            raise ValueError(
                f"{self.source.name}: expected {format_columns(missing)}, got "
                f"{format_columns(self.names)}{hint}"
            )

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of numbers, booleans or text, with null for texts that mean missing.

        Raises:
            ValueError: the column has another type.
        """
        column = decode_column(self.table.column(name))
        t, types = column.type, pa.types
        if types.is_string(t):
            return nullify_missing(column)
        known = types.is_boolean, types.is_integer, types.is_floating, types.is_decimal
        if not any(is_known(t) for is_known in (*known, types.is_null)):
            raise ValueError(
                f"{self.source.name}, column {name}: expected numbers, text or booleans, got {t}; "
                "leave the column out (ignore), or turn it into one of those"
            )
        return column

    def numbers(self, name: str) -> Array:
        """Return a column as float64 (n,), with NaN for missing values.

        Raises:
            ValueError: a text is not a number, a value is infinite, or the column has another type.
        """
        column = self.column(name)
        try:
            values: Array = column.cast(pa.float64(), safe=False).to_numpy()
        except pa.ArrowInvalid:
            row = pc.index(pc.match_substring_regex(column, NUMBER_PATTERN), False).as_py()
            raise ValueError(
                f"{self.locate(row)}, column {name}: expected a number, got {column[row]}"
            ) from None
        infinite = np.flatnonzero(np.isinf(values))
        if len(infinite):
            raise ValueError(
                f"{self.locate(int(infinite[0]))}, column {name}: expected a finite number, got "
                f"{values[infinite[0]]}"
            )
        return values

    def text(self, name: str) -> pa.ChunkedArray:
        """Return a column as text (n,), with null for missing values.

        Equal numbers or booleans give the same text, whatever type the column has.

        Raises:
            ValueError: the column has a type that cannot be text.
        """
        column = nullify_missing(self.column(name).cast(pa.string()))  # NaN has become text
        column = pc.replace_substring_regex(column, r"^([+-]?\d+)\.0*$", r"\1")
        lower = pc.utf8_lower(column)
        return pc.if_else(pc.is_in(lower, pa.array(["true", "false"])), lower, column)

    def raw_text(self, name: str) -> list[str]:
        """Return a column of text unchanged, since NA may be a name of a row."""
        column = decode_column(self.table.column(name))
        column = column if pa.types.is_string(column.type) else self.text(name)
        return [value or "" for value in column.to_pylist()]

    def codes(self, name: str, known: dict[str, int]) -> Array:
        """Return the code of each text in a column, int64 (n,), with -1 for missing values.

        Args:
            name: of the column.
            known: code of each text so far; new texts are added to it.
        """
        column = self.text(name).combine_chunks().dictionary_encode()
        texts = column.dictionary.to_pylist()
        codes = np.array([known.setdefault(text, len(known)) for text in texts] + [-1])
        result: Array = codes[pc.fill_null(column.indices, len(texts)).to_numpy()]
        return result

    def first_number_and_text(self, name: str) -> tuple[int | None, int | None]:
        """Return the first row with a number in a column, and the first with any other value."""
        column = self.column(name)
        present = pc.index(pc.is_valid(column), True).as_py()
        if present < 0:
            return None, None
        if pa.types.is_boolean(column.type):
            return None, present
        try:
            column.cast(pa.float64(), safe=False)
        except pa.ArrowInvalid:
            is_number = pc.match_substring_regex(column, NUMBER_PATTERN)
            number, text = (pc.index(is_number, value).as_py() for value in (True, False))
            return None if number < 0 else number, text
        return present, None


def decode_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without dictionary encoding; every type of text becomes string."""
    if pa.types.is_dictionary(column.type):
        column = pa.chunked_array(
            [to_string(part.dictionary).take(part.indices) for part in column.chunks],
            to_string(pa.array([], column.type.value_type)).type,
        )
    return to_string(column)


def to_string(values: Any) -> Any:
    """Return an array or column of text as type string; others are returned unchanged."""
    types, t = pa.types, values.type
    text = types.is_string(t) or types.is_large_string(t) or types.is_string_view(t)
    return values.cast(pa.string()) if text else values


def nullify_missing(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return text without spaces around it, and null for the ``MISSING_TEXTS``."""
    column = pc.utf8_trim_whitespace(column)
    missing = pc.is_in(column, pa.array(MISSING_TEXTS))
    return pc.if_else(missing, pa.scalar(None, pa.string()), column)


def format_columns(names: Sequence[str]) -> str:
    """Return the names of columns for a message, the first 20 of them."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"column{'s' if len(names) > 1 else ''} {', '.join(names[:20])}{more}"


def read_chunks(source: Source, rows: int) -> Iterator[Chunk]:
    """Yield the rows of a file in chunks of at most ``rows`` rows.

    Raises:
        ValueError: the file cannot be read, has no rows, or has two columns of one name.
    """
    path, first = Path(source.name), 0
    if source.delimiter is not None:
        tables = delimited.read_tables(path, source.delimiter)
    elif path.suffix.lower() == ".parquet":
        tables = read_parquet(path, rows)
    else:
        tables = numpy_tables.read_tables(path, rows)
    for table in tables:
        check_unique_names(source, table)
        for at in range(0, table.num_rows, rows):
            yield Chunk(table.slice(at, rows), source, first + at)
        first += table.num_rows
    if first == 0:
        raise ValueError(f"{path}: expected at least one row, got none")


def check_unique_names(source: Source, table: pa.Table) -> None:
    """Raise ValueError if two columns have the same name."""
    repeated = [name for name, times in Counter(table.column_names).items() if times > 1]
    if repeated:
        raise ValueError(
            f"{source.name}: expected a name of its own for each column, got two called "
            f"{repeated[0]}"
        )


def read_parquet(path: Path, rows: int) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet file as tables of at most ``rows`` rows."""
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(rows):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: expected a Parquet file, got another: {error}") from None


def chunk_in_memory(raw: Any, names: Sequence[str]) -> Chunk:
    """Return a table in memory as one chunk.

    Args:
        raw: a data frame of pandas or polars, or any other object with ``__arrow_c_stream__``; a
            dict of columns; a list of dicts, one for each row.
        names: the columns that are needed; others may be dropped.

    Raises:
        TypeError: raw is something else.
        ValueError: a column has values of several types.
    """
    if isinstance(raw, list | tuple) and raw and all(isinstance(row, Mapping) for row in raw):
        present = [name for name in names if any(name in row for row in raw)]
        raw = {name: [row.get(name) for row in raw] for name in present}
    is_series = hasattr(raw, "iloc") and not hasattr(raw, "columns")  # one row or column of pandas
    if is_series or not (isinstance(raw, Mapping) or hasattr(raw, "__arrow_c_stream__")):
        raise TypeError(
            "inputs: expected a data frame, a dict of columns, a list of dicts or the path of a "
            f"table, got {type(raw).__name__}"
        )
    if isinstance(raw, Mapping):
        raw = {name: raw[name] for name in names if name in raw}
    elif hasattr(raw, "iloc") and raw.columns.is_unique:
        # Other columns of a pandas frame may hold any objects, which pyarrow would refuse.
        wanted = set(names)
        raw = raw.loc[:, [str(name) in wanted for name in raw.columns]]
    try:
        table = pa.table(raw)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ValueError(f"inputs: expected columns of one type each, got: {error}") from None
    source = Source("inputs")
    check_unique_names(source, table)
    return Chunk(table, source)
