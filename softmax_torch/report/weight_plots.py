"""Plots of the weights of each class: which inputs count for it, and which against it.

    z_c = w_c . x + b_c

Softmax depends on differences of logits alone. With three or more classes the mean of all weight
vectors, which changes no probability, is subtracted. With two classes the other's vector is
subtracted: w_1 - w_0 is the change of the log-odds, log(p_1 / p_0), for one more unit of x.

The weights of images are drawn as images, on one scale for all classes with 0 in its middle. For
tables the features with the largest weights are drawn as bars, per standard deviation of the
feature, so that features in different units can be compared. Of two classes the second is drawn,
since its vector is the negative of the first's.
"""

from __future__ import annotations

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from softmax_torch.report.plotting import (
    BLUE,
    VERMILION,
    CaptionedFigure,
    label,
    panels,
    tiles,
)
from softmax_torch.report.run_results import MAX_CLASSES, RunResults

__all__ = [
    "contrasts",
    "draw",
    "drawn_classes",
    "drawn_classes_note",
    "largest_weights",
    "per_deviation",
]

MAX_BARS = 12
"""Bars per class."""

MAX_CHARTS = 20
"""Most bar charts, one per class."""

COLUMNS = 5
"""Images side by side."""

COLOUR_QUANTILE = 0.995
"""Quantile of the absolute weights where the colours end. The few pixels that are almost never
inked have the largest weights; a scale that included them would make all others pale."""


def contrasts(weight: Tensor) -> Tensor:
    """Return weights (C, D), float64, minus their mean, or minus the other one of two classes."""
    w = weight.double()
    return w - w.flip(0) if len(w) == 2 else w - w.mean(0)


def per_deviation(results: RunResults) -> Tensor:
    """Return ``contrasts`` (C, D) times the standard deviation of each feature in the test set.

    They are the change of a logit, or of the log-odds of two classes, when the feature changes by
    one standard deviation.
    """
    assert results.weight is not None
    x = results.x.flatten(1).double() * results.scale
    return contrasts(results.weight) * x.std(0, correction=0)


def drawn_classes(results: RunResults) -> list[int]:
    """Return the classes that are drawn: all, or the first of many; of two classes the second."""
    C = len(results.class_names)
    limit = MAX_CLASSES if results.image_shape is not None else MAX_CHARTS
    return [1] if C == 2 else list(range(min(C, limit)))


def drawn_classes_note(results: RunResults) -> str:
    """Return a sentence on the classes that are drawn; empty if all are."""
    C, drawn = len(results.class_names), len(drawn_classes(results))
    if C == 2:
        return (
            "With two classes a weight is that of the second class minus that of the first: the "
            "change of the log-odds of the second class."
        )
    return f"The first {drawn} of {C} classes are drawn." if drawn < C else ""


def largest_weights(w: Tensor) -> list[int]:
    """Return the features with the largest absolute weights of a class (D,), largest first."""
    return w.abs().argsort(descending=True, stable=True)[:MAX_BARS].tolist()


def draw(results: RunResults) -> list[CaptionedFigure]:
    """Draw images of all classes in one figure, or one bar chart per class.

    Nothing is drawn for a net, whose last weights say nothing about the inputs.
    """
    if results.weight is None:
        return []
    classes, shape = drawn_classes(results), results.image_shape
    if shape is not None:
        return [_images(results, contrasts(results.weight), classes, shape)]
    w = per_deviation(results)
    return [_bars(results, w[c], c) for c in classes]


def _images(
    results: RunResults, w: Tensor, classes: list[int], shape: tuple[int, ...]
) -> CaptionedFigure:
    sizes = w[classes].abs().numpy()
    largest = float(np.quantile(sizes[sizes > 0], COLOUR_QUANTILE)) if sizes.any() else 1.0
    few = len(classes) <= 4 * COLUMNS
    columns, side, letters = (COLUMNS, 1.25, 12) if few else (2 * COLUMNS, 0.9, 9)
    if len(classes) == 1:
        side, letters = 3.0, 24  # as wide as the label of the colours
    scale_bar = 0.75 if len(shape) == 2 else 0.0
    figure, axes = tiles(len(classes), columns, side, shape, lines=1, below=scale_bar)
    for ax, c in zip(axes, classes, strict=True):
        image = w[c].view(shape)
        ax.set_title(label(results.class_names[c], letters), fontsize=9, pad=2)
        if len(shape) == 3:
            colours = (0.5 + image.permute(1, 2, 0) / (2 * largest)).clamp(0, 1)
            ax.imshow(colours.numpy(), interpolation="none")
        else:
            ax.imshow(
                image.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="none"
            )
    if len(shape) == 2:
        scale = ScalarMappable(Normalize(-largest, largest), "RdBu_r")
        height = figure.get_figheight()
        figure.colorbar(
            scale,
            cax=figure.add_axes((0.1, 0.5 / height, 0.8, 0.14 / height)),
            orientation="horizontal",
            extend="both",
            label="weight (red: for the class)",
        )
    names = ", ".join(results.class_names[c] for c in classes)
    meaning = (
        "Red counts for the class, blue against it"
        if len(shape) == 2
        else "Grey is 0; a colour channel is lighter where it counts for the class"
    )
    caption = f"The weight of each pixel, by class, on one scale. {meaning}."
    alt = f"Weights as images, of the classes {names}."
    return CaptionedFigure("weights", figure, alt, caption)


def _bars(results: RunResults, w: Tensor, c: int) -> CaptionedFigure:
    features = largest_weights(w)
    names = results.feature_names or tuple(f"feature {d}" for d in range(len(w)))
    values = w[features].tolist()
    name = results.class_names[c]
    figure, [ax] = panels("", width=4.2, height=1.1 + 0.22 * len(features))
    # The title may be wider than the panel.
    figure.suptitle(label(name, 28), x=0.01, ha="left", fontsize=11)
    colors = [VERMILION if value > 0 else BLUE for value in values]
    ax.barh(range(len(values)), values, color=colors, height=0.7)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(values)), [label(names[d]) for d in features], fontsize=9)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    # A number of ticks that depends on the width would change after the layout was computed, and
    # the last label would be cut off.
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    # The label may be wider than the panel.
    quantity = "log-odds" if len(results.class_names) == 2 else "logit"
    figure.supxlabel(f"change of the {quantity} per standard deviation", fontsize=10)
    weights = ", ".join(
        f"{names[d]} {value:+.3g}" for d, value in zip(features, values, strict=True)
    )
    return CaptionedFigure(
        f"weights-{c}",
        figure,
        f"The features with the largest weights for {name}: {weights}.",
        f"Features that count for {name} (right) and against it (left).",
    )
