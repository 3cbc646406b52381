"""Pass the pictures of a report to loggers of Lightning that take pictures."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import numpy.typing as npt
from lightning.pytorch.loggers import Logger

__all__ = ["log_pictures", "takes_pictures"]


def takes_pictures(logger: Logger) -> bool:
    """Return whether a logger has one of the known interfaces for pictures.

    These are ``log_image`` of the logger (Weights & Biases), ``add_image`` of what it writes with
    (TensorBoard), and ``log_artifact`` of a client (MLflow).
    """
    experiment = getattr(logger, "experiment", None)
    return hasattr(logger, "log_image") or any(
        hasattr(experiment, method) for method in ("add_image", "log_artifact")
    )


def log_pictures(logger: Logger, pictures: Mapping[str, bytes], step: int) -> None:
    """Pass pictures to a logger that takes some.

    Args:
        logger: the logger.
        pictures: PNG files by the name of the figure.
        step: the optimizer step that they show.
    """
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(logger, "log_image"):
        for name, png in pictures.items():
            logger.log_image(f"report/{name}", [_pixels(png)], step=step)
    elif hasattr(experiment, "add_image"):
        for name, png in pictures.items():
            experiment.add_image(f"report/{name}", _pixels(png), step, dataformats="HWC")
    elif hasattr(experiment, "log_artifact"):
        with tempfile.TemporaryDirectory() as folder:
            for name, png in pictures.items():
                path = Path(folder, f"{name}.png")
                path.write_bytes(png)
                # Loggers of MLflow alone, which have such an experiment, have a run_id.
                experiment.log_artifact(logger.run_id, str(path), "report")  # type: ignore[attr-defined]
    logger.save()


def _pixels(png: bytes) -> npt.NDArray[np.float32]:
    """Return a PNG as an array (H, W, 3) of numbers in [0, 1]."""
    return np.asarray(matplotlib.image.imread(io.BytesIO(png)))[:, :, :3]
