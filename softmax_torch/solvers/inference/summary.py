"""The summary of estimates: the figures of the fit, and its coefficients class by class."""

from __future__ import annotations

import math
from typing import Any

from softmax_torch.solvers.inference.estimates import Estimates
from softmax_torch.solvers.inference.tables import (
    Block,
    Table,
    blocks_of,
    column_heads,
    columns_of_estimates,
)

__all__ = ["columns_of", "table_of"]

NOTES = {
    "firth": "Firth's penalised likelihood: estimates without the bias of order 1/n.",
    "l2": "The penalty biases coefficients towards 0. Intervals and tests are about the "
    "coefficients that the penalised fit has in the population.",
}
"""What a penalty means, for readers of a summary."""


def columns_of(result: Estimates, odds_ratios: bool = False) -> dict[str, list[Any]]:
    """Return columns with an entry for each coefficient, class by class."""
    columns = _columns(result)
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


def _columns(result: Estimates) -> dict[str, list[Any]]:
    return columns_of_estimates(
        "coefficient",
        result.row_names,
        result.column_names,
        result.coefficients,
        result.standard_errors,
        result.z_values,
        result.p_values,
        result.confidence_intervals,
    )


def _blocks(result: Estimates, odds_ratios: bool) -> list[Block]:
    columns = _columns(result)
    if odds_ratios:
        for name in ("coefficient", "lower", "upper"):
            columns[name] = list(map(_exp, columns[name]))
        errors = zip(columns["coefficient"], columns["standard_error"], strict=True)
        columns["standard_error"] = [ratio * error for ratio, error in errors]
    against = "the mean" if result.reference is None else result.class_names[result.reference]
    return blocks_of([f"{name} vs {against}" for name in result.row_names], columns)


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
