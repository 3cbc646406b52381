"""The decision threshold of two classes: best among all, by brute force; bad input; its state."""

import doctest
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_curve
from torch import Tensor

from softmax_torch import decision_threshold
from softmax_torch.calibration import Calibration, fit_temperature
from softmax_torch.conformal import ConformalSets
from softmax_torch.decision_threshold import CRITERIA, Criterion, DecisionThreshold, choose
from softmax_torch.post_hoc import PostHoc
from softmax_torch.predictor import Predictor
from softmax_torch.preprocessing import FeaturesPreprocessing


def samples(n: int, seed: int = 0, distinct: int | None = None) -> tuple[Tensor, Tensor]:
    """Return logits (n, 2) of a rare second class, with ties if there are few distinct ones."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.rand(n, generator=generator) < 0.2).long()
    s = torch.randn(n, generator=generator) + 1.2 * y - 1.0
    s = s if distinct is None else (s * distinct).round() / distinct
    return torch.stack([torch.zeros(n), s], 1), y


def goodness(criterion: Criterion, y: Tensor, decided: Tensor, costs: tuple[float, float]) -> float:
    if criterion == "balanced_accuracy":
        return float(balanced_accuracy_score(y, decided))
    if criterion == "f1":
        return float(f1_score(y, decided, zero_division=0))
    return -float(((decided > y) * costs[0] + (decided < y) * costs[1]).sum())


def test_the_example_of_the_module() -> None:
    assert doctest.testmod(decision_threshold).failed == 0


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("distinct", [None, 2])
def test_no_threshold_is_better(criterion: Criterion, distinct: int | None) -> None:
    z, y = samples(60, distinct=distinct)
    costs = (1.0, 3.0)
    found = choose(z, y, criterion, costs=costs, class_names=["no", "yes"])
    p = z.double().softmax(1)[:, 1]
    assert torch.equal(found(z), (p >= found.value).long())
    edges = [0.0, *p.unique().tolist(), 1.0]
    tried = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    values = [goodness(criterion, y, (p >= t).long(), costs) for t in tried]
    best = max(values)
    assert goodness(criterion, y, found(z), costs) == pytest.approx(best, rel=1e-12)
    equal = [t for t, value in zip(tried, values, strict=True) if value > best - 1e-12]
    assert found.value == pytest.approx(min(equal, key=lambda t: abs(t - 0.5)), rel=1e-12)
    assert (found.positive, found.criterion) == ("yes", criterion)
    assert found.costs == (costs if criterion == "cost" else None)


def test_balanced_accuracy_is_youdens_index() -> None:
    z, y = samples(200)
    fpr, tpr, thresholds = roc_curve(y, z.double().softmax(1)[:, 1], drop_intermediate=False)
    best = (tpr - fpr).max()
    decided = choose(z, y)(z)
    assert 2 * balanced_accuracy_score(y, decided) - 1 == pytest.approx(best, rel=1e-12)
    assert len(thresholds) > 100


def test_equal_costs_of_separated_classes_are_halfway() -> None:
    z = torch.tensor([[0.0, math.log(a / (1 - a))] for a in (0.1, 0.2, 0.6, 0.9)])
    y = torch.tensor([0, 0, 1, 1])
    for criterion in CRITERIA:
        assert choose(z, y, criterion).value == pytest.approx(0.4)  # (0.2 + 0.6) / 2


def test_of_equally_good_thresholds_the_nearest_to_one_half_is_taken() -> None:
    """0.2 finds both positives and one negative, 0.675 one positive and no negative."""
    z = torch.tensor([[0.0, math.log(a / (1 - a))] for a in (0.1, 0.3, 0.45, 0.9)])
    assert choose(z, torch.tensor([0, 1, 0, 1])).value == pytest.approx(0.675)


def test_a_threshold_at_a_probability_includes_it() -> None:
    assert DecisionThreshold(0.5)(torch.zeros(1, 2)).tolist() == [1]


def test_extremes() -> None:
    """Missing a positive costs so much that all are chosen, or a false alarm that none is."""
    z, y = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, -9.0]]), torch.tensor([0, 0, 1])
    all_of_them = choose(z, y, "cost", costs=(1.0, 100.0))
    assert all_of_them(z).tolist() == [1, 1, 1]
    assert 0 < all_of_them.value < 0.001
    none = choose(z, y, "cost", costs=(100.0, 1.0))
    assert none(z).tolist() == [0, 0, 0]
    certain = torch.tensor([[0.0, 800.0], [0.0, -800.0], [0.0, 0.0]])  # p = 1, 0, 1/2
    for costs in ((1.0, 100.0), (100.0, 1.0)):
        rule = choose(certain, torch.tensor([0, 1, 0]), "cost", costs=costs)
        assert 0 < rule.value < 1


def test_rounding_puts_no_threshold_onto_1() -> None:
    below_1 = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    t, _ = decision_threshold._candidates(below_1, torch.tensor([0]))
    assert t.tolist() == pytest.approx([0.5])


def test_it_keeps_the_calibration_that_it_was_chosen_with() -> None:
    z, y = samples(300)
    calibration = fit_temperature(3 * z, y)
    with_it = choose(3 * z, y, calibration=calibration)
    assert with_it.value == pytest.approx(choose(calibration(3 * z.double()), y).value, rel=1e-12)
    assert torch.equal(with_it(3 * z), choose(calibration(3 * z.double()), y)(calibration(3 * z)))
    assert "temperature" in str(with_it)


def test_a_predictor_decides_by_logits_without_its_calibration(tmp_path: Path) -> None:
    """A threshold and sets have a calibration of their own, or none."""
    sharpened = Calibration(*torch.tensor([5.0, 0.0], dtype=torch.float64))
    sets = ConformalSets("lac", 0.9, torch.tensor(0.3), torch.tensor(10))
    predictor = Predictor(
        *(torch.nn.Identity(), FeaturesPreprocessing(2, ("no", "yes")), sharpened),
        conformal=sets,
        threshold=DecisionThreshold(0.6),
    )
    np.save(tmp_path / "x.npy", x := np.array([[0.0, 0.2]]))  # p_1 = 0.55, calibrated 0.73
    assert predictor.predict_proba(x)[0, 1].item() == pytest.approx(0.7311, abs=1e-4)
    assert predictor.predict(x) == ["no"]
    assert predictor.predict_set(x) == [["yes", "no"]]
    [rows] = predictor.predict_rows(tmp_path / "x.npy", sets=True)
    assert rows.classes is not None
    assert rows.sets is not None
    assert (rows.classes.tolist(), rows.sets.tolist()) == ([0], [[True, True]])


def test_its_state_is_restored(tmp_path: Path) -> None:
    z, y = samples(300)
    calibration = Calibration(torch.tensor(0.5).double(), torch.tensor(0.0).double())
    for rule in (
        choose(z, y, "cost", costs=(1, 5), calibration=calibration, class_names=["a", "b"]),
        choose(z, y, "f1"),
    ):
        torch.save(PostHoc(threshold=rule).state_dict(), tmp_path / "state")
        state = torch.load(tmp_path / "state", weights_only=True)
        assert PostHoc.of_checkpoint(state).threshold == rule


def test_what_it_says() -> None:
    text = str(DecisionThreshold(0.25, "sick", "cost", (1.0, 5.0)))
    assert text == (
        "sick from a probability of 0.25 on, by cost of 1 a false positive and 5 a false negative"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": torch.zeros(4, 3)}, "expected a model of two classes, got 3"),
        ({"logits": torch.zeros(4)}, r"logits and y: expected shapes \(n, C\) and \(n,\)"),
        ({"y": torch.zeros(4, dtype=torch.int64)}, "expected samples of both classes .* none of b"),
        (
            {"criterion": "youden"},
            "criterion: expected one of balanced_accuracy, f1, cost, got 'yo",
        ),
        ({"costs": (1.0, -1.0)}, "costs: expected two positive numbers, .* got \\[1.0, -1.0\\]"),
        ({"costs": (1.0,)}, "costs: expected two positive numbers"),
        ({"costs": (1.0, math.inf)}, "costs: expected two positive numbers"),
        ({"logits": torch.full((4, 2), np.nan)}, "logits: expected finite numbers"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], message: str) -> None:
    given = {"logits": torch.zeros(4, 2), "y": torch.tensor([0, 1, 0, 1])} | arguments
    with pytest.raises(ValueError, match=message):
        choose(**given, class_names=["a", "b"])


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, math.nan, "store"])
def test_a_number_outside_0_and_1_is_no_threshold(value: Any) -> None:
    with pytest.raises(ValueError, match=r"threshold: expected a number in \(0, 1\), got"):
        PostHoc().decision(value, False, "threshold")


def test_more_than_two_classes_have_no_threshold() -> None:
    with pytest.raises(ValueError, match="expected a model of two classes, got 3: of several"):
        DecisionThreshold(0.3)(torch.zeros(1, 3))
