"""A full-batch solver in the place of an optimizer, so that Lightning steps, saves and resumes it.

A step of ``ConvexSolver`` is one outer iteration of ``softmax_torch.solvers`` on all training
samples; the parameters it was given are set to the point it has reached. Its ``state_dict`` is that
of the solver: a run that is resumed goes on with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from softmax_torch.solvers import inputs
from softmax_torch.solvers.fit import SOLVERS, chosen
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.run import Progress, Run, progress

__all__ = ["ConvexSolver"]


class ConvexSolver(Optimizer):
    """Fits a linear layer to all samples at once.

    Args:
        linear: the layer, whose parameters are where the fit begins.
        kind: a name in ``solvers.fit.SOLVERS``, or "auto".
        tol: the relative duality gap (see ``solvers.fit``) that is enough.
    """

    def __init__(self, linear: nn.Linear, kind: str, tol: float) -> None:
        super().__init__(linear.parameters(), {})
        self.linear = linear
        self.kind, self.tol = kind, tol
        self.run: Run | None = None
        self._saved: dict[str, Any] | None = None

    def bind(self, x: Tensor, y: Tensor, sample_weight: Tensor | None, C: float) -> None:
        """Take samples x (n, D) with class indices y (n,) as those of the fit, the first time."""
        if self.run is not None:
            return
        samples = inputs.as_samples(x, None, None)
        W, b = self.linear.weight.detach().double(), self.linear.bias
        objective = Objective(samples, y, len(W), sample_weight, b is not None)
        penalty = Penalty.of_strength(C, 0.0, objective.total)
        theta = W if b is None else torch.cat([W, b.detach().double().unsqueeze(1)], 1)
        solver = SOLVERS[chosen(self.kind, penalty)](objective, penalty, theta, samples.dtype)
        self.run = Run(solver, self.tol)
        if self._saved is not None:
            self.run.load_state_dict(self._saved)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One outer iteration, unless the fit has ended; the closure is not called."""
        run = self.run
        assert run is not None, "bind comes first"
        iterations = run.solver.iterations
        while not run.ended and run.solver.iterations == iterations:
            run.advance()
        theta = run.conclude().theta if run.ended else run.solver.theta
        D = self.linear.in_features
        self.linear.weight.copy_(theta[:, :D])
        if self.linear.bias is not None:
            self.linear.bias.copy_(theta[:, D])

    def progress(self) -> Progress:
        """How far the fit is: with the figures of the certificate once it has ended."""
        assert self.run is not None
        now = progress(self.run.solver, 0.0)
        if not self.run.ended:
            return now
        certificate = self.run.conclude()
        return now._replace(objective=certificate.value, duality_gap=certificate.gap)

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` goes on from once samples are bound."""
        return {"run": self._saved if self.run is None else self.run.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there when samples are bound."""
        self._saved = state_dict["run"]
