"""Lines that the program prints, and the names it prints for paths, itself and its errors."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import textwrap
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CLASS_MEANS",
    "LABEL",
    "LINE",
    "NO_BREAK",
    "causes",
    "cell",
    "error_of_this_package",
    "for_line",
    "format_metrics",
    "format_seconds",
    "in_command",
    "is_unequal",
    "print_line",
    "print_metrics",
    "program_name",
    "short_path",
    "show_warning",
    "wrapped",
]

PACKAGE = Path(__file__).parents[1]

LABEL = 12
"""Columns of the label of a line."""

LINE = 80
"""Columns that a line takes at most, if it holds no path and no name of the user's."""

UNEQUAL = 1.5
"""Samples of the largest class divided by those of the smallest above which balanced accuracy is
printed. On digits (183 / 174 = 1.05) it differs from accuracy by 0.001."""

BALANCED, CLASS_MEANS = "balanced_accuracy", ("macro_f1", "weighted_f1", "macro_auc", "macro_ap")
"""Metrics that are printed where classes are unequal: the first beside the accuracy, the others in
a line of their own."""

COPIED = ("next", "use")
"""Labels of lines that are copied as a whole: a command, or code. They are not divided."""

NO_BREAK = "\xa0"
"""A space at which a line is not divided; it is printed as a plain one."""


def print_line(label: str, text: str, file: TextIO | None = None) -> None:
    """Print a labelled line, by default to the standard output.

    On a terminal that is narrower, it becomes several lines.
    """
    stream = sys.stdout if file is None else file
    columns = shutil.get_terminal_size().columns if stream.isatty() else None
    print(wrapped(label, text, None if label in COPIED else columns), file=stream)


def wrapped(label: str, text: str, columns: int | None) -> str:
    """Return a labelled line, divided into several that begin under its text.

    It is divided between words, but neither at ``NO_BREAK`` nor within short parentheses. A word
    that is longer than a line stays whole.

    Args:
        label: the label.
        text: what it labels.
        columns: largest length of a line; None for any.
    """
    line = f"{label:{LABEL}s}{text}"
    if columns is None or len(line) <= columns:
        return line.replace(NO_BREAK, " ")
    room = max(columns - LABEL, 1)

    def whole(found: re.Match[str]) -> str:
        return found[0].replace(" ", NO_BREAK) if len(found[0]) <= room else found[0]

    return textwrap.fill(
        re.sub(r"\([^()]*\)", whole, text),
        LABEL + room,
        initial_indent=f"{label:{LABEL}s}",
        subsequent_indent=" " * LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    ).replace(NO_BREAK, " ")


def print_metrics(rows: Sequence[tuple[str, Mapping[str, float]]]) -> None:
    """Print a line of metrics for each label, with the same metric in the same columns."""
    named = [(label, printed_names(metrics)) for label, metrics in rows]
    widths: dict[str, int] = {}
    for _, metrics in named:
        for name, value in metrics.items():
            widths[name] = max(widths.get(name, 0), len(f"{value:.4f}"))
    for label, metrics in named:
        cells = [
            cell(name, metrics[name], width)
            if name in metrics
            else " " * len(cell(name, 0.0, width))
            for name, width in widths.items()
        ]
        print_line(label, "  ".join(cells).rstrip())


def is_unequal(counts: Tensor) -> bool:
    """Return whether numbers of samples (C,) differ by a factor of more than ``UNEQUAL``."""
    return int(counts.max()) > UNEQUAL * int(counts.min())


def for_line(
    results: Mapping[str, float], unequal: bool, asked: Collection[str] = ()
) -> dict[str, float]:
    """Return the metrics that a line shows.

    Args:
        results: metrics such as "val/nll".
        unequal: whether classes are unequal, so that the balanced accuracy is shown.
        asked: metrics, without "val/", that the user asked for.
    """
    hidden = {*CLASS_MEANS, *(() if unequal else (BALANCED,))} - {*asked}
    return {name: x for name, x in results.items() if name.partition("/")[2] not in hidden}


def format_metrics(results: Mapping[str, float]) -> str:
    """Return metrics such as "val/nll" in the text of a line, without "val/"."""
    return "  ".join(cell(name, value) for name, value in printed_names(results).items())


def cell(name: str, value: float, width: int = 0) -> str:
    """Return a name and a number, at least so wide, between which a line is not divided."""
    return f"{name} {value:{width}.4f}".replace(" ", NO_BREAK)


def printed_names(results: Mapping[str, float]) -> dict[str, float]:
    """Return metrics such as "val/nll" under the names that a line has: "nll"."""
    named = {name.partition("/")[2]: value for name, value in results.items() if "/" in name}
    own = (BALANCED, *CLASS_MEANS)
    return {name.replace("_", " ") if name in own else name: x for name, x in named.items()}


def format_seconds(seconds: float) -> str:
    """Return a time such as "1.2 s", "12 min 5 s" or "3 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, more = divmod(minutes, 60)
    return f"{hours} h {more} min" if hours else f"{minutes} min {rest} s"


def short_path(path: str | Path) -> str:
    """Return a path, relative to the current folder if it lies inside."""
    path, here = Path(path).absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def in_command(path: str | Path) -> str:
    """Return a path as it is typed in a command: short, and quoted if it has a space."""
    return shlex.quote(short_path(path))


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning: one of this package as a labelled line, others with their place.

    It has the arguments of ``warnings.showwarning``, which it replaces in the program.
    """
    stream = sys.stderr if file is None else file
    if category.__module__.startswith("softmax_torch.") or Path(filename).is_relative_to(PACKAGE):
        print_line("warning", str(message), stream)
    else:
        stream.write(warnings.formatwarning(message, category, filename, lineno, line))


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
    for cause in causes(error):
        frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
        if frames and str(frames[-1].f_globals.get("__name__", "")).startswith("softmax_torch."):
            return cause
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, each once.

    An error that is raised again while one that it caused is handled makes them a circle.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
