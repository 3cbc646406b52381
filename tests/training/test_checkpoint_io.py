"""The checkpoint plugin: a content that was read is handed to Lightning, and never a stale one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from softmax_torch.storage.checkpoints import write_checkpoint
from softmax_torch.training import checkpoint_io
from softmax_torch.training.checkpoint_io import AtomicCheckpointIO, atomic_checkpoint_io


def content(value: float = 1.0) -> dict[str, Any]:
    weights = {"weight": torch.full((3,), value)}
    return {"state_dict": weights, "hyper_parameters": {}, "loops": [{"step": 1}]}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "a.ckpt", content())
    return tmp_path / "a.ckpt"


def test_a_file_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = AtomicCheckpointIO()
    first = plugin.read(path)
    monkeypatch.setattr(checkpoint_io, "read_checkpoint", None)
    monkeypatch.setattr(torch, "load", None)
    assert plugin.read(path) is first
    for name in (path, str(path), "a.ckpt"):
        assert torch.equal(plugin.load_checkpoint(name)["state_dict"]["weight"], torch.ones(3))


def test_hooks_that_edit_what_they_get_leave_the_content_alone(path: Path) -> None:
    plugin = AtomicCheckpointIO()
    kept = plugin.read(path)
    got = plugin.load_checkpoint(path)
    got["loops"][0]["step"] = 7
    got["state_dict"].clear()
    assert kept["loops"] == [{"step": 1}]
    assert list(kept["state_dict"]) == ["weight"]


@pytest.mark.parametrize("by", ["the plugin", "another process"])
def test_a_file_that_was_rewritten_is_read_again(by: str, path: Path) -> None:
    plugin = AtomicCheckpointIO()
    plugin.read(path)
    if by == "the plugin":
        plugin.save_checkpoint(content(2.0), path)
    else:
        write_checkpoint(path, content(2.0))
    for found in (plugin.load_checkpoint(path), plugin.read(path)):
        assert torch.equal(found["state_dict"]["weight"], torch.full((3,), 2.0))


def test_a_trainer_keeps_its_plugin(path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    plugin = atomic_checkpoint_io(trainer)
    assert trainer.strategy.checkpoint_io is plugin
    assert atomic_checkpoint_io(trainer) is plugin
