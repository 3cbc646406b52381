"""AUC and average precision against scikit-learn: random, tied, degenerate samples; variances."""

import doctest

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from softmax_torch import ranking_metrics
from softmax_torch.ranking_metrics import log_odds, rank


def samples(n: int, C: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, C, generator=generator)
    return z, torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)


def test_the_example_of_the_module() -> None:
    assert doctest.testmod(ranking_metrics, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("C", [2, 3, 20])
def test_figures_are_scikit_learns(C: int) -> None:
    z, y = samples(700, C)
    found, p = rank(z, y), z.double().softmax(1)
    of_class = [(y == c).numpy() for c in range(C)]
    auc = [roc_auc_score(of_class[c], p[:, c]) for c in range(C)]
    ap = [average_precision_score(of_class[c], p[:, c]) for c in range(C)]
    assert found.auc.tolist() == pytest.approx(auc, rel=1e-12)
    assert found.ap.tolist() == pytest.approx(ap, rel=1e-12)
    assert found.macro_ap == pytest.approx(np.mean(ap), rel=1e-12)
    assert found.macro_auc == pytest.approx(np.mean(auc), rel=1e-12)
    if C > 2:
        assert found.macro_auc == pytest.approx(roc_auc_score(y, p, multi_class="ovr"), rel=1e-12)


@pytest.mark.parametrize("distinct", [1, 2, 9])
def test_ties_are_those_of_scikit_learn(distinct: int) -> None:
    """Rows are one of a few, so that equal scores are equal bits."""
    rows = torch.randn(distinct, 3, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    z = rows[torch.randint(distinct, (200,), generator=generator)]
    y = torch.randint(3, (200,), generator=generator)
    found, scores = rank(z, y), log_odds(z)
    for c in range(3):
        args = ((y == c).numpy(), scores[:, c].numpy())
        assert float(found.auc[c]) == pytest.approx(roc_auc_score(*args), rel=1e-12)
        assert float(found.ap[c]) == pytest.approx(average_precision_score(*args), rel=1e-12)


def test_blocks_of_classes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = samples(100, 7)
    whole = rank(z, y)
    monkeypatch.setattr(ranking_metrics, "MAX_SCORES", 250)  # two classes a block
    for one, other in zip(rank(z, y), whole, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-13, atol=0)


def test_a_class_without_positives_or_negatives_has_no_figure() -> None:
    z, y = samples(50, 3)
    y = y.clamp(max=1)  # class 2 has no samples
    found = rank(z, y)
    assert found.auc.isnan().tolist() == found.ap.isnan().tolist() == [False, False, True]
    assert found.macro_auc == pytest.approx(float(found.auc[:2].mean()), rel=1e-14)
    assert found.macro_auc_variance > 0
    alone = rank(z, torch.zeros_like(y))  # only class 0, which has no negatives
    assert alone.auc.isnan().all()
    assert alone.ap.isnan().tolist() == [False, True, True]
    assert float(alone.ap[0]) == alone.macro_ap == 1.0
    assert np.isnan(alone.macro_auc)


def test_one_sample_is_enough() -> None:
    found = rank(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    assert found.ap[1] == 1.0
    assert found.auc.isnan().all()


@pytest.mark.parametrize(
    ("logits", "y", "error", "message"),
    [
        (torch.zeros(2, 3), [0, 3], IndexError, r"in \[0, 3\), got 3"),
        (torch.zeros(2, 3), [-1, 0], IndexError, r"in \[0, 3\), got -1"),
        (torch.zeros(2, 3), [0], ValueError, r"got \(2, 3\) and \(1,\)"),
        (torch.zeros(2, 1), [0, 0], ValueError, r"C > 1, got \(2, 1\) and \(2,\)"),
        (torch.zeros(0, 3), [], ValueError, r"n > 0 and C > 1, got \(0, 3\)"),
        (torch.tensor([[0.0, 1.0], [0.0, torch.nan]]), [0, 1], ValueError, "got NaN in row 1"),
    ],
)
def test_samples_that_cannot_be_ranked_are_refused(
    logits: Tensor, y: list[int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rank(logits, torch.tensor(y, dtype=torch.int64))


def test_log_odds_keep_the_order_where_probabilities_are_1() -> None:
    """p of all three rounds to 1, in float64 too."""
    z = torch.tensor([[60.0, 0.0, 1.0], [50.0, 0.0, 1.0], [55.0, 0.0, 1.0]], dtype=torch.float64)
    assert (z.softmax(1)[:, 0] == 1.0).all()
    assert log_odds(z)[:, 0].argsort().tolist() == [1, 2, 0]
    found = rank(z, torch.tensor([0, 1, 0]))
    assert found.auc[0] == 1.0
    p = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(log_odds(p), torch.logit(p.softmax(1)), rtol=1e-12, atol=1e-12)
    assert log_odds(p.half()).dtype == torch.float64


def test_variances_are_those_of_scikit_learns_derivatives_by_weights() -> None:
    """Finite differences of weighted figures; those of the macro averages are their means."""
    z, y = samples(24, 3, seed=3)
    z[::2] = z[::2].round()
    z[:6] = z[6:12]  # ties
    found, scores, n = rank(z, y), log_odds(z).numpy(), len(y)
    for score, variances, of_macro in (
        (roc_auc_score, found.auc_variance, found.macro_auc_variance),
        (average_precision_score, found.ap_variance, found.macro_ap_variance),
    ):
        derivatives = np.zeros((n, 3))
        for i in range(n):
            for c in range(3):
                sides = []
                for step in (1e-4, -1e-4):
                    w = np.ones(n)
                    w[i] += step
                    sides.append(score((y == c).numpy(), scores[:, c], sample_weight=w))
                derivatives[i, c] = (sides[0] - sides[1]) / 2e-4
        assert variances.tolist() == pytest.approx((derivatives**2).sum(0), rel=1e-5)
        assert of_macro == pytest.approx((derivatives.mean(1) ** 2).sum(), rel=1e-5)
