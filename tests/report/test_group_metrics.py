"""Figures by group: those of the group's samples, the largest gap, groups that are too small."""

import math

import numpy as np
import pytest
import torch
from sample_results import make_set
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    log_loss,
    precision_score,
    recall_score,
)

from softmax_torch.report.evaluation import Evaluation
from softmax_torch.report.group_metrics import FEW, by_group
from softmax_torch.report.run_results import EvaluatedSet, Groups
from softmax_torch.report.score_intervals import difference, share

NAMES = np.array(["north", "south", "east"])


def grouped(C: int, n: int = 300) -> tuple[EvaluatedSet, list[str]]:
    rng = np.random.default_rng(0)
    return make_set(n, C, 4), NAMES[rng.choice(3, n, p=[0.56, 0.38, 0.06])].tolist()


@pytest.mark.parametrize("C", [2, 3])
def test_figures_are_scikit_learns_on_the_samples_of_the_group(C: int) -> None:
    of, groups = grouped(C)
    found = by_group(of, Groups("site", groups), [f"c{c}" for c in range(C)])
    assert [group.name for group in found.groups] == ["north", "south", "east"]
    assert [group.few for group in found.groups] == [False, False, True]
    assert found.positive == ("c1" if C == 2 else None)
    for group in found.groups:
        at = torch.tensor([name == group.name for name in groups])
        z, y = of.logits[at].double(), of.y[at].numpy()
        predicted = z.argmax(1).numpy()
        expected = {
            "accuracy": accuracy_score(y, predicted),
            "balanced_accuracy": balanced_accuracy_score(y, predicted),
            "nll": log_loss(y, z.softmax(1), labels=range(C)),
        }
        if C == 2:
            expected["recall"] = recall_score(y, predicted)
            expected["precision"] = precision_score(y, predicted)
        assert {name: one.value for name, one in group.figures.items()} == pytest.approx(expected)
        assert group.samples == len(y)
        assert group.figures["accuracy"][1:3] == share((y == predicted).sum(), len(y))[1:3]


def test_the_largest_gap_is_of_the_groups_furthest_apart_at_a_joint_level() -> None:
    """Three groups have three pairs, so each interval is at 1 - 0.05 / 3."""
    y = torch.zeros(180, dtype=torch.int64)
    y[::2] = 1
    z = torch.nn.functional.one_hot(y, 2).float()
    groups = ["a"] * 60 + ["b"] * 60 + ["c"] * 60
    wrong = [*range(6), *range(60, 84), *range(120, 132)]  # accuracy 0.9, 0.6, 0.8
    z[wrong] = z[wrong].flip(1)
    gap = by_group(EvaluatedSet(z, y), Groups("g", groups), ["no", "yes"]).gaps["accuracy"]
    assert (gap.high, gap.low) == ("a", "b")
    expected = difference(share(54, 60, 1 - 0.05 / 3), share(36, 60, 1 - 0.05 / 3))
    assert gap.difference == pytest.approx(expected)
    assert gap.difference.value == pytest.approx(0.3)


def test_groups_with_few_samples_take_no_part_in_a_gap() -> None:
    z, y = make_set(100, 2, 0)
    for n, has_gap in ((FEW, True), (FEW - 1, False)):
        groups = ["big"] * (100 - n) + ["small"] * n
        found = by_group(EvaluatedSet(z, y), Groups("g", groups), ["no", "yes"])
        assert ("accuracy" in found.gaps) is has_gap
        assert "recall" not in found.gaps  # the positives of the smaller are fewer
        assert [group.few for group in found.groups] == [False, not has_gap]


def test_a_group_without_all_classes_has_no_comparable_balanced_accuracy() -> None:
    z, y = make_set(200, 3, 0)
    groups = ["some" if c < 2 else "rest" for c in y.tolist()]
    found = by_group(EvaluatedSet(z, y), Groups("g", groups), ["a", "b", "c"])
    assert "accuracy" in found.gaps
    assert "balanced_accuracy" not in found.gaps
    assert not math.isnan(found.groups[0].figures["balanced_accuracy"].value)


def test_one_group_has_figures_and_no_gap() -> None:
    found = by_group(make_set(50, 2, 0), Groups("g", ["only"] * 50), ["no", "yes"])
    assert len(found.groups) == 1
    assert found.gaps == {}


def test_the_table_of_all_figures() -> None:
    of, groups = grouped(2)
    table = Evaluation(of, ["no", "yes"], Groups("site", groups))
    columns = table.columns()
    rows = {row[:3]: row[3:] for row in zip(*columns.values(), strict=True)}
    assert len(rows) == len(columns["figure"])
    assert rows["", "", "accuracy"][0] == table.figures["accuracy"].value
    assert rows["", "yes", "auc"] == (*table.classes[1].auc[:3], table.classes[1].support)
    assert table.groups is not None
    assert rows["south", "", "nll"][0] == table.groups.groups[1].figures["nll"].value
    assert rows["south", "yes", "recall"][3] == table.groups.groups[1].samples
    gap = table.groups.gaps["accuracy"]
    samples = sum(name in (gap.high, gap.low) for name in groups)
    assert rows[f"{gap.high} - {gap.low}", "", "accuracy_gap"] == (*gap.difference[:3], samples)
    lines = table.csv().decode().splitlines()
    assert lines[0] == "group,class,figure,value,low,high,samples"
    assert len(lines) == 1 + len(rows)


def test_a_figure_that_does_not_exist_is_empty() -> None:
    z, y = torch.tensor([[1.0, 0.0]] * 3), torch.zeros(3, dtype=torch.int64)
    text = Evaluation(EvaluatedSet(z, y), ["no", "yes"]).csv().decode()
    assert "\n,yes,precision,,,,0\n" in text.replace("\r", "")
