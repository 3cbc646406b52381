"""Several processes do what one does: gradients, schedule, figures, and the end of a job."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from softmax_torch.data import DigitsDataModule
from softmax_torch.training import LitClassifier

ROOT = Path(__file__).parents[2]
FLAGS = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "3"]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


def command(*args: str, torchrun: bool = False) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [sys.executable, *(launcher if torchrun else []), str(ROOT / "train.py"), *args]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(folder: Path, *args: str, torchrun: bool = False) -> str:
    folder.mkdir()
    done = subprocess.run(
        command("fit", *FLAGS, *args, torchrun=torchrun),
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "runs" / "digits" / "version_0" / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def weights(folder: Path) -> torch.Tensor:
    path = folder / "runs" / "digits" / "version_0" / "last.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    return torch.cat([value.double().flatten() for value in state.values()])


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """Batches of 33 on 2 ranks, a class weight, a penalty, and a test set of 359 with metrics."""
    flags = ["--data.batch_size", "33", "--model.class_weight", "balanced"]
    kinds = {"f1": "MulticlassF1Score", "auroc": "MulticlassAUROC"}
    metrics = {
        name: {
            "class_path": f"torchmetrics.classification.{kind}",
            "init_args": {"num_classes": 10},
        }
        for name, kind in kinds.items()
    }
    flags += ["--model.metrics", json.dumps(metrics)]
    outputs = [run(tmp_path / "one", *flags), run(tmp_path / "two", *flags, *TWO)]
    outputs.append(run(tmp_path / "torchrun", *flags, torchrun=True))  # without TWO
    one = weights(tmp_path / "one")
    for name in ("two", "torchrun"):
        assert float((weights(tmp_path / name) - one).norm() / one.norm()) < 1e-6
        for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / name), strict=True):
            assert a.keys() == b.keys()
            for figure, value in a.items():
                exact = figure.endswith("accuracy") or figure in ("step", "epoch")
                assert b[figure] == (value if exact else pytest.approx(value, rel=1e-5)), figure
    assert {"val/f1", "val/auroc"} <= {name for row in rows(tmp_path / "two") for name in row}
    # the report is printed once, for a test alone too
    evaluated = [*TWO, "--ckpt_path", "runs/digits/version_0/best.ckpt"]
    done = subprocess.run(
        command("test", *evaluated),
        cwd=tmp_path / "one",
        capture_output=True,
        text=True,
        env=environment(),
    )
    outputs.append(done.stdout)
    assert [len(re.findall("^test ", output, re.MULTILINE)) for output in outputs] == [1] * 4


@pytest.mark.slow
def test_a_process_of_a_group_ends_before_python_shuts_down(tmp_path: Path) -> None:
    """A gloo thread may abort it there. Code after ``main`` runs only in a single process."""
    code = "import softmax_torch.cli as cli; cli.main(); print('shuts down')"
    (tmp_path / "go.py").write_text(code)
    flags = ["fit", *FLAGS, "--trainer.max_epochs", "1"]
    outputs = []
    for name, more in (("one", []), ("two", TWO)):
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [sys.executable, "../go.py", *flags, *more],
            cwd=tmp_path / name,
            capture_output=True,
            text=True,
            env=environment(),
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "best.ckpt" in done.stdout
        outputs.append(done.stdout)
    assert ["shuts down" in output for output in outputs] == [True, False]


@pytest.mark.slow
def test_a_net_is_evaluated_with_the_statistics_of_its_checkpoint(tmp_path: Path) -> None:
    """All processes evaluate BatchNorm with the statistics of the first."""
    net = ["--model", "softmax_torch.training.LitClassifier"]
    run(tmp_path / "two", *net, *TWO)
    found = [row["val/nll"] for row in rows(tmp_path / "two") if "val/nll" in row]
    last = tmp_path / "two" / "runs" / "digits" / "version_0" / "last.ckpt"
    lit = LitClassifier.load_from_checkpoint(last, weights_only=True).eval()
    data = DigitsDataModule()
    data.setup()
    x, y = data.splits["val"]
    with torch.no_grad():
        nll = torch.nn.functional.cross_entropy(lit.logits(x / 16), y)
    assert len(found) == 3
    assert found[-1] == pytest.approx(float(nll), rel=1e-5)


@contextmanager
def endless_job(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a run of two processes that has written a checkpoint and goes on."""
    flags = ["--trainer.max_epochs", "100000", "--trainer.enable_progress_bar", "false"]
    job = subprocess.Popen(
        command("fit", *FLAGS, *flags, *TWO),
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        last = folder / "runs" / "digits" / "version_0" / "last.ckpt"
        deadline = time.monotonic() + 120
        while not last.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert last.exists()
        yield job
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_job(victim: int, tmp_path: Path) -> None:
    with endless_job(tmp_path) as job:
        group = [job.pid, *children(job.pid)]
        assert len(group) == 2
        os.kill(group[victim], signal.SIGKILL)
        _, errors = job.communicate(timeout=60)
        assert job.returncode != 0, errors
        deadline = time.monotonic() + 30
        while any(alive(pid) for pid in group) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [pid for pid in group if alive(pid)]


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_with_a_checkpoint(tmp_path: Path) -> None:
    with endless_job(tmp_path) as job:
        os.kill(job.pid, signal.SIGTERM)
        _, errors = job.communicate(timeout=60)
        assert job.returncode == 143, errors
        assert errors.count("stopped by SIGTERM at step") == 1
        assert "train.py fit --resume runs/digits/version_0" in errors


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
