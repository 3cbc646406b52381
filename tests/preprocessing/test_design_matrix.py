"""A table's design matrix has the values of its file, and no column that others determine."""

from pathlib import Path

import torch

from softmax_torch.data import TableDataModule
from softmax_torch.preprocessing.design_matrix import design_matrix


def test_values_are_those_of_the_file_and_first_categories_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "ships.csv"
    rows = [
        (2008 + i % 5, ("red", "green", "")[i % 3], 1.5 * i, "one", ("no", "yes")[i % 2])
        for i in range(30)
    ]
    text = "\n".join(",".join(map(str, row)) for row in [("year", "hue", "mm", "kind", "y"), *rows])
    file.write_text(text + "\n")
    data = TableDataModule(str(file), "y", val_fraction=0.2)
    data.setup()
    x = data.splits["test"].x
    design = design_matrix(data.preprocessing.columns, x)
    assert design.names == ("year", "hue=red", "hue=(missing)", "mm")
    assert design.terms == {
        "year": ("year",),
        "hue": ("hue=red", "hue=(missing)"),
        "mm": ("mm",),
        "kind": (),
    }
    assert design.references == {"hue": "green", "kind": "one"}
    ids = [int(row) for row in data.test_ids]
    wanted = [[rows[i][0], rows[i][1] == "red", rows[i][1] == "", rows[i][2]] for i in ids]
    assert design.X.dtype == torch.float64
    torch.testing.assert_close(
        design.X, torch.tensor(wanted, dtype=torch.float64), atol=1e-5, rtol=0
    )
