"""Statistics of the coefficients of a table, in the units of its file.

The training samples are fitted anew, without the penalty of the run and without standardised
columns (``preprocessing.design_matrix``): a penalty would bias the coefficients, and a coefficient
of a standardised column is in no unit that a reader knows. Firth's penalty is the exception for
classes that can be separated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from softmax_torch.data import TableDataModule, TensorDataModule
from softmax_torch.preprocessing.design_matrix import DesignMatrix, design_matrix
from softmax_torch.solvers import Inference, inference
from softmax_torch.solvers.separation import SeparationError

__all__ = [
    "CoefficientBlock",
    "CoefficientRow",
    "ColumnTest",
    "TableInference",
    "coefficient_blocks",
    "inference_of_report",
    "p_value",
    "table_inference",
]

LARGEST = 200
"""Most coefficients in a report: more make tables that nobody reads."""

PROFILED = 40
"""Most coefficients whose intervals a report takes from profiles of the likelihood. Each end takes
10 to 50 iterations of a fit."""


class ColumnTest(NamedTuple):
    """The test that a column of the table has no effect on any class.

    Attributes:
        column: name of the column.
        statistic: chi-squared statistic.
        df: its degrees of freedom.
        p_value: probability of a larger statistic if the column has no effect.
    """

    column: str
    statistic: float
    df: int
    p_value: float


@dataclass(frozen=True, eq=False)
class TableInference:
    """The coefficients of a table with their uncertainty.

    Attributes:
        result: coefficients, intervals and tests.
        tests: a test of each column.
        test_name: "likelihood-ratio" or "Wald".
        references: the category that the others of a column are compared with, by column.
        samples: number of training samples.
    """

    result: Inference
    tests: list[ColumnTest]
    test_name: str
    references: dict[str, str]
    samples: int


def table_inference(data: TableDataModule, **options: Any) -> TableInference:
    """Fit the training samples of a table, in the units of its file.

    Args:
        data: the table.
        options: arguments of ``solvers.inference``. ``reference`` is the name of a class. With the
            covariance "cluster" the groups are those of the data's ``group_column``.

    Raises:
        ValueError: as ``solvers.inference``, with names of the columns; there is no column of
            groups for "cluster".
    """
    if options.get("covariance") == "cluster":
        if data.roles.group is None:
            raise ValueError(
                "covariance: expected a column of groups for cluster, as in --data.group_column "
                "site, got none"
            )
        options["groups"] = data.train_groups
    x, y = data.splits["train"]
    design = design_matrix(data.preprocessing.columns, x)
    names = data.preprocessing.class_names
    result = inference(design.X, y, feature_names=design.names, class_names=names, **options)
    name, tests = column_tests(result, design)
    return TableInference(result, tests, name, design.references, len(y))


def column_tests(result: Inference, design: DesignMatrix) -> tuple[str, list[ColumnTest]]:
    """Return the name of the test, and the test of each column that has coefficients."""
    by_likelihood = result.covariance_type == "nonrobust"
    test = result.likelihood_ratio_test if by_likelihood else result.wald_test
    found = [(column, test(list(terms))) for column, terms in design.terms.items() if terms]
    tests = [ColumnTest(column, t.statistic, t.df, t.p_value) for column, t in found]
    return "likelihood-ratio" if by_likelihood else "Wald", tests


class CoefficientRow(NamedTuple):
    """A coefficient: its name, and its numbers as a page shows them."""

    name: str
    cells: list[str]


class CoefficientBlock(NamedTuple):
    """The coefficients of a class."""

    title: str
    rows: list[CoefficientRow]


def coefficient_blocks(found: TableInference) -> list[CoefficientBlock]:
    """Return the coefficients of each class, with odds ratios, as a page shows them."""
    result = found.result
    assert result.reference is not None, "a page compares with a class"
    columns = result.to_dict(odds_ratios=True)
    blocks = {
        name: CoefficientBlock(f"{name} against {result.class_names[result.reference]}", [])
        for name in result.row_names
    }
    rows = (
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    )
    for row in rows:
        cells = [
            f"{row['coefficient']:.4g}",
            f"{row['standard_error']:.3g}",
            f"{row['z']:.2f}",
            p_value(row["p_value"]),
            f"{row['lower']:.4g} to {row['upper']:.4g}",
            f"{row['odds_ratio']:.4g}",
            f"{row['odds_ratio_lower']:.4g} to {row['odds_ratio_upper']:.4g}",
        ]
        blocks[row["class"]].rows.append(CoefficientRow(row["feature"], cells))
    return list(blocks.values())


def p_value(p: float) -> str:
    """Return a p-value as a page shows it."""
    return f"{p:.3f}" if p >= 5e-4 else "<0.001"


def inference_of_report(data: TensorDataModule) -> tuple[TableInference | None, str]:
    """Return the statistics that a report shows, or None, and a sentence about them.

    The sentence is empty where a report has no such section.
    """
    if not isinstance(data, TableDataModule):
        return None, ""
    terms = design_matrix(data.preprocessing.columns, data.splits["train"].x[:1]).names
    coefficients = (len(terms) + 1) * (len(data.preprocessing.class_names) - 1)
    if coefficients > LARGEST:
        return None, (
            f"{coefficients} coefficients are more than a page can show; the command inference "
            "writes them to a file."
        )
    try:
        return table_inference(data), (
            "The training samples were fitted without a penalty, whatever the penalty of the run."
        )
    except SeparationError as error:
        intervals = "profile" if coefficients <= PROFILED else "wald"
        return table_inference(data, penalty="firth", intervals=intervals), (
            f"The classes can be separated: {error.why}. Without a penalty some coefficients "
            "would grow without bound, so the training samples were fitted with Firth's penalty."
        )
    except ValueError as error:
        return None, f"The training samples do not determine the coefficients. {error}."
