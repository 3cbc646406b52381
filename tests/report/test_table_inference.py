"""Coefficients of a table: those of statsmodels on the file's own columns, or a reason for none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from pages import write_iris, write_passengers
from sample_results import make_results

from softmax_torch.data import DigitsDataModule, TableDataModule
from softmax_torch.report.page import compose
from softmax_torch.report.table_inference import (
    coefficient_blocks,
    inference_of_report,
    table_inference,
)


def data_of(frame: pd.DataFrame, folder: Path, target: str, **settings: Any) -> TableDataModule:
    """Return the data module of a table, with its samples."""
    frame.to_csv(folder / "table.csv", index=False)
    data = TableDataModule(str(folder / "table.csv"), target, **settings)
    data.setup()
    return data


def passengers(
    folder: Path, target: str = "survived", ignore: str = "ship"
) -> tuple[pd.DataFrame, TableDataModule]:
    """Return the training rows of an invented table, and its data module."""
    frame = write_passengers(folder)
    frame["part"] = np.array(["train", "train", "train", "val", "test"])[frame.index % 5]
    data = data_of(frame, folder, target, ignore=[ignore], split_column="part")
    return frame[frame.part == "train"], data


def design_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what statsmodels takes: dummies without the first category, and a constant."""
    dummies = pd.get_dummies(frame[["sex", "cabin"]], drop_first=True, dtype=float, prefix_sep="=")
    return sm.add_constant(dummies.join(frame[["age", "fare"]]))


@pytest.mark.parametrize("classes", [2, 4])
def test_coefficients_are_those_of_the_columns_in_the_file(tmp_path: Path, classes: int) -> None:
    target, ignored = ("survived", "ship") if classes == 2 else ("ship", "survived")
    train, data = passengers(tmp_path, target, ignored)
    found = table_inference(data)
    X = design_of(train)
    fit = sm.MNLogit(train[target].astype("category").cat.codes, X).fit(disp=0, tol=1e-12)
    order = ["sex=male", "cabin=second", "cabin=third", "age", "fare", "const"]
    assert found.result.feature_names == tuple(order[:-1])
    np.testing.assert_allclose(found.result.coefficients, fit.params.loc[order].T, rtol=1e-4)
    np.testing.assert_allclose(found.result.standard_errors, fit.bse.loc[order].T, rtol=1e-4)
    assert found.references == {"sex": "female", "cabin": "first"}
    assert found.samples == len(train)
    without = sm.MNLogit(
        train[target].astype("category").cat.codes, X.drop(columns=["cabin=second", "cabin=third"])
    ).fit(disp=0, tol=1e-12)
    test = {test.column: test for test in found.tests}
    assert list(test) == ["sex", "cabin", "age", "fare"]
    assert test["cabin"].df == 2 * (len(found.result.class_names) - 1)
    assert test["cabin"].statistic == pytest.approx(2 * (fit.llf - without.llf), rel=1e-4)


def test_robust_covariances_have_wald_tests(tmp_path: Path) -> None:
    train, data = passengers(tmp_path)
    found = table_inference(data, covariance="HC0")
    assert found.test_name == "Wald"
    fit = sm.Logit((train.survived == "yes").astype(float), design_of(train)).fit(
        disp=0, cov_type="HC0"
    )
    z = fit.params["fare"] / fit.bse["fare"]
    assert {test.column: test for test in found.tests}["fare"].statistic == pytest.approx(
        z**2, rel=1e-3
    )


def test_clusters_are_the_groups_of_the_training_samples(tmp_path: Path) -> None:
    train, data = passengers(tmp_path)
    with pytest.raises(ValueError, match=r"column of groups for cluster, as in --data\.gro"):
        table_inference(data, covariance="cluster")
    frame = pd.read_csv(tmp_path / "table.csv")
    frame["party"] = frame.index // 3
    settings = {"ignore": ["ship"], "split_column": "part", "group_column": "party"}
    found = table_inference(data_of(frame, tmp_path, "survived", **settings), covariance="cluster")
    fit = sm.Logit((train.survived == "yes").astype(float), design_of(train)).fit(
        disp=0, cov_type="cluster", cov_kwds={"groups": train.index // 3}
    )
    errors = dict(zip(found.result.column_names, found.result.standard_errors[0], strict=True))
    assert float(errors["age"]) == pytest.approx(fit.bse["age"], rel=0.01)
    assert found.result.groups == len(set(train.index // 3))


def test_separated_classes_have_firths_penalty_in_a_report(tmp_path: Path) -> None:
    data = data_of(write_iris(tmp_path), tmp_path, "species")
    found, note = inference_of_report(data)
    assert note.startswith("The classes can be separated: ")
    assert found is not None
    assert (found.result.model.penalty, found.result.intervals) == ("firth", "profile")
    assert found.result.coefficients.isfinite().all()
    with pytest.raises(ValueError, match="classes that can be separated"):
        table_inference(data)


def test_a_report_says_why_it_has_no_coefficients(tmp_path: Path) -> None:
    frame = write_passengers(tmp_path)
    twice = frame.assign(months=12 * frame.age)
    found, note = inference_of_report(data_of(twice, tmp_path, "survived"))
    assert found is None
    assert "age" in note
    assert "months" in note
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 210))).add_prefix("c")
    wide["y"] = np.arange(300) % 2
    found, note = inference_of_report(data_of(wide, tmp_path, "y"))
    assert found is None
    assert note.startswith("211 coefficients are more than a page can show")
    assert inference_of_report(DigitsDataModule()) == (None, "")


@pytest.mark.slow
def test_the_page_shows_coefficients_or_the_reason(tmp_path: Path) -> None:
    _, data = passengers(tmp_path)
    found, note = inference_of_report(data)
    assert found is not None
    [block] = coefficient_blocks(found)
    assert block.title == "yes against no"
    age = next(row for row in block.rows if row.name == "age")
    result, at = found.result, found.result.column_names.index("age")
    assert age.cells[0] == f"{float(result.coefficients[0, at]):.4g}"
    assert age.cells[5] == f"{float(result.coefficients[0, at].exp()):.4g}"
    table = make_results(2, shape=(5,))
    html = compose(replace(table, coefficients=found, coefficients_note=note)).html
    assert all(f"<td>{cell.replace('<', '&lt;')}</td>" in html for cell in age.cells)
    assert "sex=female, cabin=first" in html
    html = compose(replace(table, coefficients_note="There are none because.")).html
    assert "<p>There are none because.</p>" in html
    assert "Tests of the columns" not in html
    assert 'id="coefficients"' not in compose(table).html
