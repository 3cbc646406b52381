"""Checkpoints: written atomically, verified by their digest, read without running code."""

import resource
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from support import in_processes

from softmax_torch.storage import atomic_files, checkpoints
from softmax_torch.storage.checkpoints import newest_checkpoint, read_checkpoint, write_checkpoint
from softmax_torch.training.checkpoint_io import AtomicCheckpointIO


def content(step: int = 3) -> dict[str, Any]:
    weights = {"weight": torch.arange(1000.0) + step}
    return {"state_dict": weights, "hyper_parameters": {}, "global_step": step}


def write(path: Path, step: int = 3) -> Path:
    write_checkpoint(path, content(step))
    return path


def newest(folder: Path) -> tuple[tuple[Path, int] | None, list[str]]:
    """The path and step of the newest checkpoint, and what was skipped."""
    found, skipped = newest_checkpoint(folder)
    if found is None:
        return None, skipped
    assert torch.equal(
        found.content["state_dict"]["weight"], content(found.step)["state_dict"]["weight"]
    )
    return (found.path, found.step), skipped


def verified(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return checkpoints._verify(file)


def test_torch_reads_a_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    for read in (
        torch.load(path, weights_only=True),
        torch.load(path, weights_only=True, mmap=True),
        read_checkpoint(path),
        AtomicCheckpointIO().load_checkpoint(path),
    ):
        assert torch.equal(read["state_dict"]["weight"], content()["state_dict"]["weight"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"softmax_torch 1 step=3 sha256=")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_the_newest_has_the_most_steps_and_last_wins_a_tie(tmp_path: Path) -> None:
    for name, step in (("last", 30), ("best", 30), ("previous", 20), ("a", 4)):
        write(tmp_path / f"{name}.ckpt", step)
    assert newest(tmp_path) == ((tmp_path / "last.ckpt", 30), [])
    write(tmp_path / "next.ckpt", 31)
    assert newest(tmp_path)[0] == (tmp_path / "next.ckpt", 31)
    assert newest(tmp_path / "nowhere") == (None, [])


def test_any_changed_byte_is_found(tmp_path: Path) -> None:
    write(tmp_path / "previous.ckpt", 2)
    last = write(tmp_path / "last.ckpt", 3)
    good = last.read_bytes()
    places = [*range(0, len(good), len(good) // 60), *range(len(good) - 110, len(good))]
    for place in places:
        last.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        found, skipped = newest(tmp_path)
        assert found == (tmp_path / "previous.ckpt", 2), place
        assert len(skipped) == 1
        assert str(last) in skipped[0]


@pytest.mark.parametrize("read", [read_checkpoint, AtomicCheckpointIO().load_checkpoint])
def test_a_changed_number_is_never_read(read: Any, tmp_path: Path) -> None:
    """torch.load would return it."""
    path = write(tmp_path / "a.ckpt")
    good = path.read_bytes()
    stored = (content()["state_dict"]["weight"]).numpy().tobytes()
    at = good.index(stored)
    for place in (at, at + 1234, at + len(stored) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        torch.load(path, weights_only=True)
        with pytest.raises(ValueError, match=r"a\.ckpt: .* does not match its digest"):
            read(path)
    torch.save(content(), path)  # another program's, without a digest
    assert torch.equal(read(path)["state_dict"]["weight"], content()["state_dict"]["weight"])


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_torn_file_is_skipped(keep: float, tmp_path: Path) -> None:
    write(tmp_path / "previous.ckpt", 2)
    last = write(tmp_path / "last.ckpt", 3)
    good = last.read_bytes()
    last.write_bytes(good[: int(len(good) * keep) if 0 < keep < 1 else int(keep)])
    found, [message] = newest(tmp_path)
    assert found == (tmp_path / "previous.ckpt", 2)
    assert "last.ckpt: skipped: cut off, or no checkpoint" in message


def test_a_file_of_another_program_is_skipped(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    found, [message] = newest(tmp_path)
    assert found is None
    assert "no checkpoint of a run of this program" in message


def write_to_a_full_disk(rank: int, path: Path) -> None:
    """Fail to write a checkpoint: a limit on the size of files stands in for a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    big = {"state_dict": {"weight": torch.zeros(10000)}, "hyper_parameters": {}}
    with pytest.raises(OSError, match="could not be written") as raised:
        write_checkpoint(path, big)
    assert f"{path} could not be written" in str(raised.value)
    assert "an existing file is unchanged" in str(raised.value)


@pytest.mark.slow
def test_a_full_disk_leaves_the_existing_file(tmp_path: Path) -> None:
    """In another process, which keeps its limit."""
    path = write(tmp_path / "last.ckpt", 3)
    good = path.read_bytes()
    in_processes(write_to_a_full_disk, 1, path)
    assert path.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_reader_never_sees_a_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the rename the new file is whole and synchronized, and the old one still there."""
    path = write(tmp_path / "last.ckpt", 3)
    synced: list[int] = []
    seen: list[tuple[Any, ...]] = []
    real_sync, real_replace = atomic_files.os.fsync, Path.replace

    def replace(self: Path, target: Path) -> Path:
        seen.append((len(synced), not checkpoints.is_damaged(self), verified(target)[0]))
        return real_replace(self, target)

    monkeypatch.setattr(atomic_files.os, "fsync", lambda d: (synced.append(d), real_sync(d))[1])
    monkeypatch.setattr(Path, "replace", replace)
    write(path, 4)
    assert seen == [(1, True, 3)]
    assert len(synced) == 2  # the file, and after the renaming the folder
    assert verified(path) == (4, "")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Mischief:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Mischief()}, tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match="eights"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "bad.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()
