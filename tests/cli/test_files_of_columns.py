"""Files of columns keep what their format can hold, and say null for what it cannot."""

import json
import math
from pathlib import Path

from pyarrow import parquet

from softmax_torch.cli.table_files import appending, write_table


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_table({"x": [1.5, math.nan, math.inf, None], "names": [["b"], [], [], []]}, path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["x"] for row in rows] == [1.5, None, None, None]
    assert rows[0]["names"] == ["b"]


def test_the_first_lists_of_a_parquet_file_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with appending(path) as append:
        append({"x": [1], "names": [[]]})
        append({"x": [2], "names": [["a", "b"]]})
    assert parquet.read_table(path).to_pydict() == {"x": [1, 2], "names": [[], ["a", "b"]]}
