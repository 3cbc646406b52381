"""Each command opens the checkpoint it is given once."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from program import answers

PROGRAM = """
import json, os, sys
from softmax_torch import cli

opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(args[:2]))
counts = []
for args, checkpoint in json.loads(sys.argv[1]):
    opened.clear()
    cli.main(args)
    paths = [os.path.abspath(path) for path, mode in opened if isinstance(path, str)]
    counts.append(paths.count(os.path.abspath(checkpoint)))
print(json.dumps(counts))
"""

RUN, QUICK = "run", ["--trainer.max_epochs", "31"]
BEST, LAST = f"{RUN}/best.ckpt", f"{RUN}/last.ckpt"
COMMANDS = {
    "validate": (["validate", "--ckpt_path", BEST], BEST),
    "test": (["test", "--ckpt_path", BEST], BEST),
    "predict": (["predict", "--ckpt_path", BEST], BEST),
    "predict --input": (["predict", "--ckpt_path", BEST, "--input", "x.npy"], BEST),
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
    """How often each command opened its checkpoint, all in one process."""
    folder = tmp_path_factory.mktemp("once")
    shutil.copytree(digits[0].parent, folder / RUN)
    np.save(folder / "x.npy", np.zeros((5, 8, 8), np.uint8))
    return dict(zip(COMMANDS, answers(PROGRAM, [*COMMANDS.values()], folder), strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_opens_its_checkpoint_once(command: str, counts: dict[str, int]) -> None:
    assert counts[command] == 1
