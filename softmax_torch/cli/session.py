"""The model, the data and the trainer of a command, made from its arguments."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from softmax_torch.cli.fit_summary import DataSummary
from softmax_torch.cli.requests import Request
from softmax_torch.cli.resuming import settings_yaml
from softmax_torch.cli.settings import instantiate, log_steps
from softmax_torch.cli.trainer_arguments import (
    as_list,
    check_arguments,
    check_limits,
    check_trainer,
    evaluation_callbacks,
    missing_packages,
    share_processes,
    the_timer,
    with_bar,
)
from softmax_torch.report.trainer import ReportingTrainer
from softmax_torch.training.checkpoint_io import atomic_checkpoint_io
from softmax_torch.training.run_checkpoint import RunCheckpoint
from softmax_torch.training.run_logger import RunLogger
from softmax_torch.training.training_clock import TrainingClock

__all__ = ["Session"]


class Session:
    """The model, the data and the trainer of a command, made from its arguments.

    Attributes:
        request: the command line.
        parser, config: the command's parser, and all of its arguments.
        model, data, trainer: instances made from these arguments.
        timer: may limit the time of a fit; clock: measures its steps.
        summary: describes the data.
        recorder: writes the checkpoints of a fit; None if none are written.
    """

    def __init__(
        self, request: Request, parser: ArgumentParser, config: Namespace, closing: ExitStack
    ) -> None:
        self.request, self.parser, self.config = request, parser, config
        if request.command == "fit" and request.resumed_run is None:  # config.yaml has it then
            log_steps(config)
        if request.command != "fit":
            config["trainer"]["logger"] = None  # its package may be missing here
        with missing_packages():
            self.model, self.data, trainer = instantiate(parser, config)
        self.model.calibrated = request.arguments.get("calibrated", False)
        self.model.predicts_sets = request.arguments.get("sets", False)
        self.model.threshold = request.arguments.get("threshold")
        self.clock = TrainingClock()
        self.summary = DataSummary(self.data, asked=self.model.user_metrics.metrics)
        self.recorder: RunCheckpoint | None = None
        self.trainer = ReportingTrainer(**self._trainer_arguments({**trainer}, closing))
        check_trainer(self.trainer)
        if request.checkpoint is not None:
            path, _, content = request.checkpoint
            atomic_checkpoint_io(self.trainer).remember(path, content)

    def _trainer_arguments(self, trainer: dict[str, Any], closing: ExitStack) -> dict[str, Any]:
        """Return the trainer's arguments with our callbacks, and with our logger in a fit.

        Raises:
            ValueError: see ``cli.trainer_arguments``.
        """
        command = self.request.command
        fits = command == "fit"
        check_arguments(trainer, self.data)
        check_limits(trainer, command)
        trainer = share_processes(trainer)
        callbacks = with_bar(as_list(trainer["callbacks"]), trainer["enable_progress_bar"])
        if not fits:
            unused = {"logger": False, "enable_checkpointing": False, "max_time": None}
            return trainer | unused | {"callbacks": evaluation_callbacks(callbacks)}
        self.timer, callbacks = the_timer(callbacks, trainer["max_time"])
        callbacks = [*callbacks, self.clock]
        if trainer["enable_checkpointing"] is not False:
            self.recorder = RunCheckpoint(
                seconds=self.config["checkpoint_seconds"],
                settings=settings_yaml(self.parser, self.config),
            )
            callbacks = [*callbacks, self.recorder]
        logger = RunLogger(self.config["runs"], self.config["name"], self.request.resumed_run)
        closing.callback(logger.close)
        return trainer | {
            "callbacks": callbacks,
            "logger": [logger, *as_list(trainer["logger"])],
            "log_every_n_steps": trainer["log_every_n_steps"] or 1,
            "max_time": None,  # the timer has it
        }

    @property
    def evaluation_arguments(self) -> dict[str, Any]:
        """The arguments of ``trainer.validate`` and ``trainer.test``."""
        return {
            "model": self.model,
            "datamodule": self.data,
            "verbose": False,
            "weights_only": True,
        }

    @property
    def checkpoint_path(self) -> str | None:
        """Path of the checkpoint that the command line names or implies."""
        found = self.request.checkpoint
        return None if found is None else str(found.path)
