"""Marginal effects: how much the probability of each class changes with each feature.

For a sample [x, 1] with class probabilities p and weights W (K, D), the effect of feature j on the
probability of class k, and that of a column j of zeros and ones (a dummy), are

    m_kj = dp_k / dx_j = sum_l p_k p_l (W_kj - W_lj)
    m_kj = p_k(x_j = 1) - p_k(x_j = 0)

An average effect is the weighted mean of m over the samples; an effect at means is m at the mean
sample. The effects of a feature add up to 0 over the classes.

Standard errors come from the delta method: the covariance of the effects is G V G^T for the
covariance V of the coefficients theta and the derivatives G = dm / dtheta (Greene 2018,
"Econometric Analysis", 17.3.2; Stata's ``margins``). The samples are taken as fixed. With the mean
coefficients u = W^T p (D,) of a sample, for k != l and a column q of [x, 1],

    dm_kj / dtheta_lq = -p_k p_l ((W_kj + W_lj - 2 u_j) [x, 1]_q + [q = j])
    dm_kj / dtheta_lq = -(p_k p_l at x_j = 1) [x, 1]_q + (p_k p_l at x_j = 0) [x, 1]_q     (dummy)

where x_j is 1 and 0 in [x, 1] too. A constant added to theta_lq for all l changes nothing, so that
the derivative for l = k is minus the sum of the others. Nothing is subtracted from 1: digits hold
where a probability is near 0 or 1.

The first formula is linear in sum_i w_i p_ik p_il f_im [x_i, 1]. Here f are the probabilities, in
which u is linear, or [u, 1], whichever has fewer columns. These sums for all j take one pass, and
K^2 min(K, D + 1) P numbers of memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from softmax_torch.solvers.inference.information import pairs, rows_of
from softmax_torch.solvers.inference.names import feature_index
from softmax_torch.solvers.inference.normal import check_confidence, interval, two_sided_p
from softmax_torch.solvers.inference.tables import Block, Row, Table, column_heads
from softmax_torch.solvers.objective import Objective

__all__ = ["At", "Dummies", "MarginalEffects", "marginal_effects"]

At = Literal["average", "mean"]
Dummies = Literal["auto", "none"] | Sequence[str | int]


@dataclass(frozen=True, eq=False)
class MarginalEffects:
    """Effects of the features on the class probabilities, float64.

    Attributes:
        effects: (K, D), the change of the probability of a class per unit of a feature; for a
            dummy, the change from 0 to 1.
        standard_errors: (K, D), by the delta method.
        at: "average" over the samples, or "mean" for effects at the mean sample.
        values: the values that features were set to, by name.
        dummies: names of the features whose effects are differences.
        feature_names: names of the features (D,).
        class_names: names of the classes (K,).
        confidence: confidence level of the intervals.
    """

    effects: Tensor
    standard_errors: Tensor
    at: At
    values: dict[str, float]
    dummies: tuple[str, ...]
    feature_names: tuple[str, ...] = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    confidence: float

    @cached_property
    def z_values(self) -> Tensor:
        """Effects divided by their standard errors (K, D)."""
        z: Tensor = self.effects / self.standard_errors
        return z

    @cached_property
    def p_values(self) -> Tensor:
        """p-values of the two-sided tests that an effect is 0 (K, D)."""
        return two_sided_p(self.z_values)

    @cached_property
    def confidence_intervals(self) -> Tensor:
        """Lower and upper ends (K, D, 2)."""
        return interval(self.effects, self.standard_errors, self.confidence)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return columns with an entry for each effect, class by class.

        They are class, feature, effect, standard_error, z, p_value, lower and upper.
        """
        K, D = self.effects.shape
        lower, upper = self.confidence_intervals.unbind(2)
        return {
            "class": [name for name in self.class_names for _ in range(D)],
            "feature": list(self.feature_names) * K,
            "effect": self.effects.flatten().tolist(),
            "standard_error": self.standard_errors.flatten().tolist(),
            "z": self.z_values.flatten().tolist(),
            "p_value": self.p_values.flatten().tolist(),
            "lower": lower.flatten().tolist(),
            "upper": upper.flatten().tolist(),
        }

    def to_frame(self) -> Any:
        """Return the columns of ``to_dict`` as a pandas frame with the index (class, feature).

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd  # type: ignore[import-untyped] # it ships no types

        return pd.DataFrame(self.to_dict()).set_index(["class", "feature"])

    def to_markdown(self) -> str:
        """Return the effects as tables of Markdown."""
        return self._table().as_markdown()

    def _repr_html_(self) -> str:
        """Return the effects as tables of HTML, for notebooks."""
        return self._table().as_html()

    def __str__(self) -> str:
        return self._table().as_text()

    def _table(self) -> Table:
        """Return a block of effects for each class."""
        D = len(self.feature_names)
        _, names, *numbers = self.to_dict().values()
        rows = [Row(name, values) for name, *values in zip(names, *numbers, strict=True)]
        at = "average of the samples" if self.at == "average" else "mean sample"
        facts = [("Effects at", at), ("Confidence", f"{self.confidence:g}")]
        facts += [(f"Value of {name}", f"{value:g}") for name, value in self.values.items()]
        notes = []
        if self.dummies:
            notes.append(f"Effects of a change from 0 to 1: {', '.join(self.dummies)}.")
        return Table(
            "Marginal effects on class probabilities",
            facts,
            column_heads("effect", self.confidence),
            [
                Block(f"P({name})", rows[k * D : (k + 1) * D])
                for k, name in enumerate(self.class_names)
            ],
            notes,
        )


class _Averages(NamedTuple):
    """Weighted means over samples; k and l are classes, and entries with k >= l are 0.

    pairs: p_k p_l, (K, K).
    triples: p_k p_l f_m [x, 1], (K, K, M, P).
    changes: of each dummy, p(x_j = 1) - p(x_j = 0), (J, K).
    products: of each dummy, the change of p_k p_l [x, 1], (J, K, K, P).
    """

    pairs: Tensor
    triples: Tensor
    changes: Tensor
    products: Tensor


def marginal_effects(
    objective: Objective,
    theta: Tensor,
    covariance: Tensor,
    feature_names: tuple[str, ...],
    class_names: tuple[str, ...],
    at: At = "average",
    values: Mapping[str | int, float] | None = None,
    dummies: Dummies = "auto",
    confidence: float = 0.95,
) -> MarginalEffects:
    """Return the effects at theta (K, P) with the covariance (K P, K P), for X as given.

    ``Inference.marginal_effects`` documents the other arguments and the errors.
    """
    if at not in get_args(At):
        raise ValueError(f"at: expected {' or '.join(get_args(At))}, got {at!r}")
    check_confidence(confidence)
    fixed = _fixed(values, feature_names)
    columns = _dummy_columns(objective, dummies, feature_names)
    K, D = theta.shape[0], objective.samples.d
    W = theta[:, :D]
    # u = f @ to_mean and 1 = f @ to_one
    if K <= D + 1:
        to_mean, to_one = W, W.new_ones(K)
    else:
        unit = torch.eye(D + 1).to(W)
        to_mean, to_one = unit[:, :D], unit[:, D]
    averages = _averages(objective, theta, at, fixed, columns)
    both = averages.pairs + averages.pairs.T
    effects = both.sum(1, keepdim=True) * W - both @ W
    errors = torch.empty_like(effects)
    T, V = _symmetric(averages.triples), covariance.view(K, -1, K, theta.shape[1])
    errors = torch.stack([_slope_errors(k, W, to_mean, to_one, T, both, V) for k in range(K)])
    for j, change, products in zip(columns, averages.changes, averages.products, strict=True):
        effects[:, j] = change
        G = _symmetric(products)
        errors[:, j] = torch.stack([_difference_error(k, G[k], V) for k in range(K)])
    return MarginalEffects(
        effects=effects,
        standard_errors=errors,
        at=at,
        values={feature_names[j]: value for j, value in fixed.items()},
        dummies=tuple(feature_names[j] for j in columns),
        feature_names=feature_names,
        class_names=class_names,
        confidence=confidence,
    )


def _averages(
    objective: Objective, theta: Tensor, at: At, fixed: dict[int, float], dummies: list[int]
) -> _Averages:
    """Return the means that effects and derivatives are made of, from one pass."""
    (K, P), D = theta.shape, objective.samples.d
    W, M = theta[:, :D], min(K, D + 1)
    first, second = pairs(K, theta.device)
    sums = _Averages(
        theta.new_zeros(K, K),
        theta.new_zeros(K, K, M, P),
        theta.new_zeros(len(dummies), K),
        theta.new_zeros(len(dummies), K, K, P),
    )
    for x, w in _points(objective, at, fixed):
        z = x @ theta.T
        p = z.softmax(1)
        f = p if K <= D + 1 else torch.cat([p @ W, p.new_ones(len(p), 1)], 1)
        wp = p * w.unsqueeze(1)
        for k in range(K - 1):
            c = wp[:, k : k + 1] * p[:, k + 1 :]  # (B, K - k - 1)
            sums.pairs[k, k + 1 :] += c.sum(0)
            weights = (c.unsqueeze(2) * f.unsqueeze(1)).flatten(1)
            sums.triples[k, k + 1 :] += (weights.T @ x).view(-1, M, P)
        for i, j in enumerate(dummies):
            rest = z - x[:, j : j + 1] * W[:, j]
            off, on = rest.softmax(1), (rest + W[:, j]).softmax(1)
            sums.changes[i] += w @ (on - off)
            on_pairs, off_pairs = (w.unsqueeze(1) * q[:, first] * q[:, second] for q in (on, off))
            change = (on_pairs - off_pairs).T @ x
            change[:, j] = on_pairs.sum(0)
            sums.products[i, first, second] += change
    if at == "average":
        for total in sums:
            objective.summed(total)
    return sums


def _points(
    objective: Objective, at: At, fixed: dict[int, float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows [x, 1] (B, P) of X as given, with weights (B,) that add up to 1 over all rows.

    For "mean" this is the mean row. Features in ``fixed`` have these values.
    """
    if at == "mean":
        mean = objective.zeros()[:1]
        for x, w in _points(objective, "average", {}):
            mean += w @ x
        rows: Iterator[tuple[Tensor, Tensor]] = iter([(objective.summed(mean), mean.new_ones(1))])
    else:
        rows = _rows_as_given(objective)
    for x, w in rows:
        for j, value in fixed.items():
            x[:, j] = value
        yield x, w


def _rows_as_given(objective: Objective) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows [x, 1] (B, P) of X as given, with weights (B,) that add up to 1 over all rows."""
    weights = objective.weights / objective.divisor
    for x, at in rows_of(objective):
        if objective.offset is not None:
            x = torch.cat([x[:, :-1] + objective.offset, x[:, -1:]], 1)
        else:
            x = x.clone()
        yield x, weights[at]


def _symmetric(A: Tensor) -> Tensor:
    """Return A (K, K, ...) plus its transpose in the first two dimensions."""
    return A + A.transpose(0, 1)


def _slope_errors(
    k: int, W: Tensor, to_mean: Tensor, to_one: Tensor, T: Tensor, both: Tensor, V: Tensor
) -> Tensor:
    """Return the standard errors (D,) of the effects of all features on class k.

    The derivatives by theta_l - theta_k, l != k, are sum_m b_lm T_klm - c_l e_j, where e_j is a
    unit vector. b depends on the feature j; products of T with the covariance V do not.
    """
    (K, D), (M, P) = W.shape, T.shape[2:]
    b = 2 * to_mean - (W[k] + W).unsqueeze(1) * to_one.unsqueeze(1)  # (K, M, D)
    b[k] = 0.0
    c = both[k]
    TV = torch.stack([T[k, i] @ (V[i] - V[k]).reshape(P, -1) for i in range(K)])
    TV = TV.view(K, M, K, P)
    TV = TV - TV[:, :, k : k + 1]
    TVT = torch.einsum("lmnp,nop->lmno", TV, T[k]).reshape(K * M, K * M)
    ends = V.diagonal(dim1=1, dim2=3)[:, :, :D]  # (K, K, D)
    ends = ends - ends[k] - ends[:, k : k + 1] + ends[k, k]
    variance = (b.flatten(0, 1) * (TVT @ b.flatten(0, 1))).sum(0)
    variance -= 2 * torch.einsum("lmj,lmnj,n->j", b, TV[..., :D], c)
    variance += torch.einsum("l,n,lnj->j", c, c, ends)
    return variance.clamp_min(0).sqrt()


def _difference_error(k: int, g: Tensor, V: Tensor) -> Tensor:
    """Return the standard error of an effect on class k with derivatives -g (K, P), g_k = 0."""
    g = g.clone()
    g[k] = -g.sum(0)
    return (g.flatten() @ (V.flatten(0, 1).flatten(1) @ g.flatten())).clamp_min(0).sqrt()


def _fixed(values: Mapping[str | int, float] | None, names: tuple[str, ...]) -> dict[int, float]:
    """Return the values of features by index."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise TypeError(
            f"values: expected a mapping from features to values, got {type(values).__name__}"
        )
    fixed = {}
    for feature, value in values.items():
        number = float(value)
        if not abs(number) < float("inf"):
            raise ValueError(f"values: expected finite numbers, got {feature!r}: {value!r}")
        fixed[feature_index(feature, names, "values")] = number
    return fixed


def _dummy_columns(objective: Objective, dummies: Any, names: tuple[str, ...]) -> list[int]:
    """Return the ascending indices of the features whose effects are differences."""
    if isinstance(dummies, str) and dummies == "none":
        return []
    other = objective.zeros()[0, : objective.samples.d]  # entries that are not 0 or 1
    for x, _ in _rows_as_given(objective):
        x = x[:, : len(other)]
        other += ((x != 0) & (x != 1)).sum(0)
    other = objective.summed(other)
    if isinstance(dummies, str):
        if dummies != "auto":
            raise ValueError(f"dummies: expected auto, none or features, got {dummies!r}")
        return [j for j, count in enumerate(other.tolist()) if count == 0]
    columns = sorted({feature_index(feature, names, "dummies") for feature in dummies})
    for j in columns:
        if other[j] > 0:
            raise ValueError(
                f"dummies: expected columns of zeros and ones, got {int(other[j])} other entries "
                f"in {names[j]}"
            )
    return columns
