"""What a module says about its fits: what it logs, what it counts, and how a fit ended.

These are the defaults, of gradient descent. A module that is trained by a solver says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning import Trainer

from softmax_torch.training.evaluating import LitEvaluation
from softmax_torch.training.trainer_checks import check_monitors

__all__ = ["FitDescription"]


class FitDescription(LitEvaluation):
    """The statements of a module about its fits; subclasses override them."""

    @property
    def reports_last_checkpoint(self) -> bool:
        """Whether the result of a fit is its last checkpoint, rather than its best one."""
        return False

    def fit_summary(self) -> dict[str, str]:
        """Return statements about the result of the fit, by label."""
        return {}

    def check_trainer(self, trainer: Trainer, validates: bool) -> None:
        """Raise ValueError for settings of a trainer that a fit of this model does not take.

        Args:
            trainer: the trainer.
            validates: whether it validates.
        """
        check_monitors(trainer, self, self.metric_names(validates))

    def metric_names(self, validates: bool) -> list[str]:
        """Return the names of the metrics that a fit logs, with or without validation."""
        names = [f"train/{name}" for name in self.training_metric_names()]
        if validates:
            names += [f"val/{name}" for name in self.evaluation_metric_names()]
        return names

    def training_metric_names(self) -> tuple[str, ...]:
        """Return the names of the metrics of the training set, without "train/"."""
        return ("loss", "accuracy", "nll")

    @property
    def step_name(self) -> str:
        """The noun for a step that the trainer counts."""
        return "step"

    @property
    def strengths(self) -> Sequence[Mapping[str, float]]:
        """The fits with several values of C; see ``ConvexPath.fits``."""
        return ()

    @property
    def ending(self) -> str | None:
        """Reason why more training would change nothing, such as the optimum; None otherwise."""
        return None
