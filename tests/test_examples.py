"""The examples run as they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def torchrun(ranks: int, script: str, *args: str) -> str:
    """What a script prints that is run on so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "examples" / script), *args],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sharded_head(tmp_path: Path) -> None:
    """The loss falls on 2 processes, and goes on falling on one, from their checkpoint."""
    printed = [torchrun(n, "sharded_head.py", "--folder", str(tmp_path / "head")) for n in (2, 1)]
    steps = [re.findall(r"step (\d+)  loss ([\d.]+)", text) for text in printed]
    # printed once, whatever the number of processes, and counted on
    assert [int(step) for step, _ in steps[0] + steps[1]] == list(range(20))
    first, second = ([float(loss) for _, loss in part] for part in steps)
    assert first[0] > 9
    assert first[-1] < first[0] / 2
    assert second[0] < first[-1] * 1.1
    assert second[-1] < second[0]
