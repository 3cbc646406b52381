"""Lightning's trainer with a method that evaluates a trained run and writes a report about it."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from torch import Tensor, nn

from softmax_torch import __version__
from softmax_torch.data import TableDataModule, TensorDataModule
from softmax_torch.preprocessing import Preprocessing
from softmax_torch.report.output import write_report
from softmax_torch.report.page import compose
from softmax_torch.report.run_results import EvaluatedSet, Groups, RawRows, RunResults
from softmax_torch.report.table_inference import inference_of_report
from softmax_torch.storage.run_directories import CONFIG_FILE, METRICS_FILE, read_metrics
from softmax_torch.storage.run_results import checkpoint_of
from softmax_torch.training.calibrating_trainer import CalibratingTrainer
from softmax_torch.training.checkpoint_io import atomic_checkpoint_io
from softmax_torch.training.lit_base import LitBase

__all__ = ["ReportingTrainer"]

MAX_LISTED = 8
"""Most entries of a list in the state of a preprocessing that are written out."""


class ReportingTrainer(CalibratingTrainer):
    """Lightning's trainer, which also calibrates models and reports on runs."""

    def report(
        self,
        model: LitBase,
        datamodule: TensorDataModule,
        run: str,
        ckpt_path: str | None = None,
    ) -> Path:
        """Write a page about a trained run, with its figures, and return its folder.

        Args:
            model: a model of the run's configuration.
            datamodule: the data that it was trained on.
            run: the directory of the run, in which the folder is made (see ``write_report``).
            ckpt_path: the checkpoint to report on; by default the one that ``fit`` prints at its
                end.

        Raises:
            ValueError: there are several processes, each with a part of the samples.
            FileNotFoundError: the run has no config.yaml, or the checkpoint does not exist.
            OSError: the report could not be written; nothing of it remains.
        """
        path = ckpt_path or str(checkpoint_of(Path(run)))
        return write_report(compose(self.run_results(model, datamodule, run, path)), Path(run))

    def run_results(
        self,
        model: LitBase,
        datamodule: TensorDataModule,
        run: str,
        ckpt_path: str,
        coefficients: bool = True,
    ) -> RunResults:
        """Evaluate a trained run.

        Args:
            model, datamodule, run, ckpt_path: as in ``report``, with its errors.
            coefficients: whether to fit the coefficients of a table, which the pictures of a report
                do without.
        """
        if self.world_size > 1:
            raise ValueError(f"report: expected one process, got {self.world_size}")
        content = atomic_checkpoint_io(self).read(ckpt_path)
        folder = Path(run)
        config = (folder / CONFIG_FILE).read_text(encoding="utf-8")
        settings = yaml.safe_load(config)
        metrics = folder / METRICS_FILE
        history = read_metrics(metrics)[1] if metrics.is_file() else []
        model.calibrated, model.laplace = False, None
        with self.collecting_logits() as collected:
            self.validate(model, None, ckpt_path, False, datamodule, weights_only=True)
            val = EvaluatedSet(collected.logits, collected.y)
            self.test(model, None, None, False, datamodule)  # with the weights just loaded
            test = EvaluatedSet(collected.logits, collected.y)
            averaged = None
            if model.post_hoc.laplace is not None:
                model.laplace = "probit"
                self.test(model, None, None, False, datamodule)
                averaged = EvaluatedSet(collected.logits, collected.y)
                model.laplace = None
        preprocessing = datamodule.preprocessing
        weight, inference, note = pixel_weight(model, preprocessing), None, ""
        if coefficients and weight is not None:
            inference, note = inference_of_report(datamodule)
        return RunResults(
            name=f"{settings.get('name', folder.parent.name)}, {folder.name}",
            class_names=preprocessing.class_names,
            feature_names=preprocessing.feature_names,
            image_shape=preprocessing.image_shape,
            val=val,
            test=test,
            ids=datamodule.test_ids[: len(test.y)],  # fewer if limit_test_batches says so
            x=datamodule.splits["test"].x[: len(test.y)].cpu(),
            scale=datamodule.scale,
            weight=weight,
            history=history,
            step=content["global_step"],
            calibration=model.calibration,
            laplace=averaged,
            posterior=str(model.post_hoc.laplace or ""),
            facts=tuple(facts(self, datamodule, Path(ckpt_path), content, settings)),
            config=config,
            raw=raw_rows(datamodule),
            groups=test_groups(datamodule, len(test.y)),
            coefficients=inference,
            coefficients_note=note,
            conformal=model.post_hoc.conformal,
            threshold=model.post_hoc.threshold,
        )


def raw_rows(data: TensorDataModule) -> RawRows | None:
    """Return the rows of the test set as they are in the table; None for other data."""
    if not isinstance(data, TableDataModule):
        return None
    columns = data.preprocessing.columns
    names = tuple(column.name for column in columns for _ in column.features)
    return RawRows(data.test_inputs(len(data.splits["test"])), names)


def test_groups(data: TensorDataModule, rows: int) -> Groups | None:
    """Return the groups of the first test samples of a table; None without groups."""
    if not isinstance(data, TableDataModule) or data.roles.group is None:
        return None
    return Groups(data.roles.group, data.test_groups[:rows])


def input_weight(model: LitBase) -> Tensor | None:
    """Return the weight (C, D) of a model without a backbone; None for one with a backbone."""
    if not isinstance(model.backbone, nn.Identity):
        return None
    return model.model.linear.weight.detach().float().cpu()


def pixel_weight(model: LitBase, preprocessing: Preprocessing) -> Tensor | None:
    """Return ``input_weight``, of standardised images for pixels in [0, 1] in their place.

    With x = (v - mean) / std the logits are w x + b = (w / std) v + constant.
    """
    weight, standardization = input_weight(model), preprocessing.standardization
    if weight is None or standardization is None:
        return weight
    _, std = standardization.columns(weight)
    shape = preprocessing.image_shape
    assert shape is not None, "only images are standardised"
    return (weight.view(-1, *shape) / std).flatten(1)


def facts(
    trainer: ReportingTrainer,
    data: TensorDataModule,
    path: Path,
    content: dict[str, Any],
    config: dict[str, Any],
) -> list[tuple[str, str]]:
    """Return labels and values: checkpoint, data, seeds, device and versions.

    Args:
        trainer: the trainer that evaluated the run.
        data: the data of the run.
        path: the checkpoint.
        content: the content of the checkpoint.
        config: the configuration of the run.
    """
    counts = data.class_counts
    sizes = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    device = trainer.strategy.root_device
    return [
        ("checkpoint", f"{path.name}, after step {content['global_step']}"),
        ("data", f"{type(data).__name__}, fingerprint {data.fingerprint[:12]}"),
        ("samples", sizes),
        ("training samples per class", f"{int(counts.min())} to {int(counts.max())}"),
        ("preprocessing", describe(data.preprocessing.state_dict())),
        ("seeds", f"run {config.get('seed_everything')}, data {data.seed}"),
        ("evaluated on", f"{device.type}, precision {trainer.precision}"),
        (
            "versions",
            f"softmax_torch {__version__}, torch {torch.__version__}, lightning "
            f"{lightning.__version__}, Python {platform.python_version()}, {platform.system()} "
            f"{platform.machine()}",
        ),
    ]


def describe(state: dict[str, Any]) -> str:
    """Return the state of a preprocessing in one line; long or nested lists as their length."""
    parts = [str(state["kind"])]
    for name, value in state.items():
        if name == "kind" or value is None:
            continue
        if isinstance(value, list):
            nested = any(isinstance(entry, list | dict) for entry in value)
            listed = ", ".join(map(str, value)) if len(value) <= MAX_LISTED and not nested else ""
            parts.append(f"{name} {listed}" if listed else f"{len(value)} {name}")
        else:
            parts.append(f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}")
    return "; ".join(parts)
