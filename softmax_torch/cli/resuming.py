"""Resume a run: compare its settings with the checkpoint, and see whether it is finished.

The settings of a run stand in its config.yaml, which a person may have edited, and in its
checkpoint (see ``RunCheckpoint``). Checkpoints of earlier versions lack them; then the numbers that
they have are compared.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from softmax_torch.cli.console import in_command, program_name, short_path
from softmax_torch.cli.given_settings import Given
from softmax_torch.cli.jsonargparse_errors import usage_errors
from softmax_torch.cli.requests import Request
from softmax_torch.lightning_compat import epochs_done
from softmax_torch.storage.run_directories import CONFIG_FILE, METRICS_FILE, read_metrics
from softmax_torch.storage.run_results import checkpoint_of
from softmax_torch.training.run_ending import ending_of, settings_of

__all__ = [
    "check_settings",
    "check_start",
    "differences",
    "ended_epochs",
    "finished",
    "settings_yaml",
    "updated_settings",
]

LENGTH = {"trainer.max_epochs", "trainer.max_steps", "trainer.max_time"}
"""Settings that say when a run ends."""

OUTPUT = {"runs", "name", "checkpoint_seconds", "model.metrics"} | {
    f"trainer.{name}"
    for name in ("enable_progress_bar", "enable_model_summary", "profiler", "logger")
}
"""Settings of what a run prints and writes. Like those of its length, they change no step, and may
differ in a resumed run."""

DATA_LOCATIONS = ("root", "download", "cache", "file", "val_file", "test_file")
"""Arguments of data modules that say where the data are, not which data they are."""


def settings_yaml(parser: ArgumentParser, config: Namespace) -> str:
    """Return the settings of a fit as YAML, without the checkpoint that it starts from."""
    config = config.clone()
    for name in ("resume", "ckpt_path"):
        config.pop(name, None)
    text: str = parser.dump(config, skip_none=False)
    return text


def settings_in(file: Path, parser: ArgumentParser) -> dict[str, Any]:
    """Return the settings in a file, with the defaults that an earlier version left out."""
    with usage_errors("fit", Given([], {})):
        config = parser.parse_args(["--config", str(file)])
    return parsed(settings_yaml(parser, config))


def parsed(text: str) -> dict[str, Any]:
    """Return the settings in a YAML."""
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


def check_settings(request: Request, parser: ArgumentParser, config: Namespace) -> None:
    """Raise ValueError if a run is resumed with other settings than it was trained with."""
    assert request.resumed_run is not None
    file = request.resumed_run / CONFIG_FILE
    in_file, now = settings_in(file, parser), parsed(settings_yaml(parser, config))
    content = {} if request.checkpoint is None else request.checkpoint.content
    if recorded := settings_of(content):
        edited = differences(parsed(recorded), in_file)
        changed = differences(parsed(recorded), now)
    else:
        edited = changed_numbers(content, in_file)
        changed = differences(in_file, now)
    if edited and (changed or not recorded):
        raise ValueError(
            f"--resume: expected the settings that the run was trained with, got others in "
            f"{short_path(file)}; restore it, or begin a new run:\n  " + "\n  ".join(edited)
        )
    if changed:
        raise ValueError(
            f"--resume: expected the settings of {short_path(file)}, got others:\n  "
            + "\n  ".join(changed)
        )


def check_start(request: Request, config: Namespace) -> None:
    """Raise ValueError if a new run starts from a checkpoint of another optimizer or schedule.

    Lightning restores their state, and with it the learning rate of the checkpoint.
    """
    content = {} if request.checkpoint is None else request.checkpoint.content
    recorded = settings_of(content)
    if request.command != "fit" or not recorded:
        return
    before, now = parsed(recorded)["model"]["init_args"], config["model"].as_dict()["init_args"]
    changed = [
        line
        for name in ("optimizer", "lr_scheduler", "lr_interval")
        for line in differences(before.get(name), now.get(name), f"model.{name}")
    ]
    if changed:
        raise ValueError(
            "--ckpt_path: expected the optimizer and schedule of the checkpoint, which the run "
            "continues with, got others:\n  " + "\n  ".join(changed)
        )


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Return a line for each setting that a resumed run must not change, and that differs."""
    if name in LENGTH | OUTPUT or name.rpartition(".")[2] in DATA_LOCATIONS:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        # Flags are typed without init_args: --model.C.
        prefix = f"{name.removesuffix('.init_args')}." if name else ""
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line
            for key in keys
            for line in differences(before.get(key), now.get(key), f"{prefix}{key}")
        ]
    return [] if before == now else [f"{name}: expected {before}, got {now}"]


def changed_numbers(content: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Return a line for each setting that differs from a checkpoint without recorded settings.

    Such a checkpoint has the arguments of the model, the number of batches of an epoch, and the
    learning rate that the optimizer began with.
    """
    if not content:
        return []
    model, data = (settings[key]["init_args"] for key in ("model", "data"))
    stored = content["hyper_parameters"]
    both = [name for name, value in model.items() if name in stored and value is not None]
    pairs = {f"model.{name}": (stored[name], model[name]) for name in both}
    size, samples = (
        data.get("batch_size"),
        content.get(settings["data"]["class_path"].rpartition(".")[2], {}).get("samples"),
    )
    loaders = content["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
    if samples is not None and loaders and "batches" in loaders[0]:
        batches = math.ceil(samples / (size or samples))
        pairs["data.batch_size, batches of an epoch"] = loaders[0]["batches"], batches
    optimizer = (model.get("optimizer") or {}).get("init_args", {})
    groups = content["optimizer_states"][0].get("param_groups", [])
    rates = {group["initial_lr"] for group in groups if "initial_lr" in group}
    if len(rates) == 1 and "lr" in optimizer:
        pairs["model.optimizer.lr"] = rates.pop(), optimizer["lr"]
    return [
        line for name, (before, now) in pairs.items() for line in differences(before, now, name)
    ]


def finished(request: Request, config: Namespace) -> list[tuple[str, str]]:
    """Return labels and lines that say how a run ended and how to go on; none if it has not.

    A run has ended if it reached its number of epochs or steps, or if it stopped before: at the
    optimum, or since a metric did not improve. One that was killed before its result was logged has
    not; see ``ended_epochs``.

    Raises:
        ValueError: the run has completed more epochs than it is to have now.
    """
    run, checkpoint, trainer = request.resumed_run, request.checkpoint, config["trainer"]
    if run is None or checkpoint is None:
        return []
    content, name, typed = checkpoint.content, short_path(run), in_command(run)
    ending, steps, longer = ending_of(content), checkpoint.step, ""
    epochs = epochs_done(content)
    most = trainer["max_epochs"]
    if most is not None and -1 < most < epochs:
        raise ValueError(
            f"trainer.max_epochs: expected at least {epochs}, the epochs that the run has "
            f"completed, got {most}"
        )
    if ending is not None:
        text = ending.text
        if not ending.optimal:
            longer = (
                f"fit --config {in_command(run / CONFIG_FILE)} --ckpt_path "
                f"{in_command(checkpoint.path)} "
                "--trainer.callbacks null"
            )
    elif epochs and epochs == most:
        text = f"{epochs} of {epochs} epochs"
        longer = f"fit --resume {typed} --trainer.max_epochs {2 * epochs}"
    elif steps and steps == trainer["max_steps"]:
        text = f"{steps} of {steps} steps"
        longer = f"fit --resume {typed} --trainer.max_steps {2 * steps}"
    else:
        return []
    _, rows = read_metrics(run / METRICS_FILE) if (run / METRICS_FILE).exists() else ([], [])
    if trainer["limit_test_batches"] != 0 and not any("test/nll" in row for row in rows):
        return []
    program = program_name()
    lines = [
        ("finished", f"{name}: {text}"),
        ("checkpoint", short_path(checkpoint_of(run))),
        ("longer", f"{program} {longer}"),
        ("next", f"{program} test {typed}"),
    ]
    return lines if longer else [line for line in lines if line[0] != "longer"]


def ended_epochs(request: Request) -> int | None:
    """Return the epochs of a resumed run that stopped before their number; None for other runs.

    It trains no further: only its result is missing.
    """
    if request.resumed_run is None or request.checkpoint is None:
        return None
    content = request.checkpoint.content
    return None if ending_of(content) is None else epochs_done(content)


def updated_settings(run: Path, parser: ArgumentParser, now: str) -> str:
    """Return the settings of a resumed run for its config.yaml, which keeps the run's name.

    A run that got more epochs and is interrupted again then continues to the new number. A
    config.yaml with the same settings stays as it is, whoever wrote it.
    """
    file = run / CONFIG_FILE
    before, settings = settings_in(file, parser), parsed(now)
    settings |= {name: before[name] for name in ("name", "runs")}
    if settings == before:
        return file.read_text(encoding="utf-8")
    header = [line for line in now.splitlines(keepends=True) if line.startswith("#")]
    body: str = yaml.safe_dump(settings, sort_keys=False)
    return "".join(header) + body
