"""Run the program as a user does, and read its output and its metrics."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHORT = ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"]


def train(*args: str, folder: Path, before: str = "") -> tuple[str, dict[str, str]]:
    """Return a program that runs train.py from a folder, as a user does, and its environment.

    Args:
        before: what the program does first.
    """
    program = f"""
import os, runpy, sys

os.chdir({str(folder)!r})
sys.argv = {[str(ROOT / "train.py"), *args]!r}
{before}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    return program, {"COLUMNS": "100"}


def answers(program: str, given: list[Any], folder: Path) -> list[Any]:
    """Run a Python program in a process of its own; return the JSON that it prints last.

    Args:
        program: its source. It finds ``given`` as JSON in its first argument, and prints a list.
    """
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(given)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def figures(text: str, label: str) -> str:
    """Return the printed line that starts with a label."""
    [line] = [line for line in text.splitlines() if line.startswith(f"{label}  ")]
    return line


def metrics(here: Path, version: int = 0) -> list[str]:
    path = here / "runs" / "digits" / f"version_{version}" / "metrics.csv"
    return path.read_text().splitlines()
