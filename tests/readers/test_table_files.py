"""Packed text files, JSON lines and workbooks give the values of the plain file."""

import datetime as dt
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from workbooks import write_workbook

from softmax_torch.readers import delimited
from softmax_torch.readers.table_format import TableFormat
from softmax_torch.readers.table_source import Source
from softmax_torch.readers.tables import read_chunks

CSV = "size,kind,flag\n0.5,x,true\nNA,,false\n-2,z z,true\n"
ROWS = [{"size": 0.5, "kind": "x", "flag": True}, {"flag": False}, {"size": -2, "kind": "z z"}]
SHEET = [["size", "kind", "flag"], [0.5, "x", True], [None, None, False], [-2, "z z", True]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def packed(content: bytes) -> bytes:
    """Return a gzip file without its time, which would give a test another name each second."""
    return gzip.compress(content, mtime=0)


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(name: str) -> str:
    path = Path(name)
    if path.suffix == ".xlsx":
        write_workbook(path, SHEET, [["other"], [1]])
        return name
    text = CSV.replace(",", "\t") if ".tsv" in name else CSV
    if ".jsonl" in name:
        rows = [*ROWS[:2], ROWS[2] | {"flag": True}]
        text = "\n" + lines(rows)  # an empty line first
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return name


@pytest.mark.parametrize("rows", [2, 100])
@pytest.mark.parametrize("name", ["a.csv.gz", "a.tsv.gz", "a.jsonl", "a.jsonl.gz", "a.xlsx"])
def test_all_files_give_the_same_values(name: str, rows: int, here: Path) -> None:
    chunks = list(read_chunks(Source.from_path(write(name)), rows))
    assert [len(chunk) for chunk in chunks] == ([2, 1] if rows == 2 else [3])
    values = {
        name: [v for chunk in chunks for v in chunk.text(name).to_pylist()]
        for name in ("size", "kind", "flag")
    }
    assert values == {
        "size": ["0.5", None, "-2"],
        "kind": ["x", None, "z z"],
        "flag": ["true", "false", "true"],
    }
    place = {"x": "row 4 of the sheet"}.get(name[2], "line 4")
    assert chunks[-1].locate(len(chunks[-1]) - 1) == f"{name}, {place}"


def test_a_packed_file_is_read_in_blocks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a block ends within a line end, and where a quote is left open."""
    monkeypatch.setattr(delimited, "PARSED_BYTES", 128)
    for k in range(30, 50):
        value = "y" + "x" * k + "\r\ny"
        text = "a,b\r\n" + "1,x\r\n" * 16 + f'1,"{value}"\r\n'
        Path("a.csv.gz").write_bytes(gzip.compress(text.encode()))
        found = list(read_chunks(Source.from_path("a.csv.gz"), 100))
        assert [v for c in found for v in c.column("b").to_pylist()] == ["x"] * 16 + [value]
    Path("a.csv.gz").write_bytes(gzip.compress(b'a,b\n1,x\n2,"y\n3,z\n'))
    with pytest.raises(ValueError, match=r"a.csv.gz, line 3: expected a closing quote"):
        list(read_chunks(Source.from_path("a.csv.gz"), 100))


def test_values_of_several_types_become_text(here: Path) -> None:
    """In JSON lines for the whole file, even if each block has one type."""
    Path("a.jsonl").write_text(lines([{"a": 1, "b": 1}, {"a": 2.5, "b": "x"}, {"a": None}]))
    found = list(read_chunks(Source.from_path("a.jsonl"), 1))
    assert [c.text("a")[0].as_py() for c in found] == ["1", "2.5", None]
    assert [c.column("b")[0].as_py() for c in found] == ["1", "x", None]
    assert str(found[0].column("b").type) == "string"
    write_workbook(Path("a.xlsx"), [[None], ["a", None, "a b"], [1, "i", "x"], [None, "j", 2.5]])
    [chunk] = read_chunks(Source.from_path("a.xlsx"), 9)
    assert chunk.names == ["a", "", "a b"]
    assert chunk.column("a b").to_pylist() == ["x", "2.5"]
    assert chunk.column("a").to_pylist() == [1, None]


def test_dates_of_a_workbook(here: Path) -> None:
    write_workbook(Path("a.xlsx"), [["day"], [dt.date(2020, 1, 2)], [None]])
    [chunk] = read_chunks(Source.from_path("a.xlsx", TableFormat(dates=("day",))), 9)
    assert chunk.numbers("day")[0] == 18263


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": }\n', r"line 2: expected a JSON object, got Expecting value"),
        ("a.jsonl", b"\n[1, 2]\n", r"line 2: expected a JSON object, got \[1, 2\]$"),
        ("a.jsonl", b'{"a": "\xff"}\n', r"a.jsonl: expected text in UTF-8"),
        (
            "a.jsonl",
            b'{"a": 1, "b": 1}\n{"a": 2, " b": 5}\n',
            r'line 2: expected keys that differ in more than spaces, got " b" and "b"$',
        ),
        ("a.jsonl", b"", r"a.jsonl: expected at least one row, got none"),
        ("a.csv.gz", b"a,b\n1,2\n", r"a.csv.gz: expected a gzip file, got one that is broken"),
        ("a.jsonl.gz", packed(b'{"a": 1}')[:-9], r"a.jsonl.gz: expected a gzip file, got"),
        ("a.csv.gz", packed(CSV.encode())[:-9], r"a.csv.gz: expected a gzip file, got one"),
        ("a.csv.gz", packed(b"a,b\n1,\xff\n"), r"line 2: .* gunzip -c a.csv.gz \| iconv"),
        ("a.xlsx", b"no workbook", r"a.xlsx: expected a workbook, got another file"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: bytes, message: str, here: Path) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_chunks(Source.from_path(name), 10))


def test_an_empty_sheet_is_refused(here: Path) -> None:
    write_workbook(Path("a.xlsx"), [[None]], [["a"], [1]])
    with pytest.raises(ValueError, match=r"a.xlsx: expected a table in the first sheet"):
        list(read_chunks(Source.from_path("a.xlsx"), 10))


def test_a_workbook_needs_an_extra(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.xlsx")
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    with pytest.raises(ImportError, match=r"pip install 'softmax-torch\[excel\]'"):
        list(read_chunks(Source.from_path("a.xlsx"), 10))
