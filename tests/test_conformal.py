"""Conformal sets have the coverage that theory gives, and refuse samples that cannot give it."""

import doctest
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from softmax_torch import conformal
from softmax_torch.calibration import Calibration
from softmax_torch.conformal import (
    SCORES,
    ConformalSets,
    Score,
    conformity,
    fit,
    rank_of_threshold,
    samples_needed,
)
from softmax_torch.export.metadata import without_tensors
from softmax_torch.post_hoc import PostHoc


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits (..., C) times ``scale``, and classes drawn from the softmax without it."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(*shape, generator=generator, dtype=torch.float64)
    p = (1.5 * z).softmax(-1)
    y = torch.multinomial(p.flatten(0, -2), 1, generator=generator).view(shape[:-1])
    return scale * z, y


def test_the_example_of_the_module() -> None:
    assert doctest.testmod(conformal).failed == 0


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("lac", [0.3, 0.5, 0.2]),
        ("aps", [0.5, 1.0, 0.2]),
        ("raps", [0.4, 1.0, 0.0]),  # 0.5 - 0.1 and 0.2 - 2 * 0.1
    ],
)
def test_conformities_by_hand(score: Score, expected: list[float]) -> None:
    z = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64).log()
    got = conformity(z + 7, score, k_reg=1, penalty=0.1)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("score", SCORES)
def test_sets_are_those_of_the_papers(score: Score) -> None:
    """With 1 - conformity, class by class: LAC 1 - p_y, APS the mass ahead, RAPS with a penalty."""
    z, y = draw(200, 6)
    p, (k_reg, penalty) = z.softmax(1), (2, 0.03)

    def of_paper(row: Tensor, c: int) -> float:
        if score == "lac":
            return 1 - float(row[c])
        ahead = row > row[c]
        rank = 1 + int(ahead.sum())
        return float(row[ahead].sum()) + (score == "raps") * penalty * max(0, rank - k_reg)

    new = p[150:]
    scores = sorted(of_paper(row, int(c)) for row, c in zip(p[:150], y[:150], strict=True))
    largest = scores[math.ceil(151 * 0.8) - 1]
    expected = [[of_paper(row, c) <= largest for c in range(6)] for row in new]
    regularization = (k_reg, penalty) if score == "raps" else None
    sets = fit(z[:150], y[:150], 0.8, score, regularization=regularization)
    assert sets(z[150:]).tolist() == expected
    assert 50 < sum(map(sum, expected)) < 300


@pytest.mark.parametrize(
    ("n", "level", "k"), [(9, 0.9, 9), (10, 0.9, 10), (99, 0.55, 55), (99, 0.99, 99), (4, 0.3, 2)]
)
def test_the_rank_of_the_threshold_is_exact(n: int, level: float, k: int) -> None:
    assert rank_of_threshold(n, level) == k
    z = torch.arange(1.0, n + 1)[:, None] * torch.tensor([1.0, 0.0])
    threshold = fit(z, torch.zeros(n, dtype=torch.long), level, "lac").threshold
    assert threshold == pytest.approx(1 / (1 + math.exp(-(n + 1 - k))))  # the k-th largest


@pytest.mark.parametrize("level", [0.001, 0.5, 0.55, 0.9, 0.95, 0.99, 0.999])
def test_samples_needed_are_the_fewest(level: float) -> None:
    n = samples_needed(level)
    assert rank_of_threshold(n, level) <= n
    assert rank_of_threshold(n - 1, level) > n - 1


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_left_out_samples_are_covered_exactly_as_often_as_promised(
    score: Score, ties: bool
) -> None:
    """Of n + 1 samples, exactly k have their class in the set that the n others calibrate.

    This is the finite-sample guarantee without the randomness of the samples. More have it only
    where conformities are equal.
    """
    z, y = draw(41, 5, scale=3.0)  # wrong often enough that no threshold is 1
    if ties:
        z = z.round()
    level, covered = 0.7, 0
    regularization = (1, 0.02) if score == "raps" else None
    for i in range(41):
        others = torch.arange(41) != i
        sets = fit(z[others], y[others], level, score, regularization=regularization)
        covered += bool(sets(z[i])[y[i]])
    k = rank_of_threshold(40, level)
    assert k == 29
    assert k <= covered <= 41 if ties else covered == k


@pytest.mark.slow
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_coverage_over_a_thousand_splits(score: Score, per_class: bool) -> None:
    """Whether a new sample is covered is a draw with probability k / (n + 1), once a split."""
    splits, n, C, level = 1000, 150, 3, 0.8
    z, y = draw(splits, n + 1, C, scale=2.0, seed=3)
    hits, expected = torch.zeros(splits, dtype=torch.bool), torch.zeros(splits)
    for i in range(splits):
        sets = fit(z[i, :n], y[i, :n], level, score, per_class=per_class)
        hits[i] = sets(z[i, n])[y[i, n]]
        m = int(sets.samples[y[i, n]] if per_class else sets.samples)
        expected[i] = rank_of_threshold(m, level) / (m + 1)
    groups = [y[:, n] == c for c in range(C)] if per_class else [torch.ones(splits).bool()]
    for group in groups:
        mean, count = float(expected[group].mean()), int(group.sum())
        assert mean >= level
        # 99.9% of the draws lie within 3.3 standard deviations.
        within = 3.3 * math.sqrt(mean * (1 - mean) / count)
        assert abs(float(hits[group].double().mean()) - mean) < within
    if not per_class and score != "raps":
        assert expected.unique().tolist() == pytest.approx([121 / 151])


def test_thresholds_of_classes_cover_each_class() -> None:
    """One threshold covers the easy class too often and the hard one too seldom."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(4000, generator=generator) < 0.2).long()  # class 1 is rare
    x = torch.randn(4000, generator=generator) + 2.0 * y - 0.4
    z = torch.stack([torch.zeros(4000), 1.5 * x - 2], 1)

    def coverage(per_class: bool) -> list[float]:
        sets = fit(z[:2000], y[:2000], 0.9, "lac", per_class=per_class)
        assert sets.threshold.shape == sets.samples.shape == ((2,) if per_class else ())
        hit = sets(z[2000:]).gather(1, y[2000:, None])[:, 0]
        return [float(hit[y[2000:] == c].double().mean()) for c in range(2)]

    easy, hard = coverage(False)
    assert easy > 0.95
    assert hard < 0.8
    assert coverage(True) == pytest.approx([0.9, 0.9], abs=0.04)


def test_the_most_probable_class_is_in_every_set_of_aps_and_raps() -> None:
    """Also where the threshold is 1, so that the last digit of a sum would decide."""
    z, _ = draw(2000, 50, scale=3.0)
    for score, regularization in (("aps", None), ("raps", (1, 0.5))):
        sets = fit(z, z.argmax(1), 0.9, score, regularization=regularization)  # type: ignore[arg-type]
        assert sets.threshold == 1
        members = sets(z)
        assert members.sum(1).eq(1).all()
        assert members[torch.arange(2000), z.argmax(1)].all()
    assert fit(z, z.argmax(1), 0.9, "lac")(z).sum(1).eq(0).any()


def test_small_masses_keep_their_digits() -> None:
    z = torch.tensor([0.0, -50.0, -90.0, -91.0], dtype=torch.float64)
    expected = [1.0, math.exp(-50), math.exp(-90) + math.exp(-91), math.exp(-91)]
    got = conformity(z, "aps")
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


def test_of_equally_probable_classes_the_last_ranks_first() -> None:
    torch.testing.assert_close(conformity(torch.zeros(4), "aps"), torch.arange(1, 5).double() / 4)


def test_sets_use_the_calibration_that_they_were_fitted_with() -> None:
    z, y = draw(300, 5, scale=4.0)
    calibration = Calibration(*torch.tensor([0.25, 0.0], dtype=torch.float64))
    plain = fit(calibration(z), y, 0.9)
    sets = fit(z, y, 0.9, calibration=calibration)
    assert sets.threshold == plain.threshold
    assert torch.equal(sets(z), plain(calibration(z)))
    assert not torch.equal(sets(z), fit(z, y, 0.9)(z))


def test_raps_shortens_sets_of_many_classes() -> None:
    """Of half the samples all probabilities are small, and only their ranks say something.

    The parameters come from a fifth of the samples, the threshold from the others.
    """
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(100, (4000,), generator=generator)
    z = torch.randn(4000, 100, generator=generator) + 3 * torch.nn.functional.one_hot(y, 100)
    z[::2] *= 0.2
    aps, raps = (fit(z[:2000], y[:2000], 0.9, score) for score in ("aps", "raps"))
    assert raps.samples == 1600
    assert raps.penalty in conformal.PENALTIES
    sizes = [float(sets(z[2000:]).sum(1).double().mean()) for sets in (aps, raps)]
    assert sizes[1] < 0.7 * sizes[0]
    assert raps(z[2000:]).gather(1, y[2000:, None]).double().mean() > 0.87


def test_k_reg_is_the_rank_that_holds_the_share_of_the_level() -> None:
    z = torch.arange(10.0, 0, -1).repeat(20, 1)  # class c has rank c + 1
    y = torch.arange(20) // 2
    k_reg, penalty = conformal._regularization(z.double(), y, 0.7)
    assert k_reg == 8  # the 15th of 20 ranks: ceil(21 * 0.7) = 15
    assert penalty == conformal.PENALTIES[0]  # all have the same sets, so the least is taken


VARIANTS: list[dict[str, Any]] = [
    {"score": "lac"},
    {"score": "aps", "per_class": True},
    {"score": "raps", "calibration": Calibration(torch.tensor(0.5), torch.tensor(0.0))},
]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("as_json", [False, True])
def test_sets_survive_a_checkpoint(options: dict[str, Any], as_json: bool, tmp_path: Path) -> None:
    z, y = draw(200, 4)
    sets = fit(z, y, 0.8, **options)
    state = PostHoc(conformal=sets).state_dict()
    if as_json:
        state = json.loads(json.dumps(without_tensors(state), allow_nan=False))
    else:
        torch.save(state, tmp_path / "a.pt")
        state = torch.load(tmp_path / "a.pt", weights_only=True)
    found = PostHoc.of_checkpoint(state)
    assert found.calibration is None
    again = found.conformal
    assert isinstance(again, ConformalSets)
    assert str(again) == str(sets)
    new = draw(500, 4, seed=1)[0]
    assert torch.equal(again(new), sets(new))
    assert torch.equal(again.samples, sets.samples)


def test_descriptions() -> None:
    z, y = draw(200, 4)
    assert str(fit(z, y, 0.9)) == "APS sets at level 0.9, from 200 samples"
    sets = fit(z, y, 0.8, "raps", per_class=True, regularization=(2, 0.1))
    assert str(sets) == (
        "RAPS sets at level 0.8 (penalty 0.1 after rank 2) for each of 4 classes, from 200 samples"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": 1.0}, "level: expected a number above 0 and below 1, got 1.0"),
        ({"level": 0}, "level: .* got 0"),
        ({"level": -0.5}, "level: .* got -0.5"),
        ({"level": float("nan")}, "level: .* got nan"),
        ({"level": True}, "level: .* got True"),
        ({"level": "0.9"}, "level: .* got '0.9'"),
        ({"score": "top"}, "score: expected lac, aps or raps, got 'top'"),
        ({"score": "lac", "regularization": (1, 0.1)}, "regularization: expected None, as lac"),
        ({"score": "raps", "regularization": (0, 0.1)}, "k_reg >= 1 .*, got .0, 0.1."),
        ({"score": "raps", "regularization": (1, -0.1)}, "penalty >= 0, got"),
        ({"level": 0.953}, "level: expected at least 21 samples for 0.953, got 20"),
        (
            {"level": 0.96, "score": "raps", "regularization": (1, 0.1)},
            "24 samples for 0.96, got 20",
        ),
        ({"level": 0.95, "score": "raps"}, "at least 19 samples beside those that .*, got 16"),
        (
            {"level": 0.9, "per_class": True},
            "9 samples of each class for level 0.9, got 8 of class 1 and 0 of class 2",
        ),
        (
            {"level": 0.9, "per_class": True, "class_names": ["a", "b", "c"]},
            r"per_class: .* got 8 of 'b' and 0 of 'c'",
        ),
    ],
)
def test_unusable_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0] * 12 + [1] * 8)
    fit(z, y, 0.952)  # 20 are needed, and no class needs samples
    with pytest.raises(ValueError, match=message):
        fit(z, y, **change)


def test_unusable_samples_are_refused() -> None:
    z, y = torch.randn(20, 3), torch.zeros(20, dtype=torch.long)
    with pytest.raises(ValueError, match="expected shapes"):
        fit(z, y[:5])
    with pytest.raises(ValueError, match="got NaN or infinity in row 3"):
        fit(z.index_fill(0, torch.tensor(3), math.nan), y)
    with pytest.raises(IndexError, match=r"class indices in \[0, 3\), got 3"):
        fit(z, y + 3)


def test_many_classes_without_samples_are_counted() -> None:
    z, y = torch.randn(20, 30), torch.zeros(20, dtype=torch.long)
    with pytest.raises(ValueError, match="0 of class 5 and too few of 24 more"):
        fit(z, y, per_class=True)
