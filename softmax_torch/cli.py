"""The command line: commands that are each made of a YAML and flags, and one that draws.

    fit                                    train; without --config: on scikit-learn's digits
    fit --resume [RUN]                     go on with a run, by default the newest of its name
    validate | test --ckpt_path CKPT       figures of a checkpoint
    predict --ckpt_path CKPT               class probabilities of the test set, as CSV
    calibrate --ckpt_path CKPT             fit a temperature, and keep it in the checkpoint
    plot DIAGRAM [--output FILE]           softmax, cross-entropy or gradient-descent, as PNG or SVG

A run writes ``runs/<name>/version_<n>``: config.yaml, metrics.csv, best.ckpt (lowest validation
NLL), last.ckpt and previous.ckpt. A checkpoint is used with the config.yaml beside it unless
--config is given; with its calibration where validate, test or predict have --calibrated. SIGTERM
and SIGINT end a run after one more checkpoint, with status 143 and 130.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

try:
    import torch
    import yaml
    from lightning.pytorch.callbacks import Callback, Timer
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.trainer import Trainer
    from lightning.pytorch.utilities import rank_zero_only
except ImportError as error:
    raise ImportError(
        f"{error}. The command line needs more than the operator does: "
        "pip install 'softmax-torch[train]'"
    ) from error

from softmax_torch.data import TensorDataModule
from softmax_torch.report import diagrams
from softmax_torch.training import LitSoftmaxRegression, checkpoint
from softmax_torch.training.calibrating import CalibratingTrainer
from softmax_torch.training.progress import EpochBar
from softmax_torch.training.runs import RunLogger, latest
from softmax_torch.training.saving import SECONDS, RunCheckpoint, Stopped

__all__ = ["main"]

FREE = {"ckpt_path", "resume", "runs", "name", "checkpoint_seconds"} | {
    f"trainer.{name}"
    for name in ("max_epochs", "max_steps", "max_time", "enable_progress_bar", "profiler")
}
"""Settings that may differ in a resumed run, since its steps stay the same."""

USES_OF_A_CALIBRATION = ("validate", "test", "predict")
"""Commands that take --calibrated."""

PLACES = ("root", "download")
"""Arguments of data modules that say where data is, not which."""

PARENT, PR_SET_PDEATHSIG = "SOFTMAX_TORCH_PARENT", 1
"""Variable by which a process knows the one that started it, and a number of <linux/prctl.h>."""

CALLERS_MISTAKES = (ValueError, IndexError, OSError, ArithmeticError)
"""What this package raises for input that cannot be used."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the program with these arguments, by default those of the command line.

    Raises:
        SystemExit: arguments that cannot be used, and, started from the command line, input that
            cannot: with a message instead of a traceback.
    """
    given = list(sys.argv[1:] if args is None else args)
    if args is None:
        # Lightning would leave with status 0 or 1.
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda signum, _: sys.exit(128 + signum))
        end_with_parent()
    with quiet():
        closing = ExitStack()  # run directories are free again afterwards
        try:
            if given[:1] == ["plot"]:
                plot(given[1:])
                return
            run = resumed(given)
            CLI(with_config(given if run is None else run.args), closing, run)
        except Stopped as stopped:
            say_how_to_go_on(stopped)
            raise
        except CALLERS_MISTAKES as error:
            mistake = ours(error)
            if args is not None or mistake is None:
                raise
            sys.exit(f"error: {mistake}")
        finally:
            closing.close()


def plot(args: Sequence[str]) -> None:
    """Draw the diagram that these arguments name."""
    parser = argparse.ArgumentParser(
        prog=f"{program()} plot",
        description="Draw a diagram of the method.",
        allow_abbrev=False,
    )
    parser.add_argument("diagram", help=", ".join(diagrams.DIAGRAMS))
    parser.add_argument(
        "--output",
        type=Path,
        help="A new file that ends in .png or .svg; by default DIAGRAM.svg, or DIAGRAM_1.svg, ...",
    )
    given = parser.parse_args(args)
    say("diagram", shown(diagrams.plot(given.diagram, given.output)))


class CLI(LightningCLI):
    """LightningCLI with the model given, sizes taken from the data, and a report at the end."""

    def __init__(self, args: list[str], closing: ExitStack, run: Resumed | None = None) -> None:
        self.keeper, self.closing, self.run = RunCheckpoint(), closing, run
        self.timer = Timer()
        super().__init__(
            LitSoftmaxRegression,
            TensorDataModule,
            subclass_mode_data=True,
            trainer_class=CalibratingTrainer,
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
                name: {"usage": f"{program()} {name} [options]"} for name in self.subcommands()
            }
            | {"epilog": f"Diagrams of the method: {program()} plot --help"},
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, without those of their arguments that are settled here."""
        settled = {"weights_only", "verbose", "return_predictions"}
        theirs = {name: skip | settled for name, skip in LightningCLI.subcommands().items()}
        return theirs | {"calibrate": {"model", "datamodule"}}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in USES_OF_A_CALIBRATION:
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
        for size in ("in_features", "num_classes"):
            parser.link_arguments(f"data.{size}", f"model.{size}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse these arguments; Lightning warns where they differ from those of the process."""
        self.config = parser.parse_args(args)

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
        if not isinstance(logger, RunLogger) or not self.trainer.is_global_zero:
            return
        config = self.config["fit"].clone()
        for name in ("resume", "ckpt_path"):
            config.pop(name, None)
        text = self._parser("fit").dump(config, skip_none=False)
        path = logger.folder / "config.yaml"
        if self.run is None:
            checkpoint.replace(path, text.encode())
            return
        changed = differences(yaml.safe_load(path.read_text()), yaml.safe_load(text))
        if changed:
            raise ValueError(
                f"--resume: expected the settings of {shown(path)}, got others:\n  "
                + "\n  ".join(changed)
            )
        if self.run.found is None:
            say("resumed", f"{shown(logger.folder)}, from its start: it has no checkpoint")
        else:
            say("resumed", f"{shown(self.run.found.path)}, step {self.run.found.step}")

    def fit(self, **kwargs: Any) -> None:
        """Train, evaluate the best checkpoint, and report."""
        trainer = self.trainer
        trainer.fit(**kwargs, weights_only=True)
        # Read now: the state of a checkpoint that is loaded would wind it back.
        seconds = self.timer.time_elapsed("train") or 0.0
        # The least validation NLL is that of the best epoch; a solver is asked for the optimum.
        solved = self.model.solver is not None
        keeper = self.keeper
        best = (keeper.last_model_path if solved else keeper.best_model_path) or None
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
        if self.model.certificate is not None:
            say("optimum", self.model.certificate)
        say("val" if best is None or solved else "best val", figures(val))
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
        """Write the class probabilities of the test set, one row a sample.

        Raises:
            ValueError: several processes, each of which would have some of the rows.
        """
        if self.trainer.world_size > 1:
            raise ValueError(f"predict: expected one process, got {self.trainer.world_size}")
        batches = self.trainer.predict(**kwargs, weights_only=True)
        p = torch.cat([batch for batch in batches or [] if isinstance(batch, torch.Tensor)])
        path = write_predictions(p, Path(kwargs["ckpt_path"]).parent)
        say("predictions", f"{shown(path)} ({len(p)} samples, {p.shape[1]} classes)")

    def calibrate(self, **kwargs: Any) -> None:
        """Print what the calibration does to the figures of the validation set."""
        assert isinstance(self.trainer, CalibratingTrainer)
        before, after = self.trainer.calibrate(**kwargs)
        say("before", figures(before))
        say("after", figures(after))
        say("calibrated", f"{shown(kwargs['ckpt_path'])}, {self.model.calibration}")
        say("next", f"{program()} test --calibrated --ckpt_path {shown(kwargs['ckpt_path'])}")


class Resumed(NamedTuple):
    """A run to go on with."""

    folder: Path
    found: checkpoint.Found | None  # where; None for its start
    args: list[str]


def resumed(args: list[str]) -> Resumed | None:
    """What --resume asks for, and the arguments in which it is spelled out; None without it.

    Raises:
        FileNotFoundError, ValueError: there is no such run.
    """
    at = next((i for i, a in enumerate(args) if a.partition("=")[0] == "--resume"), None)
    if at is None:
        return None
    if "fit" not in args[:at]:
        raise ValueError("--resume: expected it after fit")
    after = args[at + 1 : at + 2]
    named = args[at].partition("=")[2] or next((a for a in after if not a.startswith("-")), "")
    rest = args[:at] + args[at + (2 if after == [named] else 1) :]
    if value_of("--ckpt_path", rest) is not None:
        raise ValueError("--resume: expected no --ckpt_path beside it, as it finds the last one")
    folder = Path(named) if named else latest(*place_of(rest))
    config = folder / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(
            f"--resume: expected the directory of a run, with config.yaml in it, got {folder}"
        )
    found, passed_over = checkpoint.newest(folder)
    for complaint in passed_over:
        print(f"warning: {complaint}", file=sys.stderr)
    fit = rest.index("fit") + 1
    given = [] if is_configured(rest) else ["--config", str(config)]
    path = [] if found is None else ["--ckpt_path", str(found.path)]
    return Resumed(folder, found, [*rest[:fit], *given, *path, *rest[fit:]])


def place_of(args: list[str]) -> tuple[Path, str]:
    """The folder of all runs and the name of the one that these arguments are for."""
    given = value_of("--config", args) or value_of("-c", args) or str(digits_config())
    config = yaml.safe_load(Path(given).read_text()) if Path(given).is_file() else {}
    runs = value_of("--runs", args) or config.get("runs", "runs")
    return Path(runs), value_of("--name", args) or config.get("name", "softmax_regression")


def differences(saved: Any, given: Any, name: str = "") -> list[str]:
    """The settings in which two configurations differ, those aside that may: a line each."""
    if name in FREE or name.rpartition(".")[2] in PLACES:
        return []
    if isinstance(saved, dict) and isinstance(given, dict):
        prefix = f"{name}." if name else ""
        keys = [*saved, *(key for key in given if key not in saved)]
        return [
            line
            for key in keys
            for line in differences(saved.get(key), given.get(key), f"{prefix}{key}")
        ]
    return [] if saved == given else [f"{name}: expected {saved}, got {given}"]


def is_configured(args: list[str]) -> bool:
    """Whether the arguments say which configuration to use, or ask for help."""
    told = ("-c", "--config", "-h", "--help")
    return any(a in told or a.startswith(("--config=", "--help")) for a in args)


def with_config(args: list[str]) -> list[str]:
    """The arguments with the --config that goes without saying.

    A checkpoint is used as its run was configured; a ``fit`` with nothing else trains on digits.

    Raises:
        ValueError, FileNotFoundError: there is no checkpoint to use, or no configuration beside it.
    """
    at = next((i for i, a in enumerate(args) if a in CLI.subcommands()), None)
    if at is None or is_configured(args):
        return args
    path = value_of("--ckpt_path", args)
    if path is None and args[at] != "fit":
        raise ValueError(
            f"{args[at]}: expected --ckpt_path and a checkpoint, such as "
            "runs/digits/version_0/best.ckpt"
        )
    config = digits_config()
    if path is not None:
        checkpoint.check(Path(path))
        config = Path(path).parent / "config.yaml"
        if not config.is_file():
            raise FileNotFoundError(
                f"--ckpt_path: expected the configuration of the run beside {path}, got no "
                f"{config}; give one with --config"
            )
    return [*args[: at + 1], "--config", str(config), *args[at + 1 :]]


def value_of(flag: str, args: list[str]) -> str | None:
    """What follows a flag, in either form, at its last place."""
    for argument, following in reversed(list(zip(args, [*args[1:], None], strict=True))):
        if argument == flag:
            return following
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def digits_config() -> Path:
    """configs/digits.yaml: beside the package in a checkout, within it where it is installed."""
    package = Path(__file__).parent
    installed = package / "configs" / "digits.yaml"
    return installed if installed.exists() else package.parent / "configs" / "digits.yaml"


def write_predictions(p: torch.Tensor, folder: Path) -> Path:
    """Write predictions.csv, or the first of predictions_1.csv, ... that does not exist.

    Columns: predicted, the most probable class, and p_0, ..., the probabilities, with all digits.
    """
    path, number = folder / "predictions.csv", 0
    while path.exists():
        number += 1
        path = folder / f"predictions_{number}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["predicted", *(f"p_{c}" for c in range(p.shape[1]))])
        for predicted, row in zip(p.argmax(1).tolist(), p.tolist(), strict=True):
            writer.writerow([predicted, *(f"{x:.9g}" for x in row)])
    return path


def end_with_parent() -> None:
    """Let the processes that Lightning starts from this one, for other devices, end with it.

    One that waits for the first to meet it would go on waiting for half an hour. (Linux only.)
    """
    if os.environ.get(PARENT) == str(os.getppid()):
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ[PARENT] = str(os.getpid())


@rank_zero_only
def say_how_to_go_on(stopped: Stopped) -> None:
    """What became of a run that a signal ended."""
    print(f"{stopped.message}; go on with", file=sys.stderr)
    print(f"    {program()} fit --resume {shown(stopped.path.parent)}", file=sys.stderr)


@rank_zero_only
def say(label: str, text: str) -> None:
    """A line of the report."""
    print(f"{label:12s}{text}")


def figures(results: Mapping[str, float]) -> str:
    """The figures of a stage, without its name."""
    named = {name.partition("/")[2]: value for name, value in results.items() if "/" in name}
    return "  ".join(f"{name} {value:.4f}" for name, value in named.items())


def device(trainer: Trainer) -> str:
    """What the training ran on."""
    root = trainer.strategy.root_device
    if root.type == "cuda":
        return f"{trainer.num_devices} x {torch.cuda.get_device_name(root)}"
    return f"{root.type}, {torch.get_num_threads()} threads" if root.type == "cpu" else root.type


def shown(path: str | Path) -> str:
    """A path as short as it can be typed here."""
    path, here = Path(path).absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def program() -> str:
    """How this program was started, as the user would type it."""
    name = Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else "softmax-torch"


def ours(error: BaseException | None) -> BaseException | None:
    """The error of this package that led to ``error``, if one did: its message says it all."""
    while error is not None:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).startswith("softmax_torch."):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning without its notes and advertisements; warnings still come through."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # Lightning's own use of a torch interface that torch 2.15 deprecates.
        warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
        # A checkpoint holds the state of callbacks that evaluation has no use for.
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        # Figures are the same in all processes by the time they are logged.
        warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
