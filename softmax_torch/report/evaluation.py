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
from typing import Any, NamedTuple

from softmax_torch.ranking_metrics import rank
from softmax_torch.report import bootstrap, class_metrics, group_metrics
from softmax_torch.report.bootstrap import SampleScores
from softmax_torch.report.class_metrics import ClassMetrics
from softmax_torch.report.group_metrics import GroupMetrics
from softmax_torch.report.run_results import EvaluatedSet, Groups
from softmax_torch.report.score_intervals import Estimate
from softmax_torch.report.set_figures import set_figures

__all__ = ["Evaluation", "evaluate"]

COLUMNS = ("group", "class", "figure", "value", "low", "high", "samples")


class Evaluation(NamedTuple):
    """The figures of a set.

    Attributes:
        samples: number of samples.
        figures: of the whole set: those of ``report.bootstrap``, then those of
            ``report.set_figures``.
        classes: the figures of each class.
        groups: the figures by group; None without groups.
    """

    samples: int
    figures: dict[str, Estimate]
    classes: list[ClassMetrics]
    groups: GroupMetrics | None

    def columns(self) -> dict[str, list[Any]]:
        """Return the table as columns by name; numbers that do not exist are None."""
        rows: list[tuple[Any, ...]] = []

        def add(group: str, name: str, figure: str, one: Estimate, samples: int) -> None:
            numbers = (None if math.isnan(x) else x for x in one[:3])
            rows.append((group, name, figure, *numbers, samples))

        for figure, one in self.figures.items():
            add("", "", figure, one, self.samples)
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


def evaluate(
    of: EvaluatedSet,
    class_names: Sequence[str],
    groups: Groups | None = None,
    scores: SampleScores | None = None,
) -> Evaluation:
    """Return the figures of a set.

    Args:
        of: the set, on a CPU.
        class_names: C names.
        groups: the groups of its samples; None without groups.
        scores: of its samples, if they are known.
    """
    ranking, scores = rank(*of), scores or bootstrap.score_samples(*of)
    limits, n = bootstrap.intervals(scores), len(of.y)
    figures = {
        name: Estimate(value, *limits[name], n)
        for name, value in bootstrap.set_metrics(scores).items()
    }
    return Evaluation(
        n,
        figures | set_figures(*of, ranking, bootstrap.LEVEL),
        class_metrics.per_class(of, class_names, ranking),
        None
        if groups is None
        else group_metrics.by_group(of, groups.of_samples, groups.column, class_names),
    )
