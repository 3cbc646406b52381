"""The report as one HTML page.

The page is one file: its style is inline, and its figures are SVG in data: URIs, each a document of
its own, so that no two of them share an id. It has no script, and its content security policy lets
a browser run none and fetch nothing. jinja2 escapes every name that comes from the data.
"""

from __future__ import annotations

import base64
import math
from typing import NamedTuple

import jinja2
import numpy as np
import numpy.typing as npt

from softmax_torch.report import (
    class_metrics,
    confusion_matrix,
    learning_curves,
    mistakes,
    prediction_sets,
    reliability_diagram,
    weight_plots,
)
from softmax_torch.report.bootstrap import LEVEL, METRICS, RESAMPLES, SEED
from softmax_torch.report.calibrated import CalibratedTest, calibrate_test
from softmax_torch.report.decision_figures import decision_figures
from softmax_torch.report.evaluation import Evaluation
from softmax_torch.report.group_metrics import FEW
from softmax_torch.report.plotting import CaptionedFigure, render
from softmax_torch.report.run_results import MAX_CLASSES, RunResults
from softmax_torch.report.score_intervals import Estimate
from softmax_torch.report.table_inference import coefficient_blocks, p_value

__all__ = ["Page", "compose", "pictures"]

TABLE_PAIRS = 10
"""Most confused pairs in the table."""

LABELS = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "brier": "Brier score",
    "ece": "ECE",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "macro_auc": "macro AUC",
    "macro_ap": "macro AP",
    "top_2_accuracy": "top-2 accuracy",
    "top_5_accuracy": "top-5 accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "auc": "AUC",
    "ap": "AP",
}
"""What the figures are called."""


class Page(NamedTuple):
    """A composed report.

    Attributes:
        html: the page.
        files: the content of each figure by file name.
        test: all figures of the test set.
        sets: the conformal sets of the test set; None without them.
    """

    html: str
    files: dict[str, bytes]
    test: Evaluation
    sets: prediction_sets.PredictionSets | None


class EmbeddedFigure(NamedTuple):
    """A figure inside the page: a data: URI, its texts, and its size in CSS pixels."""

    src: str
    alt: str
    caption: str
    width: int
    height: int


class Reliability(NamedTuple):
    """The test set with some probabilities: title and name of their reliability diagram."""

    title: str
    name: str
    of: Evaluation


def compose(results: RunResults) -> Page:
    """Compute the metrics, draw the figures and fill in the page."""
    calibrated = calibrate_test(results)
    reliability = _evaluations(results, calibrated)
    test, val = reliability[0].of, Evaluation(results.val, results.class_names)
    counts = class_metrics.confusion_counts(results)
    confident = mistakes.most_confident(results)
    sets = prediction_sets.evaluate_sets(results)
    sections = _draw(results, reliability, counts, confident, sets)
    files = {
        f"{figure.name}.{kind}": render(figure.figure, kind)
        for figures in sections.values()
        for figure in figures
        for kind in ("svg", "png")
    }
    rows, groups = test.classes, test.groups
    # Classes without samples have no F1 and come last.
    by_f1 = sorted(rows, key=lambda row: (math.isnan(row.f1.value), row.f1.value))
    html = _template().render(
        results=results,
        val=val.metrics | {name: one.value for name, one in val.class_means.items()},
        test=test.figures,
        wrong=int((test.scores.correct == 0).sum()),
        figures={
            name: [_embed(figure, files[f"{figure.name}.svg"]) for figure in figures]
            for name, figures in sections.items()
        },
        rows=rows if len(rows) <= MAX_CLASSES else by_f1[:MAX_CLASSES],
        macro=class_metrics.macro_average(rows),
        groups=groups,
        shown_groups=[] if groups is None else groups.groups[:MAX_CLASSES],
        FEW=FEW,
        decisions=_decisions(results),
        pairs=class_metrics.most_confused(counts, TABLE_PAIRS),
        METRICS=METRICS,
        calibration_rows=[(row.title, row.of.metrics) for row in reliability],
        calibration=calibrated.description,
        coefficient_blocks=(
            [] if results.coefficients is None else coefficient_blocks(results.coefficients)
        ),
        sets=sets,
        drawn_classes_note=weight_plots.drawn_classes_note(results),
        mistakes=confident,
        zip=zip,
        shown=mistakes.shown_values(results, confident),
        LEVEL=LEVEL,
        RESAMPLES=RESAMPLES,
        SEED=SEED,
    )
    return Page(html, files, test, sets)


def pictures(results: RunResults) -> dict[str, bytes]:
    """Draw the figures of the page alone; return them as PNG files by name, without the suffix."""
    counts, confident = class_metrics.confusion_counts(results), mistakes.most_confident(results)
    reliability = _evaluations(results, calibrate_test(results))
    sets = prediction_sets.evaluate_sets(results)
    sections = _draw(results, reliability, counts, confident, sets)
    return {
        figure.name: render(figure.figure, "png")
        for figures in sections.values()
        for figure in figures
    }


def _evaluations(results: RunResults, calibrated: CalibratedTest) -> list[Reliability]:
    """Return the test set as the model predicts it, then calibrated and so on."""
    names = results.class_names
    plain = Evaluation(results.test, names, results.groups)
    found = [Reliability("Without calibration", "reliability", plain)]
    if calibrated.test is not None:
        of = Evaluation(calibrated.test, names)
        found.append(Reliability("Calibrated", "reliability-calibrated", of))
    if results.laplace is not None:
        of = Evaluation(results.laplace, names)
        found.append(Reliability("Laplace approximation", "reliability-laplace", of))
    return found


def _draw(
    results: RunResults,
    reliability: list[Reliability],
    counts: npt.NDArray[np.int64],
    confident: list[mistakes.Mistake],
    sets: prediction_sets.PredictionSets | None,
) -> dict[str, list[CaptionedFigure]]:
    """Draw the figures of each section."""
    return {
        "learning": learning_curves.draw(results),
        "confusion": [confusion_matrix.draw(results, counts)],
        "reliability": [
            reliability_diagram.draw(of.scores, name, title, of.metrics["ece"])
            for title, name, of in reliability
        ],
        "sets": prediction_sets.draw(sets),
        "weights": weight_plots.draw(results),
        "mistakes": mistakes.draw(results, confident),
    }


def _decisions(results: RunResults) -> dict[float, dict[str, Estimate]]:
    """Return the test figures at 1/2 and at the threshold of the checkpoint; empty without one."""
    rule = results.threshold
    if rule is None:
        return {}
    logits, y = results.test
    return {t: decision_figures(rule._replace(value=t)(logits), y) for t in (0.5, rule.value)}


def _embed(figure: CaptionedFigure, svg: bytes) -> EmbeddedFigure:
    src = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    width, height = (round(96 * inches) for inches in figure.figure.get_size_inches())
    return EmbeddedFigure(src, figure.alt, figure.caption, width, height)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["label"] = LABELS.__getitem__
    environment.filters["number"] = _number
    environment.filters["p_value"] = p_value
    return environment.get_template("page.html")


def _number(value: float, digits: int = 4) -> str:
    """Format a number for a table; NaN as a dash."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
