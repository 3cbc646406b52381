"""The command calibrate: fit something to a trained model, and store it in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from softmax_torch.cli.console import (
    format_metrics,
    in_command,
    print_line,
    print_metrics,
    program_name,
    short_path,
)
from softmax_torch.cli.session import Session
from softmax_torch.decision_threshold import DecisionThreshold
from softmax_torch.report.decision_figures import decision_figures
from softmax_torch.storage.run_results import shortest_name

__all__ = ["calibrate"]


def calibrate(session: Session) -> None:
    """Fit what the method names, store it in the checkpoint, and print what it does."""
    METHODS[session.request.arguments.method](session)


def fit_calibration(session: Session) -> None:
    """Store a calibration; print the validation metrics without and with it."""
    path = checkpoint_of(session)
    before, after = session.trainer.calibrate(
        session.model, session.data, path, session.request.arguments.method
    )
    print_line("before", format_metrics(session.summary.shown(before)))
    print_line("after", format_metrics(session.summary.shown(after)))
    print_line("calibrated", f"{short_path(path)}, {session.model.calibration}")
    if session.model.post_hoc.conformal is not None:
        print_line("unchanged", f"{session.model.post_hoc.conformal}")
    print_next("test --calibrated", path)


def fit_sets(session: Session) -> None:
    """Store conformal sets; print their sizes on the validation set."""
    path, arguments = checkpoint_of(session), session.request.arguments
    sizes = session.trainer.fit_sets(
        *(session.model, session.data, path),
        level=arguments.level,
        score=arguments.score,
        per_class=arguments.per_class,
        calibrated=arguments.calibrated,
    )
    largest, empty = int(sizes.max()), int((sizes == 0).sum())
    print_line("sets", f"{sizes.double().mean():.3f} classes on average, at most {largest}")
    if empty:
        print_line(
            "empty",
            f"{empty} of {len(sizes)} sets, where no class is probable enough; --score aps leaves "
            "none empty",
        )
    print_line("calibrated", f"{short_path(path)}, {session.model.post_hoc.conformal}")
    print_next("predict --sets", path)


def choose_threshold(session: Session) -> None:
    """Store a decision threshold; print the validation figures at 1/2 and at the threshold."""
    path, arguments = checkpoint_of(session), session.request.arguments
    logits, y = session.trainer.choose_threshold(
        *(session.model, session.data, path),
        criterion=arguments.criterion,
        costs=arguments.costs,
        calibrated=arguments.calibrated,
    )
    chosen = session.model.post_hoc.threshold
    assert chosen is not None, "it was stored"
    rules = [chosen._replace(value=0.5), chosen]
    print_metrics([(f"at {rule.value:.4g}", decided(rule, logits, y)) for rule in rules])
    print_line("threshold", f"{short_path(path)}, {chosen}")
    print_next("predict --threshold stored", path)


def decided(rule: DecisionThreshold, logits: Tensor, y: Tensor) -> dict[str, float]:
    """Return the figures of what a threshold decides, with the mean cost if it has costs."""
    classes = rule(logits)
    found = decision_figures(classes, y)
    names = ("balanced_accuracy", "recall", "precision", "f1")
    figures = {f"val/{name}": found[name].value for name in names}
    if rule.costs is None:
        return figures
    false_positive, false_negative = rule.costs
    costs = (classes > y) * false_positive + (classes < y) * false_negative
    del figures["val/balanced_accuracy"]  # a line has room for four
    return {"val/cost": float(costs.mean())} | figures


def fit_laplace(session: Session) -> None:
    """Store a Laplace approximation; print the validation metrics without and with it."""
    path, arguments = checkpoint_of(session), session.request.arguments
    prior, (before, after) = session.trainer.fit_laplace(
        *(session.model, session.data, path),
        structure=arguments.structure,
        prior_precision=arguments.prior_precision,
    )
    print_line("prior", f"precision {prior.precision:g}, {prior.source}")
    print_line("before", format_metrics(session.summary.shown(before)))
    print_line("after", format_metrics(session.summary.shown(after)))
    print_line("calibrated", f"{short_path(path)}, {session.model.post_hoc.laplace}")
    print_next("test --laplace probit", path)


def checkpoint_of(session: Session) -> str:
    """Return the path of the checkpoint, which the command line has to name."""
    path = session.checkpoint_path
    assert path is not None, "the request was resolved"
    return path


def print_next(command: str, path: str) -> None:
    """Print the command that uses what was fitted to a checkpoint."""
    print_line("next", f"{program_name()} {command} {in_command(shortest_name(Path(path)))}")


METHODS: dict[str, Callable[[Session], None]] = {
    "temperature": fit_calibration,
    "vector": fit_calibration,
    "conformal": fit_sets,
    "threshold": choose_threshold,
    "laplace": fit_laplace,
}
"""What fits each method of ``cli.command_table.CalibrateMethod``."""
