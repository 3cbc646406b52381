"""What the phases of ``gpu_check.py`` share: where figures go, and sizes for the interpreter."""

from __future__ import annotations

import json
from pathlib import Path

from operator_gpu import INTERPRET

ROOT = Path(__file__).parents[1]
file: Path | None = None
"""File that figures are appended to, a line of JSON each; set by the program."""


def figure(name: str, value: object, goal: str = "", reached: bool | None = None) -> None:
    """Print a figure, and append it to the file."""
    if INTERPRET and reached is False and "against float64" not in goal:
        reached = None  # times mean nothing
    print(f"   {name}: {value}  {goal} {'' if reached is None else reached}", flush=True)
    assert file is not None, "the program sets it"
    with file.open("a") as out:
        line = {"name": name, "value": value, "goal": goal, "reached": reached}
        out.write(json.dumps(line) + "\n")


def tiny(size: int, small: int) -> int:
    """Return the size, or the small one in the interpreter."""
    return small if INTERPRET else size
