"""Each command opens the checkpoint it is given once."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softmax_torch import cli
from softmax_torch.report import page

opened: list[str] | None = None
"""The files that were opened while they are counted."""


def count(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and opened is not None and isinstance(args[0], str):
        opened.append(str(Path(args[0]).resolve()))


RUN, QUICK = "run", ["--trainer.max_epochs", "31"]
BEST, LAST = f"{RUN}/best.ckpt", f"{RUN}/last.ckpt"
COMMANDS = {
    "validate": (["validate", "--ckpt_path", BEST], BEST),
    "test": (["test", "--ckpt_path", BEST], BEST),
    "predict": (["predict", "--ckpt_path", BEST], BEST),
    "predict --input": (["predict", "--ckpt_path", BEST, "--input", "x.npy"], BEST),
    "predict RUN --input": (["predict", RUN, "--input", "x.npy"], BEST),
    "calibrate": (["calibrate", "--ckpt_path", BEST], BEST),
    "test --calibrated": (["test", "--ckpt_path", BEST, "--calibrated"], BEST),
    "report": (["report", RUN], BEST),
    "report --ckpt_path": (["report", RUN, "--ckpt_path", LAST], LAST),
    "export": (["export", "--ckpt_path", BEST, "--output", "x.safetensors"], BEST),
    "export --input": (
        ["export", "--ckpt_path", BEST, "--output", "x.pt2", "--input", "x.npy"],
        BEST,
    ),
    "fit --ckpt_path": (["fit", "--ckpt_path", LAST, "--runs", "new", *QUICK], LAST),
    "fit --resume": (["fit", "--resume", RUN, *QUICK], LAST),
}


@pytest.fixture(scope="module")
def counts(digits: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often each command opened its checkpoint."""
    global opened
    folder = tmp_path_factory.mktemp("once")
    shutil.copytree(digits[0].parent, folder / RUN)
    np.save(folder / "x.npy", np.zeros((5, 8, 8), np.uint8))
    sys.addaudithook(count)  # for the rest of this process: no hook is ever removed
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(page, "render", lambda figure, kind: b"<svg/>")  # to draw takes seconds
        for command, (args, checkpoint) in COMMANDS.items():
            opened = []
            cli.main(args)
            found[command] = opened.count(str(Path(checkpoint).resolve()))
    opened = None
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_opens_its_checkpoint_once(command: str, counts: dict[str, int]) -> None:
    assert counts[command] == 1
