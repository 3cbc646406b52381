"""Read tables, from files or memory, in chunks of rows that keep their location for messages.

    .csv .tsv .tab   text in UTF-8; the first line names the columns
    .jsonl           an object a line (``readers.json_lines``)
    .parquet         columns keep their types
    .xlsx            the first sheet (``readers.spreadsheets``)
    .npz .npy        arrays; see ``readers.numpy_tables`` for the names of their columns

Text files may be packed: .csv.gz, .tsv.gz, .tab.gz, .jsonl.gz. ``readers.memory_tables`` takes
tables in memory.

A column of any type can be read as numbers or as text. The rules are the same for all formats:
spaces around a text are dropped; a text that means missing (``readers.table_format``) is a missing
value, and so are null and NaN; numbers without a fraction are written as integers, and booleans as
true and false.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from softmax_torch.readers import delimited, json_lines, numpy_tables, spreadsheets
from softmax_torch.readers.dates import days, is_date_type
from softmax_torch.readers.numpy_files import Array
from softmax_torch.readers.table_format import TableFormat, setting
from softmax_torch.readers.table_source import Source

__all__ = ["Chunk", "check_unique_names", "format_columns", "read_chunks"]


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

    def with_format(self, format: TableFormat) -> Chunk:
        """Return the same rows, read in another format."""
        return replace(self, source=self.source.with_format(format))

    def raw(self, name: str) -> pa.ChunkedArray:
        """Return a column as it is stored; of several columns without a name, the first."""
        try:
            return self.table.column(name)
        except KeyError:
            return self.table.column(self.names.index(name))

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of numbers, booleans, text or dates, with null for missing values.

        Raises:
            ValueError: the column has another type, or has dates that are not asked for.
        """
        column = decode_column(self.raw(name))
        t, types = column.type, pa.types
        if types.is_string(t):
            return self.nullify_missing(column)
        if types.is_floating(t):
            return pc.if_else(pc.is_nan(column), pa.scalar(None, t), column)
        known = types.is_boolean, types.is_integer, types.is_decimal, types.is_null
        if any(is_known(t) for is_known in known):
            return column
        if is_date_type(t) and name in self.source.format.dates:
            return column
        advice = f"leave the column out: {setting('ignore', [name])}"
        if is_date_type(t):
            advice = f"turn dates into numbers: {setting('dates', [name])}, or {advice}"
        raise ValueError(
            f"{self.source.name}, column {name}: expected numbers, text or booleans, got {t}; "
            f"{advice}"
        )

    def numbers(self, name: str) -> Array:
        """Return a column as float64 (n,), with NaN for missing values; dates are days.

        Raises:
            ValueError: a text is not a number, a value is infinite, or the column has another type.
        """
        column = self.column(name)
        if name in self.source.format.dates:
            return self.days(name, column)
        try:
            is_text = pa.types.is_string(column.type)
            values: Array = (
                self.source.format.to_float(column)
                if is_text
                else column.cast(pa.float64(), safe=False)
            ).to_numpy()
        except pa.ArrowInvalid:
            numbers = pc.match_substring_regex(column, self.source.format.number_pattern)
            row = pc.index(numbers, False).as_py()
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

    def days(self, name: str, column: pa.ChunkedArray) -> Array:
        """Return a column of dates as days since 1970-01-01; see ``readers.dates``."""
        try:
            return days(column)
        except TypeError:
            raise ValueError(
                f"{self.source.name}, column {name}: expected dates, got {column.type}"
            ) from None
        except pa.ArrowInvalid:
            row = next(row for row in range(len(column)) if not is_date(column.slice(row, 1)))
            raise ValueError(
                f"{self.locate(row)}, column {name}: expected a date such as 2020-12-31 or "
                f"2020-12-31T23:59, got {column[row]}"
            ) from None

    def text(self, name: str) -> pa.ChunkedArray:
        """Return a column as text (n,), with null for missing values.

        Equal numbers or booleans give the same text, whatever type the column has.

        Raises:
            ValueError: the column has a type that cannot be text.
        """
        typed = self.column(name)
        column = typed.cast(pa.string())
        if self.source.format.decimal == "." or not pa.types.is_string(typed.type):
            column = pc.replace_substring_regex(column, r"^([+-]?\d+)\.0*$", r"\1")
        lower = pc.utf8_lower(column)
        return pc.if_else(pc.is_in(lower, pa.array(["true", "false"])), lower, column)

    def raw_text(self, name: str) -> list[str]:
        """Return a column of text unchanged, since NA may be a name of a row."""
        column = decode_column(self.raw(name))
        if is_date_type(column.type):
            column = column.cast(pa.string())
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
        if name in self.source.format.dates or not pa.types.is_string(column.type):
            return present, None
        try:
            self.source.format.to_float(column)
        except pa.ArrowInvalid:
            is_number = pc.match_substring_regex(column, self.source.format.number_pattern)
            number, text = (pc.index(is_number, value).as_py() for value in (True, False))
            return None if number < 0 else number, text
        return present, None

    def nullify_missing(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return text without spaces around it, and null for texts that mean missing."""
        column = pc.utf8_trim_whitespace(column)
        missing = pc.is_in(column, pa.array(self.source.format.missing_texts, pa.string()))
        return pc.if_else(missing, pa.scalar(None, pa.string()), column)


def is_date(column: pa.ChunkedArray) -> bool:
    """Return whether a column of texts holds dates alone."""
    try:
        days(column)
    except pa.ArrowInvalid:
        return False
    return True


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


def format_columns(names: Sequence[str]) -> str:
    """Return the names of columns for a message, the first 20 of them."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    shown = ", ".join(name or "without a name" for name in names[:20])
    return f"column{'s' if len(names) > 1 else ''} {shown}{more}"


def read_chunks(source: Source, rows: int) -> Iterator[Chunk]:
    """Yield the rows of a file in chunks of at most ``rows`` rows.

    Raises:
        ValueError: the file cannot be read, has no rows, or has two columns of one name.
    """
    path, first = Path(source.name), 0
    if source.delimiter is not None:
        tables = delimited.read_tables(path, source.delimiter)
    elif source.suffix == ".jsonl":
        tables = json_lines.read_tables(path, rows)
    elif source.suffix == ".xlsx":
        tables = spreadsheets.read_tables(path)
    elif source.suffix == ".parquet":
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
    """Raise ValueError if two columns have the same name; any number may have none."""
    counts = Counter(name for name in table.column_names if name)
    repeated = [name for name, times in counts.items() if times > 1]
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
