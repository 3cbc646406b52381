"""The tables of a result: text, columns, frames, Markdown and HTML."""

import html.parser
import math

import numpy as np
import pytest
from small_samples import NAMES, labels, small

from softmax_torch.solvers import inference

X, Y, GROUPS = small()
FOUND = inference(X, labels(Y), feature_names=NAMES)


def test_text() -> None:
    lines = str(FOUND).splitlines()
    assert lines[0].strip() == "Softmax regression"
    text = "\n".join(lines)
    llr = FOUND.likelihood_ratio
    assert llr is not None
    for name, value in (
        ("No. observations", "300"),
        ("Log-likelihood", f"{FOUND.log_likelihood:.6g}"),
        ("LL-null", f"{FOUND.log_likelihood_null:.6g}"),
        ("LLR p-value", f"{llr.p_value:.4g}"),
        ("Pseudo R-squared", f"{FOUND.pseudo_r2:.4g}"),
        ("AIC", f"{FOUND.aic:.6g}"),
        ("BIC", f"{FOUND.bic:.6g}"),
        ("Covariance", "nonrobust"),
        ("Df residuals", "292"),
        ("Penalty", "none"),
    ):
        assert any(name in line and value in line for line in lines), name
    low = text.index("low vs high")
    assert low < text.index("mid vs high")
    row = next(line for line in lines if line.startswith("length"))
    numbers = [
        f"{float(t[0, 0]):.{digits}f}"
        for t, digits in (
            (FOUND.coefficients, 4),
            (FOUND.standard_errors, 4),
            (FOUND.z_values, 3),
            (FOUND.confidence_intervals[..., 0], 4),
            (FOUND.confidence_intervals[..., 1], 4),
        )
    ]
    cells = row.split()[1:]
    assert [*cells[:3], *cells[4:]] == numbers
    p = float(FOUND.p_values[0, 0])
    assert cells[3] == ("<0.001" if p < 5e-4 else f"{p:.3f}")


def test_two_classes_have_one_block_of_log_odds_ratios() -> None:
    found = inference(X, Y > 0, feature_names=NAMES)
    assert found.coefficients.shape == (1, 4)
    text = found.summary(odds_ratios=True)
    assert "True vs False" in text
    ratio = math.exp(float(found.coefficients[0, 0]))
    error = ratio * float(found.standard_errors[0, 0])
    low, high = (math.exp(end) for end in found.confidence_intervals[0, 0].tolist())
    row = next(line for line in text.splitlines() if line.startswith("length")).split()
    assert [row[1], row[2], row[5], row[6]] == [f"{v:.4f}" for v in (ratio, error, low, high)]


@pytest.mark.parametrize("name", ["a" * 70, "two\nlines", "長い名前" * 5, "short"])
@pytest.mark.parametrize("factor", [1.0, 1e-9, 1e9])
def test_names_and_numbers_do_not_break_the_columns(name: str, factor: float) -> None:
    found = inference(X * [factor, 1, 1], Y, feature_names=[name, "b", "c"])
    blocks = str(found).splitlines()[9:]
    rows = [line for line in blocks if not set(line) <= set("=-")]
    wide = "長" in name
    if not wide:
        assert len({len(line) for line in rows}) == 1
    for line in rows:
        if " vs " not in line:
            assert all(end not in ("", "-") for end in line[-66:].split())
            assert len(line[-66:].split()) == 6
    assert str(FOUND).count("\n") == str(found).count("\n")


def test_columns_and_frame() -> None:
    columns = FOUND.to_dict(odds_ratios=True)
    assert columns["class"] == ["low"] * 4 + ["mid"] * 4
    assert columns["feature"] == [*NAMES, "intercept"] * 2
    for name, table in (
        ("coefficient", FOUND.coefficients),
        ("standard_error", FOUND.standard_errors),
        ("z", FOUND.z_values),
        ("p_value", FOUND.p_values),
        ("lower", FOUND.confidence_intervals[..., 0]),
        ("upper", FOUND.confidence_intervals[..., 1]),
        ("odds_ratio", FOUND.coefficients.exp()),
        ("odds_ratio_upper", FOUND.confidence_intervals[..., 1].exp()),
    ):
        assert columns[name] == pytest.approx(table.flatten().tolist(), rel=1e-12)
    frame = FOUND.to_frame()
    assert "odds_ratio" not in frame
    assert frame.loc[("mid", "mass"), "z"] == float(FOUND.z_values[1, 2])
    resampled = inference(X, Y, bootstrap=5)
    assert resampled.bootstrap is not None
    errors = resampled.bootstrap.standard_errors.flatten().tolist()
    assert resampled.to_frame()["bootstrap_standard_error"].tolist() == errors


class Tags(html.parser.HTMLParser):
    """The tags that are open, and the texts of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_html_and_markdown() -> None:
    found = inference(X, Y, feature_names=["<b>", "x|y", "z"], class_names=["a&b", "c", "d"])
    tags = Tags()
    tags.feed(found._repr_html_())
    assert tags.open == []
    assert tags.cells.count("<b>") == 2
    assert "c vs a&b" in tags.cells
    coefficient = f"{float(found.coefficients[0, 0]):.4f}"
    assert coefficient in tags.cells
    lines = found.to_markdown().splitlines()
    row = next(line for line in lines if line.startswith("| x\\|y"))
    assert row.replace("\\|", "").count("|") == 8
    assert any(coefficient in line for line in lines)


def test_notes() -> None:
    penalised = inference(X, Y, penalty="l2", C=0.5)
    text = str(penalised)
    assert "l2, C=0.5" in text
    assert "biases coefficients towards 0" in text
    clustered = inference(X, Y, covariance="cluster", groups=GROUPS)
    assert "The samples belong to 30 groups." in str(clustered)
    assert "x0 vs" not in str(inference(X, Y, reference=None))
    assert "0 vs the mean" in str(inference(X, Y, reference=None))
    assert repr(FOUND).startswith("Inference(3 classes, 3 features, 300 observations")
    assert np.isfinite(penalised.aic)
