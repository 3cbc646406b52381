"""Separation: raise ValueError for data that have no optimum without a penalty.

F has no minimum if and only if some direction delta in theta lowers no margin and raises at least
one, over the samples i of weight > 0 and the classes k other than their own (Albert & Anderson
1984, Biometrika 71, "On the existence of maximum likelihood estimates in logistic regression
models"):

    m_ik  =  (delta_{y_i} - delta_k) . [x_i, 1]  >=  0   for all i, k     and   m_ik > 0   for one

This is complete separation if all m_ik > 0, and quasi-complete separation otherwise. Along delta F
falls without end. By Stiemke's theorem of alternatives there is no such direction if and only if
some probabilities q_i > 0 have residuals that are orthogonal to the samples,

    sum_i w_i (e_{y_i} - q_i) [x_i, 1]^T  =  0

An exact Newton step d gives such q if it is short (see ``newton_bound``). So a fit continues until
it has such a q or such a delta. Four tests look for delta, and each of them proves separation:

 - ``refuse_separating_columns``: one column separates, which one pass over the data decides
   exactly.
 - ``refuse_complete``: the fit has reached coefficients that separate completely.
 - ``refuse_direction``: a Newton step is such a direction. Near separation each step adds about 1
   to the margins that grow, and changes the others by less and less.
 - ``refuse_separated``: for fits that the other tests do not decide. A linear program is exact for
   small problems (see ``linear_program``). For larger ones Newton steps start again from 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from softmax_torch.solvers.conversion import column as column_name
from softmax_torch.solvers.linear_program import separating_direction
from softmax_torch.solvers.newton_bound import newton_bound
from softmax_torch.solvers.objective import Objective, Penalty

__all__ = [
    "SeparationError",
    "refuse_complete",
    "refuse_direction",
    "refuse_separated",
    "refuse_separating_columns",
]

MARGIN_ROUNDING = 1e-8
"""Share of the largest margin below which a negative margin is rounding."""

LEAST_MARGIN = 0.5
"""Least largest margin of a Newton step that separates; in theory it is about 1."""


class SeparationError(ValueError):
    """The classes can be separated: there is no optimum without a penalty.

    Attributes:
        why: the direction that separates them, in words.
        remedy: what helps besides a penalty, in words.
    """

    def __init__(
        self,
        why: str,
        remedy: str = "drop or merge columns or classes",
        penalty: str = "a finite C",
    ) -> None:
        self.why, self.remedy = why, remedy
        super().__init__(
            "X, y: expected classes that overlap, because otherwise there is no optimum without a "
            f"penalty; got classes that can be separated: {why}. Some coefficients would grow "
            f"without bound. Fit with a penalty ({penalty}), or {remedy}"
        )


def refuse_separating_columns(objective: Objective) -> None:
    """Raise ValueError if one column alone separates some classes from the others.

    A column does if for some threshold t all samples of some classes have values <= t, all other
    samples have values >= t, and not all values are t. Without a bias t is 0.
    """
    least, most = objective.class_ranges()
    if not objective.bias:  # t = 0
        least, most = least.clamp_max(0.0), most.clamp_min(0.0)
    # Sort classes by their largest value, and by their least one if that is equal: the classes
    # below t come first.
    order = least.argsort(dim=0, stable=True)
    order = order.gather(0, most.gather(0, order).argsort(dim=0, stable=True))
    least, most = least.gather(0, order), most.gather(0, order)
    below = most[:-1]  # (K - 1, D): the largest value of the first 1, 2, ... classes
    above = least.flip(0).cummin(0).values.flip(0)[1:]  # the least value of the other classes
    separates = (below <= above) & (least.amin(0) < most[-1])
    if not separates.any():
        return
    column = int(separates.any(0).nonzero()[0])
    first = int(separates[:, column].nonzero()[0]) + 1
    classes = sorted(order[:first, column].tolist()), sorted(order[first:, column].tolist())
    few, others = sorted(classes, key=len)
    name = column_name(column, objective.feature_names)
    names = objective.class_names
    raise SeparationError(
        f"{name} separates {_named(few, names)} from {_named(others, names)}",
        f"drop {name}, merge it with another or merge classes",
    )


def refuse_complete(objective: Objective, value: float) -> None:
    """Raise ValueError if F is so low that the classes are completely separated.

    If the sum of all NLL is below that of one sample with probability 1/2, the most probable class
    of every sample is its own.
    """
    w = objective.weight
    lightest = 1.0 if w is None else float(w[w > 0].min())
    if value * objective.divisor < math.log(2) * lightest:
        raise SeparationError("a combination of columns separates all classes")


def refuse_direction(objective: Objective, d: Tensor, z: Tensor) -> None:
    """Raise ValueError if the step d (K, P) with logits z (n, K) separates some classes."""
    margins = _margins(objective, z)
    changes = torch.stack([margins.amax(), -margins.amin()])
    grown, shrunk = objective.processes.largest(changes).tolist()
    if grown < LEAST_MARGIN or shrunk > MARGIN_ROUNDING * grown:
        return
    pairs = z.new_zeros(objective.classes, objective.classes)
    moved = (margins > 0.1 * grown).double()
    pairs.index_add_(0, objective.y, moved)
    pairs = objective.summed(pairs)
    a, b = divmod(int(pairs.argmax()), objective.classes)
    W = objective.weight_of(d)
    # In units of each column's spread, columns of different scales can be compared.
    involved = ((W[a] - W[b]) * objective.spread).abs()
    columns = involved.topk(min(3, len(involved))).indices
    columns = columns[involved[columns] > 0.01 * involved.max()].sort().values
    classes = [_named([k], objective.class_names) for k in (a, b)]
    raise SeparationError(
        f"a combination of columns separates samples of {classes[0]} from {classes[1]}, most of "
        f"all {_named_columns(columns.tolist(), objective.feature_names)}"
    )


def refuse_separated(objective: Objective, steps: int) -> bool:
    """Raise ValueError if classes can be separated; return whether it is proved that they cannot.

    For a problem that is too large for a linear program, this makes so many accurate Newton steps
    from theta = 0. Another solver may have made some margins so large that Newton steps from its
    point no longer show the direction.
    """
    try:
        delta = separating_direction(objective)
    except ArithmeticError:
        _search_from_zero(objective, steps)
        return False
    if delta is None:
        return True
    refuse_direction(objective, delta, objective.logits(delta, torch.float64))
    return False


def _search_from_zero(objective: Objective, steps: int) -> None:
    theta = objective.zeros()
    for seed in range(steps):
        bound = newton_bound(objective, theta, Penalty(0.0), 0.0, seed)
        refuse_direction(objective, bound.d, bound.z)
        refuse_complete(objective, bound.value)
        theta = bound.theta


def _margins(objective: Objective, z: Tensor) -> Tensor:
    """Return z_y - z_k (n, K), 0 for samples of weight 0."""
    margins = z.gather(1, objective.y.unsqueeze(1)) - z
    if objective.weight is not None:
        margins = margins.masked_fill((objective.weight == 0).unsqueeze(1), 0.0)
    return margins


def _named(classes: list[int], names: Sequence[str] | None) -> str:
    """Return the names of classes for messages; more than five are counted."""
    if len(classes) > 5:
        return f"{len(classes)} classes"
    named = [str(k) if names is None else repr(names[k]) for k in classes]
    if len(named) == 1:
        return f"class {named[0]}"
    return f"classes {', '.join(named[:-1])} and {named[-1]}"


def _named_columns(columns: list[int], names: Sequence[str] | None) -> str:
    """Return the indices of columns, and their names if they have some, for messages."""
    if names is None:
        return f"column{'s' * (len(columns) > 1)} {', '.join(map(str, columns))}"
    return ", ".join(column_name(j, names) for j in columns)
