"""Marginal effects: how much the probability of each class changes with each feature.

The formulas are in ``effect_derivatives``; tests and intervals take the effects as normal.

>>> import torch
>>> from softmax_torch.solvers import inference
>>> X = torch.arange(8.0).unsqueeze(1)
>>> found = inference(X, [0, 0, 1, 0, 1, 0, 1, 1]).marginal_effects()
>>> found.effects[:, 0], found.standard_errors[:, 0]
(tensor([-0.1040,  0.1040], dtype=torch.float64), tensor([0.0337, 0.0337], dtype=torch.float64))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from torch import Tensor

from softmax_torch.solvers.conversion import as_number
from softmax_torch.solvers.inference.effect_derivatives import (
    At,
    effects_and_errors,
    rows_as_given,
)
from softmax_torch.solvers.inference.names import feature_index, feature_indices
from softmax_torch.solvers.inference.normal import checked_confidence, interval, two_sided_p
from softmax_torch.solvers.inference.tables import (
    Table,
    blocks_of,
    column_heads,
    columns_of_estimates,
    frame_of,
)
from softmax_torch.solvers.objective import Objective

__all__ = ["At", "Dummies", "MarginalEffects", "marginal_effects"]

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
        return columns_of_estimates(
            "effect",
            self.class_names,
            self.feature_names,
            self.effects,
            self.standard_errors,
            self.z_values,
            self.p_values,
            self.confidence_intervals,
        )

    def to_frame(self) -> Any:
        """Return the columns of ``to_dict`` as a pandas frame with the index (class, feature).

        Raises:
            ImportError: pandas is not installed.
        """
        return frame_of(self.to_dict(), ["class", "feature"])

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
            blocks_of([f"P({name})" for name in self.class_names], self.to_dict()),
            notes,
        )


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
    confidence = checked_confidence(confidence)
    fixed = _fixed(values, feature_names)
    with objective.threads():
        columns = _dummy_columns(objective, dummies, feature_names)
        effects, errors = effects_and_errors(objective, theta, covariance, at, fixed, columns)
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
        number = as_number(f"values[{feature!r}]", value)
        if not math.isfinite(number):
            raise ValueError(f"values: expected finite numbers, got {feature!r}: {value!r}")
        fixed[feature_index(feature, names, "values")] = number
    return fixed


def _dummy_columns(objective: Objective, dummies: Any, names: tuple[str, ...]) -> list[int]:
    """Return the ascending indices of the features whose effects are differences."""
    if isinstance(dummies, str) and dummies not in ("auto", "none"):
        raise ValueError(f"dummies: expected auto, none or features, got {dummies!r}")
    auto = isinstance(dummies, str) and dummies == "auto"
    columns = [] if isinstance(dummies, str) else feature_indices(dummies, names, "dummies")
    if not auto and not columns:
        return []
    other = objective.zeros()[0, : objective.samples.d]  # entries that are not 0 or 1
    for x, w in rows_as_given(objective):
        x = x[w > 0, : len(other)]
        other += ((x != 0) & (x != 1)).sum(0)
    other = objective.summed(other)
    if auto:
        return [j for j, count in enumerate(other.tolist()) if count == 0]
    for j in columns:
        if other[j] > 0:
            raise ValueError(
                f"dummies: expected columns of zeros and ones, got {int(other[j])} other entries "
                f"in {names[j]}"
            )
    return columns
