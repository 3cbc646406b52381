"""Find the run that a path stands for, and the checkpoint that is the result of a run.

    runs/digits/version_0             a run
    runs/digits                       its newest run
    runs/digits/version_0/best.ckpt   a checkpoint

The result of a run is the checkpoint that ``fit`` evaluates and prints at its end: last.ckpt where
a solver ended at one optimum, otherwise best.ckpt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softmax_torch.storage.checkpoints import stored_hyper_parameters
from softmax_torch.storage.exported_weights import holds_exported_weights
from softmax_torch.storage.run_directories import CONFIG_FILE, latest_run

__all__ = ["checkpoint_of", "ends_at_optimum", "run_of", "shortest_name"]

BEST, LAST = "best.ckpt", "last.ckpt"


def run_of(path: Path) -> Path:
    """Return a run directory: ``path`` itself, or the newest run of the name ``path``.

    Raises:
        FileNotFoundError: ``path`` is neither.
    """
    if any((path / name).is_file() for name in (CONFIG_FILE, BEST, LAST)):
        return path
    try:
        return latest_run(path.parent, path.name)
    except FileNotFoundError:
        found = "another folder" if path.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"{path}: expected the directory of a run, with {CONFIG_FILE} in it, got {found}"
        ) from None


def checkpoint_of(path: Path) -> Path:
    """Return a checkpoint: ``path`` itself, or the result of the run that the folder stands for.

    A folder of exported weights is returned as it is, too.

    Raises:
        FileNotFoundError: the folder does not exist, is no run, or is a run without a checkpoint.
    """
    if not path.suffix and not path.exists():
        raise FileNotFoundError(f"{path}: expected a run or a checkpoint, got no such file")
    if not path.is_dir() or holds_exported_weights(path):
        return path
    run = run_of(path)
    names = [name for name in (LAST, BEST) if (run / name).is_file()]
    if not names:
        raise FileNotFoundError(
            f"{run}: expected a run with {BEST} or {LAST}, got one without a checkpoint"
        )
    # The name is decided by the file that can be read. Its user then checks the digest.
    settings = next(filter(None, (stored_hyper_parameters(run / name) for name in names)), {})
    return run / (names[0] if ends_at_optimum(settings) else names[-1])


def shortest_name(checkpoint: Path) -> Path:
    """Return the shortest path that stands for a checkpoint: its folder, or itself."""
    try:
        return checkpoint.parent if checkpoint_of(checkpoint.parent) == checkpoint else checkpoint
    except FileNotFoundError:
        return checkpoint


def ends_at_optimum(hyper_parameters: Mapping[str, Any]) -> bool:
    """Return whether a model is trained by a solver, and to a single value of C."""
    return hyper_parameters.get("solver") is not None and not isinstance(
        hyper_parameters.get("C"), list
    )
