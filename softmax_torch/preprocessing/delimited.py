"""Text files of columns, .csv, .tsv and .tab, as tables of text, some rows at a time.

pyarrow parses them, and every value stays the text that it is: 300,000 rows of 21 columns take
0.6 s, where Python's csv module takes 8. What pyarrow does not mind is found here: text that is not
UTF-8, and a quote that is never closed. It counts rows, and a row may span several lines; where a
message has to name a line, the file is read once more.
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

__all__ = ["DELIMITERS", "hint", "line_of", "tables"]

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
"""What lies between two columns, by the suffix of a file."""

BLOCK = 1 << 22
"""Bytes that are parsed together, and that a row has at most."""


def tables(path: Path, delimiter: str) -> Iterator[pa.Table]:
    """The rows of a file, as columns of text.

    Raises:
        ValueError: it cannot be read, or not to the end; with the line.
    """
    names = header(path, delimiter)
    bad: list[Any] = []

    def fails(row: Any) -> str:
        bad.append(row)
        return "error"

    with path.open("rb") as file:
        try:
            batches = arrow.open_csv(
                pa.PythonFile(Watched(path, file), mode="r"),
                # In one thread: with several, a row that is bad comes without its number.
                arrow.ReadOptions(use_threads=False, block_size=BLOCK),
                arrow.ParseOptions(
                    delimiter=delimiter, newlines_in_values=True, invalid_row_handler=fails
                ),
                arrow.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
                ),
            )
            last = ""
            for batch in batches:
                last = batch[-1][-1].as_py() if len(batch) else last
                yield pa.Table.from_batches([batch]).rename_columns([n.strip() for n in names])
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error):  # names of columns, and no line after them
                return
            if not bad:
                long = f"a row of more than {BLOCK >> 20} MiB, where a quote may be left open"
                reason = long if "straddl" in str(error) else error
                raise ValueError(f"{path}: expected a table, got {reason}") from None
            line = line_of(path, delimiter, bad[0].number - 1)
            raise ValueError(
                f"{path}, line {line}: expected {bad[0].expected_columns} fields, as in the first "
                f"line, got {bad[0].actual_columns}{hint(names, delimiter)}"
            ) from None
    if ends_in_quote(path, last):
        check_quotes(path, delimiter)


class Watched(io.RawIOBase):
    """A file that is UTF-8, or says where it is not."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self.path, self.file = path, file
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.lines = 1

    def read(self, size: int = -1) -> bytes:
        """So many bytes; ValueError if they are no text."""
        piece = self.file.read(size)
        if len(piece) > 1 and piece.endswith(b"\r") and self.file.peek(1)[:1] == b"\n":
            # Parted from its \r, pyarrow drops the \n, though they stand between quotes.
            self.file.seek(-1, os.SEEK_CUR)
            piece = piece[:-1]
        try:
            self.decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            line = self.lines + error.object[: error.start].count(b"\n")
            byte = error.object[error.start]
            wide = line == 1 and byte in (0xFE, 0xFF)  # the mark that UTF-16 begins with
            raise ValueError(
                f"{self.path}, line {line}: expected text in UTF-8, got the byte 0x{byte:02x}; "
                "save it as UTF-8, or convert it: iconv -f "
                f"{'UTF-16' if wide else 'WINDOWS-1252'} -t UTF-8 {self.path.name} > NEW.csv"
            ) from None
        self.lines += piece.count(b"\n")
        return piece

    def readable(self) -> bool:
        """Yes."""
        return True


def header(path: Path, delimiter: str) -> list[str]:
    """Names of the columns, as they stand in the first line.

    Raises:
        ValueError: there are none.
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


def line_of(path: Path, delimiter: str, number: int) -> int | None:
    """The line in which a row begins, its first one; the names of columns are row 0.

    None where Python's csv module cannot follow pyarrow.
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


def ends_in_quote(path: Path, last: str) -> bool:
    """Whether a file ends in its last value with a quote before it and none after it.

    One that was never closed goes to the end of the file; ``check_quotes`` knows it from "", the
    only other value of which this can be said, and reads the whole file for that.
    """
    end = ('"' + last.replace('"', '""')).encode()
    with path.open("rb") as file:
        file.seek(-min(len(end), path.stat().st_size), os.SEEK_END)
        return file.read() == end


def check_quotes(path: Path, delimiter: str) -> None:
    """Whether every quote that opens a value is closed; ValueError with the line of the other.

    Within a value that has none around it, as in 5" pipe, a quote is a character like any other.
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


def hint(names: list[str], delimiter: str) -> str:
    """What to do where a file seems to have another delimiter; empty where it does not."""
    for other in (";", "\t", ",", "|"):
        if len(names) == 1 and other != delimiter and other in names[0]:
            return (
                f"; its columns look separated by {other!r}, not {delimiter!r}, which fit is told "
                f"with --data.delimiter {other!r}"
            )
    return ""
