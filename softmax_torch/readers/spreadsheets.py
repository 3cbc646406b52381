"""Read the first sheet of a workbook (.xlsx) as a pyarrow table. Needs the ``excel`` extra.

The first row names the columns; it may stand below empty rows. Cells of a column that have several
types become text. Empty rows are left out.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from softmax_torch.readers.python_values import to_arrow_or_text

__all__ = ["line_of_row", "read_tables"]


def read_tables(path: Path) -> Iterator[pa.Table]:
    """Yield the rows of the first sheet as one table.

    Raises:
        ImportError: python-calamine, which reads workbooks, is not installed.
        ValueError: the file is no workbook, or its first sheet is empty.
    """
    numbered = filled_rows(path)
    if not numbered:
        raise ValueError(f"{path}: expected a table in the first sheet, got an empty one")
    (_, header), *rows = numbered
    columns = zip(*(row for _, row in rows), strict=True) if rows else ([] for _ in header)
    arrays = [to_arrow_or_text([plain(cell) for cell in column]) for column in columns]
    yield pa.table(arrays, names=[str(plain(name) or "").strip() for name in header])


def filled_rows(path: Path) -> list[tuple[int, list[Any]]]:
    """Return the rows that are not empty, with their numbers in the sheet from 1."""
    try:
        from python_calamine import CalamineError, CalamineWorkbook
    except ImportError:
        raise ImportError(
            f"{path}: expected the package python-calamine, which reads workbooks, got none: "
            "pip install 'softmax-torch[excel]'"
        ) from None
    try:
        sheet = CalamineWorkbook.from_path(path).get_sheet_by_index(0)
        cells = sheet.to_python(skip_empty_area=False)
    except (CalamineError, IndexError, OSError) as error:
        raise ValueError(f"{path}: expected a workbook, got another file: {error}") from None
    return [(k, row) for k, row in enumerate(cells, start=1) if any(cell != "" for cell in row)]


def plain(cell: Any) -> Any:
    """Return a cell's value: None if it is empty, and a whole number as an integer."""
    if cell == "" and isinstance(cell, str):
        return None
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return int(cell)
    if isinstance(cell, datetime.datetime | datetime.date):
        return cell
    return str(cell) if isinstance(cell, datetime.time | datetime.timedelta) else cell


def line_of_row(path: Path, row: int) -> int:
    """Return the number in the sheet of a row, which counts from 0 below the header."""
    return filled_rows(path)[row + 1][0]
