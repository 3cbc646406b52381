"""Figures of the order that a model gives to samples: AUC and average precision, one versus rest.

For a class c, its n+ samples are positive and the n- others negative. A sample's score is its
log-odds of c, which orders samples as the probability p_c does:

    s_i = log p_ic / (1 - p_ic) = z_ic - log sum_{k != c} exp z_ik

    AUC_c = P(s_i > s_j) + P(s_i = s_j) / 2        over pairs of a positive i and a negative j
    AP_c  = mean over the positives i of T_i / (T_i + F_i)

with T_i and F_i the positives and the negatives whose score is at least s_i. This average precision
sums precision over the steps of recall, as scikit-learn does; it does not interpolate between them.
Both take one sort of the scores, O(n log n): samples of equal scores share the counts at the end of
their run. A class without positives or without negatives has no AUC, one without positives no AP.
They are NaN, and macro averages leave them out. (scikit-learn 1.8 refuses or warns, and counts such
an AP as 0.)

Their variance is that of the infinitesimal jackknife (Jaeckel 1972; Efron 1982, section 6): with a
weight w_i for each sample, the sum of squares of the derivatives by the weights at w = 1,

    dAUC/dw_i  = (A_i - AUC) / n+      positive i, A_i the share of negatives below it, ties halved
    dAUC/dw_j  = (B_j - AUC) / n-      negative j, B_j the share of positives above it
    dAP/dw_i   = (T_i / (T_i + F_i) - AP + sum_k F_k / (T_k + F_k)^2) / n+         positive i
    dAP/dw_j   = - sum_k T_k / (T_k + F_k)^2 / n+                                  negative j

where k runs over the positives with scores up to that of the sample. That of AUC is the variance
of DeLong, DeLong and Clarke-Pearson (1988) but for n - 1 in the place of n. Derivatives of a mean
over classes are means of derivatives, so that macro averages have a variance too.

>>> z = torch.tensor([[0.0, 3.0], [0.0, 2.0], [0.0, 1.0], [0.0, 0.0]])
>>> found = rank(z, torch.tensor([1, 0, 1, 0]))
>>> found.auc.tolist(), found.ap.tolist()  # of class 1: 3 pairs of 4; (1/1 + 2/3) / 2
([0.75, 0.75], [0.833..., 0.833...])
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.metrics import macro

__all__ = ["Ranking", "log_odds", "rank"]

MAX_SCORES = 1 << 20
"""Scores that are sorted together, of as many classes as they give; each takes some 100 bytes."""


class Ranking(NamedTuple):
    """AUC and average precision of each class (C,), float64, and their variances.

    Attributes:
        auc, ap: of each class; NaN where it is not defined.
        auc_variance, ap_variance: of each class.
        macro_auc, macro_ap: means over the classes that have the figure.
        macro_auc_variance, macro_ap_variance: of these means.
    """

    auc: Tensor
    ap: Tensor
    auc_variance: Tensor
    ap_variance: Tensor
    macro_auc: float
    macro_ap: float
    macro_auc_variance: float
    macro_ap_variance: float


def log_odds(logits: Tensor) -> Tensor:
    """Return the log-odds of each class against all others, float64 (n, C).

    They keep digits where the probability rounds to 1: of the most probable class they are
    z - lse of the others. The others have p <= 1/2, and log p - log1p(-p) is exact.

    Args:
        logits: (n, C), C >= 2, floating point.
    """
    z = logits.double()
    log_p = z.log_softmax(1)
    odds = log_p - torch.log1p(-log_p.exp())
    top = z.argmax(1, keepdim=True)
    rest = z.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    return odds.scatter(1, top, z.gather(1, top) - rest)


def rank(logits: Tensor, y: Tensor) -> Ranking:
    """Return AUC and average precision of each class and their macro averages.

    Takes O(n C log n) time, and memory for n C float64.

    Args:
        logits: (n, C), C >= 2, floating point.
        y: class indices (n,), n >= 1.

    Raises:
        ValueError: the shapes are others, or logits are NaN.
        IndexError: a class index is out of range.
    """
    _check(logits, y)
    scores = log_odds(logits).T.contiguous()
    C, n = scores.shape
    block = max(1, MAX_SCORES // n)
    parts, influence = [], scores.new_zeros(2, n)
    for first in range(0, C, block):
        classes = torch.arange(first, min(C, first + block), device=y.device)
        values, derivatives = _rank_block(scores[first : first + block], classes[:, None] == y)
        parts.append(torch.cat([values, derivatives.square().sum(2)]))
        influence += derivatives.nansum(1)
    auc, ap, auc_variance, ap_variance = torch.cat(parts, 1).cpu()
    defined = torch.stack([auc, ap]).isfinite().sum(1)
    variances = (influence.cpu().square().sum(1) / defined.square()).tolist()
    return Ranking(auc, ap, auc_variance, ap_variance, macro(auc), macro(ap), *variances)


def _check(logits: Tensor, y: Tensor) -> None:
    """Raise ValueError or IndexError unless samples can be ranked."""
    if logits.dim() != 2 or logits.shape[1] < 2 or y.shape != logits.shape[:1] or not len(y):
        raise ValueError(
            "logits and y: expected shapes (n, C) and (n,) with n > 0 and C > 1, got "
            f"{tuple(logits.shape)} and {tuple(y.shape)}"
        )
    if logits.isnan().any():
        row = int(logits.isnan().any(1).nonzero()[0])
        raise ValueError(f"logits: expected numbers, got NaN in row {row}")
    low, high = (int(bound) for bound in y.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise IndexError(
            f"y: expected class indices in [0, {logits.shape[1]}), got {low if low < 0 else high}"
        )


def _rank_block(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Return AUC and AP of some classes, (2, B), and their derivatives by weights (2, B, n).

    Args:
        scores: (B, n), float64.
        positive: bool (B, n), whether a sample belongs to the class.
    """
    s, order = scores.sort(1, descending=True)
    pos = positive.gather(1, order).double()
    neg = 1 - pos
    T, F = pos.cumsum(1), neg.cumsum(1)  # up to each place
    first, last = _runs_of_ties(s)
    T_before, F_before = (T - pos).gather(1, first), (F - neg).gather(1, first)
    T_end, F_end = T.gather(1, last), F.gather(1, last)
    n_pos, n_neg = T[:, -1:], F[:, -1:]

    below = 1 - (F_before + F_end) / 2 / n_neg
    above = (T_before + T_end) / 2 / n_pos
    auc = (pos * below).sum(1, keepdim=True) / n_pos
    d_auc = pos * (below - auc) / n_pos + neg * (above - auc) / n_neg

    at = T_end + F_end
    ap = (pos * T_end / at).sum(1, keepdim=True) / n_pos
    up_to_F, up_to_T = (_sums_from(pos * of / at.square(), first) for of in (F_end, T_end))
    d_ap = (pos * (T_end / at - ap + up_to_F) - neg * up_to_T) / n_pos

    derivatives = torch.stack([d_auc, d_ap])
    by_sample = torch.empty_like(derivatives).scatter(2, order.expand_as(derivatives), derivatives)
    return torch.cat([auc, ap], 1).T, by_sample


def _runs_of_ties(s: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the last place of the run of equal values at each place, int64 (B, n).

    Args:
        s: each row sorted, (B, n).
    """
    n = s.shape[1]
    place = torch.arange(n, device=s.device).expand_as(s)
    starts, ends = torch.ones_like(s, dtype=torch.bool), torch.ones_like(s, dtype=torch.bool)
    starts[:, 1:] = s[:, 1:] != s[:, :-1]
    ends[:, :-1] = starts[:, 1:]
    first = place.where(starts, 0).cummax(1).values
    last = place.where(ends, n - 1).flip(1).cummin(1).values.flip(1)
    return first, last


def _sums_from(values: Tensor, first: Tensor) -> Tensor:
    """Return the sum of values (B, n) from the place ``first`` of each place to the end."""
    return values.flip(1).cumsum(1).flip(1).gather(1, first)
