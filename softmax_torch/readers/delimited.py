"""Read delimited text files (.csv, .tsv, .tab) as pyarrow tables of text, block by block.

pyarrow parses the files, and every value stays text: 300,000 rows of 21 columns take 0.6 s, with
Python's csv module 8 s. This file finds two faults that pyarrow accepts: bytes that are not UTF-8,
and a quote that is never closed. pyarrow counts rows, and a row may span several lines; to name a
line in a message, the file is read a second time.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow

__all__ = ["DELIMITERS", "delimiter_hint", "line_of_row", "read_tables"]

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
"""Default delimiter of each file suffix."""

PARSED_BYTES = 1 << 22
"""Bytes that are parsed in one block; a row cannot be longer."""


def read_tables(path: Path, delimiter: str) -> Iterator[pa.Table]:
    """Yield the rows of a file as tables whose columns are all text.

    Raises:
        ValueError: the file cannot be parsed to its end; the message names the line.
    """
    names = read_header(path, delimiter)
    bad_rows: list[Any] = []

    def on_bad_row(row: Any) -> str:
        bad_rows.append(row)
        return "error"

    with path.open("rb") as file:
        try:
            batches = arrow.open_csv(
                pa.PythonFile(Utf8File(path, file), mode="r"),
                # With several threads, pyarrow reports a bad row without its number.
                arrow.ReadOptions(use_threads=False, block_size=PARSED_BYTES),
                arrow.ParseOptions(
                    delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_bad_row
                ),
                arrow.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
                ),
            )
            last_value = ""
            for batch in batches:
                last_value = batch[-1][-1].as_py() if len(batch) else last_value
                yield pa.Table.from_batches([batch]).rename_columns([n.strip() for n in names])
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error):  # a header and no rows
                return
            if not bad_rows:
                too_long = (
                    f"a row of more than {PARSED_BYTES >> 20} MiB, where a quote may be left open"
                )
                reason = too_long if "straddl" in str(error) else error
                raise ValueError(f"{path}: expected a table, got {reason}") from None
            line = line_of_row(path, delimiter, bad_rows[0].number - 1)
            raise ValueError(
                f"{path}, line {line}: expected {bad_rows[0].expected_columns} fields, as in the "
                f"first line, got {bad_rows[0].actual_columns}{delimiter_hint(names, delimiter)}"
            ) from None
    if may_end_in_open_quote(path, last_value):
        check_quotes(path, delimiter)


class Utf8File(io.RawIOBase):
    """A binary file whose bytes are checked to be UTF-8 as they are read."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self.path, self.file = path, file
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.lines = 1

    def read(self, size: int = -1) -> bytes:
        """Return the next ``size`` bytes at most; raise ValueError unless they are UTF-8."""
        content = self.file.read(size)
        if len(content) > 1 and content.endswith(b"\r") and self.file.peek(1)[:1] == b"\n":
            # If a block ended between \r and \n, pyarrow would drop the \n, even within quotes.
            self.file.seek(-1, os.SEEK_CUR)
            content = content[:-1]
        try:
            self.decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            line = self.lines + error.object[: error.start].count(b"\n")
            byte = error.object[error.start]
            utf16 = line == 1 and byte in (0xFE, 0xFF)  # the byte order mark of UTF-16
            raise ValueError(
                f"{self.path}, line {line}: expected text in UTF-8, got the byte 0x{byte:02x}; "
                "save it as UTF-8, or convert it: iconv -f "
                f"{'UTF-16' if utf16 else 'WINDOWS-1252'} -t UTF-8 {self.path.name} > NEW.csv"
            ) from None
        self.lines += content.count(b"\n")
        return content

    def readable(self) -> bool:
        """Return True, which pyarrow asks for."""
        return True


def read_header(path: Path, delimiter: str) -> list[str]:
    """Return the column names as they are written in the first line.

    Raises:
        ValueError: the file is empty, or a column has no name.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            names = next((row for row in csv.reader(file, delimiter=delimiter) if row), None)
        except csv.Error as error:
            raise ValueError(f"{path}: expected names of columns first, got {error}") from None
    if names is None:
        raise ValueError(f"{path}: expected a table, got an empty file")
    nameless = [k for k, name in enumerate(names, start=1) if not name.strip()]
    if nameless:
        raise ValueError(
            f"{path}, line 1: expected a name for each of the {len(names)} columns, got none for "
            f"column {nameless[0]}; pandas writes such a column, of row numbers, unless told "
            "index=False"
        )
    return names


def line_of_row(path: Path, delimiter: str, number: int) -> int | None:
    """Return the line in which a row begins; the header is row 0.

    The result is None where Python's csv module cannot parse what pyarrow parsed.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        line, rows = 1, 0
        try:
            for row in reader:
                if row and rows == number:
                    return line
                rows += bool(row)
                line = reader.line_num + 1
        except csv.Error:
            pass
    return None


def may_end_in_open_quote(path: Path, last_value: str) -> bool:
    """Return whether the file ends in its last value with a quote before it and none after it.

    A quote that is never closed extends to the end of the file. The only other file that ends so
    has "" as its last value; ``check_quotes`` tells the two apart by reading the whole file.
    """
    end = ('"' + last_value.replace('"', '""')).encode()
    with path.open("rb") as file:
        file.seek(-min(len(end), path.stat().st_size), os.SEEK_END)
        return file.read() == end


def check_quotes(path: Path, delimiter: str) -> None:
    """Raise ValueError with the line of the first quote that opens a value and is never closed.

    Within an unquoted value, as in 5" pipe, a quote is an ordinary character.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        line = 1
        try:
            for _ in reader:
                line = reader.line_num + 1
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise ValueError(
                    f"{path}, line {line}: expected a closing quote, got the end of the file"
                ) from None


def delimiter_hint(names: list[str], delimiter: str) -> str:
    """Return advice for an error where a file seems to have another delimiter, or ""."""
    for other in (";", "\t", ",", "|"):
        if len(names) == 1 and other != delimiter and other in names[0]:
            return (
                f"; its columns look separated by {other!r}, not {delimiter!r}: give the delimiter "
                f"{other!r}"
            )
    return ""
