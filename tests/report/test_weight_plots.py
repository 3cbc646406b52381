"""Plots of weights show the differences between classes, in the units that their labels say."""

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.collections import QuadMesh
from sample_results import make_results

from softmax_torch.report import plotting, weight_plots


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


def test_weights_of_two_classes_are_changes_of_the_log_odds() -> None:
    results = make_results(2, shape=(3,))
    [captioned] = weight_plots.draw(results)
    assert results.weight is not None
    z = results.x.double() * results.scale @ results.weight.T.double()
    log_odds = z[:, 1] - z[:, 0]
    widths = [bar.get_width() for bar in captioned.figure.axes[0].patches]
    shown = [text.get_text() for text in captioned.figure.axes[0].get_yticklabels()]
    x = results.x.double()
    standardised = (x - x.mean(0)) / x.std(0, correction=0)
    order = [int(name.removeprefix("column ")) for name in shown]
    predicted = standardised[:, order] @ torch.tensor(widths, dtype=torch.float64)
    torch.testing.assert_close(predicted, log_odds - log_odds.mean(), atol=1e-5, rtol=1e-5)
    assert captioned.figure.get_supxlabel().startswith("change of the log-odds")


@pytest.mark.parametrize("shape", [(12,), (28, 1)])
@pytest.mark.parametrize("largest", [1.0, 1.392])  # the axis ends beyond a tick, or at one
def test_labels_are_not_cut_off(shape: tuple[int, ...], largest: float) -> None:
    D = math.prod(shape)
    w = torch.linspace(largest, -0.97, D)
    names = tuple(f"measurement {d} (mm)" for d in range(D)) if len(shape) == 1 else None
    x = torch.tensor([-1.0, 1.0]).repeat(100)[:, None].expand(200, D).reshape(200, *shape)
    [captioned] = weight_plots.draw(
        make_results(
            2, shape=shape, x=x, scale=1.0, weight=torch.stack([-w, w]) / 2, feature_names=names
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
    # The weights of the other of two classes are their negatives.
    [captioned] = weight_plots.draw(make_results(2, shape=(5,)))
    assert captioned.name == "weights-1"
    assert len(weight_plots.draw(make_results(22, shape=(2,)))) == weight_plots.MAX_CHARTS == 20
    [captioned] = weight_plots.draw(make_results(70, shape=(2, 2)))
    assert sum(bool(ax.images) for ax in captioned.figure.axes) == 60
    note = weight_plots.drawn_classes_note
    assert note(make_results(70, shape=(2, 2))) == "The first 60 of 70 classes are drawn."
    assert "log-odds of the second class" in note(make_results(2, shape=(5,)))
    assert note(make_results(20, shape=(5,))) == ""
    assert weight_plots.draw(make_results(weight=None)) == []  # a net is between inputs and weights
    [captioned] = weight_plots.draw(make_results(weight=torch.zeros(3, 20)))
    plotting.render(captioned.figure, "svg")
