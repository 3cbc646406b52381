"""Read delimited text files (.csv, .tsv, .tab) as pyarrow tables of text, block by block.

A file whose name ends in .gz is unpacked as it is read. A column may lack a name, which then is "".

pyarrow parses the files, and every value stays text: 300,000 rows of 21 columns take 0.6 s, with
Python's csv module 8 s. This file finds two faults that pyarrow accepts: bytes that are not UTF-8,
and a quote that is never closed. pyarrow counts rows, and a row may span several lines; to name a
line in a message, the file is read a second time.
"""

from __future__ import annotations

import atexit
import codecs
import csv
import gzip
import io
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
from pyarrow import csv as arrow

from softmax_torch.readers.table_format import setting

__all__ = ["DELIMITERS", "delimiter_hint", "line_of_row", "read_tables"]

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
"""Default delimiter of each file suffix."""

PARSED_BYTES = 1 << 22
"""Bytes that are parsed in one block; a row cannot be longer."""

GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)
"""Exceptions for a damaged .gz."""

STOP_SECONDS = 0.1
"""Time that pyarrow's thread has to end. It needs 0.03 s to unpack a block that it has begun."""

LATEST: list[Utf8File] = []
"""The file that was read last, or is being read."""


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

    with open_bytes(path) as file:
        checked = Utf8File(path, file)
        LATEST[:] = [checked]
        try:
            batches = arrow.open_csv(
                pa.PythonFile(checked, mode="r"),
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
    if may_end_in_open_quote(checked.end, last_value):
        check_quotes(path, delimiter)


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacked if its name ends in .gz."""
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def open_text(path: Path, errors: str = "strict") -> IO[str]:
    """Open a file as text in UTF-8, unpacked if its name ends in .gz."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors=errors, newline="")


def gzip_error(path: Path, error: Exception) -> ValueError:
    """Return the error for a damaged .gz."""
    return ValueError(f"{path}: expected a gzip file, got one that is broken: {error}")


@atexit.register
def stop_reading() -> None:
    """Let pyarrow's thread end before the program does, perhaps with an error within a file.

    The thread reads ahead, and then drops its references to Python's objects. While Python shuts
    down it stops threads that wait for its lock: a thread of pyarrow aborts or hangs the process.
    """
    for file in LATEST:
        file.stopped = True
        time.sleep(STOP_SECONDS)


class Utf8File(io.RawIOBase):
    """A binary file whose bytes are checked to be UTF-8 as they are read.

    Attributes:
        end: the last bytes that were read, two blocks at most. A row is no longer than a block.
        stopped: whether the file ends here, whatever follows.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self.file = path, file
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.lines = 1
        self.held_back = b""
        self.last_blocks = (b"", b"")
        self.stopped = False

    @property
    def end(self) -> bytes:
        return b"".join(self.last_blocks)

    def read(self, size: int = -1) -> bytes:
        """Return the next ``size`` bytes at most; raise ValueError unless they are UTF-8."""
        if self.stopped:
            return b""
        room = size - len(self.held_back) if size > 0 else -1
        try:
            content = self.held_back + self.file.read(room)
        except GZIP_ERRORS as error:
            raise gzip_error(self.path, error) from None
        self.held_back = b""
        if len(content) > 1 and content.endswith(b"\r"):
            # If a block ended between \r and \n, pyarrow would drop the \n, even within quotes.
            content, self.held_back = content[:-1], b"\r"
        if content:
            self.last_blocks = (self.last_blocks[1], content)
        try:
            self.decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            line = self.lines + error.object[: error.start].count(b"\n")
            byte = error.object[error.start]
            utf16 = line == 1 and byte in (0xFE, 0xFF)  # the byte order mark of UTF-16
            name, unpack = self.path.name, ""
            if self.path.suffix.lower() == ".gz":
                name, unpack = "", f"gunzip -c {name} | "
            convert = f"iconv -f {'UTF-16' if utf16 else 'WINDOWS-1252'} -t UTF-8 {name}".rstrip()
            raise ValueError(
                f"{self.path}, line {line}: expected text in UTF-8, got the byte 0x{byte:02x}; "
                f"save it as UTF-8, or convert it: {unpack}{convert} > NEW.csv"
            ) from None
        self.lines += content.count(b"\n")
        return content

    def readable(self) -> bool:
        """Return True, which pyarrow asks for."""
        return True


def read_header(path: Path, delimiter: str) -> list[str]:
    """Return the column names as they are written in the first line.

    Raises:
        ValueError: the file is empty or cannot be parsed.
    """
    with open_text(path, errors="replace") as file:
        try:
            names = next((row for row in csv.reader(file, delimiter=delimiter) if row), None)
        except csv.Error as error:
            raise ValueError(f"{path}: expected names of columns first, got {error}") from None
        except GZIP_ERRORS as error:
            raise gzip_error(path, error) from None
    if names is None:
        raise ValueError(f"{path}: expected a table, got an empty file")
    return names


def line_of_row(path: Path, delimiter: str, number: int) -> int | None:
    """Return the line in which a row begins; the header is row 0.

    The result is None where Python's csv module cannot parse what pyarrow parsed.
    """
    with open_text(path, errors="replace") as file:
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


def may_end_in_open_quote(end: bytes, last_value: str) -> bool:
    """Return whether a file ends in its last value with a quote before it and none after it.

    A quote that is never closed extends to the end of the file. The only other file that ends so
    has "" as its last value; ``check_quotes`` tells the two apart by reading the whole file.
    """
    return end.endswith(('"' + last_value.replace('"', '""')).encode())


def check_quotes(path: Path, delimiter: str) -> None:
    """Raise ValueError with the line of the first quote that opens a value and is never closed.

    Within an unquoted value, as in 5" pipe, a quote is an ordinary character.
    """
    with open_text(path) as file:
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
            return f"; its columns look separated by {other!r}, not {delimiter!r}: " + setting(
                "delimiter", r"\t" if other == "\t" else other
            )
    return ""
