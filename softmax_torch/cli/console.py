"""Lines that the program prints, and the names it prints for paths, itself and its errors."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

__all__ = ["error_of_this_package", "format_metrics", "print_line", "program_name", "short_path"]


def print_line(label: str, text: str) -> None:
    """Print a labelled line."""
    print(f"{label:12s}{text}")


def format_metrics(results: Mapping[str, float]) -> str:
    """Return metrics such as "val/nll" in a line, without "val/"."""
    named = {name.partition("/")[2]: value for name, value in results.items() if "/" in name}
    return "  ".join(f"{name} {value:.4f}" for name, value in named.items())


def short_path(path: str | Path) -> str:
    """Return a path, relative to the current folder if it lies inside."""
    path, here = Path(path).absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def program_name() -> str:
    """Return the command that started this program, as the user would type it."""
    path = Path(sys.argv[0])
    name = path.name
    if name == "__main__.py" and path.parent.name == "softmax_torch":
        return "python -m softmax_torch"
    return f"python {name}" if name.endswith(".py") and name != "__main__.py" else "softmax-torch"


def error_of_this_package(error: BaseException | None) -> BaseException | None:
    """Return the error that this package raised, ``error`` or one of its causes, or None.

    Its message is written for the user, who needs no traceback.
    """
    while error is not None:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).startswith("softmax_torch."):
            return error
        error = error.__cause__ or error.__context__
    return None
