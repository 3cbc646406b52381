"""A trained run is evaluated, and what is found goes to a report."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from torch import Tensor, nn

from softmax_torch import __version__
from softmax_torch.data import TensorDataModule
from softmax_torch.report.findings import Evaluated, Findings
from softmax_torch.report.page import compose
from softmax_torch.report.writing import write
from softmax_torch.storage.run_directories import read_metrics
from softmax_torch.training.base import LitBase
from softmax_torch.training.calibrating import CalibratingTrainer
from softmax_torch.training.checkpoint_io import atomic_checkpoint_io

__all__ = ["ReportingTrainer", "checkpoint_of"]

LISTED = 8
"""Entries up to which a list of the preprocessing is written out."""


class ReportingTrainer(CalibratingTrainer):
    """Lightning's trainer, which also calibrates models and reports on them."""

    def report(
        self,
        model: LitBase,
        datamodule: TensorDataModule,
        run: str,
        ckpt_path: str | None = None,
    ) -> Path:
        """Write a page about a trained run, and its figures: the folder.

        Args:
            model: of the run's configuration.
            datamodule: the data that it was trained on.
            run: the directory of the run, in which a folder ``report`` is made, or the first of
                ``report_1``, ``report_2``, ... that does not exist.
            ckpt_path: the checkpoint to report on; by default the one that ``fit`` names at its
                end.

        Raises:
            ValueError: there are several processes, each of which would have some of the samples.
            FileNotFoundError: the run has no config.yaml, or not the checkpoint.
            OSError: the report could not be written; then there is none of it.
        """
        path = ckpt_path or checkpoint_of(Path(run), model)
        return write(compose(self.findings(model, datamodule, run, path)), Path(run))

    def findings(
        self, model: LitBase, datamodule: TensorDataModule, run: str, ckpt_path: str
    ) -> Findings:
        """Evaluate a trained run; arguments and errors are those of ``report``."""
        if self.world_size > 1:
            raise ValueError(f"report: expected one process, got {self.world_size}")
        at = atomic_checkpoint_io(self).read(ckpt_path)
        folder = Path(run)
        config = (folder / "config.yaml").read_text(encoding="utf-8")
        settings = yaml.safe_load(config)
        metrics = folder / "metrics.csv"
        history = read_metrics(metrics)[1] if metrics.is_file() else []
        model.calibrated = False
        with self.keeping_logits() as kept:
            self.validate(model, None, ckpt_path, False, datamodule, weights_only=True)
            val = Evaluated(kept.logits, kept.y)
            self.test(model, None, None, False, datamodule)  # the weights that are there
            test = Evaluated(kept.logits, kept.y)
        preprocessing = datamodule.preprocessing
        return Findings(
            name=f"{settings.get('name', folder.parent.name)}, {folder.name}",
            class_names=preprocessing.class_names,
            feature_names=preprocessing.feature_names,
            image_shape=preprocessing.image_shape,
            val=val,
            test=test,
            ids=datamodule.test_ids,
            x=datamodule.splits["test"].x.cpu(),
            scale=datamodule.scale,
            weight=weight_of(model),
            history=history,
            step=at["global_step"],
            calibration=model.calibration,
            facts=tuple(facts(self, datamodule, Path(ckpt_path), at, settings)),
            config=config,
        )


def checkpoint_of(run: Path, model: LitBase) -> str:
    """Return the checkpoint of a run that is evaluated if none is named."""
    return str(run / ("last.ckpt" if model.reports_last_checkpoint else "best.ckpt"))


def weight_of(model: LitBase) -> Tensor | None:
    """The weight (C, D) of the head where it sees the sample itself."""
    if not isinstance(model.backbone, nn.Identity):
        return None
    return model.model.linear.weight.detach().float().cpu()


def facts(
    trainer: ReportingTrainer,
    data: TensorDataModule,
    path: Path,
    at: dict[str, Any],
    config: dict[str, Any],
) -> list[tuple[str, str]]:
    """Where the figures come from, in labels and values."""
    counts = data.class_counts
    sizes = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    device = trainer.strategy.root_device
    return [
        ("checkpoint", f"{path.name}, after step {at['global_step']}"),
        ("data", f"{type(data).__name__}, fingerprint {data.fingerprint[:12]}"),
        ("samples", sizes),
        ("training samples a class", f"{int(counts.min())} to {int(counts.max())}"),
        ("preprocessing", described(data.preprocessing.state_dict())),
        ("seed", f"{config.get('seed_everything')}, of the data {data.seed}"),
        ("evaluated on", f"{device.type}, precision {trainer.precision}"),
        (
            "versions",
            f"softmax_torch {__version__}, torch {torch.__version__}, lightning "
            f"{lightning.__version__}, Python {platform.python_version()}, {platform.system()} "
            f"{platform.machine()}",
        ),
    ]


def described(state: dict[str, Any]) -> str:
    """The state of a preprocessing in a line; of what is long or deep, how much there is."""
    words = [str(state["kind"])]
    for name, value in state.items():
        if name == "kind" or value is None:
            continue
        if isinstance(value, list):
            deep = any(isinstance(entry, list | dict) for entry in value)
            shown = ", ".join(map(str, value)) if len(value) <= LISTED and not deep else ""
            words.append(f"{name} {shown}" if shown else f"{len(value)} {name}")
        else:
            words.append(f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}")
    return "; ".join(words)
