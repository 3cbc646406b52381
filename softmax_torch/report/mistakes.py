"""The most confident mistakes: wrong samples, by the probability of the class they were taken for.

They are worth a look one by one: many are labels that are wrong, or samples that nobody could tell.
"""

from __future__ import annotations

from typing import NamedTuple

from softmax_torch.report.findings import Findings
from softmax_torch.report.picture import Picture
from softmax_torch.report.style import label, tiles
from softmax_torch.report.weights import per_deviation

__all__ = ["Mistake", "most_confident", "pictures", "shown_features"]

MOST = 20
"""Mistakes that are shown."""

COLUMNS = 4
"""Pictures side by side."""

FEATURES = 6
"""Values of a sample that are shown."""


class Mistake(NamedTuple):
    """A sample of the test set, by its row, its true class and the one it was taken for."""

    row: int
    true: int
    predicted: int
    p_predicted: float
    p_true: float


def most_confident(findings: Findings) -> list[Mistake]:
    """Those of which the model was the surest."""
    logits, y = findings.test
    wrong = (logits.argmax(1) != y).nonzero().flatten()
    p = logits[wrong].double().softmax(1)
    confidence, predicted = p.max(1)
    found = []
    for at in confidence.argsort(descending=True, stable=True)[:MOST].tolist():
        row, true = int(wrong[at]), int(y[wrong[at]])
        found.append(
            Mistake(row, true, int(predicted[at]), float(confidence[at]), float(p[at, true]))
        )
    return found


def shown_features(findings: Findings) -> list[int]:
    """The features whose values are shown: all, or those with the largest weight of any class."""
    D = findings.x[0].numel()
    if findings.weight is None or D <= FEATURES:
        return list(range(min(D, FEATURES)))
    largest = per_deviation(findings).abs().amax(0)
    return largest.argsort(descending=True, stable=True)[:FEATURES].tolist()


def pictures(findings: Findings, found: list[Mistake]) -> list[Picture]:
    """One of all of them where samples are pictures."""
    if findings.image_shape is None or not found:
        return []
    figure, axes = tiles(len(found), COLUMNS, 1.15, findings.image_shape, lines=3)
    low, high = (float(bound) for bound in findings.x.aminmax())
    names = [label(name, 12) for name in findings.class_names]
    for ax, one in zip(axes, found, strict=True):
        image = findings.x[one.row].reshape(findings.image_shape).double()
        if image.dim() == 3:
            scaled = (image.permute(1, 2, 0) - low) / max(high - low, 1e-12)
            ax.imshow(scaled.numpy(), interpolation="none")
        else:
            ax.imshow(image.numpy(), cmap="gray_r", vmin=low, vmax=high, interpolation="none")
        ax.set_title(
            f"{names[one.true]}\n→ {names[one.predicted]}\n{one.p_predicted:.3f}", fontsize=9, pad=2
        )
    said = "; ".join(
        f"sample {findings.ids[one.row]}, {findings.class_names[one.true]}, taken for "
        f"{findings.class_names[one.predicted]} with probability {one.p_predicted:.3f}"
        for one in found
    )
    return [
        Picture(
            "mistakes",
            figure,
            f"The most confident mistakes on the test set: {said}.",
            "True class → predicted class, and the probability of that.",
        )
    ]
