"""What becomes of a column: numbers are standardised, categories are counted off one by one.

    numbers      x = (value - mean) / deviation           0 where it is missing
    categories   x_k = 1 if value is category k, else 0    one of these for each category

The mean and the standard deviation (that of the samples themselves, over n, not n - 1) and the
categories are those of the training samples. A column that is constant there has deviation 1. A
missing value is a category of its own where training has some; otherwise, like a category that
training never saw, it is all zeros. Numbers in the place of words are no such category, but a
mistake.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from softmax_torch.preprocessing.chunks import NUMBER, Chunk

__all__ = ["Categories", "CategoriesSoFar", "Column", "Numbers", "NumbersSoFar"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Numbers:
    """A column of numbers.

    Args:
        name: of the column.
        mean, deviation: of the training samples.
    """

    name: str
    mean: float
    deviation: float

    @property
    def features(self) -> tuple[str, ...]:
        """A name for what it becomes."""
        return (self.name,)

    def encode(self, chunk: Chunk) -> Array:
        """float32 (n, 1).

        Raises:
            ValueError: a value that is no number, or too large for one beside those of training.
        """
        values = chunk.numbers(self.name)
        with np.errstate(over="ignore"):  # which is found below
            x = ((values - self.mean) / self.deviation).astype(np.float32)
        large = np.flatnonzero(np.isinf(x))
        if len(large):
            raise ValueError(
                f"{chunk.place(int(large[0]))}, column {self.name}: expected a number that is less "
                f"than 1e38 standard deviations from the mean, got {values[large[0]]}"
            )
        return np.nan_to_num(x, nan=0.0)[:, None]

    def state_dict(self) -> dict[str, Any]:
        """What it takes to make it again."""
        return {
            "kind": "numbers",
            "name": self.name,
            "mean": self.mean,
            "deviation": self.deviation,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The one that was saved."""
        return cls(state["name"], state["mean"], state["deviation"])


@dataclass(frozen=True)
class Categories:
    """A column of categories.

    Args:
        name: of the column.
        values: the categories, in order.
        missing: whether a missing value is one more.
    """

    name: str
    values: tuple[str, ...]
    missing: bool

    @property
    def features(self) -> tuple[str, ...]:
        """A name for each category."""
        values = (*self.values, *(["(missing)"] if self.missing else []))
        return tuple(f"{self.name}={value}" for value in values)

    def codes(self, chunk: Chunk) -> Array:
        """The number of the category, int64 (n,): of their end where missing, -1 where unknown.

        Raises:
            ValueError: numbers, where there were none in training, or nothing but words, where
                there were nothing but numbers. One would have to be all zeros as unknown ones are.
        """
        text = chunk.text(self.name)
        known = pc.fill_null(pc.index_in(text, pa.array(self.values, pa.string())), -1).to_numpy()
        if len(known) and known.max() < 0:
            self._check_kind(chunk)
        at: Array = np.where(pc.is_null(text).to_numpy(), len(self.values), known).astype(np.int64)
        return at

    def _check_kind(self, chunk: Chunk) -> None:
        """Whether a column of which no value is known is of the kind of that in training."""
        number, word = chunk.kinds(self.name)
        row = number if word is None else word if number is None else None
        if row is None or not self.values:
            return
        were = pc.match_substring_regex(pa.array(self.values, pa.string()), NUMBER).to_pylist()
        if any(were) if word is None else not all(were):
            return
        some = ", ".join(self.values[:3])
        raise ValueError(
            f"{chunk.place(row)}, column {self.name}: expected one of the "
            f"{len(self.values)} categories of training, such as {some}, got "
            f"{chunk.text(self.name)[row]}"
        )

    def encode(self, chunk: Chunk) -> Array:
        """float32 (n, categories)."""
        # Where none was missing in training, there is no feature for the end of the categories.
        places = np.arange(len(self.features))
        x: Array = (self.codes(chunk)[:, None] == places).astype(np.float32)
        return x

    def state_dict(self) -> dict[str, Any]:
        """What it takes to make it again."""
        return {
            "kind": "categories",
            "name": self.name,
            "values": list(self.values),
            "missing": self.missing,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The one that was saved."""
        return cls(state["name"], tuple(state["values"]), state["missing"])


Column = Numbers | Categories


class NumbersSoFar:
    """Mean and deviation of numbers that come some at a time, after Chan, Golub, LeVeque (1979).

    mean = mean_a + (mean_b - mean_a) n_b / n
    M    = M_a + M_b + (mean_b - mean_a)^2 n_a n_b / n         sum of squares around the mean

    The first number is taken off all of them, and added to the mean in the end: numbers around 1e9
    that differ by 1 would lose half of the digits of their deviation.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.first, self.n, self.mean, self.squares = 0.0, 0, 0.0, 0.0
        self.least, self.most = math.inf, -math.inf

    def add(self, chunk: Chunk, rows: Array) -> None:
        """Count the rows of a chunk that a mask (n,) names."""
        values = chunk.numbers(self.name)[rows]
        values = values[~np.isnan(values)]
        if len(values) == 0:
            return
        self.least, self.most = min(self.least, values.min()), max(self.most, values.max())
        if self.n == 0:
            self.first = float(values[0])
        with np.errstate(over="ignore", invalid="ignore"):  # which is looked for at the end
            values = values - self.first
            n, mean = self.n + len(values), float(values.mean())
            apart = mean - self.mean
            self.squares += float(np.square(values - mean).sum())
            self.squares += apart * apart * self.n * len(values) / n
            self.mean += apart * len(values) / n
        self.n = n

    def column(self) -> Numbers:
        """The column; ValueError if it is empty."""
        if self.n == 0:
            raise ValueError(empty(self.name))
        if self.least == self.most:  # where rounding may leave a deviation of almost 0
            return Numbers(self.name, float(self.least), 1.0)
        deviation = math.sqrt(self.squares / self.n)
        if not 0 < deviation < math.inf:
            raise ValueError(
                f"column {self.name}: expected numbers with a standard deviation, got some from "
                f"{self.least} to {self.most}"
            )
        return Numbers(self.name, self.first + self.mean, deviation)


class CategoriesSoFar:
    """Categories that come some at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: set[str] = set()
        self.missing = False

    def add(self, chunk: Chunk, rows: Array) -> None:
        """Look at the rows of a chunk that a mask (n,) names."""
        found = chunk.text(self.name).filter(pa.array(rows)).unique().to_pylist()
        self.missing |= None in found
        self.values.update(value for value in found if value is not None)

    def column(self) -> Categories:
        """The column; ValueError if it is empty."""
        if not self.values:
            raise ValueError(empty(self.name))
        return Categories(self.name, tuple(sorted(self.values)), self.missing)


def empty(name: str) -> str:
    return (
        f"column {name}: expected at least one value in the training samples, got none; leave the "
        "column out (ignore)"
    )
