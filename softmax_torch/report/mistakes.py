"""The most confident mistakes: wrong predictions, ordered by the probability of their class.

They are worth a look one by one: many are mislabelled, or ambiguous to a person too.
"""

from __future__ import annotations

from typing import NamedTuple

from softmax_torch.metrics import correct
from softmax_torch.report.plotting import CaptionedFigure, label, tiles
from softmax_torch.report.run_results import RunResults
from softmax_torch.report.weight_plots import per_deviation

__all__ = ["Mistake", "draw", "most_confident", "shown_features", "shown_values"]

MAX_MISTAKES = 20
"""Most mistakes that are shown."""

COLUMNS = 4
"""Images side by side."""

SHOWN_FEATURES = 6
"""Most features of a sample whose values are shown."""


class Mistake(NamedTuple):
    """A wrong prediction: row in the test set, true and predicted class, their probabilities."""

    row: int
    true: int
    predicted: int
    p_predicted: float
    p_true: float


def most_confident(results: RunResults) -> list[Mistake]:
    """Return the mistakes with the most probable predicted classes."""
    logits, y = results.test
    wrong = (~correct(logits, y)).nonzero().flatten()
    p = logits[wrong].double().softmax(1)
    confidence, predicted = p.max(1)
    mistakes = []
    for i in confidence.argsort(descending=True, stable=True)[:MAX_MISTAKES].tolist():
        row, true = int(wrong[i]), int(y[wrong[i]])
        mistakes.append(
            Mistake(row, true, int(predicted[i]), float(confidence[i]), float(p[i, true]))
        )
    return mistakes


def shown_features(results: RunResults) -> list[int]:
    """Return the features whose values are shown: all, or those with the largest weights."""
    D = results.x[0].numel()
    if results.weight is None or D <= SHOWN_FEATURES:
        return list(range(min(D, SHOWN_FEATURES)))
    largest = per_deviation(results).abs().amax(0)
    return largest.argsort(descending=True, stable=True)[:SHOWN_FEATURES].tolist()


class ShownValues(NamedTuple):
    """Columns of the samples that were mistaken: their names, and for each mistake their texts."""

    names: list[str]
    rows: list[list[str]]


def shown_values(results: RunResults, mistakes: list[Mistake]) -> ShownValues:
    """Return what to show of each mistake, most important first; nothing for images.

    The rows of a table are shown as they are in the file, other samples as the model gets them.
    """
    if results.image_shape is not None:
        return ShownValues([], [[] for _ in mistakes])
    features, at = shown_features(results), [mistake.row for mistake in mistakes]
    if results.raw is not None:
        names = list(dict.fromkeys(results.raw.columns[d] for d in features))
        columns = [results.raw.table.column(name).take(at).to_pylist() for name in names]
        texts = [["" if x is None else str(x) for x in column] for column in columns]
        return ShownValues(names, [list(row) for row in zip(*texts, strict=True)])
    known = results.feature_names
    names = [f"feature {d}" if known is None else known[d] for d in features]
    values = results.x[at].flatten(1)[:, features].tolist()
    return ShownValues(names, [[f"{x:.4g}" for x in row] for row in values])


def draw(results: RunResults, mistakes: list[Mistake]) -> list[CaptionedFigure]:
    """Draw the images of all mistakes in one figure; nothing where samples are not images."""
    if results.image_shape is None or not mistakes:
        return []
    figure, axes = tiles(len(mistakes), COLUMNS, 1.15, results.image_shape, lines=3)
    low, high = (float(bound) for bound in results.x.aminmax())
    names = [label(name, 12) for name in results.class_names]
    for ax, mistake in zip(axes, mistakes, strict=True):
        image = results.x[mistake.row].reshape(results.image_shape).double()
        if image.dim() == 3:
            scaled = (image.permute(1, 2, 0) - low) / max(high - low, 1e-12)
            ax.imshow(scaled.numpy(), interpolation="none")
        else:
            ax.imshow(image.numpy(), cmap="gray_r", vmin=low, vmax=high, interpolation="none")
        title = f"{names[mistake.true]}\n→ {names[mistake.predicted]}\n{mistake.p_predicted:.3f}"
        ax.set_title(title, fontsize=9, pad=2)
    description = "; ".join(
        f"sample {results.ids[mistake.row]}, {results.class_names[mistake.true]}, predicted as "
        f"{results.class_names[mistake.predicted]} with probability {mistake.p_predicted:.3f}"
        for mistake in mistakes
    )
    return [
        CaptionedFigure(
            "mistakes",
            figure,
            f"The most confident mistakes on the test set: {description}.",
            "True class → predicted class, and its probability.",
        )
    ]
