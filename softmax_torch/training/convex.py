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
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.problem import make_solver
from softmax_torch.solvers.run import Run, progress

__all__ = ["ConvexSolver", "objective_of", "set_to"]


class ConvexSolver(Optimizer):
    """Fits a linear layer to all samples at once.

    Args:
        linear: the layer, whose parameters are where the fit begins.
        kind: a name in ``solvers.problem.SOLVERS``, or "auto".
        tol: the relative duality gap (see ``solvers.fit``) that is enough.
        C: inverse strength of the penalty; ``math.inf`` for none.
    """

    def __init__(self, linear: nn.Linear, kind: str, tol: float, C: float) -> None:
        super().__init__(linear.parameters(), {})
        self.linear = linear
        self.kind, self.tol, self.C = kind, tol, C
        self.run: Run | None = None
        self._saved: dict[str, Any] | None = None

    def bind(self, x: Tensor, y: Tensor, sample_weight: Tensor | None) -> None:
        """Take samples x (n, D) with class indices y (n,) as those of the fit, the first time."""
        if self.run is not None:
            return
        objective = objective_of(self.linear, x, y, sample_weight)
        penalty = Penalty.of_strength(self.C, 0.0, objective.total)
        W, b = self.linear.weight.detach().double(), self.linear.bias
        theta = W if b is None else torch.cat([W, b.detach().double().unsqueeze(1)], 1)
        self.run = Run(make_solver(self.kind, objective, penalty, theta), self.tol)
        if self._saved is not None:
            self.run.load_state_dict(self._saved)

    @torch.no_grad()
    # Torch's has two types, with the loss that the closure gives: here there is none to give back.
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One outer iteration, unless the fit has ended; the closure is not called."""
        run = self.run
        assert run is not None, "bind comes first"
        iterations = run.solver.iterations
        while not run.ended and run.solver.iterations == iterations:
            run.advance()
        set_to(self.linear, run.certificate().theta if run.ended else run.solver.theta)

    @property
    def bound(self) -> bool:
        """Whether it has samples."""
        return self.run is not None

    @property
    def ended(self) -> bool:
        """Whether there is no step left to make."""
        return self.run is not None and self.run.ended

    def figures(self) -> dict[str, float]:
        """How far the fit is: with the figures of the certificate once it has ended."""
        assert self.run is not None
        now = progress(self.run.solver, 0.0)
        if self.run.ended:
            certificate = self.run.certificate()
            now = now._replace(objective=certificate.value, duality_gap=certificate.gap)
        figures = {"train/loss": now.objective, "train/gradient_norm": now.gradient_norm}
        if now.duality_gap is not None:
            figures["train/gap"] = now.duality_gap / now.objective
        return figures

    def certificate(self) -> str:
        """What is known of the point it has reached, in words."""
        assert self.run is not None
        certificate = self.run.certificate()
        return f"objective {certificate.value:.8f}, {self.run.criterion.describe(certificate)}"

    def complaint(self) -> str:
        """What to say of a fit that is not what was asked for; empty if it is."""
        assert self.run is not None
        return "" if self.run.converged else self.run.not_converged()

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` goes on from once samples are bound."""
        return {"run": self._saved if self.run is None else self.run.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there when samples are bound."""
        self._saved = state_dict["run"]


def objective_of(
    linear: nn.Linear, x: Tensor, y: Tensor, sample_weight: Tensor | None
) -> Objective:
    """That of the parameters of a layer on samples x (n, D) with class indices y (n,)."""
    samples = inputs.as_samples(x, None, None)
    return Objective(samples, y, linear.out_features, sample_weight, linear.bias is not None)


@torch.no_grad()
def set_to(linear: nn.Linear, theta: Tensor) -> None:
    """Let the parameters of a layer be theta (K, P)."""
    D = linear.in_features
    linear.weight.copy_(theta[:, :D])
    if linear.bias is not None:
        linear.bias.copy_(theta[:, D])
