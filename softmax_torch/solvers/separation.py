"""Separation: without a penalty some data have no optimum, and then the fit is refused.

F has no minimum exactly if some direction delta in theta changes no margin for the worse and one
for the better, over the samples i of weight > 0 and the classes k other than theirs (Albert &
Anderson 1984, Biometrika 71, "On the existence of maximum likelihood estimates in logistic
regression models"):

    m_ik  =  (delta_{y_i} - delta_k) . [x_i, 1]  >=  0   for all i, k     and   m_ik > 0   for one

The classes are completely separated if all m_ik > 0 and quasi-completely otherwise. Along delta F
falls forever. By the theorem of alternatives (Stiemke) there is no such direction exactly if
residuals of some probabilities q_i > 0 are orthogonal to the samples,

    sum_i w_i (e_{y_i} - q_i) [x_i, 1]^T  =  0

and an exact Newton step d provides these q where it is short (see ``newton_bound``). So a fit goes
on until it either has such a q or such a delta. Four tests find delta, each of which proves it:

 - ``refuse_separating_columns``: one column does, which one pass over the data tells exactly;
 - ``refuse_complete``: the fit has reached coefficients that separate completely;
 - ``refuse_direction``: a Newton step separates. Near separation each step adds about 1 to the
   margins that grow, and the others change by less and less;
 - ``refuse_separated``: for fits that these do not decide. A linear program is exact for problems
   that are small (see ``linear_program``); for larger ones Newton steps start again from 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softmax_torch.solvers.linear_program import separating_direction
from softmax_torch.solvers.newton_bound import newton_bound
from softmax_torch.solvers.objective import Objective, Penalty

__all__ = [
    "refuse_complete",
    "refuse_direction",
    "refuse_separated",
    "refuse_separating_columns",
]

ROUNDING = 1e-8
"""Share of the largest margin below which a margin for the worse is rounding."""

SHORTEST = 0.5
"""Along a direction without an end a Newton step changes some margin by about 1."""


def refuse_separating_columns(objective: Objective) -> None:
    """Raise ValueError if one column alone separates some classes from the others.

    The column does where all samples of some classes have values up to t and all other samples
    values from t on, not all of them t. Without a bias t is 0.
    """
    least, most = objective.class_ranges()
    if not objective.bias:  # t = 0
        least, most = least.clamp_max(0.0), most.clamp_min(0.0)
    # Sorted by their largest value, and by their least where that is equal, the classes below t
    # come first.
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
    raise no_optimum(
        f"column {column} separates {_named(few)} from {_named(others)}",
        f"drop column {column}, merge it with another or merge classes",
    )


def refuse_complete(objective: Objective, value: float) -> None:
    """Raise ValueError if F shows that the point it was computed at separates all classes.

    Where the sum of all NLL is below that of one sample with probability 1/2, every sample has its
    own class as the most probable.
    """
    w = objective.weight
    lightest = 1.0 if w is None else float(w[w > 0].min())
    if value * objective.divisor < math.log(2) * lightest:
        raise no_optimum("all classes can be separated by a combination of columns")


def refuse_direction(objective: Objective, d: Tensor, z: Tensor) -> None:
    """Raise ValueError if the step d (K, P) with logits z (n, K) separates some classes."""
    margins = _margins(objective, z)
    extremes = torch.stack([margins.amax(), -margins.amin()])
    grown, shrunk = objective.processes.largest(extremes).tolist()
    if grown < SHORTEST or shrunk > ROUNDING * grown:
        return
    pairs = z.new_zeros(objective.classes, objective.classes)
    moved = (margins > 0.1 * grown).double()
    pairs.index_add_(0, objective.y, moved)
    pairs = objective.summed(pairs)
    a, b = divmod(int(pairs.argmax()), objective.classes)
    W = objective.weight_of(d)
    # In units of each column's spread, columns of all scales can be compared.
    involved = ((W[a] - W[b]) * objective.spread).abs()
    columns = involved.topk(min(3, len(involved))).indices
    columns = columns[involved[columns] > 0.01 * involved.max()].sort().values
    raise no_optimum(
        f"a combination of columns separates samples of {_named([a])} from {_named([b])}, most of "
        f"all column{'s' * (len(columns) > 1)} {', '.join(map(str, columns.tolist()))}"
    )


def refuse_separated(objective: Objective, steps: int) -> bool:
    """Raise ValueError if classes can be separated; return whether it is proved that they cannot.

    A problem too large for a linear program is searched along so many accurate Newton steps from
    theta = 0: steps of another solver may have made some margins so large that Newton steps from
    where it stands no longer tell the direction.
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


def no_optimum(why: str, remedy: str = "drop or merge columns or classes") -> ValueError:
    """Return the error for data that have no optimum without a penalty."""
    return ValueError(
        "X, y: expected classes that overlap, as there is no optimum without a penalty otherwise; "
        f"{why}, so that some coefficients grow without bound. Fit with a penalty (a finite C), or "
        f"{remedy}"
    )


def _named(classes: list[int]) -> str:
    if len(classes) == 1:
        return f"class {classes[0]}"
    if len(classes) > 5:
        return f"{len(classes)} classes"
    return f"classes {', '.join(map(str, classes[:-1]))} and {classes[-1]}"
