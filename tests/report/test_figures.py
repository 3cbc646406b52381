"""Figures of a report show their data, as the matplotlib artists in them say."""

import numpy as np
import pytest
import torch
from sample_results import HISTORY, make_results, make_set
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from softmax_torch.metrics import BINS
from softmax_torch.report import (
    class_metrics,
    confusion_matrix,
    learning_curves,
    mistakes,
    plotting,
    reliability_diagram,
    weight_plots,
)
from softmax_torch.report.bootstrap import score_samples
from softmax_torch.report.plotting import CaptionedFigure
from softmax_torch.report.run_results import EvaluatedSet, RunResults

SOLVER = [
    {"step": "1", "epoch": "0", "train/loss": "2", "train/gradient_norm": "3", "train/gap": "0.5"},
    {"step": "1", "epoch": "0", "val/accuracy": "0.5", "val/nll": "0.9"},
    {"step": "2", "epoch": "1", "train/loss": "1", "train/gradient_norm": "1e-3", "train/gap": "0"},
]


def draw_confusion(results: RunResults) -> CaptionedFigure:
    return confusion_matrix.draw(results, class_metrics.confusion_counts(results))


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
        assert mistakes.most_confident(results) == mistakes.draw(results, []) == []


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


def test_any_name_in_the_data_can_be_drawn() -> None:
    assert plotting.label("$x$") == r"\$x\$"
    assert plotting.label("a\x00b\nc") == "a\ufffdb\ufffdc"
    assert plotting.label("number " * 9 + "17") == "number numbe…r number 17"
    assert plotting.display_width(plotting.label("漢字" * 20)) <= 24
    names = (r"$\frac", "\x00\x1b", "漢字" * 20)
    results = make_results(shape=(3,), class_names=names, feature_names=names)
    for captioned in (draw_confusion(results), *weight_plots.draw(results)):
        assert b"\x00" not in plotting.render(captioned.figure, "svg")
