"""Checks that model, data and checkpoint fit together: ValueError, with both sides, if not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softmax_torch.preprocessing import Preprocessing, from_state_dict, same
from softmax_torch.storage.checkpoints import CHECKPOINT_FORMAT
from softmax_torch.storage.finite_weights import check_finite

__all__ = [
    "check_backbone_input",
    "check_checkpoint",
    "check_pixels",
    "check_sizes",
    "check_weights",
    "process_state",
]


def check_sizes(data: Any, sizes: dict[str, int]) -> None:
    """Raise ValueError if the data has an attribute of one of these names with another value."""
    for name, expected in sizes.items():
        got = getattr(data, name, None)
        if got is not None and got != expected:
            raise ValueError(f"{name}: the model has {expected}, {type(data).__name__} has {got}")


def check_backbone_input(data: Any, backbone: nn.Module, name: str, W: Tensor) -> None:
    """Raise ValueError unless a backbone takes the samples of the data and returns D features.

    Two samples of zeros pass through the backbone in evaluation mode, if the data has been read.

    Args:
        data: the data module.
        backbone: the net before the head.
        name: name of the backbone for the message.
        W: weight (C, D) of the head.
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
    except Exception as error:  # users' nets raise errors of any type
        raise ValueError(
            f"backbone: expected samples that {name} takes, got some of shape {tuple(shape)}: "
            f"{error}"
        ) from error
    finally:
        # Module by module: the author of the net may keep a part in evaluation mode.
        for module, training in modes:
            module.training = training


def check_pixels(data: Any, backbone: nn.Module, name: str) -> None:
    """Raise ValueError if standardised images are given to a net that standardises them itself.

    Args:
        data: the data module.
        backbone: the net before the head.
        name: name of the backbone for the message.
    """
    if not getattr(backbone, "normalizes", False):
        return
    preprocessing = getattr(data, "preprocessing", None)
    if getattr(preprocessing, "standardization", None) is not None:
        raise ValueError(
            f"standardize: expected false for {name}, which standardises pixels in [0, 1] itself, "
            "got images that are standardised"
        )


def check_checkpoint(
    checkpoint: dict[str, Any], expected: dict[str, Any], preprocessing: Preprocessing | None
) -> None:
    """Raise ValueError unless a checkpoint has these hyper-parameters and this preprocessing.

    Hyper-parameters that the checkpoint lacks, and a preprocessing that either side lacks, are not
    compared.
    """
    stored = checkpoint["hyper_parameters"]
    for name, value in expected.items():
        if stored.get(name, value) != value:
            raise ValueError(
                f"{name}: the model for this data has {value}, the checkpoint {stored[name]}"
            )
    found = checkpoint.get("preprocessing")
    if found is None or preprocessing is None:
        return
    before, after = ("mean" in state for state in (found, preprocessing.state_dict()))
    if found["kind"] == "images" and before != after:
        raise ValueError(
            f"standardize: expected {str(before).lower()}, as in the training of the checkpoint, "
            f"got {str(after).lower()}"
        )
    now = preprocessing.state_dict()
    # An earlier version wrote fewer entries; no prediction depends on groups.
    compared = found.keys() - {"group_column"}
    if same(*({name: of[name] for name in compared if name in of} for of in (found, now))):
        return
    raise ValueError(
        "data: expected the preprocessing that the checkpoint was trained with, got another one: "
        f"the training data or their settings have changed: {change(found, preprocessing)}"
    )


def change(found: dict[str, Any], preprocessing: Preprocessing) -> str:
    """Return in words where a preprocessing differs from the state in a checkpoint."""
    now = preprocessing.state_dict()
    before = from_state_dict(found) if found["kind"] == now["kind"] else None
    if before is None:
        return f"from {found['kind']} to {now['kind']}"
    for name in ("class_names", "feature_names"):
        old, new = (list(getattr(p, name) or ()) for p in (before, preprocessing))
        if old != new:
            lost, come = ([x for x in a if x not in b] for a, b in ((old, new), (new, old)))
            kind = name.replace("_", " ")
            return f"{kind} {', '.join(come) or '(none)'} in place of {', '.join(lost) or '(none)'}"
    return ", ".join(
        " ".join([key, *changed_names(found.get(key), now.get(key))])
        for key in found | now
        if not same(found.get(key), now.get(key))
    )


def changed_names(before: Any, now: Any) -> list[str]:
    """Return the names of the entries that differ between two lists, such as columns."""
    if not isinstance(before, list) or not isinstance(now, list):
        return []
    pairs = zip(before, now, strict=False)
    return [b["name"] for a, b in pairs if not same(a, b) and isinstance(b, dict) and "name" in b]


def check_weights(state_dict: Mapping[str, Tensor], module: nn.Module, path: str | Path) -> None:
    """Raise ValueError unless tensors have the names and shapes of a module's, and are finite.

    Args:
        state_dict: tensors of a checkpoint by name.
        module: the module that they are for.
        path: the checkpoint, for the message.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    for name in [*expected, *got]:
        if expected.get(name) != got.get(name):
            raise ValueError(
                f"{path}: expected the weights of this model, with "
                f"{expected.get(name, 'no')} {name}, got a checkpoint with {got.get(name, 'none')}"
            )
    check_finite(state_dict, dict(module.named_parameters()), path)


def process_state(checkpoint: dict[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """Return the state of one process in a checkpoint.

    Args:
        checkpoint: content of the file.
        rank: index of the process, in [0, world_size).
        world_size: number of processes that resume the run.

    Raises:
        ValueError: the checkpoint has another format, or was written by another number of
            processes.
    """
    state = checkpoint.get("softmax_torch", {"format": None, "processes": []})
    if state["format"] != CHECKPOINT_FORMAT:
        raise ValueError(
            f"checkpoint: expected one of format {CHECKPOINT_FORMAT} to resume from, got "
            f"{state['format']}"
        )
    if len(state["processes"]) != world_size:
        raise ValueError(
            f"checkpoint: expected one of {world_size} processes, the present number, got one of "
            f"{len(state['processes'])}"
        )
    found: dict[str, Any] = state["processes"][rank]
    return found
