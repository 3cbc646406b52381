"""Figures of a report show their data, as the matplotlib artists in them say."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from matplotlib.collections import QuadMesh
from sample_results import HISTORY, make_results, make_set
from sklearn.metrics import average_precision_score, classification_report, roc_auc_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from softmax_torch.calibration import Calibration
from softmax_torch.metrics import BINS
from softmax_torch.ranking_metrics import rank
from softmax_torch.report import (
    calibrated,
    class_metrics,
    confusion_matrix,
    learning_curves,
    mistakes,
    plotting,
    reliability_diagram,
    weight_plots,
)
from softmax_torch.report.bootstrap import score_samples
from softmax_torch.report.class_metrics import ClassMetrics, macro_average
from softmax_torch.report.plotting import CaptionedFigure
from softmax_torch.report.run_results import EvaluatedSet, RawRows, RunResults

SOLVER = [
    {"step": "1", "epoch": "0", "train/loss": "2", "train/gradient_norm": "3", "train/gap": "0.5"},
    {"step": "1", "epoch": "0", "val/accuracy": "0.5", "val/nll": "0.9"},
    {"step": "2", "epoch": "1", "train/loss": "1", "train/gradient_norm": "1e-3", "train/gap": "0"},
]


def draw_confusion(results: RunResults) -> CaptionedFigure:
    return confusion_matrix.draw(results, class_metrics.confusion_counts(results))


def draw_mistakes(results: RunResults) -> list[CaptionedFigure]:
    return mistakes.draw(results, mistakes.most_confident(results))


def test_curves_are_the_logged_values() -> None:
    drawn = {figure.name: figure for figure in learning_curves.draw(make_results())}
    assert list(drawn) == ["learning-objective", "learning-nll", "learning-accuracy"]
    for name, columns in (
        ("objective", ["train/loss"]),
        ("nll", ["train/nll", "val/nll"]),
        ("accuracy", ["train/accuracy", "val/accuracy"]),
    ):
        *lines, mark = drawn[f"learning-{name}"].figure.axes[0].lines
        for line, column in zip(lines, columns, strict=True):
            words = "training" if column.startswith("train") else "validation"
            assert line.get_label() == words
            expected = [(int(r["epoch"]) + 1, float(r[column])) for r in HISTORY if column in r]
            assert line.get_xydata().tolist() == [list(point) for point in expected]
        assert mark.get_xdata() == [2, 2]  # the epoch of the checkpoint's step
    assert "training from 1.5 in epoch 1 to 0.5 in epoch 2" in drawn["learning-objective"].alt


def test_curves_of_a_solver() -> None:
    drawn = {
        figure.name: figure for figure in learning_curves.draw(make_results(history=SOLVER, step=3))
    }
    gap, norm = (drawn[f"learning-{name}"].figure.axes[0] for name in ("gap", "gradient-norm"))
    assert gap.get_yscale() == norm.get_yscale() == "log"
    # No line for the checkpoint: no epoch ended at its step.
    assert [list(line.get_ydata()) for line in gap.lines] == [[0.5, 0.0]]
    assert [list(line.get_ydata()) for line in norm.lines] == [[3.0, 1e-3]]
    assert len(drawn["learning-nll"].figure.axes[0].lines) == 1
    plotting.render(drawn["learning-gap"].figure, "svg")  # 0 has no logarithm


def test_a_gap_of_0_can_be_drawn() -> None:
    history = [{"step": "1", "epoch": "0", "train/gap": "0"}]
    [captioned] = learning_curves.draw(make_results(history=history))
    plotting.render(captioned.figure, "svg")


def test_without_a_log_there_are_no_curves() -> None:
    assert learning_curves.draw(make_results(history=[])) == []


@pytest.mark.parametrize("C", [2, 10, 13, 47, 60])
def test_cells_are_counts_and_their_colours_shares_of_the_row(C: int) -> None:
    results = make_results(C, n=900)
    expected = sklearn_confusion_matrix(
        results.test.y, results.test.logits.argmax(1), labels=range(C)
    )
    ax = draw_confusion(results).figure.axes[0]
    [image] = ax.images
    shares = expected / np.maximum(expected.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(np.asarray(image.get_array()), shares)
    written = np.zeros((C, C), dtype=int)
    for text in ax.texts:
        x, y = text.get_position()
        written[int(y), int(x)] = int(text.get_text().split()[0])
        if C <= 10 and shares[int(y), int(x)] > 0.01:
            assert text.get_text().split()[1] == f"{shares[int(y), int(x)]:.0%}"
    np.testing.assert_array_equal(written, expected)
    assert [text.get_text() for text in ax.get_yticklabels()] == list(results.class_names)
    assert ax.get_xlabel() == "predicted"
    assert ax.get_ylabel() == "true"


def test_of_many_classes_the_most_confused_pairs_are_drawn() -> None:
    results = make_results(61, n=3000)
    counts = sklearn_confusion_matrix(
        results.test.y, results.test.logits.argmax(1), labels=range(61)
    )
    ax = draw_confusion(results).figure.axes[0]
    assert not ax.images
    drawn = [bar.get_width() for bar in ax.patches]
    off = counts - np.diag(np.diag(counts))
    assert drawn == sorted(off.flatten().tolist())[::-1][: len(drawn)]
    assert len(drawn) == 20
    for width, text in zip(drawn, ax.get_yticklabels(), strict=True):
        i, j = (int(name.removeprefix("c")) for name in text.get_text().split(" → "))
        assert counts[i, j] == width
        assert i != j


def test_a_test_set_without_mistakes() -> None:
    for C in (3, 61):
        y = torch.arange(200) % C
        results = make_results(C, test=EvaluatedSet(torch.nn.functional.one_hot(y, C).float(), y))
        assert class_metrics.most_confused(class_metrics.confusion_counts(results), 10) == []
        captioned = draw_confusion(results)
        assert "none is wrong" in captioned.alt
        plotting.render(captioned.figure, "svg")
        assert mistakes.most_confident(results) == draw_mistakes(results) == []


def per_class(results: RunResults) -> list[ClassMetrics]:
    return class_metrics.per_class(results.test, results.class_names, rank(*results.test))


def test_metrics_of_classes_are_scikit_learns() -> None:
    results = make_results(5, n=300)
    y, p = results.test.y, results.test.logits.double().softmax(1)
    expected = classification_report(y, p.argmax(1), output_dict=True, zero_division=0)
    rows = per_class(results)
    of_all = macro_average(rows)
    for name, row in [*((str(c), row) for c, row in enumerate(rows)), ("macro avg", of_all)]:
        got = {"precision": row.precision.value, "recall": row.recall.value}
        got |= {"f1-score": row.f1.value, "support": row.support}
        assert got == pytest.approx(expected[name])
    for c, row in enumerate(rows):
        assert row.name == f"c{c}"
        assert row.auc.value == pytest.approx(roc_auc_score(y == c, p[:, c]), rel=1e-12)
        assert row.ap.value == pytest.approx(average_precision_score(y == c, p[:, c]), rel=1e-12)
        for one in row.estimates.values():
            assert 0 < one.low < one.value < one.high < 1
    assert of_all.auc.value == pytest.approx(np.mean([row.auc.value for row in rows]), rel=1e-14)


def test_a_class_without_samples_or_predictions_has_no_metrics() -> None:
    """Class 1 is never predicted; class 2 has no samples and is never predicted."""
    z = torch.tensor([[5.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    results = make_results(3, n=2, test=EvaluatedSet(z, torch.tensor([0, 1])))
    zero, one, two = per_class(results)
    assert (zero.precision.value, zero.recall.value) == (0.5, 1.0)
    assert np.isnan(one.precision).tolist() == [True, True, True, False]
    assert (one.recall.value, one.f1.value, one.support) == (0.0, 0.0, 1)
    assert np.isnan([two.precision.value, two.recall.value, two.f1.value, two.ap.value]).all()
    mean = macro_average([zero, one, two])
    assert (mean.precision.value, mean.recall.value, mean.support) == (0.5, 0.5, 2)


def test_the_reliability_diagram_shows_accuracy_and_samples_by_confidence() -> None:
    z, y = make_set(600, 4, 0, scale=2.0)
    captioned = reliability_diagram.draw(score_samples(z, y), "r", "title", 0.25)
    above, below = captioned.figure.axes
    confidence, predicted = z.double().softmax(1).max(1)
    bars = {round(bar.get_x() * BINS): bar.get_height() for bar in above.patches}
    counts = {round(bar.get_x() * BINS): bar.get_height() for bar in below.patches}
    points = dict(zip(bars, above.lines[1].get_xydata().tolist(), strict=True))
    for b in range(BINS):
        inside = (confidence * BINS).floor() == b
        assert counts.get(b, 0) == int(inside.sum())
        if inside.any():
            accuracy = float((predicted == y)[inside].double().mean())
            assert bars[b] == pytest.approx(accuracy)
            assert points[b] == pytest.approx([float(confidence[inside].mean()), accuracy])
    assert sum(counts.values()) == 600
    assert above.lines[0].get_xydata().tolist() == [[0, 0], [1, 1]]


def test_weights_of_images_are_images_on_one_scale() -> None:
    results = make_results(4, shape=(6, 7))
    [captioned] = weight_plots.draw(results)
    *axes, bar = captioned.figure.axes
    assert results.weight is not None
    expected = results.weight - results.weight.mean(0)
    for c, ax in enumerate(axes):
        [image] = ax.images
        got = np.asarray(image.get_array())
        np.testing.assert_allclose(got, expected[c].view(6, 7), atol=1e-6)
        low, high = image.get_clim()
        assert -low == high == axes[0].images[0].get_clim()[1] > 0
        assert ax.get_title() == f"c{c}"
    assert any(isinstance(artist, QuadMesh) for artist in bar.collections)
    # Few weights are beyond the scale.
    beyond = (expected.abs() > high).double().mean()
    assert 0 < beyond <= 0.012


def test_weights_of_colour_images_are_grey_at_0() -> None:
    weight = torch.zeros(3, 3 * 2 * 2)
    weight[0, :4], weight[1, :4] = 1.0, -1.0  # red
    [captioned] = weight_plots.draw(make_results(3, shape=(3, 2, 2), weight=weight))
    for ax, red in zip(captioned.figure.axes, (1.0, 0.0, 0.5), strict=False):
        image = np.asarray(ax.images[0].get_array())
        assert image.shape == (2, 2, 3)
        np.testing.assert_allclose(image[..., 0], red)
        np.testing.assert_allclose(image[..., 1:], 0.5)


def test_weights_of_a_table_are_ranked_per_standard_deviation() -> None:
    results = make_results(3, shape=(20,), scale=0.5)
    drawn = weight_plots.draw(results)
    assert [figure.name for figure in drawn] == ["weights-0", "weights-1", "weights-2"]
    assert results.weight is not None
    spread = (0.5 * results.x).double().std(0, correction=0)
    expected = (results.weight - results.weight.mean(0)) * spread
    for c, captioned in enumerate(drawn):
        ax = captioned.figure.axes[0]
        widths = torch.tensor([bar.get_width() for bar in ax.patches])
        order = expected[c].abs().argsort(descending=True)[:12]
        torch.testing.assert_close(widths.double(), expected[c][order], atol=1e-5, rtol=1e-5)
        names = [text.get_text() for text in ax.get_yticklabels()]
        assert names == [f"column {d}" for d in order.tolist()]
        assert "per standard deviation" in captioned.figure.get_supxlabel()


@pytest.mark.parametrize("shape", [(12,), (28, 1)])
@pytest.mark.parametrize("largest", [1.0, 1.392])  # the axis ends beyond a tick, or at one
def test_labels_are_not_cut_off(shape: tuple[int, ...], largest: float) -> None:
    D = math.prod(shape)
    w = torch.linspace(largest, -0.97, D)
    names = tuple(f"measurement {d} (mm)" for d in range(D)) if len(shape) == 1 else None
    x = torch.tensor([-1.0, 1.0]).repeat(100)[:, None].expand(200, D).reshape(200, *shape)
    [captioned] = weight_plots.draw(
        make_results(
            2, shape=shape, x=x, scale=1.0, weight=torch.stack([-w, w]), feature_names=names
        )
    )
    figure = captioned.figure
    plotting.render(figure, "svg")
    written = [
        figure.axes[-1].xaxis.get_tightbbox(),
        *(t.get_window_extent() for t in figure.texts),
    ]
    assert min(box.x0 for box in written) > -1
    assert max(box.x1 for box in written) < figure.bbox.x1 + 1


@pytest.mark.parametrize("C", [3, 47])
def test_long_names_stay_above_their_own_image(C: int) -> None:
    names = tuple(f"n{c:08d}_class" for c in range(C))
    [captioned] = weight_plots.draw(make_results(C, shape=(6, 7), class_names=names))
    boxes = [ax.title.get_window_extent() for ax in captioned.figure.axes[:C]]
    assert boxes[0].x0 >= 0
    for one, other in itertools.pairwise(boxes):
        assert one.x1 < other.x0 or one.y0 > other.y1


def test_which_weights_are_drawn() -> None:
    [captioned] = weight_plots.draw(
        make_results(2, shape=(5,))
    )  # the weights of the other are their negatives
    assert captioned.name == "weights-1"
    assert len(weight_plots.draw(make_results(22, shape=(2,)))) == weight_plots.MAX_CHARTS == 20
    [captioned] = weight_plots.draw(make_results(70, shape=(2, 2)))
    assert sum(bool(ax.images) for ax in captioned.figure.axes) == 60
    note = weight_plots.drawn_classes_note
    assert note(make_results(70, shape=(2, 2))) == "The first 60 of 70 classes are drawn."
    assert "the second class is drawn" in note(make_results(2, shape=(5,)))
    assert note(make_results(20, shape=(5,))) == ""
    assert weight_plots.draw(make_results(weight=None)) == []  # a net is between inputs and weights
    [captioned] = weight_plots.draw(make_results(weight=torch.zeros(3, 20)))
    plotting.render(captioned.figure, "svg")


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


@pytest.mark.parametrize("epochs", [1, 2])
def test_accuracies_lie_within_their_axes_and_legends_outside(epochs: int) -> None:
    history = [dict(row, **{"val/accuracy": "1.0"}) for row in HISTORY if row.get("epoch")]
    results = make_results(history=history[: 2 * epochs])
    curves = learning_curves.draw(results)
    diagram = reliability_diagram.draw(score_samples(*results.test), "a", "A", 0.1)
    for captioned in (*curves, diagram):
        assert len(captioned.figure.legends) == 1
        assert all(ax.get_legend() is None for ax in captioned.figure.axes)
        if "accuracy" in captioned.name or captioned is diagram:
            low, high = captioned.figure.axes[0].get_ylim()
            assert 0 <= low < high == 1.0
    ticks = curves[0].figure.axes[0].get_xticks()
    assert [tick for tick in ticks if tick != round(tick)] == []


def test_shown_features_have_the_largest_weights() -> None:
    assert draw_mistakes(make_results(shape=(5,))) == []
    assert mistakes.shown_features(make_results(shape=(5,))) == [0, 1, 2, 3, 4]
    weight = torch.zeros(3, 30)
    weight[1, 17], weight[2, 4] = 9.0, -5.0
    assert mistakes.shown_features(make_results(shape=(30,), weight=weight))[:2] == [17, 4]
    assert mistakes.shown_features(make_results(shape=(30,), weight=None)) == list(range(6))


def test_the_checkpoints_own_calibration_is_used() -> None:
    own = Calibration(torch.tensor(0.5), torch.tensor(0.0))
    results = make_results(calibration=own)
    test, description = calibrated.calibrate_test(results)
    assert test is not None
    torch.testing.assert_close(test.logits, results.test.logits.double() / 2)
    assert description == "Calibrated by temperature 2.0000, from the checkpoint."


def test_without_one_a_temperature_is_fitted_to_the_validation_set() -> None:
    results = make_results(val=make_set(2000, 3, 0, scale=4.0))
    test, description = calibrated.calibrate_test(results)
    assert test is not None
    torch.testing.assert_close(test.logits, results.test.logits.double() / 4, rtol=0.1, atol=0.1)
    assert "fitted for this report to the 2000 validation samples" in description


def test_a_missing_temperature_is_explained() -> None:
    z, _ = make_set(50, 3, 0)
    test, description = calibrated.calibrate_test(make_results(val=EvaluatedSet(z, z.argmax(1))))
    assert test is None
    assert description.startswith(
        "There is no best temperature on the validation set: expected some"
    )


def test_any_name_in_the_data_can_be_drawn() -> None:
    assert plotting.label("$x$") == r"\$x\$"
    assert plotting.label("a\x00b\nc") == "a\ufffdb\ufffdc"
    assert plotting.label("number " * 9 + "17") == "number numbe…r number 17"
    assert plotting.display_width(plotting.label("漢字" * 20)) <= 24
    names = (r"$\frac", "\x00\x1b", "漢字" * 20)
    results = make_results(shape=(3,), class_names=names, feature_names=names)
    for captioned in (draw_confusion(results), *weight_plots.draw(results)):
        assert b"\x00" not in plotting.render(captioned.figure, "svg")
