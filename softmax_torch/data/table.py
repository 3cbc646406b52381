"""Tables of a user's own: a file with a column of classes, and columns to tell them from.

    file  ->  which columns are numbers               decided on all of its rows
          ->  training, validation, test              given, or drawn class by class
          ->  means, deviations, categories, classes  those of the training samples alone
          ->  x (n, D), y (n,)

The file is read three times, some rows at a time; what stays in memory is x in float32, and a few
bytes for each row.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from softmax_torch.data.module import Split, TensorDataModule
from softmax_torch.data.rows import PARTS, ROWS, Roles, Rows
from softmax_torch.data.splits import TEST_SEED
from softmax_torch.preprocessing import TablePreprocessing
from softmax_torch.preprocessing.chunks import Source, chunks
from softmax_torch.preprocessing.columns import Column
from softmax_torch.preprocessing.survey import Survey

__all__ = ["TableDataModule"]

ENCODED = 1 << 24
"""Numbers that rows become together, which are in memory twice besides x: 64 MiB each."""


class TableDataModule(TensorDataModule):
    r"""A table in a .csv, .tsv, .tab, .parquet, .npz or .npy file.

    Columns of numbers are standardised, and all others become one number a category; see
    ``softmax_torch.preprocessing``. The samples for validation and for testing are those of
    ``val_file`` and ``test_file``, or those that ``split_column`` names; what is not given is drawn
    from the training samples, with its share of each class.

    Args:
        file: the table to train on.
        target: the column with the classes.
        test_file, val_file: tables with the same columns.
        split_column: a column that says train, val or test.
        ignore: columns to leave out.
        categorical: columns of numbers that are categories.
        id_column: a column with what samples are called in predictions; None for numbers of rows.
        delimiter: between the columns of a .csv, such as ; or \t for a tab; None for a comma.
        batch_size, seed: see ``TensorDataModule``.
        val_fraction, test_fraction: share of the samples at hand that is drawn, in (0, 1): for the
            test set first, in the same way whatever the seed is, then for validation.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be used; with column and line.
    """

    def __init__(
        self,
        file: str,
        target: str,
        test_file: str | None = None,
        val_file: str | None = None,
        split_column: str | None = None,
        ignore: list[str] | None = None,
        categorical: list[str] | None = None,
        id_column: str | None = None,
        delimiter: str | None = None,
        batch_size: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        seed: int = 0,
    ) -> None:
        files = {"val": val_file, "test": test_file}
        given = {part: path for part, path in files.items() if path is not None}
        if split_column is not None and given:
            raise ValueError("split_column: expected no val_file and no test_file beside it")
        delimiter = "\t" if delimiter == r"\t" else delimiter
        if delimiter is not None and len(delimiter) != 1:
            raise ValueError(f"delimiter: expected one character, got {delimiter!r}")
        roles = Roles(target, split_column, id_column, ignore or [], categorical or [])
        # Read here and not in setup: the model is made for the sizes of the data, and a table's
        # are found in it.
        source = Source.of(file, delimiter)
        survey = Survey(roles.features(next(chunks(source, 1))), roles.categorical)
        rows = Rows.of(source, target, split_column=split_column, look=survey.add)
        others = [Rows.of(Source.of(path, delimiter), target, part) for part, path in given.items()]
        class_names = rows.class_names()
        y = [table.y(class_names) for table in (rows, *others)]
        fractions = {"test": (test_fraction, TEST_SEED), "val": (val_fraction, seed)}
        there = {*given, *(part for part in PARTS if len(rows.in_part(part)))}
        rows.draw(
            y[0], {part: how for part, how in fractions.items() if part not in there}, class_names
        )
        columns = fitted(survey, rows)
        self._preprocessing = TablePreprocessing(columns, class_names, id_column, delimiter)
        super().__init__(
            self._preprocessing.in_features, len(class_names), batch_size, val_fraction, seed
        )
        [self._test] = [table for table in (rows, *others) if len(table.in_part("test"))]
        self._ids: list[str] = []
        self._read: dict[str, Split] = {}
        for table, classes in zip((rows, *others), y, strict=True):
            self._read |= self._encoded(table, torch.from_numpy(classes))

    @property
    def preprocessing(self) -> TablePreprocessing:
        """Means, deviations and categories of the training samples."""
        return self._preprocessing

    @property
    def test_ids(self) -> list[str]:
        """Samples of the test set by ``id_column``, or by their rows in the file they come from."""
        return self._ids

    def test_inputs(self, rows: int) -> pa.Table:
        """The first rows of the test set, as they are in the file."""
        wanted = self._test.in_part("test")[:rows]
        found = []
        for chunk in chunks(self._test.source, ROWS):
            mine = (wanted >= chunk.first) & (wanted < chunk.first + len(chunk))
            found.append(chunk.table.take(wanted[mine] - chunk.first))
            if wanted[-1] < chunk.first + len(chunk):
                break
        return pa.concat_tables(found)

    def read_splits(self) -> dict[str, Split]:
        """What was read."""
        return self._read

    def _encoded(self, rows: Rows, y: torch.Tensor) -> dict[str, Split]:
        """Samples of a file, by the part they are for."""
        there = {part: torch.from_numpy(rows.in_part(part)) for part in PARTS}
        D = self._preprocessing.in_features
        x = {part: torch.empty(len(at), D) for part, at in there.items() if len(at)}
        filled = dict.fromkeys(x, 0)
        for chunk in chunks(rows.source, min(ROWS, max(1, ENCODED // D))):
            encoded = self._preprocessing.encode(chunk)
            part_of = rows.part[chunk.first : chunk.first + len(chunk)]
            for part in x:
                mine = np.flatnonzero(part_of == PARTS[part])
                x[part][filled[part] : filled[part] + len(mine)] = encoded[mine]
                filled[part] += len(mine)
            if "test" in x:
                ids = self._preprocessing.ids(chunk)
                self._ids += [ids[k] for k in np.flatnonzero(part_of == PARTS["test"])]
        return {part: Split(x[part], y[there[part]]) for part in x}


def fitted(survey: Survey, rows: Rows) -> list[Column]:
    """Columns with the means, deviations and categories of the training samples."""
    columns = survey.columns(rows.source)
    for chunk in chunks(rows.source, ROWS):
        training = rows.part[chunk.first : chunk.first + len(chunk)] == PARTS["train"]
        for column in columns:
            column.add(chunk, training)
    try:
        return [column.column() for column in columns]
    except ValueError as error:
        raise ValueError(f"{rows.source.name}: {error}") from None
