"""The design matrix of a table, in the units of its file: for statistics of the coefficients.

    numeric       value = x deviation + mean              x is the standardised number
    categorical   one 0/1 column for each category but the first, the reference category

The one-hot columns of a categorical column add up to 1, as the column of an intercept does, so that
their coefficients are not determined. Without the first, the coefficient of a category compares it
with the first one (treatment coding; Agresti 2013, "Categorical Data Analysis", 5.3).

x is float32. A number in the file's unit is therefore exact to 6e-8 standard deviations.

>>> sex, age = CategoricalColumn("sex", ("f", "m"), False), NumericColumn("age", 40.0, 10.0)
>>> design = design_matrix([sex, age], torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, -1.0]]))
>>> design.names
('sex=m', 'age')
>>> design.X
tensor([[ 0., 45.],
        [ 1., 30.]], dtype=torch.float64)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.preprocessing.table import CategoricalColumn, Column, NumericColumn

__all__ = ["DesignMatrix", "design_matrix"]


class DesignMatrix(NamedTuple):
    """Samples in the units of their file.

    Attributes:
        X: (n, P), float64.
        names: P names, such as "age" and "sex=m".
        terms: the names that each column of the table has become, by the column's name. A
            categorical column with one category has become none.
        references: the reference category of each categorical column.
    """

    X: Tensor
    names: tuple[str, ...]
    terms: dict[str, tuple[str, ...]]
    references: dict[str, str]


def design_matrix(columns: Sequence[Column], x: Tensor) -> DesignMatrix:
    """Return the design matrix of encoded rows.

    Args:
        columns: the columns that encoded the rows.
        x: rows (n, D) of ``TablePreprocessing``. Where a number was missing, it is the mean.
    """
    parts: list[Tensor] = []
    terms: dict[str, tuple[str, ...]] = {}
    references: dict[str, str] = {}
    at = 0
    for column in columns:
        encoded = x[:, at : at + len(column.features)].double()
        at += len(column.features)
        if isinstance(column, NumericColumn):
            parts.append(encoded * column.deviation + column.mean)
            terms[column.name] = column.features
        else:
            assert isinstance(column, CategoricalColumn)
            parts.append(encoded[:, 1:])
            first, *others = column.features
            terms[column.name] = tuple(others)
            references[column.name] = first.removeprefix(f"{column.name}=")
    names = tuple(name for names in terms.values() for name in names)
    return DesignMatrix(torch.cat(parts, 1), names, terms, references)
