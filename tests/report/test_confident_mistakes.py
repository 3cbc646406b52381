"""The most confident mistakes, with their images or their rows of a table."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from sample_results import make_results

from softmax_torch.report import mistakes
from softmax_torch.report.plotting import CaptionedFigure
from softmax_torch.report.run_results import RawRows, RunResults


def draw_mistakes(results: RunResults) -> list[CaptionedFigure]:
    return mistakes.draw(results, mistakes.most_confident(results))


def test_mistakes_are_the_most_confident_and_have_their_images() -> None:
    results = make_results(3, n=150)
    p = results.test.logits.double().softmax(1)
    wrong = [i for i in range(150) if p[i].argmax() != results.test.y[i]]
    wrong.sort(key=lambda i: -float(p[i].max()))
    found = mistakes.most_confident(results)
    assert [one.row for one in found] == wrong[:20]
    for one in found:
        assert one.true == results.test.y[one.row]
        assert one.p_predicted == pytest.approx(float(p[one.row, one.predicted]))
        assert one.p_true == pytest.approx(float(p[one.row, one.true]))
        assert one.predicted == p[one.row].argmax()
    [captioned] = draw_mistakes(results)
    for ax, one in zip(captioned.figure.axes, found, strict=True):
        image = np.asarray(ax.images[0].get_array())
        np.testing.assert_array_equal(image, results.x[one.row].numpy())
        assert ax.get_title() == f"c{one.true}\n→ c{one.predicted}\n{one.p_predicted:.3f}"
    assert f"sample id-{wrong[0]}, " in captioned.alt


def test_mistakes_of_colour_images_are_colour_images() -> None:
    results = make_results(3, n=60, shape=(3, 4, 4))
    [captioned] = draw_mistakes(results)
    [first, *_] = mistakes.most_confident(results)
    image = np.asarray(captioned.figure.axes[0].images[0].get_array())
    low, high = results.x.min(), results.x.max()
    expected = (results.x[first.row].permute(1, 2, 0) - low) / (high - low).double()
    np.testing.assert_allclose(image, expected)


def test_rows_of_a_table_are_shown_as_they_are_in_the_file() -> None:
    """Of a column with several features, once; the features of images are not shown."""
    table = pa.table({"colour": ["red", None] * 100, "size": ["1.50"] * 200, "unused": range(200)})
    raw = RawRows(table, ("colour", "colour", "size"))
    results = make_results(shape=(3,), raw=raw)
    confident = mistakes.most_confident(results)
    shown = mistakes.shown_values(results, confident)
    assert shown.names == ["colour", "size"]
    assert shown.rows == [["" if m.row % 2 else "red", "1.50"] for m in confident]
    without = mistakes.shown_values(make_results(shape=(3,)), confident)
    assert without.names == ["column 0", "column 1", "column 2"]
    assert without.rows[0][2] == f"{results.x[confident[0].row, 2]:.4g}"
    assert mistakes.shown_values(make_results(), confident).names == []


def test_shown_features_have_the_largest_weights() -> None:
    assert draw_mistakes(make_results(shape=(5,))) == []
    assert mistakes.shown_features(make_results(shape=(5,))) == [0, 1, 2, 3, 4]
    weight = torch.zeros(3, 30)
    weight[1, 17], weight[2, 4] = 9.0, -5.0
    assert mistakes.shown_features(make_results(shape=(30,), weight=weight))[:2] == [17, 4]
    assert mistakes.shown_features(make_results(shape=(30,), weight=None)) == list(range(6))
