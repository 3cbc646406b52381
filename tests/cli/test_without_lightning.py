"""Help, refusals, predict --input and export --input do not import Lightning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from program import answers

PROGRAM = """
import json, sys
from softmax_torch import cli

results = []
for args in json.loads(sys.argv[1]):
    status = 0
    try:
        cli.main(args)
    except (SystemExit, Exception) as error:
        status = f"{type(error).__name__} {error}"
    results.append([status, sorted({"lightning", "torchmetrics"} & sys.modules.keys())])
print(json.dumps(results))
"""

CASES: dict[str, tuple[list[str], str | int]] = {
    "help": (["--help"], 0),
    "help of a command": (["predict", "--help"], 0),
    "help of fit": (["fit", "--help"], 0),
    "help with settings": (["fit", "--config", "table", "--help"], 0),
    "info": (["info"], 0),
    "no command": ([], "SystemExit 2"),
    "unknown command": (["train"], "SystemExit 2"),
    "fit, unknown flag": (["fit", "--nonsense", "3"], "SystemExit 2"),
    "report, unknown flag": (["report", "run", "--nonsense"], "SystemExit 2"),
    "predict, unknown flag": (["predict", "--nonsense"], "SystemExit 2"),
    "export, unknown flag": (["export", "--nonsense"], "SystemExit 2"),
    "wrong type": (["predict", "--top_k", "many"], "SystemExit 2"),
    "wrong choice": (["calibrate", "--method", "magic"], "SystemExit 2"),
    "missing YAML": (["fit", "--config", "none.yaml"], "SystemExit 2"),
    "broken YAML": (["fit", "--config", "broken.yaml"], "SystemExit 2"),
    "unknown setting": (["fit", "--config", "unknown.yaml"], "SystemExit 2"),
    "unknown flag of a class": (["fit", "--data.tarjet", "x"], "SystemExit 2"),
    "unknown setting of the trainer": (["fit", "--trainer.max_epoch", "3"], "SystemExit 2"),
    "unknown setting of an optimizer": (["fit", "--model.optimizer.lrr", "3"], "SystemExit 2"),
    "unknown class": (["fit", "--data", "TabelDataModule"], "SystemExit 2"),
    "no checkpoint": (["test"], "ValueError test: expected a run"),
    "missing checkpoint": (["test", "--ckpt_path", "none.ckpt"], "FileNotFoundError none.ckpt: "),
    "damaged checkpoint": (["validate", "--ckpt_path", "text.ckpt"], "ValueError text.ckpt: "),
    "checkpoint alone": (["test", "--ckpt_path", "alone.ckpt"], "FileNotFoundError alone.ckpt: "),
    "no run": (["report"], "ValueError report: expected a run"),
    "missing run": (["report", "none"], "FileNotFoundError none: "),
    "nothing to resume": (["fit", "--resume"], "FileNotFoundError --resume: "),
    "resume, missing run": (["fit", "--resume", "none"], "FileNotFoundError none: "),
    "unusable output": (
        ["predict", "--ckpt_path", "CHECKPOINT", "--output", "x.xlsx"],
        "ValueError output: ",
    ),
    "predict --input": (["predict", "--ckpt_path", "CHECKPOINT", "--input", "x.npy"], 0),
    "predict RUN --input": (["predict", "RUN", "--input", "x.npy"], 0),
    "export RUN": (["export", "RUN", "--input", "x.npy", "--output", "y.safetensors"], 0),
    "export": (
        ["export", "--ckpt_path", "CHECKPOINT", "--input", "x.npy", "--output", "x.safetensors"],
        0,
    ),
}


@pytest.fixture(scope="module")
def results(
    digits: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Any]]:
    """The status of each case, and what was imported by then, in one process for all of them."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "broken.yaml").write_text("name: [")
    (folder / "unknown.yaml").write_text("nonsense: 3")
    (folder / "text.ckpt").write_text("not a checkpoint")
    torch.save({"state_dict": {}, "hyper_parameters": {}}, folder / "alone.ckpt")
    np.save(folder / "x.npy", np.zeros((5, 8, 8), np.uint8))
    names = {"CHECKPOINT": str(digits[0]), "RUN": str(digits[0].parent)}
    given = [[names.get(arg, arg) for arg in args] for args, _ in CASES.values()]
    return dict(zip(CASES, answers(PROGRAM, given, folder), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_lightning_is_not_imported(case: str, results: dict[str, list[Any]]) -> None:
    status, imported = results[case]
    expected = CASES[case][1]
    assert status == expected if expected == 0 else str(status).startswith(str(expected))
    assert imported == []
