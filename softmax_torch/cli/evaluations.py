"""What ``test`` shows beside accuracy, NLL and ECE, and the table of all figures that it writes.

Where classes are unequal, a second line has the figures that are means over the classes. Where the
data name groups, a line has the largest gap in accuracy between two of them. With --output, a file
has every figure of the set, its classes and its groups (see ``report.evaluation``).
"""

from __future__ import annotations

from pathlib import Path

from softmax_torch.cli.console import CLASS_MEANS, format_metrics, print_line, short_path
from softmax_torch.cli.requests import Request
from softmax_torch.cli.table_files import new_table_file, write_table
from softmax_torch.report.evaluation import Evaluation
from softmax_torch.report.group_metrics import FEW, GroupMetrics
from softmax_torch.report.run_results import EvaluatedSet, Groups

__all__ = ["new_figure_file", "print_evaluation"]


def new_figure_file(request: Request) -> Path | None:
    """Return the file for the figures that the arguments name; None without one.

    Raises:
        ValueError: no format has this suffix.
        FileExistsError, FileNotFoundError: the file exists, or its folder does not.
    """
    if request.arguments.output is None:
        return None
    return new_table_file(request.arguments.output)


def print_evaluation(
    of: EvaluatedSet,
    class_names: tuple[str, ...],
    groups: Groups | None,
    unequal: bool,
    output: Path | None,
) -> None:
    """Print the lines below the figures of a set, and write the table of all of them.

    Args:
        of: the set, on a CPU.
        class_names: C names.
        groups: the groups of its samples; None without groups.
        unequal: whether its classes are unequal.
        output: the new file; None to write none.
    """
    evaluation = Evaluation(of, class_names, groups)
    if unequal:
        means = evaluation.class_means
        print_line("", format_metrics({f"test/{name}": means[name].value for name in CLASS_MEANS}))
    if evaluation.groups is not None:
        print_line("groups", gap_text(evaluation.groups))
    if output is not None:
        write(evaluation, output)


def gap_text(groups: GroupMetrics) -> str:
    """Return the largest gap in accuracy between two groups, with its interval."""
    gap = groups.gaps.get("accuracy")
    head = f"{len(groups.groups)} of {groups.column}: "
    if gap is None:
        return f"{head}fewer than two have {FEW} samples, no gap is given"
    value, low, high = gap.difference.rounded(4)
    return (
        f"{head}largest gap in accuracy {value:.4f} ({low:.4f} to {high:.4f}), "
        f"{gap.high} above {gap.low}"
    )


def write(evaluation: Evaluation, path: Path) -> None:
    """Write the table of all figures, and print the path."""
    columns = evaluation.columns()
    write_table(columns, path)
    print_line("figures", f"{short_path(path)} ({len(columns['figure'])} rows)")
