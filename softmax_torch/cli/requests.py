"""A parsed command line, and the files it names: configuration, run and checkpoint.

Without --config, the configuration is the checkpoint's or the run's config.yaml. That of a new fit
follows from its settings (``cli.implied_settings``). A command reads its checkpoint once, here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace

from softmax_torch.cli.arguments import split_flags
from softmax_torch.cli.command_table import CLASS_SETTINGS, COMMANDS, RUN_SETTINGS
from softmax_torch.cli.config_files import read_config
from softmax_torch.cli.console import print_line, short_path
from softmax_torch.cli.given_settings import Given, given_settings
from softmax_torch.cli.implied_settings import implied_config, solver_settings
from softmax_torch.cli.mistakes import UsageError
from softmax_torch.storage.checkpoints import CheckpointFile, newest_checkpoint, read_checkpoint
from softmax_torch.storage.run_directories import CONFIG_FILE, latest_run
from softmax_torch.storage.run_results import checkpoint_of, run_of

__all__ = ["Request", "config_beside"]


class Request(NamedTuple):
    """A parsed command line.

    Attributes:
        command: name of the command.
        arguments: its own arguments.
        settings: arguments that are settings, such as --trainer.max_epochs and its value.
        own: arguments that are no settings, without --config.
        configs: values of --config, also implied ones.
        implied: settings that follow from others; those that are given take precedence.
        checkpoint: the checkpoint and its content; None without one.
        resumed_run: directory of the run to resume; None for a new one.
    """

    command: str
    arguments: Namespace
    settings: list[str]
    own: list[str]
    configs: list[str]
    implied: tuple[str, ...] = ()
    checkpoint: CheckpointFile | None = None
    resumed_run: Path | None = None

    @property
    def args(self) -> list[str]:
        """All arguments after the command; files come first, since flags take precedence."""
        files = [part for config in self.configs for part in ("--config", config)]
        return [*files, *self.implied, *self.own, *self.settings]

    def given(self) -> Given:
        """Return the settings of files and flags, with their names checked.

        Raises:
            UsageError: a setting or class does not exist, or a file cannot be read.
        """
        own = {flag.removeprefix("--") for flag, _ in COMMANDS[self.command].arguments}
        files = [Path(config) for config in self.configs if Path(config).is_file()]
        flags = [*self.implied, *self.settings]
        given = given_settings(files, flags, own | {*CLASS_SETTINGS, *RUN_SETTINGS})
        named = "data" in given.classes or given.value("data")[0] is not None
        if not named and len(files) == len(self.configs):
            where = f" in {' and '.join(map(short_path, files))}" if files else ""
            raise UsageError(
                f"{self.command}: expected the kind of data, as in --data TableDataModule or in "
                f"'data: {{class_path: softmax_torch.data.TableDataModule}}', got none{where}"
            )
        return given

    def located(self) -> Request:
        """Return the request with the checkpoint that its run stands for as ``ckpt_path``.

        Of a report, ``run`` becomes the directory of the run.

        Raises:
            FileNotFoundError: there is no such run, or it has no checkpoint.
            ValueError: a run or checkpoint is missing among the arguments, or given twice.
        """
        if self.command == "fit":
            return self
        arguments = self.arguments.clone()
        run, path = arguments.run, arguments.ckpt_path
        if run is not None and path is not None and self.command != "report":
            raise ValueError(f"{self.command}: expected a run or --ckpt_path, got both")
        if run is None and path is None:
            if self.command in ("validate", "test") and arguments.config is not None:
                return self  # of the model before it is trained
            if self.command == "inference" and (self.settings or self.configs):
                return self  # of a table that no run has
            table = " or a table, as in --data.file my.csv --data.target species"
            raise ValueError(
                f"{self.command}: expected a run or a checkpoint after it, such as "
                f"runs/digits/version_0{table * (self.command == 'inference')}"
            )
        arguments.ckpt_path = str(checkpoint_of(Path(run if path is None else path)))
        if self.command == "report":
            folder = Path(arguments.ckpt_path if run is None else run)
            arguments.run = str(folder.parent if folder.is_file() else run_of(folder))
        return self._replace(arguments=arguments)

    def resolved(self) -> Request:
        """Return the request with its configuration, run and checkpoint.

        Raises:
            FileNotFoundError, ValueError: a run, checkpoint or configuration is missing or damaged.
            UsageError: a setting does not exist.
        """
        if self.arguments.get("resume") is not None:
            request = self._resumed()
            request.given()
            return request
        checkpoint = None
        if self.arguments.ckpt_path is not None:
            path = Path(self.arguments.ckpt_path)
            content = read_checkpoint(path)
            checkpoint = CheckpointFile(path, content.get("global_step", 0), content)
        request = self._replace(checkpoint=checkpoint)
        if self.command == "fit" or (self.command == "inference" and checkpoint is None):
            return request._with_implied_settings()
        config = self._implied_config()
        if config is not None:
            request = request._replace(configs=[str(config)])
        request.given()
        return request

    def _with_implied_settings(self) -> Request:
        """Return the request for a new run, with the settings that follow from those given."""
        notes = {}
        request = self
        if not self.configs:
            path, flags, notes["config"] = implied_config(self.settings)
            request = self._replace(configs=[str(path)], implied=tuple(flags))
        flags, notes["solver"] = solver_settings(request.given())
        shown = os.environ.get("LOCAL_RANK", "0") == "0" and not prints_config(self.settings)
        for label, note in notes.items():
            if note and shown:
                print_line(label, note)
        return request._replace(implied=(*request.implied, *flags))

    def _implied_config(self) -> Path | None:
        """Return the configuration that is implied; None if --config names one."""
        arguments, given = self.arguments, self.arguments.config is not None
        if self.command == "report":
            config = config_of_run(Path(arguments.run), self.command)
            return None if given else config
        if given:
            return None
        return config_beside(Path(arguments.ckpt_path))

    def _resumed(self) -> Request:
        """Return the request for a run that is resumed from its newest whole checkpoint."""
        if self.arguments.ckpt_path is not None:
            raise ValueError("--resume: expected no --ckpt_path beside it: it finds the newest one")
        given = self.arguments.resume
        folder = run_of(Path(given)) if given else self._latest_run()
        config = config_of_run(folder, "--resume")
        checkpoint, skipped = newest_checkpoint(folder)
        for complaint in skipped:
            print(f"warning: {complaint}", file=sys.stderr)
        configs = self.configs or [str(config)]
        return self._replace(configs=configs, checkpoint=checkpoint, resumed_run=folder)

    def _latest_run(self) -> Path:
        """Return the newest run of the name that the arguments or their configuration give."""
        config: dict[str, Any] = {}
        if self.configs:
            for path in self.configs:
                config |= read_config(Path(path))
        else:
            implied = implied_config(self.settings)
            config = {**read_config(implied.path), **dict(split_flags(implied.flags))}
        given = {arg.partition("=")[0] for arg in self.own}
        runs, name = (
            self.arguments[key] if f"--{key}" in given else config.get(key, self.arguments[key])
            for key in ("runs", "name")
        )
        try:
            return latest_run(Path(runs), name)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"--resume: {error}; leave --resume out to begin one") from None


def config_of_run(run: Path, requested_by: str) -> Path:
    """Return the configuration in a run directory, or raise FileNotFoundError."""
    config = run / CONFIG_FILE
    if not config.is_file():
        raise FileNotFoundError(
            f"{requested_by}: expected the directory of a run, with {CONFIG_FILE} in it, got {run}"
        )
    return config


def config_beside(checkpoint: Path) -> Path:
    """Return the configuration beside a checkpoint, or raise FileNotFoundError."""
    config = checkpoint.parent / CONFIG_FILE
    if checkpoint.parent.name == "checkpoints" and not config.is_file():
        config = checkpoint.parents[1] / CONFIG_FILE  # Lightning's ModelCheckpoint wrote it
    if not config.is_file():
        raise FileNotFoundError(
            f"{checkpoint}: expected the configuration of the run beside it, got no "
            f"{config}; give one with --config"
        )
    return config


def prints_config(settings: list[str]) -> bool:
    """Return whether the settings ask for the configuration as YAML, which nothing may precede."""
    return any(setting.partition("=")[0] == "--print_config" for setting in settings)
