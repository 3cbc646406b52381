"""What the figures of a report have in them, asked of their artists."""

import itertools
import math

import numpy as np
import pytest
import torch
from made import HISTORY, evaluated, made
from matplotlib.collections import QuadMesh
from sklearn.metrics import classification_report, confusion_matrix

from softmax_torch.report import (
    classes,
    confusion,
    learning,
    mistakes,
    reliability,
    rescaled,
    style,
    weights,
)
from softmax_torch.report.findings import Evaluated, Findings
from softmax_torch.report.metrics import BINS, judge
from softmax_torch.report.picture import Picture

SOLVER = [
    {"step": "1", "epoch": "0", "train/loss": "2", "train/gradient_norm": "3", "train/gap": "0.5"},
    {"step": "1", "epoch": "0", "val/accuracy": "0.5", "val/nll": "0.9"},
    {"step": "2", "epoch": "1", "train/loss": "1", "train/gradient_norm": "1e-3", "train/gap": "0"},
]


def drawn_confusion(findings: Findings) -> Picture:
    return confusion.picture(findings, classes.confusion(findings))


def drawn_mistakes(findings: Findings) -> list[Picture]:
    return mistakes.pictures(findings, mistakes.most_confident(findings))


def test_curves_are_what_was_logged() -> None:
    drawn = {picture.name: picture for picture in learning.pictures(made())}
    assert list(drawn) == ["learning-objective", "learning-nll", "learning-accuracy"]
    for name, columns in (
        ("objective", ["train/loss"]),
        ("nll", ["train/nll", "val/nll"]),
        ("accuracy", ["train/accuracy", "val/accuracy"]),
    ):
        picture = drawn[f"learning-{name}"]
        *lines, mark = picture.figure.axes[0].lines
        for line, column in zip(lines, columns, strict=True):
            words = "training" if column.startswith("train") else "validation"
            assert line.get_label() == words
            expected = [(int(r["epoch"]) + 1, float(r[column])) for r in HISTORY if column in r]
            assert line.get_xydata().tolist() == [list(point) for point in expected]
        assert mark.get_xdata() == [2, 2]  # the epoch of the checkpoint's step
    assert "training from 1.5 in epoch 1 to 0.5 in epoch 2" in drawn["learning-objective"].alt


def test_curves_of_a_solver() -> None:
    drawn = {picture.name: picture for picture in learning.pictures(made(history=SOLVER, step=3))}
    gap, norm = (drawn[f"learning-{name}"].figure.axes[0] for name in ("gap", "gradient-norm"))
    assert gap.get_yscale() == norm.get_yscale() == "log"
    assert [list(line.get_ydata()) for line in gap.lines] == [
        [0.5, 0.0]
    ]  # and no mark: no such step
    assert [list(line.get_ydata()) for line in norm.lines] == [[3.0, 1e-3]]
    assert len(drawn["learning-nll"].figure.axes[0].lines) == 1
    style.drawn(drawn["learning-gap"].figure, "svg")  # the 0 of which has no logarithm


def test_a_gap_of_nothing_can_be_drawn() -> None:
    history = [{"step": "1", "epoch": "0", "train/gap": "0"}]
    [picture] = learning.pictures(made(history=history))
    style.drawn(picture.figure, "svg")


def test_without_a_log_there_are_no_curves() -> None:
    assert learning.pictures(made(history=[])) == []


@pytest.mark.parametrize("C", [2, 10, 13, 47, 60])
def test_cells_are_counts_and_their_colours_shares_of_the_row(C: int) -> None:
    findings = made(C, n=900)
    expected = confusion_matrix(findings.test.y, findings.test.logits.argmax(1), labels=range(C))
    ax = drawn_confusion(findings).figure.axes[0]
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
    assert [text.get_text() for text in ax.get_yticklabels()] == list(findings.class_names)
    assert ax.get_xlabel() == "predicted"
    assert ax.get_ylabel() == "true"


def test_of_many_classes_the_most_confused_pairs_are_drawn() -> None:
    findings = made(61, n=3000)
    counts = confusion_matrix(findings.test.y, findings.test.logits.argmax(1), labels=range(61))
    ax = drawn_confusion(findings).figure.axes[0]
    assert not ax.images
    drawn = [bar.get_width() for bar in ax.patches]
    off = counts - np.diag(np.diag(counts))
    assert drawn == sorted(off.flatten().tolist())[::-1][: len(drawn)]
    assert len(drawn) == 20
    for width, text in zip(drawn, ax.get_yticklabels(), strict=True):
        i, j = (int(name.removeprefix("c")) for name in text.get_text().split(" → "))
        assert counts[i, j] == width
        assert i != j


def test_nothing_confused() -> None:
    for C in (3, 61):
        y = torch.arange(200) % C
        findings = made(C, test=Evaluated(torch.nn.functional.one_hot(y, C).float(), y))
        assert classes.most_confused(classes.confusion(findings), 10) == []
        picture = drawn_confusion(findings)
        assert "none is confused" in picture.alt
        style.drawn(picture.figure, "svg")
        assert mistakes.most_confident(findings) == drawn_mistakes(findings) == []


def test_figures_of_classes_are_those_of_scikit_learn() -> None:
    findings = made(5, n=300)
    y, predicted = findings.test.y, findings.test.logits.argmax(1)
    expected = classification_report(y, predicted, output_dict=True, zero_division=0)
    rows = classes.per_class(findings)
    for c, row in enumerate(rows):
        got = {"precision": row.precision, "recall": row.recall, "f1-score": row.f1}
        assert got | {"support": row.support} == pytest.approx(expected[str(c)])
        assert row.name == f"c{c}"
    mean = classes.macro(rows)
    got = {"precision": mean.precision, "recall": mean.recall, "f1-score": mean.f1}
    assert got | {"support": mean.support} == pytest.approx(expected["macro avg"])


def test_a_class_that_is_never_seen_has_no_figures() -> None:
    """Class 1 is never predicted, and class 2 is not even there."""
    z = torch.tensor([[5.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    findings = made(3, n=2, test=Evaluated(z, torch.tensor([0, 1])))
    zero, one, two = classes.per_class(findings)
    assert (zero.precision, zero.recall) == (0.5, 1.0)
    assert np.isnan(one.precision)
    assert (one.recall, one.f1, one.support) == (0.0, 0.0, 1)
    assert np.isnan([two.precision, two.recall, two.f1]).all()
    mean = classes.macro([zero, one, two])
    assert (mean.precision, mean.recall, mean.support) == (0.5, 0.5, 2)


def test_the_reliability_diagram_is_accuracy_and_samples_by_confidence() -> None:
    z, y = evaluated(600, 4, 0, scale=2.0)
    picture = reliability.picture(judge(z, y), "r", "title", 0.25)
    above, below = picture.figure.axes
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
    findings = made(4, shape=(6, 7))
    [picture] = weights.pictures(findings)
    *axes, bar = picture.figure.axes
    assert findings.weight is not None
    expected = findings.weight - findings.weight.mean(0)
    for c, ax in enumerate(axes):
        [image] = ax.images
        got = np.asarray(image.get_array())
        np.testing.assert_allclose(got, expected[c].view(6, 7), atol=1e-6)
        low, high = image.get_clim()
        assert -low == high == axes[0].images[0].get_clim()[1] > 0
        assert ax.get_title() == f"c{c}"
    assert any(isinstance(artist, QuadMesh) for artist in bar.collections)
    # Pixels beyond the scale are the rarest.
    beyond = (expected.abs() > high).double().mean()
    assert 0 < beyond <= 0.012


def test_weights_of_images_in_colour_have_grey_for_nothing() -> None:
    weight = torch.zeros(3, 3 * 2 * 2)
    weight[0, :4], weight[1, :4] = 1.0, -1.0  # red
    [picture] = weights.pictures(made(3, shape=(3, 2, 2), weight=weight))
    for ax, red in zip(picture.figure.axes, (1.0, 0.0, 0.5), strict=False):
        image = np.asarray(ax.images[0].get_array())
        assert image.shape == (2, 2, 3)
        np.testing.assert_allclose(image[..., 0], red)
        np.testing.assert_allclose(image[..., 1:], 0.5)


def test_weights_of_a_table_are_ranked_in_units_that_can_be_compared() -> None:
    findings = made(3, shape=(20,), scale=0.5)
    drawn = weights.pictures(findings)
    assert [picture.name for picture in drawn] == ["weights-0", "weights-1", "weights-2"]
    assert findings.weight is not None
    spread = (0.5 * findings.x).double().std(0, correction=0)
    expected = (findings.weight - findings.weight.mean(0)) * spread
    for c, picture in enumerate(drawn):
        ax = picture.figure.axes[0]
        widths = torch.tensor([bar.get_width() for bar in ax.patches])
        order = expected[c].abs().argsort(descending=True)[:12]
        torch.testing.assert_close(widths.double(), expected[c][order], atol=1e-5, rtol=1e-5)
        names = [text.get_text() for text in ax.get_yticklabels()]
        assert names == [f"column {d}" for d in order.tolist()]
        assert "per standard deviation" in picture.figure.get_supxlabel()


@pytest.mark.parametrize("shape", [(12,), (28, 1)])
@pytest.mark.parametrize("most", [1.0, 1.392])  # the axis ends beyond a tick, or at one
def test_what_is_written_is_not_cut_off(shape: tuple[int, ...], most: float) -> None:
    D = math.prod(shape)
    w = torch.linspace(most, -0.97, D)
    names = tuple(f"measurement {d} (mm)" for d in range(D)) if len(shape) == 1 else None
    x = torch.tensor([-1.0, 1.0]).repeat(100)[:, None].expand(200, D).reshape(200, *shape)
    [picture] = weights.pictures(
        made(2, shape=shape, x=x, scale=1.0, weight=torch.stack([-w, w]), feature_names=names)
    )
    figure = picture.figure
    style.drawn(figure, "svg")
    written = [
        figure.axes[-1].xaxis.get_tightbbox(),
        *(t.get_window_extent() for t in figure.texts),
    ]
    assert min(box.x0 for box in written) > -1
    assert max(box.x1 for box in written) < figure.bbox.x1 + 1


@pytest.mark.parametrize("C", [3, 47])
def test_long_names_stay_above_their_own_picture(C: int) -> None:
    names = tuple(f"n{c:08d}_class" for c in range(C))
    [picture] = weights.pictures(made(C, shape=(6, 7), class_names=names))
    boxes = [ax.title.get_window_extent() for ax in picture.figure.axes[:C]]
    assert boxes[0].x0 >= 0
    for one, other in itertools.pairwise(boxes):
        assert one.x1 < other.x0 or one.y0 > other.y1


def test_which_weights_are_drawn() -> None:
    [picture] = weights.pictures(made(2, shape=(5,)))  # the other is its negative
    assert picture.name == "weights-1"
    assert len(weights.pictures(made(22, shape=(2,)))) == weights.BARS == 20
    [picture] = weights.pictures(made(70, shape=(2, 2)))
    assert sum(bool(ax.images) for ax in picture.figure.axes) == 60
    assert weights.which(made(70, shape=(2, 2))) == "The first 60 of 70 classes are drawn."
    assert "the second is drawn" in weights.which(made(2, shape=(5,)))
    assert weights.which(made(20, shape=(5,))) == ""
    assert weights.pictures(made(weight=None)) == []  # of a net they say nothing of the inputs
    [picture] = weights.pictures(made(weight=torch.zeros(3, 20)))
    style.drawn(picture.figure, "svg")


def test_mistakes_are_the_most_confident_and_have_their_pictures() -> None:
    findings = made(3, n=150)
    p = findings.test.logits.double().softmax(1)
    wrong = [i for i in range(150) if p[i].argmax() != findings.test.y[i]]
    wrong.sort(key=lambda i: -float(p[i].max()))
    found = mistakes.most_confident(findings)
    assert [one.row for one in found] == wrong[:20]
    for one in found:
        assert one.true == findings.test.y[one.row]
        assert one.p_predicted == pytest.approx(float(p[one.row, one.predicted]))
        assert one.p_true == pytest.approx(float(p[one.row, one.true]))
        assert one.predicted == p[one.row].argmax()
    [picture] = drawn_mistakes(findings)
    for ax, one in zip(picture.figure.axes, found, strict=True):
        image = np.asarray(ax.images[0].get_array())
        np.testing.assert_array_equal(image, findings.x[one.row].numpy())
        assert ax.get_title() == f"c{one.true}\n→ c{one.predicted}\n{one.p_predicted:.3f}"
    assert f"sample id-{wrong[0]}, " in picture.alt


def test_mistakes_in_colour_are_pictures_in_colour() -> None:
    findings = made(3, n=60, shape=(3, 4, 4))
    [picture] = drawn_mistakes(findings)
    [first, *_] = mistakes.most_confident(findings)
    image = np.asarray(picture.figure.axes[0].images[0].get_array())
    low, high = findings.x.min(), findings.x.max()
    expected = (findings.x[first.row].permute(1, 2, 0) - low) / (high - low).double()
    np.testing.assert_allclose(image, expected)


def test_values_of_a_table_that_are_shown_are_those_that_count() -> None:
    assert drawn_mistakes(made(shape=(5,))) == []
    assert mistakes.shown_features(made(shape=(5,))) == [0, 1, 2, 3, 4]
    weight = torch.zeros(3, 30)
    weight[1, 17], weight[2, 4] = 9.0, -5.0
    assert mistakes.shown_features(made(shape=(30,), weight=weight))[:2] == [17, 4]
    assert mistakes.shown_features(made(shape=(30,), weight=None)) == list(range(6))


def test_the_checkpoints_own_calibration_is_used() -> None:
    from softmax_torch.calibration import Calibration

    own = Calibration(torch.tensor(0.5), torch.tensor(0.0))
    findings = made(calibration=own)
    test, words = rescaled.rescaled(findings)
    assert test is not None
    torch.testing.assert_close(test.logits, findings.test.logits.double() / 2)
    assert words == "Calibration by temperature 2.0000, the checkpoint's own."


def test_without_one_a_temperature_is_fitted_to_the_validation_set() -> None:
    findings = made(val=evaluated(2000, 3, 0, scale=4.0))
    test, words = rescaled.rescaled(findings)
    assert test is not None
    torch.testing.assert_close(test.logits, findings.test.logits.double() / 4, rtol=0.1, atol=0.1)
    assert "fitted for this report on the 2000 validation samples" in words


def test_where_there_is_no_temperature_that_is_said() -> None:
    z, _ = evaluated(50, 3, 0)
    test, words = rescaled.rescaled(made(val=Evaluated(z, z.argmax(1))))
    assert test is None
    assert words.startswith("There is no best temperature on the validation set: expected some")


def test_names_that_came_with_data_can_be_drawn() -> None:
    assert style.label("$x$") == r"\$x\$"
    assert style.label("a\x00b\nc") == "a\ufffdb\ufffdc"
    assert style.label("number " * 9 + "17") == "number numbe…r number 17"
    assert style.width(style.label("漢字" * 20)) <= 24
    names = (r"$\frac", "\x00\x1b", "漢字" * 20)
    findings = made(shape=(3,), class_names=names, feature_names=names)
    for picture in (drawn_confusion(findings), *weights.pictures(findings)):
        assert b"\x00" not in style.drawn(picture.figure, "svg")
