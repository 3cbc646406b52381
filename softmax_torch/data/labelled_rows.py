"""The class and the split of each row of a file, and labelled files that a model has not seen.

A row without a class is refused with its line, or belongs to no split on request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from softmax_torch.data.progress import current_reporter
from softmax_torch.data.splits import Split, draw_splits
from softmax_torch.preprocessing import TablePreprocessing
from softmax_torch.preprocessing.categories import UNKNOWN, find_categories
from softmax_torch.preprocessing.table import MISSING
from softmax_torch.preprocessing.unknown_categories import UnknownCategories, counting_unknown
from softmax_torch.readers.numpy_files import Array
from softmax_torch.readers.table_format import setting
from softmax_torch.readers.table_source import Source
from softmax_torch.readers.tables import Chunk, read_chunks

__all__ = ["SPLITS", "EncodedRows", "LabelledRows", "Target", "encode", "read_labelled"]

SPLITS = {"train": 0, "val": 1, "test": 2}
"""Code of each split."""

READ_ROWS = 1 << 16
"""Rows of a file that are read together."""

MAX_ENCODED = 1 << 24
"""Numbers in the encoded rows of one chunk. Besides x, memory holds them twice, 64 MiB each."""

NONE = -1
"""Code of a row without a class, and of its split."""


@dataclass(frozen=True)
class Target:
    """The column of classes.

    Args:
        name: name of the column.
        keep: texts that are names of classes although they could mean missing, such as NA.
        drop_missing: whether rows without a class are left out; otherwise they are refused.
    """

    name: str
    keep: tuple[str, ...] = ()
    drop_missing: bool = False

    def codes(self, chunk: Chunk, known: dict[str, int]) -> Array:
        """Return the code of each row's class, int64 (n,), with -1 for none.

        Args:
            chunk: the rows.
            known: code of each class so far; new ones are added to it.

        Raises:
            ValueError: a row has no class, and such rows are not left out.
        """
        chunk.require([self.name])
        labels = chunk.with_format(replace(chunk.source.format, present=self.keep))
        codes = labels.codes(self.name, known)
        if (codes == NONE).any() and not self.drop_missing:
            row = int((codes == NONE).argmax())
            got = chunk.raw_text(self.name)[row].strip()
            kept = f"; or, if it is a class: {setting('keep_labels', [got])}" if got else ""
            raise ValueError(
                f"{chunk.locate(row)}, column {self.name}: expected a class, got a missing value"
                f"{f' ({got})' if got else ''}; leave out such rows: "
                f"{setting('drop_unlabelled', True)}{kept}"
            )
        return codes


@dataclass
class LabelledRows:
    """The class and the split of each row of a file.

    Args:
        source: the file.
        type: type of the column of classes.
        labels: distinct texts in this column, in order of appearance.
        codes: index in ``labels`` of each row's text, (n,); -1 for none.
        split: code in ``SPLITS`` of each row, (n,); -1 for a row without a class.
    """

    source: Source
    type: pa.DataType
    labels: list[str]
    codes: Array
    split: Array

    @classmethod
    def read(
        cls,
        source: Source,
        target: Target,
        split_column: str | None = None,
        split: str = "train",
        on_chunk: Callable[[Chunk], None] = lambda chunk: None,
    ) -> LabelledRows:
        """Read a file, and report the rows that are left out.

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
        all_codes, splits, types = [], [], []
        for chunk in read_chunks(source, READ_ROWS):
            codes = target.codes(chunk, known)
            on_chunk(chunk)
            all_codes.append(codes)
            types.append(chunk.column(target.name).type)
            splits.append(
                np.full(len(chunk), SPLITS[split])
                if split_column is None
                else split_codes(chunk, split_column)
            )
        codes = np.concatenate(all_codes)
        none = codes == NONE
        if none.any():
            current_reporter().message(
                "unlabelled",
                f"{np.count_nonzero(none)} of {len(codes)} rows of {source.name} have no class and "
                "are left out",
            )
        split_of_rows = np.where(none, NONE, np.concatenate(splits))
        return cls(source, types[0], [*known], codes, split_of_rows)

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
        """Return class indices (n,), int64, -1 for rows without a class.

        A class that is a number is found by its value, as categories are.

        Raises:
            ValueError: a class is not in ``class_names``, or is a number that several of them have.
        """
        found = find_categories(self.labels, self.type, tuple(class_names), self.source.format)
        y: Array = np.array([*found, NONE], dtype=np.int64)[self.codes]
        wrong = (y < 0) & (self.codes != NONE)
        if wrong.any():
            row = int(wrong.argmax())
            got = self.labels[self.codes[row]]
            number = "none of" if y[row] == UNKNOWN else "the number of several of"
            raise ValueError(
                f"{self.source.locate(row)}: expected a class that training samples have, got "
                f"{got}, {number} {', '.join(class_names)}"
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


class EncodedRows(NamedTuple):
    """The samples of a file.

    Attributes:
        splits: those of each split that has rows.
        ids: names of the test samples.
        groups: groups of the samples of each split; empty without a column of groups.
    """

    splits: dict[str, Split]
    ids: list[str]
    groups: dict[str, list[str]]


def encode(
    rows: LabelledRows,
    y: torch.Tensor,
    preprocessing: TablePreprocessing,
    refuse_unknown: bool = False,
    group_column: str | None = None,
) -> EncodedRows:
    """Return the samples of a file, with the names of its test rows, and groups of all rows.

    Categories that training never saw are reported, with the file, or refused.

    Args:
        rows: class and split of each row.
        y: class indices of the rows.
        preprocessing: of the features.
        refuse_unknown: whether an unknown category is refused.
        group_column: the column of the groups; None without groups.
    """
    numbers = {name: torch.from_numpy(rows.in_split(name)) for name in SPLITS}
    D = preprocessing.in_features
    ids: list[str] = []
    x = {name: torch.empty(len(at), D) for name, at in numbers.items() if len(at)}
    groups: dict[str, list[str]] = {} if group_column is None else {name: [] for name in x}
    filled = dict.fromkeys(x, 0)
    with counting_unknown(UnknownCategories(refuse_unknown)) as unknown:
        for chunk in read_chunks(rows.source, min(READ_ROWS, max(1, MAX_ENCODED // D))):
            encoded = preprocessing.encode(chunk)
            splits = rows.split[chunk.first : chunk.first + len(chunk)]
            for name in x:
                at = np.flatnonzero(splits == SPLITS[name])
                x[name][filled[name] : filled[name] + len(at)] = encoded[at]
                filled[name] += len(at)
                if group_column is not None:
                    groups[name] += groups_of(chunk, group_column, at)
            if "test" in x:
                names = preprocessing.ids(chunk)
                ids += [names[k] for k in np.flatnonzero(splits == SPLITS["test"])]
    for line in unknown.messages():
        current_reporter().message("unknown", f"{rows.source.name}, {line}")
    return EncodedRows({name: Split(x[name], y[numbers[name]]) for name in x}, ids, groups)


def groups_of(chunk: Chunk, column: str, rows: Array) -> list[str]:
    """Return the groups of some rows (n,) of a chunk; missing values are a group of their own."""
    chunk.require([column])
    texts = chunk.text(column).take(pa.array(rows)).to_pylist()
    return [MISSING if text is None else text for text in texts]


def read_labelled(
    preprocessing: TablePreprocessing,
    file: str | Path,
    target: str | None = None,
    drop_unlabelled: bool = False,
    refuse_unknown: bool = False,
    group_column: str | None = None,
) -> EncodedRows:
    """Read a file with classes as test samples of a trained model.

    Args:
        preprocessing: that of the model.
        file: a table in any of the formats that a model is trained on.
        target: the column with the classes; None for that of the training table.
        drop_unlabelled: whether rows without a class are left out; otherwise they are refused.
        refuse_unknown: whether a category that training never saw is refused; otherwise it is
            reported.
        group_column: the column with the groups; None for that of the training table, if there was
            one. A file without the latter has no groups, which is reported.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read; a row has no class, or one that the
            model does not know; a value cannot be used. The message has the line.
    """
    name = target or preprocessing.target
    if name is None:
        raise ValueError(
            "target: expected the column with the classes, which this checkpoint does not name"
        )
    column = Target(name, preprocessing.class_names, drop_unlabelled)
    source = Source.from_path(file, preprocessing.format)
    group = group_column or preprocessing.group_column
    if group is not None:  # looked for before the whole file is read
        first = next(read_chunks(source, 1))
        if group_column is not None:
            first.require([group])
        elif group not in first.names:
            current_reporter().message("groups", f"{source.name} has no column {group}: no groups")
            group = None
    rows = LabelledRows.read(source, column, split="test")
    y = torch.from_numpy(rows.class_indices(preprocessing.class_names))
    encoded = encode(rows, y, preprocessing, refuse_unknown, group)
    if not encoded.splits:
        raise ValueError(f"{file}: expected rows with a class in column {name}, got none")
    return encoded
