"""Lightning's checkpoint plugin: writes atomically, and reads a file once for several uses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer

from softmax_torch.storage.checkpoints import check_digest, read_checkpoint, write_checkpoint

__all__ = ["AtomicCheckpointIO", "atomic_checkpoint_io", "verify_checkpoints"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Local checkpoints as ``softmax_torch.storage`` writes and reads them.

    ``remember`` and ``read`` keep the content of a file. Lightning then gets a copy of it, and the
    file is not opened again. Checkpoints elsewhere ("s3://...") are left to Lightning.
    """

    def __init__(self) -> None:
        super().__init__()
        self._key: object = None
        self._content: dict[str, Any] = {}

    def remember(self, path: str | Path, content: dict[str, Any]) -> None:
        """Keep the content of a checkpoint, until one is written or the file changes."""
        self._key, self._content = _file_state(path), content

    def forget(self) -> None:
        """Drop the content that is kept."""
        self._key, self._content = None, {}

    def read(self, path: str | Path) -> dict[str, Any]:
        """Return the content of a checkpoint and keep it; see ``read_checkpoint`` for errors."""
        if self._key is None or self._key != _file_state(path):
            self.remember(path, read_checkpoint(Path(path)))
        return self._content

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint atomically.

        Raises:
            OSError: the file could not be written; an existing file is unchanged.
        """
        self.forget()
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)  # as Lightning's plugin does
            write_checkpoint(Path(path), checkpoint)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Return the content of a checkpoint, never running code from it.

        Raises:
            ValueError: the content does not match its digest.
        """
        if self._key is not None and self._key == _file_state(path):
            content: dict[str, Any] = _copied(self._content)
            return content
        if Path(path).is_file():
            check_digest(Path(path))
        return super().load_checkpoint(path, map_location, weights_only=True)


def atomic_checkpoint_io(trainer: Trainer) -> AtomicCheckpointIO:
    """Return the trainer's ``AtomicCheckpointIO``, which replaces Lightning's own.

    Raises:
        ValueError: the trainer was given another plugin.
    """
    found = trainer.strategy.checkpoint_io
    if type(found) not in (TorchCheckpointIO, AtomicCheckpointIO):
        raise ValueError(
            "trainer.plugins: expected no CheckpointIO, as a run writes its checkpoints "
            f"atomically, got {type(found).__name__}"
        )
    if not isinstance(found, AtomicCheckpointIO):
        trainer.strategy.checkpoint_io = found = AtomicCheckpointIO()
    return found


def verify_checkpoints(trainer: Trainer) -> None:
    """Let a trainer check the digests of checkpoints, unless it was given a plugin that reads."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        atomic_checkpoint_io(trainer)


def _file_state(path: str | Path) -> object:
    """Return a value that changes with the file and its content; None where there is no file."""
    path = Path(path).resolve()
    try:
        status = path.stat()
    except OSError:
        return None
    return path, status.st_ino, status.st_size, status.st_mtime_ns


def _copied(value: Any) -> Any:
    """Return a copy of nested dicts and lists, since hooks edit them. Tensors are shared."""
    if isinstance(value, dict):
        new = copy.copy(value)  # keeps attributes of a state_dict
        new.update((name, _copied(entry)) for name, entry in value.items())
        return new
    return [_copied(entry) for entry in value] if isinstance(value, list) else value
