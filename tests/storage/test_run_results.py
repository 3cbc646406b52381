"""A path stands for a run or a checkpoint; a run stands for the checkpoint that fit evaluated."""

from pathlib import Path
from typing import Any

import pytest

from softmax_torch.storage.checkpoints import write_checkpoint
from softmax_torch.storage.run_results import checkpoint_of, run_of, shortest_name

DESCENT: dict[str, Any] = {"solver": None, "C": 1.0}
SOLVER: dict[str, Any] = {"solver": "newton", "C": 1.0}
PATH: dict[str, Any] = {"solver": "auto", "C": [1.0, 2.0]}


def write_run(folder: Path, hyper_parameters: dict[str, Any], *names: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    for name in names:
        content = {"state_dict": {}, "hyper_parameters": hyper_parameters}
        write_checkpoint(folder / f"{name}.ckpt", content)
    return folder


@pytest.mark.parametrize(
    ("hyper_parameters", "names", "expected"),
    [
        (DESCENT, ("best", "last"), "best"),
        (DESCENT, ("last",), "last"),  # of a run without validation
        (SOLVER, ("best", "last"), "last"),
        (PATH, ("best", "last"), "best"),
        ({}, ("best", "last"), "best"),
    ],
)
def test_the_result_of_a_run(
    hyper_parameters: dict[str, Any], names: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "digits" / "version_0", hyper_parameters, *names)
    result = run / f"{expected}.ckpt"
    assert [checkpoint_of(path) for path in (run, run.parent, result)] == [result] * 3
    for name in names:
        path = run / f"{name}.ckpt"
        assert shortest_name(path) == (run if name == expected else path)


def test_a_damaged_last_checkpoint_of_a_solver_is_still_its_result(tmp_path: Path) -> None:
    """Its user refuses it, and does not get an earlier iterate without a word."""
    run = write_run(tmp_path / "run", SOLVER, "best", "last")
    (run / "last.ckpt").write_bytes(b"damaged")
    assert checkpoint_of(run) == run / "last.ckpt"


def test_a_name_stands_for_its_newest_run(tmp_path: Path) -> None:
    for number in (2, 10, 9):
        write_run(tmp_path / "digits" / f"version_{number}", DESCENT, "best")
    assert run_of(tmp_path / "digits") == tmp_path / "digits" / "version_10"
    write_run(tmp_path / "digits" / "version_11", DESCENT)
    with pytest.raises(FileNotFoundError, match=r"version_11: expected a run with best\.ckpt"):
        checkpoint_of(tmp_path / "digits")


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.yaml in it, got another folder"):
        checkpoint_of(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.yaml in it, got no such folder"):
        run_of(tmp_path / "no")
    with pytest.raises(FileNotFoundError, match=r"expected a run or a checkpoint, got no such"):
        checkpoint_of(tmp_path / "no")
    write_checkpoint(tmp_path / "alone.ckpt", {"state_dict": {}, "hyper_parameters": {}})
    assert shortest_name(tmp_path / "alone.ckpt") == tmp_path / "alone.ckpt"


def test_exported_weights_are_no_run(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).touch()
    assert checkpoint_of(tmp_path) == tmp_path
