"""The commands that take a configuration, by way of Lightning's CLI."""

from __future__ import annotations

from argparse import SUPPRESS, HelpFormatter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer import Trainer

from softmax_torch.cli import predictions
from softmax_torch.cli.arguments import Resumed, differences
from softmax_torch.cli.console import device, figures, program, say, shown
from softmax_torch.cli.predictions import Wanted
from softmax_torch.data import TensorDataModule
from softmax_torch.files import replace
from softmax_torch.predictor import Predicted
from softmax_torch.report.output import write_report
from softmax_torch.report.page import compose
from softmax_torch.report.trainer import ReportingTrainer, default_checkpoint
from softmax_torch.training import LitClassifier, LitSoftmaxRegression, checkpoint
from softmax_torch.training.progress import EpochBar
from softmax_torch.training.runs import RunLogger
from softmax_torch.training.saving import SECONDS, RunCheckpoint

__all__ = ["CLI"]

USES_OF_A_CALIBRATION = ("validate", "test")
"""Commands that take --calibrated, besides predict."""


SIZES = ("in_features", "num_classes")
"""Arguments of a model that follow from the data."""


class Parser(LightningArgumentParser):
    """A parser whose help has the settings of models, though their class may be chosen."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """The help, and the settings of each class of models where there are models."""
        text: str = super().format_help(formatter)
        if not any(action.dest == "model" for action in self._actions):
            return text
        for kind in (LitSoftmaxRegression, LitClassifier):
            usual = " (the default)" if kind is LitSoftmaxRegression else ""
            parser = ArgumentParser(prog="", usage=SUPPRESS, add_help=False)
            parser.add_class_arguments(kind, "model", skip=set(SIZES))
            settings = parser.format_help().partition("\n")[2]
            text += f"\n--model {kind.__name__}{usual}:\n{settings}"
        return text


class CLI(LightningCLI):
    """LightningCLI with a model by default, sizes taken from the data, and a report at the end."""

    def __init__(self, args: list[str], closing: ExitStack, run: Resumed | None = None) -> None:
        self.keeper, self.closing, self.run = RunCheckpoint(), closing, run
        self.timer = Timer()
        super().__init__(
            LitClassifier,
            TensorDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=ReportingTrainer,
            parser_class=Parser,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={
                "devices": 1,  # a second device costs more than it gives at this size
                "enable_model_summary": False,
                "log_every_n_steps": 1,
                "num_sanity_val_steps": 0,  # the data were checked as a whole
            },
            # The usage that is made for us fills a screen; it would hide the error below it.
            parser_kwargs={
                name: {"usage": f"{program()} {name} {'RUN ' * (name == 'report')}[options]"}
                for name in self.subcommands()
            }
            | {"epilog": f"For others to run: {program()} export --help"},
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, without those of their arguments that are settled here."""
        settled = {"weights_only", "verbose", "return_predictions"}
        theirs = {name: skip | settled for name, skip in LightningCLI.subcommands().items()}
        return theirs | {name: {"model", "datamodule"} for name in ("calibrate", "report")}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            predictions.add_arguments(parser)
        elif subcommand in USES_OF_A_CALIBRATION:
            parser.add_argument(
                "--calibrated",
                action="store_true",
                help="Use the calibration that the command calibrate has put into the checkpoint.",
            )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Where a run goes, and sizes that follow from the data."""
        parser.add_argument("--name", default="softmax_regression", help="Name of the run.")
        parser.add_argument("--runs", default="runs", help="Folder that runs are written to.")
        # It is taken from the arguments before they are parsed, and stands here for the help.
        parser.add_argument(
            "--resume", help="With fit: directory of a run to go on with; without one, the newest."
        )
        parser.add_argument(
            "--checkpoint_seconds",
            type=float,
            default=SECONDS,
            help="Time between two checkpoints within an epoch; there is one at its end.",
        )
        parser.set_defaults({"model": f"softmax_torch.training.{LitSoftmaxRegression.__name__}"})
        for size in SIZES:
            parser.link_arguments(f"data.{size}", f"model.init_args.{size}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse these arguments; Lightning warns where they differ from those of the process."""
        self.config = parser.parse_args(args)
        given = self.config[self.config["subcommand"]]["model"].get("init_args", {})
        for size in SIZES:
            if given.get(size) is not None:
                parser.error(
                    f"model.{size}: expected it to follow from the data, got {given[size]}"
                )

    def _parse_ckpt_path(self) -> None:
        """Look at the checkpoint, and leave the configuration alone.

        Lightning would put the hyper-parameters of the checkpoint over those given as flags.
        """
        path = self.config[self.config["subcommand"]]["ckpt_path"]
        if path is not None:
            checkpoint.check(Path(path))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that writes to a directory of its own when it fits, and nowhere otherwise."""
        config = self._get(self.config_init, "trainer")
        fits = self.subcommand == "fit"
        callbacks: list[Callback] = [self.timer] if fits else []
        if config.enable_progress_bar is not False:
            callbacks.append(EpochBar())
        if fits and config.enable_checkpointing is not False:
            self.keeper = RunCheckpoint(seconds=self._get(self.config, "checkpoint_seconds"))
            callbacks.append(self.keeper)
        self.trainer_defaults["callbacks"] = callbacks
        if not fits:
            kwargs |= {"logger": False, "enable_checkpointing": False}
        elif config.logger in (None, True):
            where = self._get(self.config, "runs"), self._get(self.config, "name")
            logger = RunLogger(*where, self.run.folder if self.run else None)
            self.closing.callback(logger.close)
            kwargs["logger"] = logger
        self.model.calibrated = self._get(self.config, "calibrated", default=False)
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Keep the configuration beside what will be made of it, or compare it with what was.

        Raises:
            ValueError: a run is resumed with other settings.
        """
        logger = self.trainer.logger
        keeps = isinstance(logger, RunLogger) and self.trainer.is_global_zero
        if keeps and self.run is not None:
            self._compare(self.run)
        if self.trainer.world_size == 1:
            # Data that cannot be used are refused before there is a directory for the run.
            self.datamodule.prepare_data()
            self.datamodule.setup("fit")
        if isinstance(logger, RunLogger) and keeps and self.run is None:
            text = self._settings(self.config["fit"])
            replace(logger.folder / "config.yaml", text.encode())

    def _settings(self, config: Namespace) -> str:
        """The configuration of a fit as YAML, without where it goes on."""
        config = config.clone()
        for name in ("resume", "ckpt_path"):
            config.pop(name, None)
        text: str = self._parser("fit").dump(config, skip_none=False)
        return text

    def _compare(self, run: Resumed) -> None:
        """Say where a run goes on; ValueError if its settings were others."""
        path = run.folder / "config.yaml"
        # Parsed and written once more, as an earlier version or a person may have put it shorter.
        before = self._settings(self._parser("fit").parse_args(["--config", str(path)]))
        now = self._settings(self.config["fit"])
        changed = differences(yaml.safe_load(before), yaml.safe_load(now))
        if changed:
            raise ValueError(
                f"--resume: expected the settings of {shown(path)}, got others:\n  "
                + "\n  ".join(changed)
            )
        if run.found is None:
            say("resumed", f"{shown(run.folder)}, from its start: it has no checkpoint")
        else:
            say("resumed", f"{shown(run.found.path)}, step {run.found.step}")

    def fit(self, **kwargs: Any) -> None:
        """Train, evaluate the best checkpoint, and report."""
        trainer = self.trainer
        trainer.fit(**kwargs, weights_only=True)
        # Read now: the state of a checkpoint that is loaded would wind it back.
        seconds = self.timer.time_elapsed("train") or 0.0
        keeper, last = self.keeper, self.model.wants_the_last
        best = (keeper.last_model_path if last else keeper.best_model_path) or None
        evaluated = {"model": self.model, "datamodule": self.datamodule, "verbose": False}
        # The curve of the validation ends with the training.
        loggers, trainer.loggers = trainer.loggers, []
        [val] = trainer.validate(**evaluated, ckpt_path=best, weights_only=True)
        trainer.loggers = loggers
        [test] = trainer.test(**evaluated, ckpt_path=best, weights_only=True)
        if not trainer.is_global_zero:
            return
        steps = trainer.global_step
        say(
            "trained",
            f"{steps} steps in {seconds:.1f} s ({steps / max(seconds, 1e-9):.0f} a second)",
        )
        say("device", device(trainer))
        if self.model.path is not None:
            say("path", self.model.path)
        if self.model.certificate is not None:
            say("optimum", self.model.certificate)
        say("val" if best is None or last else "best val", figures(val))
        say("test", figures(test))
        if best is not None:
            say("checkpoint", shown(best))
            say("next", f"{program()} test --ckpt_path {shown(best)}")

    def validate(self, **kwargs: Any) -> None:
        """Print the figures of the validation set."""
        [val] = self.trainer.validate(**kwargs, verbose=False, weights_only=True)
        say("val", figures(val))

    def test(self, **kwargs: Any) -> None:
        """Print the figures of the test set."""
        [test] = self.trainer.test(**kwargs, verbose=False, weights_only=True)
        say("test", figures(test))

    def predict(self, **kwargs: Any) -> None:
        """Write predictions for the test set, one row a sample.

        Raises:
            ValueError: several processes, each of which would have some of the rows.
        """
        data = self.datamodule
        assert isinstance(data, TensorDataModule)
        if self.trainer.world_size > 1:
            raise ValueError(f"predict: expected one process, got {self.trainer.world_size}")
        given = (self._get(self.config, name) for name in ("output", "top_k", "probabilities"))
        wanted = Wanted.of(kwargs["ckpt_path"], *given)
        batches = self.trainer.predict(**kwargs, weights_only=True)
        p = torch.cat([batch for batch in batches or [] if isinstance(batch, torch.Tensor)])
        wanted.write([Predicted(data.test_ids, p)], data.preprocessing.class_names)

    def calibrate(self, **kwargs: Any) -> None:
        """Print what the calibration does to the figures of the validation set."""
        assert isinstance(self.trainer, ReportingTrainer)
        before, after = self.trainer.calibrate(**kwargs)
        say("before", figures(before))
        say("after", figures(after))
        say("calibrated", f"{shown(kwargs['ckpt_path'])}, {self.model.calibration}")
        say("next", f"{program()} test --calibrated --ckpt_path {shown(kwargs['ckpt_path'])}")

    def report(self, **kwargs: Any) -> None:
        """Write a page about the run, and print the figures of the test set with their ranges."""
        assert isinstance(self.trainer, ReportingTrainer)
        run = Path(kwargs["run"])
        kwargs["ckpt_path"] = kwargs["ckpt_path"] or default_checkpoint(run, self.model)
        results = self.trainer.run_results(**kwargs)
        samples, classes = results.test.logits.shape
        say("evaluated", f"{shown(kwargs['ckpt_path'])} on {samples} samples, {classes} classes")
        page = compose(results)
        low, high = ({name: at[i] for name, at in page.intervals.items()} for i in (0, 1))
        for label, values in (("test", page.test), ("95% from", low), ("to", high)):
            say(label, figures({f"test/{name}": value for name, value in values.items()}))
        folder = write_report(page, run)
        say("report", f"{shown(folder / 'index.html')}, {len(page.html) / 1e6:.1f} MB")
