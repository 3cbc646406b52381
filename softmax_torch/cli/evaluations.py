"""What ``test`` shows beside accuracy, NLL and ECE, and the table of all figures that it writes.

Where classes are unequal, a second line has the figures that are means over the classes. Where the
data name groups, a line has the largest gap in accuracy between two of them. With --output, a file
has every figure of the set, its classes and its groups (see ``report.evaluation``).
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from softmax_torch import metrics
from softmax_torch.cli.console import CLASS_MEANS, format_metrics, print_line, short_path
from softmax_torch.cli.predictions import WRITERS
from softmax_torch.cli.requests import Request
from softmax_torch.ranking_metrics import rank
from softmax_torch.report.evaluation import Evaluation, evaluate
from softmax_torch.report.group_metrics import FEW, GroupMetrics, by_group
from softmax_torch.report.run_results import EvaluatedSet, Groups
from softmax_torch.storage.atomic_files import PARTIAL_SUFFIX, name_in_errors
from softmax_torch.storage.new_names import check_new_name

__all__ = ["new_figure_file", "print_evaluation"]


def new_figure_file(request: Request) -> Path | None:
    """Return the file for the figures that the arguments name; None without one.

    Raises:
        ValueError: no format has this suffix.
        FileExistsError, FileNotFoundError: the file exists, or its folder does not.
    """
    if request.arguments.output is None:
        return None
    path = Path(request.arguments.output)
    if path.suffix not in WRITERS:
        raise ValueError(
            f"output: expected a name that ends in {', '.join(WRITERS)}, got {path.name}"
        )
    check_new_name(path)
    return path


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
    if unequal:
        print_line("", format_metrics({f"test/{name}": x for name, x in class_means(*of).items()}))
    if groups is not None:
        print_line("groups", gap_text(by_group(of, groups.of_samples, groups.column, class_names)))
    if output is not None:
        write(evaluate(of, class_names, groups), output)


def class_means(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Return the figures that are means over the classes, by name."""
    counts, ranking = metrics.class_counts(logits.argmax(1), y, logits.shape[1]), rank(logits, y)
    f1 = metrics.f1(counts)
    means = (
        metrics.macro(f1),
        metrics.weighted(f1, counts[1]),
        ranking.macro_auc,
        ranking.macro_ap,
    )
    return dict(zip(CLASS_MEANS, means, strict=True))


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
    """Write the table of all figures, whole or not at all, and print the path."""
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    columns = evaluation.columns()
    try:
        with name_in_errors(path), WRITERS[path.suffix](partial) as append:
            append(columns)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    print_line("figures", f"{short_path(path)} ({len(columns['figure'])} rows)")
