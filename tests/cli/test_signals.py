"""A signal ends the program at any time with one line and the status of a shell."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from program import ROOT
from support import Finished

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
@pytest.mark.parametrize(
    "program", [[str(ROOT / "train.py")], ["-c", "from softmax_torch.cli import main; main()"]]
)
def test_while_torch_is_imported(
    program: list[str], signum: signal.Signals, code: int, tmp_path: Path
) -> None:
    """The first of the packages whose import takes seconds."""
    (tmp_path / "torch.py").write_text(f"import os; os.kill(os.getpid(), {int(signum)})")
    done = subprocess.run(
        [sys.executable, *program, "fit"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stderr) == (code, f"stopped by {signum.name}\n")
    assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), SIGNALS)
def test_after_the_last_step(
    signum: signal.Signals, code: int, signalled: tuple[Path, dict[str, Finished]]
) -> None:
    """The run is finished, with its checkpoints."""
    done = signalled[1][f"after {signum.name}"]
    assert (done.code, done.stderr) == (code, f"stopped by {signum.name}\n")
    run = signalled[0] / f"after-{signum.name}" / "runs" / "digits" / "version_0"
    assert (run / "best.ckpt").exists()
