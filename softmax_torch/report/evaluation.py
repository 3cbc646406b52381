"""All figures of a set of samples with their intervals, as rows of one table.

    group           class   figure         value    low      high     samples
                            accuracy       0.9638   0.9443   0.9806   359
                    3       recall         0.9459   0.8230   0.9850   37
    north                   accuracy       0.9712   0.9185   0.9901   104
    north - south           accuracy_gap   0.0312   -0.0291  0.0912   208

A row without a group and a class is of the whole set, and one of two groups has the largest gap
between them. ``samples`` are those that belong to the groups or the class.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from softmax_torch.metrics import class_counts
from softmax_torch.ranking_metrics import Ranking, rank
from softmax_torch.report import bootstrap, class_metrics, group_metrics
from softmax_torch.report.bootstrap import SampleScores
from softmax_torch.report.class_metrics import ClassMetrics
from softmax_torch.report.group_metrics import GroupMetrics
from softmax_torch.report.run_results import EvaluatedSet, Groups
from softmax_torch.report.score_intervals import Estimate
from softmax_torch.report.set_figures import set_figures

__all__ = ["Evaluation"]

COLUMNS = ("group", "class", "figure", "value", "low", "high", "samples")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures of a set; each is computed when it is first asked for, and once.

    Attributes:
        of: the set, of at least one sample, on a CPU.
        class_names: C names.
        group_names: the groups of its samples; None without groups.
    """

    of: EvaluatedSet
    class_names: Sequence[str]
    group_names: Groups | None = None

    @cached_property
    def scores(self) -> SampleScores:
        """The scores of each sample."""
        return bootstrap.score_samples(*self.of)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Accuracy, NLL, Brier score and ECE, by name."""
        return bootstrap.set_metrics(self.scores)

    @cached_property
    def counts(self) -> Tensor:
        """See ``softmax_torch.metrics.class_counts``: (3, C)."""
        logits, y = self.of
        return class_counts(logits.argmax(1), y, len(self.class_names))

    @cached_property
    def ranking(self) -> Ranking:
        """AUC and average precision."""
        return rank(*self.of)

    @cached_property
    def class_means(self) -> dict[str, Estimate]:
        """The figures of ``report.set_figures``, by name."""
        return set_figures(self.of, self.counts, self.ranking)

    @cached_property
    def figures(self) -> dict[str, Estimate]:
        """``metrics`` with bootstrap intervals, then ``class_means``, by name."""
        limits, n = bootstrap.intervals(self.scores), len(self.of.y)
        sampled = {name: Estimate(x, *limits[name], n) for name, x in self.metrics.items()}
        return sampled | self.class_means

    @cached_property
    def classes(self) -> list[ClassMetrics]:
        """The figures of each class."""
        return class_metrics.per_class(self.class_names, self.counts, self.ranking)

    @cached_property
    def groups(self) -> GroupMetrics | None:
        """The figures by group; None without groups."""
        if self.group_names is None:
            return None
        return group_metrics.by_group(self.of, self.group_names, self.class_names)

    def columns(self) -> dict[str, list[Any]]:
        """Return the table as columns by name; numbers that do not exist are None."""
        rows: list[tuple[Any, ...]] = []

        def add(group: str, name: str, figure: str, one: Estimate, samples: int) -> None:
            numbers = (None if math.isnan(x) else x for x in one[:3])
            rows.append((group, name, figure, *numbers, samples))

        for figure, one in self.figures.items():
            add("", "", figure, one, len(self.of.y))
        for row in self.classes:
            for figure, one in row.estimates.items():
                add("", row.name, figure, one, row.support)
        if self.groups is not None:
            size = {group.name: group.samples for group in self.groups.groups}
            for group in self.groups.groups:
                for figure, one in group.figures.items():
                    add(group.name, self.groups.class_of(figure), figure, one, group.samples)
            for figure, gap in self.groups.gaps.items():
                both, samples = f"{gap.high} - {gap.low}", size[gap.high] + size[gap.low]
                add(both, self.groups.class_of(figure), f"{figure}_gap", gap.difference, samples)
        return dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))

    def csv(self) -> bytes:
        """Return the table as a CSV file."""
        text, columns = io.StringIO(newline=""), self.columns()
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue().encode()
