"""The columns of a table by their use: classes, splits, names of rows, groups, features."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from softmax_torch.readers.table_format import setting
from softmax_torch.readers.tables import Chunk

__all__ = ["ColumnRoles"]


class ColumnRoles(NamedTuple):
    """The columns that arguments name, by their use; ``ignore`` also takes positions."""

    target: str
    split: str | None
    id: str | None
    ignore: Sequence[str | int]
    categorical: Sequence[str]
    dates: Sequence[str]
    group: str | None = None

    def features(self, chunk: Chunk) -> list[str]:
        """Return all other columns.

        Raises:
            ValueError: there are none, a column has two roles or no name, or is not there.
        """
        uses = (self.target, self.split, self.id, self.group)
        named = [name for name in uses if name is not None]
        chunk.require([*named, *self.categorical, *self.dates])
        ignored = self._ignored(chunk)
        kinds = [*self.categorical, *self.dates]
        repeated = [name for name in named if named.count(name) > 1]
        repeated += [name for name in kinds if kinds.count(name) > 1 or name in named]
        repeated += [name for name in kinds if name in ignored]
        if repeated:
            raise ValueError(f"column {repeated[0]}: expected one use of it, got two")
        others = {*named, *ignored}
        features = [name for name in chunk.names if name not in others]
        if not features:
            raise ValueError(
                f"{chunk.source.name}: expected columns besides {', '.join([*named, *ignored])}"
                ", got none"
            )
        for name in features:
            if re.fullmatch(r"|Unnamed: \d+", name):
                raise nameless_error(chunk, name)
        return features

    def _ignored(self, chunk: Chunk) -> list[str]:
        """Return the names of the columns to leave out."""
        names, ignored = chunk.names, []
        for given in self.ignore:
            if isinstance(given, str):
                chunk.require([given])
                ignored.append(given)
                continue
            if not -len(names) <= given < len(names):
                raise ValueError(
                    f"ignore: expected a position in [{-len(names)}, {len(names)}), since "
                    f"{chunk.source.name} has {len(names)} columns, got {given}"
                )
            ignored.append(names[given])
        return ignored


def nameless_error(chunk: Chunk, name: str) -> ValueError:
    """Return the error for a feature without a name; pandas calls it Unnamed."""
    got = f"{name!r}" if name else "none"
    return ValueError(
        f"{chunk.source.name}: expected a name for each of the {len(chunk.names)} columns, got "
        f"{got} for column {chunk.names.index(name) + 1}; pandas writes such a column, of row "
        f"numbers, unless told index=False; leave it out: {setting('ignore', [name])}"
    )
