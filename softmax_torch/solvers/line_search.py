"""Backtracking line search: accept or shorten a step from theta along a descent direction d.

With the slope m = dF(theta + t d)/dt at t = 0, which is below 0, a step of length t is accepted if

    F(theta + t d)  <=  F(theta) + ENOUGH t m                       (Armijo's condition)

or, where the promised descent -t m is below the rounding error of F, if the slope has fallen:

    |slope at t|  <  FLATTER |m|         (approximate Wolfe condition, Hager & Zhang 2005)

Otherwise the length is halved, or set to the minimum of the parabola through F(theta) and
F(theta + t d) that has the slope m at 0.

>>> search = LineSearch(1.0, -0.5, error=1e-7)
>>> search.accepts(1.0, 1.2, 0.9), search.accepts(0.5, 0.9, 0.1)
(False, True)
>>> list(search.lengths(shortest=0.25)), round(search.interpolated(1.0, 1.2), 3)
([1.0, 0.5, 0.25], 0.357)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["ROUNDING", "SHORTEST", "LineSearch"]

ENOUGH, FLATTER = 1e-4, 0.9
"""Share of the promised descent that a step must achieve, and of the slope that may be left."""

SHORTEST = 1e-6
"""The shortest length that is tried: if it does not lower F, rounding dominates."""

ROUNDING = {torch.float32: 1e-7, torch.float64: 1e-15}
"""Error of an evaluation of F in this dtype, relative to F."""

SHRINK = 0.1, 0.6
"""The least and the largest ratio of an interpolated length to the last one."""


class LineSearch:
    """The search along one direction.

    Args:
        F: the objective at length 0, up to a constant.
        slope: its derivative along the direction there.
        error: absolute error of an evaluation of the objective.
        enough: share of the promised descent that a step must achieve.
    """

    def __init__(self, F: float, slope: float, error: float, enough: float = ENOUGH) -> None:
        self.F, self.slope, self.error, self.enough = F, slope, error, enough

    def lengths(self, first: float = 1.0, shortest: float = SHORTEST) -> Iterator[float]:
        """Yield the lengths first, first / 2, ... down to ``shortest``; none if F does not fall."""
        length = first
        while length >= shortest and self.slope < 0:
            yield length
            length /= 2

    def below_rounding(self, length: float) -> bool:
        """Return whether the promised descent is too small for F to show it."""
        return -length * self.slope < self.error

    def accepts(self, length: float, F: float, slope: float) -> bool:
        """Return whether a step of this length is good enough.

        Args:
            F: the objective at the end of the step, up to the same constant.
            slope: its derivative along the direction there, by magnitude if F is smooth.
        """
        if F <= self.F + self.enough * length * self.slope:
            return True
        return self.below_rounding(length) and slope < -FLATTER * self.slope

    def interpolated(self, length: float, F: float) -> float:
        """Return the next length to try after one that was not accepted, by a parabola."""
        fitted = -self.slope * length**2 / (2 * (F - self.F - length * self.slope))
        fitted = fitted if fitted == fitted else 0.0  # NaN
        least, largest = SHRINK
        return min(max(fitted, least * length), largest * length)
