"""The origin of a table: its file, the kind of this file, and the lines of its rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from softmax_torch.readers import delimited, json_lines, spreadsheets
from softmax_torch.readers.table_format import TableFormat
from softmax_torch.storage.safe_read import require_file

__all__ = ["TABLE_SUFFIXES", "Source", "table_suffix"]

TEXT_SUFFIXES = (*delimited.DELIMITERS, ".jsonl")
PACKED_SUFFIXES = tuple(f"{suffix}.gz" for suffix in TEXT_SUFFIXES)
TABLE_SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".xlsx", ".npz", ".npy", *PACKED_SUFFIXES)
"""Suffixes of the table files that can be read."""


def table_suffix(path: Path) -> str:
    """Return the suffix of a file in lower case, with the one before it if the last is .gz."""
    return "".join(path.suffixes[-2 if path.suffix.lower() == ".gz" else -1 :]).lower()


@dataclass(frozen=True)
class Source:
    """The origin of a table, to read it and to name it in messages.

    Args:
        name: path of the file, or a word for a table in memory.
        suffix: kind of the file, one of ``TABLE_SUFFIXES`` without .gz; "" in memory.
        format: how its texts are written.
    """

    name: str
    suffix: str = ""
    format: TableFormat = field(default_factory=TableFormat)

    @classmethod
    def from_path(cls, path: str | Path, format: TableFormat | None = None) -> Source:
        """Return the source for a file.

        Args:
            path: a file with one of the ``TABLE_SUFFIXES``.
            format: how its texts are written. The delimiter is that of a .csv.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file has another suffix.
        """
        path = Path(path)
        require_file(path, "a table")
        suffix = table_suffix(path)
        if suffix not in TABLE_SUFFIXES:
            raise ValueError(f"{path}: expected a name that ends in {', '.join(TABLE_SUFFIXES)}")
        return cls(str(path), suffix.removesuffix(".gz"), format or TableFormat())

    @property
    def delimiter(self) -> str | None:
        """The delimiter between the columns of a text file; None for other formats."""
        given = self.format.delimiter if self.suffix == ".csv" else None
        return given or delimited.DELIMITERS.get(self.suffix)

    def with_format(self, format: TableFormat) -> Source:
        """Return the same source, read in another format."""
        return replace(self, format=format)

    def locate(self, row: int) -> str:
        """Return the location of a row for messages: its line in a text file, else its number."""
        line, path = None, Path(self.name)
        if self.delimiter is not None:
            line = delimited.line_of_row(path, self.delimiter, row + 1)
        elif self.suffix == ".jsonl":
            line = json_lines.line_of_row(path, row)
        elif self.suffix == ".xlsx":
            return f"{self.name}, row {spreadsheets.line_of_row(path, row)} of the sheet"
        return f"{self.name}, " + (f"row {row}" if line is None else f"line {line}")
