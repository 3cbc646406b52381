"""The summary of estimates: the figures of the fit, and its coefficients class by class."""

from __future__ import annotations

import math
from typing import Any

from softmax_torch.solvers.inference.estimates import Estimates
from softmax_torch.solvers.inference.tables import Block, Row, Table, column_heads

__all__ = ["columns_of", "table_of"]

NOTES = {
    "firth": "Firth's penalised likelihood: estimates without the bias of order 1/n.",
    "l2": "The penalty biases coefficients towards 0. Intervals and tests are about the "
    "coefficients that the penalised fit has in the population.",
}
"""What a penalty means, for readers of a summary."""


def columns_of(result: Estimates, odds_ratios: bool = False) -> dict[str, list[Any]]:
    """Return columns with an entry for each coefficient, class by class."""
    R, P = result.coefficients.shape
    columns: dict[str, list[Any]] = {
        "class": [name for name in result.row_names for _ in range(P)],
        "feature": list(result.column_names) * R,
        "coefficient": result.coefficients.flatten().tolist(),
        "standard_error": result.standard_errors.flatten().tolist(),
        "z": result.z_values.flatten().tolist(),
        "p_value": result.p_values.flatten().tolist(),
        "lower": result.confidence_intervals[..., 0].flatten().tolist(),
        "upper": result.confidence_intervals[..., 1].flatten().tolist(),
    }
    if result.bootstrap is not None:
        columns["bootstrap_standard_error"] = result.bootstrap.standard_errors.flatten().tolist()
        low, high = result.bootstrap.confidence_intervals.unbind(-1)
        columns["bootstrap_lower"], columns["bootstrap_upper"] = (
            ends.flatten().tolist() for ends in (low, high)
        )
    if odds_ratios:
        for name, of in (("", "coefficient"), ("_lower", "lower"), ("_upper", "upper")):
            columns[f"odds_ratio{name}"] = list(map(_exp, columns[of]))
    return columns


def table_of(result: Estimates, odds_ratios: bool = False) -> Table:
    """Return the figures of the fit and a block of coefficients for each class."""
    return Table(
        "Softmax regression",
        _facts(result),
        _heads(result, odds_ratios),
        _blocks(result, odds_ratios),
        _notes(result),
    )


def _facts(result: Estimates) -> list[tuple[str, str]]:
    """Return names and values of the figures of the whole fit."""
    whole = result.likelihood_ratio
    return [
        ("No. observations", f"{result.observations:.10g}"),
        ("Coefficients", f"{result.parameters:.4g}"),
        ("Df residuals", f"{result.observations - result.parameters:.6g}"),
        ("Covariance", result.covariance_type),
        ("Penalty", result.penalty_text),
        ("Confidence", f"{result.confidence:g}"),
        ("Log-likelihood", f"{result.log_likelihood:.6g}"),
        ("LL-null", f"{result.log_likelihood_null:.6g}"),
        ("LLR p-value", "-" if whole is None else f"{whole.p_value:.4g}"),
        ("Pseudo R-squared", f"{result.pseudo_r2:.4g}"),
        ("AIC", f"{result.aic:.6g}"),
        ("BIC", f"{result.bic:.6g}"),
    ]


def _heads(result: Estimates, odds_ratios: bool) -> list[str]:
    p_value = "P>chi2" if result.intervals == "profile" else "P>|z|"
    return column_heads("odds ratio" if odds_ratios else "coef", result.confidence, p_value)


def _blocks(result: Estimates, odds_ratios: bool) -> list[Block]:
    P, columns = len(result.column_names), columns_of(result)
    numbers = ("coefficient", "standard_error", "z", "p_value", "lower", "upper")
    rows = []
    for name, *values in zip(columns["feature"], *(columns[each] for each in numbers), strict=True):
        if odds_ratios:
            ratio = _exp(values[0])
            values = [ratio, ratio * values[1], *values[2:4], *map(_exp, values[4:])]
        rows.append(Row(name, values))
    against = "the mean" if result.reference is None else result.class_names[result.reference]
    return [
        Block(f"{name} vs {against}", rows[i * P : (i + 1) * P])
        for i, name in enumerate(result.row_names)
    ]


def _notes(result: Estimates) -> list[str]:
    notes = []
    if result.model.penalty in NOTES:
        notes.append(NOTES[result.model.penalty])
    if result.intervals == "profile":
        notes.append("Intervals and p-values are those of likelihood-ratio tests (profiles).")
    if result.groups is not None:
        notes.append(f"The samples belong to {result.groups} groups.")
    boot = result.bootstrap
    if boot is not None:
        failed = f"; {boot.failed} of them had no optimum and were left out" if boot.failed else ""
        notes.append(
            f"Bootstrap intervals from {boot.resamples} resamples are in the attribute bootstrap"
            f"{failed}."
        )
    return notes


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf
