"""A full-batch solver as a ``torch.optim.Optimizer``, which Lightning steps, saves and resumes.

A step of ``ConvexSolver`` is one outer iteration of ``softmax_torch.solvers`` on all training
samples. It sets the parameters of the layer to the current iterate. The ``state_dict`` is the
solver's, so that a resumed run continues with the same bits.

Samples with far more features than there are samples are fitted in coordinates of the space of
their rows (see ``training.row_space``).
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
from softmax_torch.training.row_space import RowSpace

__all__ = ["ConvexSolver", "LayerProblem"]


class ConvexSolver(Optimizer):
    """Full-batch fit of a linear layer.

    Args:
        linear: the layer. The fit begins at its parameters.
        kind: a name in ``solvers.problem.SOLVERS``, or "auto".
        tol: the relative duality gap (see ``solvers.fit``) at which the fit ends.
        C: inverse strength of the penalty; ``math.inf`` for none.
    """

    def __init__(self, linear: nn.Linear, kind: str, tol: float, C: float) -> None:
        super().__init__(linear.parameters(), {})
        self.linear = linear
        self.kind, self.tol, self.C = kind, tol, C
        self.run: Run | None = None
        self._restored: dict[str, Any] | None = None  # state of a run, until samples are bound
        self._problem: LayerProblem | None = None
        self._row_space = True  # may be used; not in runs of earlier versions

    def bind(self, x: Tensor, y: Tensor, sample_weight: Tensor | None) -> None:
        """Set the samples of the fit at the first call; later calls do nothing.

        Args:
            x: features (n, D).
            y: class indices (n,).
            sample_weight: (n,), or None.
        """
        if self.run is not None:
            return
        problem = LayerProblem(self.linear, x, y, sample_weight, self._row_space)
        penalty = Penalty.of_strength(self.C, 0.0, problem.objective.total)
        theta = problem.parameters()
        self.run = Run(make_solver(self.kind, problem.objective, penalty, theta), self.tol)
        self._problem, self._row_space = problem, problem.space is not None
        if self._restored is not None:
            self.run.load_state_dict(self._restored)

    @torch.no_grad()
    # ``Optimizer.step`` has two overloads, one of which returns the loss of the closure.
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one outer iteration, unless the fit has ended; the closure is not called."""
        run, problem = self.run, self._problem
        assert run is not None, "bind comes first"
        assert problem is not None, "bind sets both"
        iterations = run.solver.iterations
        while not run.ended and run.solver.iterations == iterations:
            run.advance()
        problem.set_parameters(run.certificate().theta if run.ended else run.solver.theta)

    @property
    def bound(self) -> bool:
        """Whether samples are bound."""
        return self.run is not None

    @property
    def ended(self) -> bool:
        """Whether the fit has ended."""
        return self.run is not None and self.run.ended

    def metrics(self) -> dict[str, float]:
        """Return objective, gradient norm and duality gap, at the end from the certificate."""
        assert self.run is not None
        now = progress(self.run.solver, 0.0)
        if self.run.ended:
            certificate = self.run.certificate()
            now = now._replace(objective=certificate.value, duality_gap=certificate.gap)
        metrics = {"train/loss": now.objective, "train/gradient_norm": now.gradient_norm}
        if now.duality_gap is not None:
            metrics["train/gap"] = now.duality_gap / now.objective
        return metrics

    def certificate(self) -> str:
        """Return a statement about objective and duality gap of the current iterate."""
        assert self.run is not None
        certificate = self.run.certificate()
        return f"objective {certificate.value:.8f}, {self.run.criterion.describe(certificate)}"

    def ending(self) -> str:
        """Return how the fit ended, in a few words."""
        assert self.run is not None
        verb = "converged" if self.run.converged else "made its last progress"
        return f"{verb} after {self.run.solver.iterations} iterations"

    def complaint(self) -> str:
        """Return the reason why the fit did not reach its tolerance; empty if it did."""
        assert self.run is not None
        return "" if self.run.converged else self.run.not_converged()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the solver."""
        run = self._restored if self.run is None else self.run.state_dict()
        return {"run": run} | ({"row_space": True} if self._row_space else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a state, from which the solver continues once samples are bound."""
        self._restored = state_dict["run"]
        self._row_space = state_dict.get("row_space", False)


class LayerProblem:
    """The objective of a layer's parameters, and the way from a solver's theta to them.

    Args:
        linear: the layer.
        x, y, sample_weight: see ``ConvexSolver.bind``.
        row_space: whether theta may be in coordinates of the space of the rows of x.
    """

    def __init__(
        self,
        linear: nn.Linear,
        x: Tensor,
        y: Tensor,
        sample_weight: Tensor | None,
        row_space: bool,
    ) -> None:
        self.linear = linear
        self.space = RowSpace(x) if row_space and RowSpace.helps(x) else None
        samples = inputs.as_samples(x if self.space is None else self.space.z, None, None)
        bias = linear.bias is not None
        self.objective = Objective(samples, y, linear.out_features, sample_weight, bias)

    def parameters(self) -> Tensor:
        """Return the parameters as theta (C, D), or (C, D + 1) with a bias, float64."""
        W, b = self.linear.weight.detach().double(), self.linear.bias
        W = W if self.space is None else self.space.inside(W)
        return W if b is None else torch.cat([W, b.detach().double().unsqueeze(1)], 1)

    @torch.no_grad()
    def set_parameters(self, theta: Tensor) -> None:
        """Set the parameters to theta, of the shape that ``parameters`` returns."""
        D = self.objective.samples.d
        W = theta[:, :D]
        self.linear.weight.copy_(W if self.space is None else self.space.outside(W))
        if self.linear.bias is not None:
            self.linear.bias.copy_(theta[:, D])
