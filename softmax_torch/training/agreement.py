"""Whether model, data and checkpoint belong together: ValueError, with both sides, if not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softmax_torch.calibration import Calibration
from softmax_torch.preprocessing import Preprocessing, same
from softmax_torch.storage.checkpoints import CHECKPOINT_FORMAT

__all__ = ["calibration_in", "check_checkpoint", "check_data", "check_samples", "state_in"]


def check_data(data: Any, sizes: dict[str, int]) -> None:
    """Whether the data has the sizes of the model, where it says which it has."""
    for name, expected in sizes.items():
        got = getattr(data, name, None)
        if got is not None and got != expected:
            raise ValueError(f"{name}: the model has {expected}, {type(data).__name__} has {got}")


def check_samples(data: Any, backbone: nn.Module, name: str, W: Tensor) -> None:
    """Whether a backbone of this name makes D features of a sample, for a head of weight W (C, D).

    Two black samples of the data, where it has any yet, are tried in evaluation mode.
    """
    splits = getattr(data, "splits", None)
    if not splits or isinstance(backbone, nn.Identity):
        return
    shape = splits["train"].x.shape[1:]
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        with torch.no_grad():
            features = backbone(W.new_zeros(2, *shape))
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if got != (2, W.shape[1]):
            raise ValueError(f"two of them give {got}, not (2, {W.shape[1]})")
    except Exception as error:  # of any kind, as a net of somebody's own may have any in it
        raise ValueError(
            f"backbone: expected samples that {name} takes, got some of shape {tuple(shape)}: "
            f"{error}"
        ) from error
    finally:
        for module, training in modes:  # of a part that its author has in evaluation mode too
            module.training = training


def check_checkpoint(
    checkpoint: dict[str, Any], expected: dict[str, Any], preprocessing: Preprocessing | None
) -> None:
    """Whether a checkpoint has these hyper-parameters, and the preprocessing of the data.

    What either side does not know is passed over.
    """
    saved = checkpoint["hyper_parameters"]
    for name, value in expected.items():
        if saved.get(name, value) != value:
            raise ValueError(
                f"{name}: the model for this data has {value}, the checkpoint {saved[name]}"
            )
    found = checkpoint.get("preprocessing")
    if found is None or preprocessing is None or same(found, preprocessing.state_dict()):
        return
    raise ValueError(
        "data: expected the preprocessing that the checkpoint was trained with, got "
        "another one: the training data or their settings have changed since"
    )


def calibration_in(checkpoint: dict[str, Any], wanted: bool) -> Calibration | None:
    """The calibration in a checkpoint, which has to have one if it is wanted."""
    found = checkpoint.get("calibration")
    if found is None and wanted:
        raise ValueError(
            "calibrated: expected a checkpoint with a calibration, got one without; the "
            "command calibrate puts one into it"
        )
    return None if found is None else Calibration.from_state_dict(found)


def state_in(checkpoint: dict[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """What a process put into a checkpoint, from which so many processes go on."""
    state = checkpoint.get("softmax_torch", {"format": None, "processes": []})
    if state["format"] != CHECKPOINT_FORMAT:
        raise ValueError(
            f"checkpoint: expected one of format {CHECKPOINT_FORMAT} to go on from, got "
            f"{state['format']}"
        )
    if len(state["processes"]) != world_size:
        raise ValueError(
            f"checkpoint: expected one of {world_size} processes, as there are now, got one of "
            f"{len(state['processes'])}"
        )
    found: dict[str, Any] = state["processes"][rank]
    return found
