"""The commands that need Lightning: they train, evaluate, calibrate or report on a model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
import yaml
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities import rank_zero_only

from softmax_torch.cli.calibrating import calibrate
from softmax_torch.cli.coefficients import infer
from softmax_torch.cli.console import (
    format_metrics,
    in_command,
    print_line,
    program_name,
    short_path,
)
from softmax_torch.cli.data_progress import ConsoleReporter
from softmax_torch.cli.evaluations import new_figure_file, print_evaluation
from softmax_torch.cli.fit_summary import Result, print_result
from softmax_torch.cli.predictions import new_prediction_file
from softmax_torch.cli.requests import Request
from softmax_torch.cli.resuming import (
    check_settings,
    check_start,
    ended_epochs,
    finished,
    settings_yaml,
    updated_settings,
)
from softmax_torch.cli.run_loggers import hyperparameters, loggers_in_run
from softmax_torch.cli.session import Session
from softmax_torch.cli.settings import parse_settings
from softmax_torch.cli.trainer_arguments import lightning_refusals
from softmax_torch.data.progress import reporting_to
from softmax_torch.lightning_compat import callbacks_of, end_after, quiet
from softmax_torch.predictor import PredictedRows
from softmax_torch.report.bootstrap import METRICS
from softmax_torch.report.logged_pictures import log_pictures, takes_pictures
from softmax_torch.report.output import write_report
from softmax_torch.report.page import compose, pictures
from softmax_torch.report.run_results import EvaluatedSet
from softmax_torch.report.trainer import test_groups
from softmax_torch.storage.atomic_files import write_atomically
from softmax_torch.storage.run_directories import CONFIG_FILE
from softmax_torch.training.run_checkpoint import Stopped
from softmax_torch.training.run_logger import RunLogger

__all__ = ["run_with_lightning"]


def run_with_lightning(request: Request, closing: ExitStack) -> None:
    """Run a command that needs Lightning."""
    with quiet(), reporting_to(ConsoleReporter()), lightning_refusals():
        parser, config = parse_settings(request)
        if request.resumed_run is not None:
            check_settings(request, parser, config)
            if lines := finished(request, config):
                for label, text in lines:
                    rank_zero_only(print_line)(label, text)
                return
        else:
            check_start(request, config)
        session = Session(request, parser, config, closing)
        try:
            FUNCTIONS[request.command](session)
        except Stopped as stopped:
            if session.trainer.is_global_zero:
                print(f"{stopped.message}; resume it with", file=sys.stderr)
                run = in_command(stopped.path.parent)
                print(f"    {program_name()} fit --resume {run}", file=sys.stderr)
            raise


def fit(session: Session) -> None:
    """Train, evaluate the best checkpoint, and print the result."""
    record_settings(session)
    trainer, model, summary = session.trainer, session.model, session.summary
    callbacks_of(trainer).append(summary)
    path = session.checkpoint_path
    if (epochs := ended_epochs(session.request)) is not None:
        end_after(trainer, epochs)
    trainer.fit(model, datamodule=session.data, ckpt_path=path, weights_only=True)
    seconds = session.clock.seconds  # before a checkpoint is loaded, which restores its state
    best, is_best = result_checkpoint(session)
    # Log no further point of the validation curve.
    loggers, trainer.loggers = trainer.loggers, []
    val = trainer.validate(**session.evaluation_arguments, ckpt_path=best)
    trainer.loggers = loggers
    test = trainer.test(**session.evaluation_arguments)  # with the weights that validate loaded
    if best is not None and val and test:
        log_report(session, best)
    if not trainer.is_global_zero:
        return
    label = "best val" if is_best else "val"
    # Lightning returns a list, empty where the trainer limits the set to nothing.
    print_result(trainer, model, summary, Result(seconds, label, *val or [{}], *test or [{}]))
    if best is not None:
        print_line("checkpoint", short_path(best))
        print_line("next", f"{program_name()} test {in_command(Path(best).parent)}")


def log_report(session: Session, path: str) -> None:
    """Pass the pictures of the report to loggers beside the run's own, if there are any.

    Several processes draw none: each has a part of the samples.
    """
    trainer = session.trainer
    logger, *others = trainer.loggers
    takers = [other for other in others if takes_pictures(other)]
    if not (takers and isinstance(logger, RunLogger) and trainer.world_size == 1):
        return
    trainer.loggers = []  # log no further points
    results = trainer.run_results(
        *(session.model, session.data, str(logger.folder), path), coefficients=False
    )
    trainer.loggers = [logger, *others]
    drawn = pictures(results)
    for taker in takers:
        log_pictures(taker, drawn, results.step)


def result_checkpoint(session: Session) -> tuple[str | None, bool]:
    """Return the checkpoint with the result of a fit, and whether it is the best of several.

    None without checkpoints; the last one if no validation chose a best one.
    """
    recorder = session.recorder
    if recorder is None:
        return None, False
    best = "" if session.model.reports_last_checkpoint else recorder.best_model_path
    return best or recorder.last_model_path or None, best != ""


def record_settings(session: Session) -> None:
    """Write the settings to the run directory when the training begins, and pass them to loggers.

    Raises:
        ValueError: settings do not fit together.
    """
    trainer, request = session.trainer, session.request
    session.model.check_trainer(trainer, trainer.limit_val_batches > 0)
    if trainer.world_size == 1:
        # Unusable data is refused before the run gets a directory.
        session.data.prepare_data()
        session.data.setup("fit")
    logger = trainer.logger
    if not isinstance(logger, RunLogger) or not trainer.is_global_zero:
        return
    config, text = logger.folder / CONFIG_FILE, settings_yaml(session.parser, session.config)
    described = session.config["trainer"]["logger"]
    others = loggers_in_run(trainer.loggers[1:], described, logger.folder)
    trainer.loggers = [logger, *others]
    if session.config["trainer"]["enable_autolog_hparams"]:
        for other in others:
            other.log_hyperparams(hyperparameters(yaml.safe_load(text)))
    if request.resumed_run is not None:
        print_line("resumed", resumed_from(request))
        text = updated_settings(request.resumed_run, session.parser, text)
        if text == config.read_text(encoding="utf-8"):
            return
    # Not before a checkpoint, if there is one, has been compared with the model and the data.
    write = LambdaCallback(on_train_start=lambda *_: write_atomically(config, text.encode()))
    callbacks_of(trainer).append(write)


def resumed_from(request: Request) -> str:
    """Return the checkpoint that a run is resumed from, or that it has none."""
    assert request.resumed_run is not None
    if request.checkpoint is None:
        return f"{short_path(request.resumed_run)}, from its start: it has no checkpoint"
    return f"{short_path(request.checkpoint.path)}, step {request.checkpoint.step}"


def validate(session: Session) -> None:
    """Print the metrics of the validation set."""
    path = session.checkpoint_path
    [metrics] = session.trainer.validate(**session.evaluation_arguments, ckpt_path=path)
    if session.trainer.is_global_zero:
        print_line("val", format_metrics(session.summary.shown(metrics)))


def test(session: Session) -> None:
    """Print the metrics of the test set, and write all of its figures on request.

    Raises:
        ValueError: a file is to be written by several processes, each with a part of the samples.
    """
    trainer, output = session.trainer, new_figure_file(session.request)
    if output is not None and trainer.world_size > 1:
        raise ValueError(f"output: expected one process, got {trainer.world_size}")
    with trainer.collecting_logits() as collected:
        path = session.checkpoint_path
        [metrics] = trainer.test(**session.evaluation_arguments, ckpt_path=path)
    if not trainer.is_global_zero:
        return
    print_line("test", format_metrics(session.summary.shown(metrics)))
    if trainer.world_size > 1:
        return
    of, data = EvaluatedSet(collected.logits, collected.y), session.data
    names, groups = data.preprocessing.class_names, test_groups(data, len(of.y))
    print_evaluation(of, names, groups, session.summary.unequal, output)


def predict(session: Session) -> None:
    """Write predictions for the test set.

    Raises:
        ValueError: there are several processes, each with a part of the rows.
    """
    trainer, data = session.trainer, session.data
    if trainer.world_size > 1:
        raise ValueError(f"predict: expected one process, got {trainer.world_size}")
    output = new_prediction_file(session.request)
    batches = trainer.predict(
        session.model, datamodule=data, ckpt_path=session.checkpoint_path, weights_only=True
    )
    whole = [batch if isinstance(batch, tuple) else (batch,) for batch in batches or []]
    p, *others = (torch.cat(part) for part in zip(*whole, strict=True))
    decides = session.request.arguments.threshold is not None
    asked = [name for name, on in (("sets", output.sets), ("classes", decides)) if on]
    ids = data.test_ids[: len(p)]  # fewer if limit_predict_batches says so
    predicted = PredictedRows(ids, p, **dict(zip(asked, others, strict=True)))
    output.write([predicted], data.preprocessing.class_names)


def report(session: Session) -> None:
    """Write a page about a run, and print the metrics of the test set with their intervals."""
    run, path = Path(session.request.arguments.run), session.checkpoint_path
    assert path is not None, "the request was located"
    results = session.trainer.run_results(session.model, session.data, str(run), path)
    samples, classes = results.test.logits.shape
    print_line("evaluated", f"{short_path(path)} on {samples} samples, {classes} classes")
    page = compose(results)
    figures = {f"test/{name}": page.test.figures[name] for name in METRICS}
    for k, label in enumerate(("test", "95% from", "to")):
        print_line(label, format_metrics({name: one[k] for name, one in figures.items()}))
    if page.sets is not None:
        coverage, *limits = page.sets.total.coverage.rounded(4)
        print_line(
            "sets",
            f"coverage {coverage} ({limits[0]} to {limits[1]}), "
            f"{page.sets.total.size:.3f} classes on average: {page.sets.sets}",
        )
    folder = write_report(page, run)
    print_line("report", f"{short_path(folder / 'index.html')}, {len(page.html) / 1e6:.1f} MB")


FUNCTIONS: dict[str, Callable[[Session], None]] = {
    "fit": fit,
    "validate": validate,
    "test": test,
    "predict": predict,
    "calibrate": calibrate,
    "report": report,
    "inference": infer,
}
