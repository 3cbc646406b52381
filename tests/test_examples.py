"""The examples run, and print the results that they promise."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from softmax_torch import lightning_compat

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(script: str, *args: str, ranks: int | None = None) -> str:
    """Run a script, under torchrun if ranks are given; return what it prints."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [sys.executable, *(torchrun if ranks else []), str(EXAMPLES / script), *args],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_every_example_has_a_test(script: str) -> None:
    assert f'"{script}"' in Path(__file__).read_text()


def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells run from top to bottom, and hold no output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((EXAMPLES / "softmax_regression.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 5
    names: dict[str, Any] = {}
    with lightning_compat.quiet():
        for cell in cells:
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    assert names["test"]["test/accuracy"] > 0.95
    assert len(names["axes"].flat) == 10
    assert 0 <= names["solution"].duality_gap < 1e-5
    names["plt"].close("all")


@pytest.mark.slow
def test_resnet_head() -> None:
    printed = run("resnet_head.py", "--steps", "10")
    first, last = (float(loss) for loss in re.findall(r"loss ([\d.]+)", printed))
    assert first > 2.2  # log 10 is 2.3
    assert last < first - 0.3
    assert re.search(r"^accuracy 0\.\d{3}$", printed, re.MULTILINE)


@pytest.mark.slow
def test_sharded_head(tmp_path: Path) -> None:
    """The loss falls on 2 processes, and further on one process that loads their checkpoint."""
    folder = str(tmp_path / "head")
    printed = [run("sharded_head.py", "--folder", folder, ranks=ranks) for ranks in (2, 1)]
    steps = [re.findall(r"step (\d+)  loss ([\d.]+)", text) for text in printed]
    # each step is printed once, whatever the number of processes, and numbers continue
    assert [int(step) for step, _ in steps[0] + steps[1]] == list(range(20))
    first, second = ([float(loss) for _, loss in part] for part in steps)
    assert first[0] > 9
    assert first[-1] < first[0] / 2
    assert second[0] < first[-1] * 1.1
    assert second[-1] < second[0]


@pytest.mark.slow
def test_linear_probe() -> None:
    """Cross-validation chooses the C with the least NLL."""
    printed = run("linear_probe.py")
    tried = re.findall(r"^C ([\d.]+) +nll ([\d.]+)", printed, re.MULTILINE)
    [(best, gap)] = re.findall(r"^best C ([\d.]+), relative duality gap (\S+)", printed, re.M)
    assert len(tried) == 5
    assert best == min(tried, key=lambda one: float(one[1]))[0]
    assert float(gap) <= 1e-6
    [accuracy] = re.findall(r"^test accuracy ([\d.]+)", printed, re.MULTILINE)
    assert float(accuracy) > 0.9
