"""What the model looks for: the weight vector of each class.

    z_c = w_c . x + b_c

Softmax sees differences of logits alone, so that what all classes have in common changes no
probability: it is taken away, and the vectors drawn sum to 0. Of images each vector is an image, on
one scale for all classes with 0 in its middle; of tables it is the features with the largest
weights, each for a change of one standard deviation, so that features can be compared whatever
their units are. With two classes the vectors are each other's negatives, and the second is drawn.
"""

from __future__ import annotations

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from softmax_torch.report.findings import MANY, Findings
from softmax_torch.report.picture import Picture
from softmax_torch.report.style import BLUE, VERMILION, label, panels, tiles

__all__ = ["contrasts", "drawn_classes", "per_deviation", "pictures", "strongest", "which"]

FEATURES = 12
"""Bars of a class."""

BARS = 20
"""Classes that have a chart of bars, each a picture by itself."""

COLUMNS = 5
"""Images side by side."""

CLIPPED = 0.995
"""Share of the weights that the colours reach to; without the few pixels that are almost never
inked, whose weights are the largest, the others would be pale."""


def contrasts(weight: Tensor) -> Tensor:
    """Weights (C, D) without what the classes share."""
    return weight.double() - weight.double().mean(0)


def per_deviation(findings: Findings) -> Tensor:
    """Contrasts (C, D) for a change of each feature by its standard deviation in the test set."""
    assert findings.weight is not None
    x = findings.x.flatten(1).double() * findings.scale
    return contrasts(findings.weight) * x.std(0, correction=0)


def drawn_classes(findings: Findings) -> list[int]:
    """Those whose weights are drawn: all, or the first of many; of two classes the second."""
    C = len(findings.class_names)
    most = MANY if findings.image_shape is not None else BARS
    return [1] if C == 2 else list(range(min(C, most)))


def which(findings: Findings) -> str:
    """A sentence on the classes whose weights are drawn, where these are not all."""
    C, drawn = len(findings.class_names), len(drawn_classes(findings))
    if C == 2:
        return "Of two classes one has the other's weights negated; the second is drawn."
    return f"The first {drawn} of {C} classes are drawn." if drawn < C else ""


def strongest(w: Tensor) -> list[int]:
    """The features of the largest weights of a class (D,), largest first."""
    return w.abs().argsort(descending=True, stable=True)[:FEATURES].tolist()


def pictures(findings: Findings) -> list[Picture]:
    """One picture of all classes, or one of each; none where weights say nothing of the inputs."""
    if findings.weight is None:
        return []
    classes, shape = drawn_classes(findings), findings.image_shape
    if shape is not None:
        return [_images(findings, contrasts(findings.weight), classes, shape)]
    w = per_deviation(findings)
    return [_bars(findings, w[c], c) for c in classes]


def _images(findings: Findings, w: Tensor, classes: list[int], shape: tuple[int, ...]) -> Picture:
    sizes = w[classes].abs().numpy()
    most = float(np.quantile(sizes[sizes > 0], CLIPPED)) if sizes.any() else 1.0
    few = len(classes) <= 4 * COLUMNS
    columns, side, letters = (COLUMNS, 1.25, 12) if few else (2 * COLUMNS, 0.9, 9)
    if len(classes) == 1:
        side, letters = 3.0, 24  # as wide as what is said of the colours
    scale_bar = 0.75 if len(shape) == 2 else 0.0
    figure, axes = tiles(len(classes), columns, side, shape, lines=1, below=scale_bar)
    for ax, c in zip(axes, classes, strict=True):
        image = w[c].view(shape)
        ax.set_title(label(findings.class_names[c], letters), fontsize=9, pad=2)
        if len(shape) == 3:
            colours = (0.5 + image.permute(1, 2, 0) / (2 * most)).clamp(0, 1)
            ax.imshow(colours.numpy(), interpolation="none")
        else:
            ax.imshow(image.numpy(), cmap="RdBu_r", vmin=-most, vmax=most, interpolation="none")
    if len(shape) == 2:
        scale = ScalarMappable(Normalize(-most, most), "RdBu_r")
        height = figure.get_figheight()
        figure.colorbar(
            scale,
            cax=figure.add_axes((0.1, 0.5 / height, 0.8, 0.14 / height)),
            orientation="horizontal",
            extend="both",
            label="weight (red speaks for the class)",
        )
    names = ", ".join(findings.class_names[c] for c in classes)
    meaning = (
        "Red speaks for the class, blue against it"
        if len(shape) == 2
        else "Grey is 0; each colour channel is lighter where it speaks for the class"
    )
    caption = f"The weight of each pixel, by class, on one scale. {meaning}."
    return Picture("weights", figure, f"Weight vectors as images, of the classes {names}.", caption)


def _bars(findings: Findings, w: Tensor, c: int) -> Picture:
    features = strongest(w)
    names = findings.feature_names or tuple(f"feature {d}" for d in range(len(w)))
    values = w[features].tolist()
    name = findings.class_names[c]
    figure, [ax] = panels("", width=4.2, height=1.1 + 0.22 * len(features))
    # The title may be wider than the panel.
    figure.suptitle(label(name, 28), x=0.01, ha="left", fontsize=11)
    colors = [VERMILION if value > 0 else BLUE for value in values]
    ax.barh(range(len(values)), values, color=colors, height=0.7)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(values)), [label(names[d]) for d in features], fontsize=9)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    # A number that depended on the width would change after the layout, and the last be cut off.
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    # The panel may be narrower than these words.
    figure.supxlabel("change of the logit per standard deviation", fontsize=10)
    said = ", ".join(f"{names[d]} {value:+.3g}" for d, value in zip(features, values, strict=True))
    return Picture(
        f"weights-{c}",
        figure,
        f"The features with the largest weights for {name}: {said}.",
        f"What speaks for {name} (right) and against it (left).",
    )
