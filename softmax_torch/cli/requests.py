"""A parsed command line, and the files it names: configuration, run and checkpoint.

Without --config, the configuration is the checkpoint's or the run's config.yaml, or digits.yaml for
fit. A command reads its checkpoint once, here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import Namespace

from softmax_torch.storage.checkpoints import CheckpointFile, newest_checkpoint, read_checkpoint
from softmax_torch.storage.run_directories import CONFIG_FILE, latest_run
from softmax_torch.storage.run_results import checkpoint_of, run_of

__all__ = ["Request", "config_beside", "read_config"]


class Request(NamedTuple):
    """A parsed command line.

    Attributes:
        command: name of the command.
        arguments: its own arguments.
        settings: arguments that are settings, such as --trainer.max_epochs and its value.
        args: all arguments after the command, with --config even if it was implied.
        checkpoint: the checkpoint and its content; None without one.
        resumed_run: directory of the run to resume; None for a new one.
    """

    command: str
    arguments: Namespace
    settings: list[str]
    args: list[str]
    checkpoint: CheckpointFile | None = None
    resumed_run: Path | None = None

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
            raise ValueError(
                f"{self.command}: expected a run or a checkpoint after it, such as "
                "runs/digits/version_0"
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
        """
        if self.arguments.get("resume") is not None:
            return self._resumed()
        checkpoint = None
        if self.arguments.ckpt_path is not None:
            path = Path(self.arguments.ckpt_path)
            content = read_checkpoint(path)
            checkpoint = CheckpointFile(path, content.get("global_step", 0), content)
        return self._replace(args=self._with_config(self._implied_config()), checkpoint=checkpoint)

    def _implied_config(self) -> Path | None:
        """Return the configuration that is implied; None if --config names one."""
        arguments, given = self.arguments, self.arguments.config is not None
        if self.command == "report":
            config = config_of_run(Path(arguments.run), self.command)
            return None if given else config
        if given:
            return None
        return (
            digits_config()
            if arguments.ckpt_path is None
            else config_beside(Path(arguments.ckpt_path))
        )

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
        args = self._with_config(None if self.arguments.config else config)
        return self._replace(args=args, checkpoint=checkpoint, resumed_run=folder)

    def _latest_run(self) -> Path:
        """Return the newest run of the name that the arguments or their configuration give."""
        config = read_config(
            Path(self.arguments.config[-1]) if self.arguments.config else digits_config()
        )
        given = {arg.partition("=")[0] for arg in self.args}
        runs, name = (
            self.arguments[key] if f"--{key}" in given else config.get(key, self.arguments[key])
            for key in ("runs", "name")
        )
        try:
            return latest_run(Path(runs), name)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"--resume: {error}; leave --resume out to begin one") from None

    def _with_config(self, config: Path | None) -> list[str]:
        return self.args if config is None else ["--config", str(config), *self.args]


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no YAML, or has no settings.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--config: expected a file, got {path}, which does not exist")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: expected YAML in {path}, got {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config: expected settings in {path}, got {config}")
    return config


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
    if not config.is_file():
        raise FileNotFoundError(
            f"{checkpoint}: expected the configuration of the run beside it, got no "
            f"{config}; give one with --config"
        )
    return config


def digits_config() -> Path:
    """Return configs/digits.yaml: beside the package in a checkout, within an installed one."""
    package = Path(__file__).parents[1]
    installed = package / "configs" / "digits.yaml"
    return installed if installed.exists() else package.parent / "configs" / "digits.yaml"
