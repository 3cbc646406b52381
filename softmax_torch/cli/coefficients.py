"""The command inference: the coefficients of a table, with standard errors, intervals and tests."""

from __future__ import annotations

from pathlib import Path

from softmax_torch.cli.console import in_command, print_line, program_name, short_path
from softmax_torch.cli.requests import Request
from softmax_torch.cli.session import Session
from softmax_torch.cli.table_files import new_table_file, write_table
from softmax_torch.data import TableDataModule
from softmax_torch.report.table_inference import TableInference, p_value, table_inference
from softmax_torch.solvers.separation import SeparationError

__all__ = ["infer", "new_coefficient_file"]

WIDEST = 30
"""Width of the column of names in the table of tests; longer names are cut."""


def new_coefficient_file(request: Request) -> Path:
    """Return the file for the coefficients; its default lies beside the checkpoint, if any.

    Raises:
        ValueError: no format has this suffix.
        FileExistsError, FileNotFoundError: the file exists, or its folder does not.
    """
    path = request.arguments.ckpt_path
    folder = Path() if path is None else Path(path).parent
    return new_table_file(request.arguments.output, folder / "coefficients.csv")


def infer(session: Session) -> None:
    """Fit the training samples; print the summary and a test of each column, and write a file.

    Raises:
        ValueError: the data are no table, or its training samples do not determine the
            coefficients; or there are several processes, each with a part of the rows.
    """
    arguments, data = session.request.arguments, session.data
    if not isinstance(data, TableDataModule):
        raise ValueError(
            "inference: expected a table, whose columns have names and units, got "
            f"{type(data).__name__}"
        )
    if session.trainer.world_size > 1:
        raise ValueError(f"inference: expected one process, got {session.trainer.world_size}")
    output = new_coefficient_file(session.request)
    data.prepare_data()
    data.setup("fit")
    options = {} if arguments.reference is None else {"reference": arguments.reference}
    try:
        found = table_inference(
            data,
            penalty=arguments.penalty,
            covariance=arguments.covariance,
            confidence=arguments.confidence,
            **options,
        )
    except SeparationError as error:
        raise ValueError(
            f"inference: expected classes that overlap, got classes that can be separated: "
            f"{error.why}. Some coefficients would grow without bound; fit with --penalty firth, "
            f"or {error.remedy}"
        ) from None
    print_line("fitted", f"{found.samples} training samples, in the units of the file")
    if found.references:
        compared = ", ".join(f"{column}={name}" for column, name in found.references.items())
        print_line("compared", f"with {compared}")
    summary = found.result.summary(arguments.odds_ratios)
    print(summary)
    print(tests_text(found))
    print("=" * max(map(len, summary.splitlines())))
    columns = found.result.to_dict(odds_ratios=True)
    write_table(columns, output)
    print_line("written", f"{short_path(output)} ({len(columns['class'])} coefficients)")
    if arguments.ckpt_path is not None:
        print_line(
            "next", f"{program_name()} report {in_command(Path(arguments.ckpt_path).parent)}"
        )


def tests_text(found: TableInference) -> str:
    """Return the table of the tests of all columns."""
    width = min(WIDEST, max(len("column"), *(len(test.column) for test in found.tests)))
    head = f"{'column':{width}s}{'chi2':>12s}{'df':>6s}{'P>chi2':>10s}"
    lines = [f"{found.test_name} test that a column has no effect on any class", head]
    for test in found.tests:
        name = test.column if len(test.column) <= width else f"{test.column[: width - 1]}…"
        p = p_value(test.p_value)
        lines.append(f"{name:{width}s}{test.statistic:12.4f}{test.df:6d}{p:>10s}")
    return "\n".join(lines)
