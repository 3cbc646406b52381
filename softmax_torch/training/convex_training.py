"""Training by a full-batch solver: one outer iteration, or one value of C, in each epoch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

from lightning import LightningModule, Trainer
from torch import Tensor, nn

from softmax_torch.data.batches import Batch
from softmax_torch.solvers import ConvergenceWarning
from softmax_torch.training.convex_path import ConvexPath
from softmax_torch.training.convex_solver import ConvexSolver
from softmax_torch.training.options import check_strengths

__all__ = ["ConvexTraining"]


class ConvexTraining:
    """Training of a linear layer to its optimum, in place of gradient descent.

    Args:
        solver: a name in ``solvers.problem.SOLVERS``, or "auto".
        tol: the relative duality gap at which a fit ends.
        C: inverse strength of the L2 penalty; None for no penalty; a list for a fit with each.

    Attributes:
        certificate: statement about the current solution; None before the first.
        converged: whether the last step ended the fit at its optimum.
        path: statement about the fits with several values of C; None before they end.
        fits: the completed fits with several values of C, see ``ConvexPath``.
    """

    METRICS = ("loss", "gradient_norm", "gap")
    """Names of the metrics of the training set, without "train/"."""

    def __init__(self, solver: str, tol: float, C: float | list[float] | None) -> None:
        self.solver, self.tol, self.C = solver, tol, C
        self.certificate: str | None = None
        self.path: str | None = None
        self.converged = False
        self.fits: Sequence[Mapping[str, float]] = ()
        if isinstance(C, list):
            check_strengths(C)

    @property
    def chooses_strength(self) -> bool:
        """Whether there are several values of C to choose from."""
        return isinstance(self.C, list)

    @property
    def step_name(self) -> str:
        """The noun for a step: "fit" with several values of C, otherwise "iteration"."""
        return "fit" if self.chooses_strength else "iteration"

    def optimizer(self, linear: nn.Linear) -> ConvexSolver | ConvexPath:
        """Return the solver of a layer, as an optimizer that Lightning saves and resumes."""
        if isinstance(self.C, list):
            return ConvexPath(linear, self.solver, self.tol, self.C)
        return ConvexSolver(linear, self.solver, self.tol, math.inf if self.C is None else self.C)

    def check_settings(self, trainer: Trainer) -> None:
        """Raise ValueError for settings of the trainer that have no meaning with a solver.

        A solver makes no gradients to clip or to accumulate. Its certificate holds for float32 or
        float64: autocast would compute its products in half precision.
        """
        settings = [
            ("gradient_clip_val", trainer.gradient_clip_val or None, (None,)),
            ("accumulate_grad_batches", trainer.accumulate_grad_batches, (1,)),
            ("precision", trainer.precision, ("32-true", "64-true")),
        ]
        for name, got, expected in settings:
            if got not in expected:
                raise ValueError(
                    f"trainer.{name}: expected {' or '.join(map(str, expected))} with a solver, "
                    f"got {got}"
                )

    def check_processes(self, module: LightningModule) -> None:
        """Raise ValueError if there are several processes."""
        trainer = module.trainer
        if trainer.world_size > 1:
            raise ValueError(
                f"solver: expected one process, got {trainer.world_size}; "
                "softmax_torch.solvers.fit(..., distributed=True) takes several"
            )

    def check_validation(self, validates: bool) -> None:
        """Raise ValueError if there are several values of C, and no validation to choose by."""
        if self.chooses_strength and not validates:
            raise ValueError("C: expected a validation set to choose one of several by, got none")

    def step(
        self, module: LightningModule, batches: list[Batch], class_weight: Tensor | None
    ) -> dict[str, float]:
        """Make one step of the solver, and stop the trainer if it was the last.

        Args:
            module: the module that is trained.
            batches: the batches of the epoch, which must be a single one.
            class_weight: (C,), or None.

        Returns:
            Figures to log.

        Raises:
            ValueError: there are several batches.
        """
        number = module.trainer.num_training_batches
        if len(batches) * number != 1:
            raise ValueError(
                "solver: expected all training samples in one batch (batch_size null), got "
                f"{max(len(batches), number)} batches"
            )
        [(x, y, _)] = batches
        solver = self._solver(module)
        solver.bind(x.flatten(1), y, None if class_weight is None else class_weight.double()[y])
        optimizer = module.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.step()
        if isinstance(solver, ConvexPath):
            self.certificate = solver.certificate()
        if solver.ended:
            module.trainer.should_stop = True
            self.converged = not solver.complaint()
        return solver.metrics()

    def keep_validation(self, module: LightningModule, metrics: Mapping[str, float]) -> None:
        """Keep the validation metrics of the last fit with one of several C."""
        solver = self._solver(module)
        if isinstance(solver, ConvexPath) and solver.fits:
            solver.keep_validation(metrics)

    def conclude(self, module: LightningModule) -> None:
        """Store certificate and path; ConvergenceWarning if the fit ended before its optimum."""
        solver = self._solver(module)
        if not solver.bound:
            return
        self.certificate = solver.certificate()
        if isinstance(solver, ConvexPath):
            self.path, self.fits = solver.summary(), solver.fits
        if complaint := solver.complaint():
            warnings.warn(
                complaint.replace("max_iter", "trainer.max_epochs"),
                ConvergenceWarning,
                stacklevel=3,
            )

    def ending(self, module: LightningModule) -> str | None:
        """Return how the fit ended; None if it goes on."""
        solver = self._solver(module)
        return solver.ending() if solver.ended else None

    def summary(self) -> dict[str, str]:
        """Return the statements about the fit, by label."""
        statements = {"path": self.path, "optimum": self.certificate}
        return {label: text for label, text in statements.items() if text is not None}

    @staticmethod
    def _solver(module: LightningModule) -> ConvexSolver | ConvexPath:
        """Return the solver itself, without Lightning's wrapper."""
        solver = module.optimizers(use_pl_optimizer=False)
        assert isinstance(solver, ConvexSolver | ConvexPath)
        return solver
