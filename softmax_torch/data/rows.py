"""What each row of a table is for: its class, and the part of the data it belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from softmax_torch.data.splits import enough, stratified
from softmax_torch.preprocessing.chunks import Chunk, Source, chunks

__all__ = ["PARTS", "ROWS", "Roles", "Rows"]

PARTS = {"train": 0, "val": 1, "test": 2}
"""Parts of the data, as a column may name them, and their numbers."""

ROWS = 1 << 16
"""Rows of a file that are looked at together."""

Array = np.ndarray[Any, Any]


class Roles(NamedTuple):
    """Columns that are known by name."""

    target: str
    split: str | None
    id: str | None
    ignore: Sequence[str]
    categorical: Sequence[str]

    def features(self, chunk: Chunk) -> list[str]:
        """The columns that classes are told from: all others; ValueError if there are none."""
        known = [name for name in (self.target, self.split, self.id) if name is not None]
        chunk.require([*known, *self.ignore, *self.categorical])
        several = [name for name in known if known.count(name) > 1]
        several += [name for name in known if name in self.categorical]
        several += [name for name in self.ignore if name in self.categorical]
        if several:
            raise ValueError(f"column {several[0]}: expected one use of it, got two")
        others = {*known, *self.ignore}
        left = [name for name in chunk.names if name not in others]
        if not left:
            raise ValueError(
                f"{chunk.source.name}: expected columns besides {', '.join([*known, *self.ignore])}"
                ", got none"
            )
        return left


@dataclass
class Rows:
    """The rows of a file.

    Args:
        source: the file.
        labels: texts in the column of classes, in the order in which they come.
        label: which of them each row has, (n,).
        part: which of ``PARTS`` each row belongs to, (n,).
    """

    source: Source
    labels: list[str]
    label: Array
    part: Array

    @classmethod
    def of(
        cls,
        source: Source,
        target: str,
        part: str | None = None,
        split_column: str | None = None,
        look: Callable[[Chunk], None] = lambda chunk: None,
    ) -> Rows:
        """Read them from a file.

        Args:
            source: the file.
            target: the column with classes.
            part: what all rows belong to, where no column says it.
            split_column: the column that does.
            look: sees each chunk as it goes by.

        Raises:
            ValueError: a row without a class, or of a part that is not known; with its line.
        """
        known: dict[str, int] = {}
        label, parts = [], []
        for chunk in chunks(source, ROWS):
            chunk.require([target])
            look(chunk)
            codes = chunk.codes(target, known)
            if (codes < 0).any():
                raise ValueError(
                    f"{chunk.place(int((codes < 0).argmax()))}, column {target}: expected a class, "
                    "got a missing value"
                )
            label.append(codes)
            parts.append(
                np.full(len(chunk), PARTS[part or "train"])
                if split_column is None
                else parts_of(chunk, split_column)
            )
        return cls(source, [*known], np.concatenate(label), np.concatenate(parts))

    def in_part(self, name: str) -> Array:
        """Numbers of the rows of a part."""
        return np.flatnonzero(self.part == PARTS[name])

    def class_names(self) -> list[str]:
        """The classes of training rows, in order: of numbers, if all of them are integers.

        Raises:
            ValueError: there is one class, or none.
        """
        names = [self.labels[k] for k in np.unique(self.label[self.in_part("train")])]
        if len(names) < 2:
            raise ValueError(
                f"{self.source.name}: expected at least two classes in the training samples, got "
                + (f"{names[0]} alone" if names else "no training samples")
            )
        integers = all(re.fullmatch(r"[+-]?\d+", name) for name in names)
        return sorted(names, key=int if integers else None)

    def y(self, class_names: Sequence[str]) -> Array:
        """Class indices (n,), int64; ValueError for a class that is not among these."""
        index = {name: c for c, name in enumerate(class_names)}
        y: Array = np.array([index.get(name, -1) for name in self.labels])[self.label]
        if (y < 0).any():
            row = int((y < 0).argmax())
            raise ValueError(
                f"{self.source.place(row)}: expected a class that training samples have, got "
                f"{self.labels[self.label[row]]}, none of {', '.join(class_names)}"
            )
        return y

    def draw(self, y: Array, parts: Mapping[str, tuple[float, int]], names: Sequence[str]) -> None:
        """Draw parts from the training rows, with their share of each class.

        Args:
            y: class indices (n,).
            parts: fraction and seed of each part, the first one first.
            names: what the classes are called.

        Raises:
            ValueError: a class with fewer samples than there are parts.
        """
        try:
            enough(torch.from_numpy(y[self.in_part("train")]), 1 + len(parts), names)
        except ValueError as error:
            raise ValueError(f"{self.source.name}: {error}") from None
        for part, (fraction, seed) in parts.items():
            rows = self.in_part("train")
            _, drawn = stratified(torch.from_numpy(y[rows]), fraction, seed)
            self.part[rows[drawn.numpy()]] = PARTS[part]


def parts_of(chunk: Chunk, column: str) -> Array:
    """The parts that a column names, (n,); ValueError if it names others."""
    known = dict(PARTS)
    codes = chunk.codes(column, known)
    other = (codes < 0) | (codes >= len(PARTS))
    if other.any():
        row = int(other.argmax())
        got = "a missing value" if codes[row] < 0 else [*known][codes[row]]
        raise ValueError(
            f"{chunk.place(row)}, column {column}: expected {', '.join(PARTS)}, got {got}"
        )
    return codes
