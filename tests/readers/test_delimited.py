"""Delimited text files: the values that are read, and the errors for files that cannot be read."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softmax_torch.readers import delimited
from softmax_torch.readers.table_format import TableFormat
from softmax_torch.readers.table_source import Source
from softmax_torch.readers.tables import read_chunks


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(content: bytes, name: str = "a.csv", rows: int = 100, delimiter: str | None = None):
    Path(name).write_bytes(content)
    chunks = list(read_chunks(Source.from_path(name, TableFormat(delimiter)), rows))
    assert [chunk.first for chunk in chunks] == [
        sum(len(chunk) for chunk in chunks[:k]) for k in range(len(chunks))
    ]
    assert all(0 < len(chunk) <= rows for chunk in chunks)
    return {
        name: [value for chunk in chunks for value in chunk.column(name).to_pylist()]
        for name in chunks[0].names
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b\n1,x\n2,y\n", {"a": ["1", "2"], "b": ["x", "y"]}),
        (b"a,b\r\n1,x\r\n", {"a": ["1"], "b": ["x"]}),
        (b"a,b\n1,x", {"a": ["1"], "b": ["x"]}),
        (
            b"\xef\xbb\xbfa,b\n1,x\n",
            {"a": ["1"], "b": ["x"]},
        ),  # the byte order mark that Excel writes
        (b"\n\na,b\n\n1,x\n\n\n2,y\n\n", {"a": ["1", "2"], "b": ["x", "y"]}),
        (b'a,b\n"1","x,\n""y"""\n', {"a": ["1"], "b": ['x,\n"y"']}),
        (b'a,b\n1,5" pipe\n', {"a": ["1"], "b": ['5" pipe']}),
        (b'a,b\n1,5" pipe\n2,""', {"a": ["1", "2"], "b": ['5" pipe', None]}),
        (b" a ,b\n 1 , x y \n", {"a": ["1"], "b": ["x y"]}),
        ("ä,b\n1,二\n".encode(), {"ä": ["1"], "b": ["二"]}),
        (b"a\n1\n\n2\n", {"a": ["1", "2"]}),
        (b'a,b\n,NA\nN/A,NaN\nnan,null\nNULL," "\n1,None\n', {"a": [None] * 4 + ["1"]}),
        (b"a,b\n1,NA\n", {"b": [None]}),
        (b",a,\n7,1,8\n", {"a": ["1"]}),  # columns without a name, as pandas writes the index
    ],
)
def test_values_are_text(content: bytes, expected: dict[str, list[str | None]], here: Path) -> None:
    found = read(content)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "delimiter", "content"),
    [
        ("a.csv", ";", b"a;b\n1,5;x\n"),
        ("a.tsv", None, b"a\tb\n1,5\tx\n"),
        ("a.TAB", None, b"a\tb\n1,5\tx\n"),
        ("a.tsv", ";", b"a\tb\n1,5\tx\n"),  # the argument is for .csv only
    ],
)
def test_the_delimiter(name: str, delimiter: str | None, content: bytes, here: Path) -> None:
    assert read(content, name, delimiter=delimiter) == {"a": ["1,5"], "b": ["x"]}


TABLE = st.lists(
    st.tuples(*[st.text(st.sampled_from('ab1,;"\n\r é'), max_size=4)] * 2), min_size=1, max_size=9
)


@given(rows=TABLE, block=st.integers(80, 200), size=st.integers(1, 4))
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_written_tables_are_read_back(rows, block: int, size: int, here: Path) -> None:
    """In blocks and chunks of any size; every row is located at the line in which it begins."""
    import csv

    lines, text = [], '"first","sec\nond"\n'
    for row in rows:
        lines.append(text.count("\n") + 1)
        text += ",".join(f'"{value}"' for value in (v.replace('"', '""') for v in row)) + "\n"
    path = here / "a.csv"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "PARSED_BYTES", block)
        chunks = list(read_chunks(Source.from_path(path), size))
    found = [row for chunk in chunks for row in zip(*chunk.table.to_pydict().values(), strict=True)]
    assert found == rows
    with path.open(newline="") as file:
        assert [tuple(row) for row in csv.reader(file)][1:] == rows
    if "\r" not in text:
        places = [chunk.locate(k) for chunk in chunks for k in range(len(chunk))]
        assert places == [f"{path}, line {line}" for line in lines]


def test_a_line_end_in_a_value_may_cross_blocks(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "PARSED_BYTES", 128)
    for k in range(60):
        value = "y" + "x" * k + "\r\ny"
        found = read(b"a,b\r\n" + b"1,x\r\n" * 16 + f'1,"{value}"\r\n'.encode())
        assert found["b"] == ["x"] * 16 + [value]


LONG = b"".join(b"%d,x\n" % k for k in range(3000))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a.csv: expected a table, got an empty file$"),
        (b"\n\n", r"a.csv: expected a table, got an empty file$"),
        (b"a,b", r"a.csv: expected at least one row, got none$"),
        (b"a,b\n\n", r"a.csv: expected at least one row, got none$"),
        (b"a,b,a\n1,2,3\n", r"a.csv: expected a name of its own .* got two called a$"),
        (b"a, a\n1,2\n", r"a.csv: expected a name of its own .* got two called a$"),
        (b"a,b\n1,2\n\n1,2,3\n", r"a.csv, line 4: expected 2 fields, .* got 3$"),
        (b'a,b\n1,"x\n\ny"\n7\n', r"a.csv, line 5: expected 2 fields, .* got 1$"),
        (b"a,b\n" + LONG + b"1,2,3\n", r"a.csv, line 3002: expected 2 fields, .* got 3$"),
        (
            b"a;b\n1,5;x\n",
            r"got 2; its columns look separated by ';', not ',': --data.delimiter ';'$",
        ),
        (b"a\tb\n1,5\tx\n", r"look separated by '\\t'"),
        ("a,b\n1,x\n2,é\n".encode("latin1"), r"a.csv, line 3: .*UTF-8.*0xe9.*iconv -f WINDOWS"),
        (b"a,b\n" + LONG + b"1,\xff\n", r"a.csv, line 3002: .* 0xff;"),
        (b"a,b\n1,\xc3", r"a.csv, line 2: .*UTF-8.* 0xc3"),  # cut off in a character
        ("a,b\n1,x\n".encode("utf-16"), r"a.csv, line 1: .*UTF-8.*iconv -f UTF-16 -t UTF-8 a.csv"),
        (b'a,b\n1,x\n2,"y\n3,z\n', r"a.csv, line 3: expected a closing quote, got the end"),
        (b'a,b\n1,5" pipe\n2,"y\n3,z\n', r"a.csv, line 3: expected a closing quote, got the end"),
        (b'a,b\n1,x\n2,"y ""z""\r\n\n', r"a.csv, line 3: expected a closing quote, got the end"),
        (b'a,b\n1,x\n2,"', r"a.csv, line 3: expected a closing quote, got the end"),
        (b"a,b\n1," + b"x" * 4096 + b"\n", r"a.csv: .* got a row of more than .* MiB"),
    ],
)
def test_files_that_cannot_be_read(
    content: bytes, message: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "PARSED_BYTES", 1024)
    with pytest.raises(ValueError, match=message):
        read(content)


def test_a_quote_within_a_value_needs_no_second_reading(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's csv module would take ten times as long."""
    monkeypatch.setattr(delimited, "check_quotes", lambda *args: pytest.fail("read again"))
    assert len(read(b'a,b\n1,5" pipe\n2,"x"\n')["a"]) == 2


def test_the_path_must_be_a_table_file(here: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.csv: expected a table, got no such file"):
        Source.from_path("none.csv")
    (here / "folder.csv").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder.csv: expected a table, got a folder"):
        Source.from_path("folder.csv")
    for name in ("a.xls", "a.gz", "a.parquet.gz"):
        (here / name).touch()
        with pytest.raises(ValueError, match=rf"{name}: expected a name that ends in .csv, .tsv"):
            Source.from_path(name)


PROGRAM = """
import sys, time
from pathlib import Path
from softmax_torch.readers import delimited

def slow_read(self, size, read=delimited.Utf8File.read):
    time.sleep(0.03)  # the program goes on meanwhile
    return read(self, size)

delimited.PARSED_BYTES, delimited.Utf8File.read = 1 << 10, slow_read
try:
    for table in delimited.read_tables(Path("a.csv"), ","):
        sys.exit("a table")
except ValueError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
    ("rows", "message"), [("", "a table"), ("3\n", "a.csv, line 2: expected 2 fields")]
)
def test_a_program_ends_in_order_while_a_file_is_read_ahead(here, rows, message):
    # Without ``stop_reading`` it ends by SIGABRT, or never.
    Path("a.csv").write_text("a,b\n" + rows + "1,2\n" * 4000)
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.startswith(message)
    assert len(ended.stderr.splitlines()) == 1
