"""Tables as data sets: a file with a column of classes, and columns to predict them from.

    file  ->  numeric and categorical columns         from all rows of the file
          ->  training, validation and test rows      given, or drawn class by class
          ->  means, deviations, categories, classes  from the training rows alone
          ->  x (n, D), y (n,)

The file is read three times, in chunks of rows; memory holds x in float32 and a few bytes a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from softmax_torch.data.description import ColumnCounts, DataDescription
from softmax_torch.data.splits import TEST_SEED, Split, draw_splits
from softmax_torch.data.tensor_data_module import TensorDataModule
from softmax_torch.preprocessing import TablePreprocessing
from softmax_torch.preprocessing.table import CategoricalColumn, Column
from softmax_torch.preprocessing.table_fitting import CategoricalFit, NumericFit, Survey
from softmax_torch.readers.numpy_files import Array
from softmax_torch.readers.tables import Chunk, Source, read_chunks

__all__ = ["TableDataModule"]

SPLITS = {"train": 0, "val": 1, "test": 2}
"""Code of each split."""

READ_ROWS = 1 << 16
"""Rows of a file that are read together."""

MAX_ENCODED = 1 << 24
"""Numbers in the encoded rows of one chunk. Besides x, memory holds them twice, 64 MiB each."""


class TableDataModule(TensorDataModule):
    r"""A table in a .csv, .tsv, .tab, .parquet, .npz or .npy file.

    Numeric columns are standardised, and categorical columns become one number for each category
    (see ``softmax_torch.preprocessing.table``). Validation and test samples are those of
    ``val_file`` and ``test_file``, or those that ``split_column`` names; a split that is not given
    is drawn from the training samples, class by class.

    Args:
        file: the table to train on.
        target: the column with the classes.
        test_file, val_file: tables with the same columns.
        split_column: a column with the values train, val and test.
        ignore: columns to leave out.
        categorical: columns of numbers that are categories.
        id_column: a column that names the samples in predictions; None for row numbers.
        delimiter: between the columns of a .csv, such as ; or \t for a tab; None for a comma.
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
        ignore: list[str] | None = None,
        categorical: list[str] | None = None,
        id_column: str | None = None,
        delimiter: str | None = None,
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
        self.delimiter = "\t" if delimiter == r"\t" else delimiter
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ValueError(f"delimiter: expected one character, got {delimiter!r}")
        self.test_fraction = test_fraction
        self.roles = ColumnRoles(target, split_column, id_column, ignore or [], categorical or [])

    @cached_property
    def loaded(self) -> LoadedTable:
        """The encoded files, read at the first access."""
        roles = self.roles
        source = Source.from_path(self.file, self.delimiter)
        survey = Survey(roles.features(next(read_chunks(source, 1))), roles.categorical)
        main = LabelledRows.read(source, roles.target, roles.split, on_chunk=survey.add)
        tables = [main]
        for name, path in self.other_files.items():
            other = Source.from_path(path, self.delimiter)
            tables.append(LabelledRows.read(other, roles.target, split=name))
        class_names = main.class_names()
        labels = [table.class_indices(class_names) for table in tables]
        draws = {"test": (self.test_fraction, TEST_SEED), "val": (self.val_fraction, self.seed)}
        given = {*self.other_files, *(name for name in SPLITS if len(main.in_split(name)))}
        draws = {name: draw for name, draw in draws.items() if name not in given}
        main.draw(torch.from_numpy(labels[0]), draws, class_names)
        fits = fit_columns(survey, main)
        preprocessing = TablePreprocessing(
            columns_of(fits, source), class_names, roles.id, self.delimiter
        )
        missing = {fit.name: fit.missing for fit in fits if fit.missing}
        splits: dict[str, Split] = {}
        test_ids: list[str] = []
        for table, y in zip(tables, labels, strict=True):
            encoded, ids = encode(table, torch.from_numpy(y), preprocessing)
            splits |= encoded
            test_ids += ids
        [test] = [table for table in tables if len(table.in_split("test"))]
        return LoadedTable(preprocessing, splits, test, test_ids, missing)

    @property
    def preprocessing(self) -> TablePreprocessing:
        """Means, deviations and categories of the training samples."""
        return self.loaded.preprocessing

    @property
    def test_ids(self) -> list[str]:
        """Test samples by ``id_column``, or by their row numbers in their file."""
        return self.loaded.test_ids

    def test_inputs(self, rows: int) -> pa.Table:
        """Return the first rows of the test set as they are in the file."""
        test = self.loaded.test
        wanted = test.in_split("test")[:rows]
        found = []
        for chunk in read_chunks(test.source, READ_ROWS):
            in_chunk = (wanted >= chunk.first) & (wanted < chunk.first + len(chunk))
            found.append(chunk.table.take(wanted[in_chunk] - chunk.first))
            if wanted[-1] < chunk.first + len(chunk):
                break
        return pa.concat_tables(found)

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


class ColumnRoles(NamedTuple):
    """The columns that arguments name, by their use."""

    target: str
    split: str | None
    id: str | None
    ignore: Sequence[str]
    categorical: Sequence[str]

    def features(self, chunk: Chunk) -> list[str]:
        """Return all other columns; ValueError if there are none, or a column has two roles."""
        named = [name for name in (self.target, self.split, self.id) if name is not None]
        chunk.require([*named, *self.ignore, *self.categorical])
        repeated = [name for name in named if named.count(name) > 1]
        repeated += [name for name in named if name in self.categorical]
        repeated += [name for name in self.ignore if name in self.categorical]
        if repeated:
            raise ValueError(f"column {repeated[0]}: expected one use of it, got two")
        others = {*named, *self.ignore}
        features = [name for name in chunk.names if name not in others]
        if not features:
            raise ValueError(
                f"{chunk.source.name}: expected columns besides {', '.join([*named, *self.ignore])}"
                ", got none"
            )
        return features


class LoadedTable(NamedTuple):
    """The result of reading the files."""

    preprocessing: TablePreprocessing
    splits: dict[str, Split]
    test: LabelledRows  # the file that the test samples come from
    test_ids: list[str]
    missing: dict[str, int]  # missing training values of the columns that have any


@dataclass
class LabelledRows:
    """The class and the split of each row of a file.

    Args:
        source: the file.
        labels: distinct texts in the column of classes, in order of appearance.
        codes: index in ``labels`` of each row's text, (n,).
        split: code in ``SPLITS`` of each row, (n,).
    """

    source: Source
    labels: list[str]
    codes: Array
    split: Array

    @classmethod
    def read(
        cls,
        source: Source,
        target: str,
        split_column: str | None = None,
        split: str = "train",
        on_chunk: Callable[[Chunk], None] = lambda chunk: None,
    ) -> LabelledRows:
        """Read a file.

        Args:
            source: the file.
            target: the column with the classes.
            split_column: the column with the splits; None if all rows belong to ``split``.
            split: the split of all rows.
            on_chunk: called with each chunk.

        Raises:
            ValueError: a row without a class, or with an unknown split; the message has its line.
        """
        known: dict[str, int] = {}
        all_codes, splits = [], []
        for chunk in read_chunks(source, READ_ROWS):
            chunk.require([target])
            on_chunk(chunk)
            codes = chunk.codes(target, known)
            if (codes < 0).any():
                raise ValueError(
                    f"{chunk.locate(int((codes < 0).argmax()))}, column {target}: expected a class,"
                    " got a missing value"
                )
            all_codes.append(codes)
            splits.append(
                np.full(len(chunk), SPLITS[split])
                if split_column is None
                else split_codes(chunk, split_column)
            )
        return cls(source, [*known], np.concatenate(all_codes), np.concatenate(splits))

    def in_split(self, name: str) -> Array:
        """Return the numbers of the rows of a split."""
        return np.flatnonzero(self.split == SPLITS[name])

    def class_names(self) -> list[str]:
        """Return the classes of the training rows, sorted; as numbers if all are integers.

        Raises:
            ValueError: there are fewer than two classes.
        """
        names = [self.labels[k] for k in np.unique(self.codes[self.in_split("train")])]
        if len(names) < 2:
            raise ValueError(
                f"{self.source.name}: expected at least two classes in the training samples, got "
                + (f"{names[0]} alone" if names else "no training samples")
            )
        integers = all(re.fullmatch(r"[+-]?\d+", name) for name in names)
        return sorted(names, key=int if integers else None)

    def class_indices(self, class_names: Sequence[str]) -> Array:
        """Return class indices (n,), int64; raise ValueError for a class not in ``class_names``."""
        index = {name: c for c, name in enumerate(class_names)}
        y: Array = np.array([index.get(name, -1) for name in self.labels])[self.codes]
        if (y < 0).any():
            row = int((y < 0).argmax())
            raise ValueError(
                f"{self.source.locate(row)}: expected a class that training samples have, got "
                f"{self.labels[self.codes[row]]}, none of {', '.join(class_names)}"
            )
        return y

    def draw(
        self, y: torch.Tensor, draws: Mapping[str, tuple[float, int]], class_names: Sequence[str]
    ) -> None:
        """Draw splits from the training rows; see ``draw_splits``. y (n,) has class indices."""
        training = self.in_split("train")
        for name, at in draw_splits(y[training], draws, class_names, self.source.name).items():
            self.split[training[at.numpy()]] = SPLITS[name]


def split_codes(chunk: Chunk, column: str) -> Array:
    """Return the codes (n,) of the splits in a column; raise ValueError for other values."""
    known = dict(SPLITS)
    codes = chunk.codes(column, known)
    invalid = (codes < 0) | (codes >= len(SPLITS))
    if invalid.any():
        row = int(invalid.argmax())
        got = "a missing value" if codes[row] < 0 else [*known][codes[row]]
        raise ValueError(
            f"{chunk.locate(row)}, column {column}: expected {', '.join(SPLITS)}, got {got}"
        )
    return codes


def fit_columns(survey: Survey, rows: LabelledRows) -> list[NumericFit | CategoricalFit]:
    """Return the statistics of the columns in the training rows."""
    fits = survey.fits(rows.source)
    for chunk in read_chunks(rows.source, READ_ROWS):
        training = rows.split[chunk.first : chunk.first + len(chunk)] == SPLITS["train"]
        for fit in fits:
            fit.add(chunk, training)
    return fits


def columns_of(fits: Sequence[NumericFit | CategoricalFit], source: Source) -> list[Column]:
    """Return the fitted columns; raise ValueError with the file if one cannot be used."""
    try:
        return [fit.column() for fit in fits]
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None


def encode(
    rows: LabelledRows, y: torch.Tensor, preprocessing: TablePreprocessing
) -> tuple[dict[str, Split], list[str]]:
    """Return the splits that have rows in a file, and the names of its test rows."""
    numbers = {name: torch.from_numpy(rows.in_split(name)) for name in SPLITS}
    D, ids = preprocessing.in_features, []
    x = {name: torch.empty(len(at), D) for name, at in numbers.items() if len(at)}
    filled = dict.fromkeys(x, 0)
    for chunk in read_chunks(rows.source, min(READ_ROWS, max(1, MAX_ENCODED // D))):
        encoded = preprocessing.encode(chunk)
        splits = rows.split[chunk.first : chunk.first + len(chunk)]
        for name in x:
            at = np.flatnonzero(splits == SPLITS[name])
            x[name][filled[name] : filled[name] + len(at)] = encoded[at]
            filled[name] += len(at)
        if "test" in x:
            names = preprocessing.ids(chunk)
            ids += [names[k] for k in np.flatnonzero(splits == SPLITS["test"])]
    return {name: Split(x[name], y[numbers[name]]) for name in x}, ids
