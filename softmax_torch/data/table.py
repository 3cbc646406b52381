"""Tables as data sets: a file with a column of classes, and columns to predict them from.

    file  ->  numeric and categorical columns         from all rows of the file
          ->  training, validation and test rows      given, or drawn class by class
          ->  means, deviations, categories, classes  from the training rows alone
          ->  x (n, D), y (n,)

The file is read three times, in chunks of rows; memory holds x in float32 and a few bytes a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import pyarrow as pa
import torch

from softmax_torch.data import labelled_rows
from softmax_torch.data.column_roles import ColumnRoles
from softmax_torch.data.description import ColumnCounts, DataDescription
from softmax_torch.data.labelled_rows import SPLITS, LabelledRows, Target, encode
from softmax_torch.data.splits import TEST_SEED, Split
from softmax_torch.data.tensor_data_module import TensorDataModule
from softmax_torch.preprocessing import TablePreprocessing
from softmax_torch.preprocessing.table import CategoricalColumn, Column
from softmax_torch.preprocessing.table_fitting import CategoricalFit, NumericFit, Survey
from softmax_torch.readers.table_format import TableFormat
from softmax_torch.readers.table_source import Source
from softmax_torch.readers.tables import read_chunks

__all__ = ["TableDataModule"]


class TableDataModule(TensorDataModule):
    r"""A table in a .csv, .tsv, .tab, .jsonl, .parquet, .xlsx, .npz or .npy file.

    Numeric columns are standardised, and categorical columns become one number for each category
    (see ``softmax_torch.preprocessing.table``). Validation and test samples are those of
    ``val_file`` and ``test_file``, or those that ``split_column`` names; a split that is not given
    is drawn from the training samples, class by class.

    Args:
        file: the table to train on.
        target: the column with the classes.
        test_file, val_file: tables with the same columns.
        split_column: a column with the values train, val and test.
        ignore: columns to leave out, by name ("" for columns without a name) or by position (0 is
            the first, -1 the last).
        categorical: columns of numbers that are categories.
        dates: columns of dates, which become days since 1970-01-01.
        id_column: a column that names the samples in predictions; None for row numbers.
        group_column: a column, such as a site, by whose values ``test`` and ``report`` also give
            their figures. It is no feature.
        delimiter: between the columns of a .csv, such as ; or \t for a tab; None for a comma.
        decimal: between the whole part of a number and its fraction.
        thousands: between groups of digits, as in 1,234; None if digits are not grouped.
        missing: texts that mean a missing value, besides an empty one, NA, N/A, NaN, nan, null and
            NULL.
        keep_labels: those of the latter that are classes in the column ``target``.
        drop_unlabelled: whether rows without a class are left out; otherwise they are refused.
        unknown: whether a category in validation or test samples that training samples lack is
            reported or refused.
        batch_size, seed: see ``TensorDataModule``.
        val_fraction, test_fraction: share of each class that is drawn, in (0, 1): first the test
            set, which does not depend on ``seed``, then the validation set.

    ``setup``, and the first access to ``preprocessing`` or a size, read the files and raise
    FileNotFoundError or ValueError, with column and line, for a file that cannot be used.
    """

    def __init__(
        self,
        file: str,
        target: str,
        test_file: str | None = None,
        val_file: str | None = None,
        split_column: str | None = None,
        ignore: list[str | int] | None = None,
        categorical: list[str] | None = None,
        dates: list[str] | None = None,
        id_column: str | None = None,
        group_column: str | None = None,
        delimiter: str | None = None,
        decimal: str = ".",
        thousands: str | None = None,
        missing: list[str] | None = None,
        keep_labels: list[str] | None = None,
        drop_unlabelled: bool = False,
        unknown: Literal["report", "refuse"] = "report",
        batch_size: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__(None, None, batch_size, val_fraction, seed)
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction: expected a number in (0, 1), got {test_fraction}")
        files = {"val": val_file, "test": test_file}
        self.file = file
        self.other_files = {name: path for name, path in files.items() if path is not None}
        if split_column is not None and self.other_files:
            raise ValueError("split_column: expected no val_file and no test_file beside it")
        self.format = TableFormat(
            "\t" if delimiter == r"\t" else delimiter,
            decimal,
            thousands,
            tuple(missing or ()),
            dates=tuple(dates or ()),
        )
        if unknown not in ("report", "refuse"):
            raise ValueError(f"unknown: expected report or refuse, got {unknown!r}")
        self.refuse_unknown = unknown == "refuse"
        self.test_fraction = test_fraction
        self.target = Target(target, tuple(keep_labels or ()), drop_unlabelled)
        kinds = (ignore or [], categorical or [], dates or [])
        self.roles = ColumnRoles(target, split_column, id_column, *kinds, group_column)

    @cached_property
    def loaded(self) -> LoadedTable:
        """The encoded files, read at the first access."""
        roles = self.roles
        source = Source.from_path(self.file, self.format)
        survey = Survey(roles.features(next(read_chunks(source, 1))), roles.categorical)
        main = LabelledRows.read(source, self.target, roles.split, on_chunk=survey.add)
        tables = [main]
        for name, path in self.other_files.items():
            other = Source.from_path(path, self.format)
            tables.append(LabelledRows.read(other, self.target, split=name))
        class_names = main.class_names()
        labels = [table.class_indices(class_names) for table in tables]
        draws = {"test": (self.test_fraction, TEST_SEED), "val": (self.val_fraction, self.seed)}
        given = {*self.other_files, *(name for name in SPLITS if len(main.in_split(name)))}
        draws = {name: draw for name, draw in draws.items() if name not in given}
        main.draw(torch.from_numpy(labels[0]), draws, class_names)
        fits = fit_columns(survey, main)
        columns = columns_of(fits, source)
        preprocessing = TablePreprocessing(
            columns, class_names, roles.id, self.format, roles.target, roles.group
        )
        missing = {fit.name: fit.missing for fit in fits if fit.missing}
        splits: dict[str, Split] = {}
        test_ids: list[str] = []
        groups: dict[str, list[str]] = {}
        for table, y in zip(tables, labels, strict=True):
            encoded = encode(
                table, torch.from_numpy(y), preprocessing, self.refuse_unknown, roles.group
            )
            splits |= encoded.splits
            test_ids += encoded.ids
            groups |= encoded.groups
        [test] = [table for table in tables if len(table.in_split("test"))]
        if roles.group is not None:
            check_groups(groups["test"], roles.group, test.source)
        return LoadedTable(preprocessing, splits, test, test_ids, groups, missing)

    @property
    def preprocessing(self) -> TablePreprocessing:
        """Means, deviations and categories of the training samples."""
        return self.loaded.preprocessing

    @property
    def test_ids(self) -> list[str]:
        """Test samples by ``id_column``, or by their row numbers in their file."""
        return self.loaded.test_ids

    @property
    def test_groups(self) -> list[str]:
        """Groups of the test samples by ``group_column``; empty without one."""
        return self.loaded.groups.get("test", [])

    @property
    def train_groups(self) -> list[str]:
        """Groups of the training samples by ``group_column``; empty without one."""
        return self.loaded.groups.get("train", [])

    def test_inputs(self, rows: int) -> pa.Table:
        """Return the first rows of the test set as they are in the file."""
        test = self.loaded.test
        wanted = test.in_split("test")[:rows]
        found = []
        for chunk in read_chunks(test.source, labelled_rows.READ_ROWS):
            in_chunk = (wanted >= chunk.first) & (wanted < chunk.first + len(chunk))
            found.append(chunk.table.take(wanted[in_chunk] - chunk.first))
            if wanted[-1] < chunk.first + len(chunk):
                break
        # Blocks of JSON lines may have integers where others have fractions.
        return pa.concat_tables(found, promote_options="permissive")

    def read_splits(self) -> dict[str, Split]:
        """Return the encoded splits."""
        return self.loaded.splits

    def describe(self) -> DataDescription:
        """Return what the data hold, with the columns of the table."""
        kinds = self.preprocessing.columns
        categorical = [column for column in kinds if isinstance(column, CategoricalColumn)]
        columns = ColumnCounts(
            numeric=len(kinds) - len(categorical),
            categorical=len(categorical),
            one_hot=sum(len(column.features) for column in categorical),
            ignored=len(self.roles.ignore),
            missing=self.loaded.missing,
        )
        return super().describe()._replace(columns=columns)


class LoadedTable(NamedTuple):
    """The result of reading the files."""

    preprocessing: TablePreprocessing
    splits: dict[str, Split]
    test: LabelledRows  # the file that the test samples come from
    test_ids: list[str]
    groups: dict[str, list[str]]  # of each split; empty without a column of groups
    missing: dict[str, int]  # missing training values of the columns that have any


def fit_columns(survey: Survey, rows: LabelledRows) -> list[NumericFit | CategoricalFit]:
    """Return the statistics of the columns in the training rows."""
    fits = survey.fits(rows.source)
    for chunk in read_chunks(rows.source, labelled_rows.READ_ROWS):
        training = rows.split[chunk.first : chunk.first + len(chunk)] == SPLITS["train"]
        for fit in fits:
            fit.add(chunk, training)
    return fits


def check_groups(groups: Sequence[str], column: str, source: Source) -> None:
    """Raise ValueError if all test samples are of one group."""
    if len(set(groups)) == 1:
        raise ValueError(
            f"{source.name}, column {column}: expected several groups in the test samples, got "
            f"{groups[0]} alone"
        )


def columns_of(fits: Sequence[NumericFit | CategoricalFit], source: Source) -> list[Column]:
    """Return the fitted columns; raise ValueError with the file if one cannot be used."""
    try:
        return [fit.column() for fit in fits]
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None
