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

from softmax_torch.ranking_metrics import rank
from softmax_torch.report import (
    class_metrics,
    confusion_matrix,
    learning_curves,
    mistakes,
    prediction_sets,
    reliability_diagram,
    weight_plots,
)
from softmax_torch.report.bootstrap import (
    LEVEL,
    METRICS,
    RESAMPLES,
    SEED,
    SampleScores,
    score_samples,
    set_metrics,
)
from softmax_torch.report.calibrated import CalibratedTest, calibrate_test
from softmax_torch.report.decision_figures import decision_figures
from softmax_torch.report.evaluation import evaluate
from softmax_torch.report.group_metrics import FEW
from softmax_torch.report.plotting import CaptionedFigure, render
from softmax_torch.report.run_results import MAX_CLASSES, RunResults
from softmax_torch.report.score_intervals import Estimate
from softmax_torch.report.set_figures import LABELS, set_figures

__all__ = ["Page", "compose", "pictures"]

TABLE_PAIRS = 10
"""Most confused pairs in the table."""


class Page(NamedTuple):
    """A composed report.

    Attributes:
        html: the page.
        files: the content of each figure by file name.
        test: the metrics of the test set (see ``report.bootstrap``).
        intervals: their bootstrap intervals.
        table: all figures of the test set as a CSV file (see ``report.evaluation``).
        sets: the conformal sets of the test set; None without them.
    """

    html: str
    files: dict[str, bytes]
    test: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    table: bytes = b""
    sets: prediction_sets.PredictionSets | None = None


class EmbeddedFigure(NamedTuple):
    """A figure inside the page: a data: URI, its texts, and its size in CSS pixels."""

    src: str
    alt: str
    caption: str
    width: int
    height: int


def compose(results: RunResults) -> Page:
    """Compute the metrics, draw the figures and fill in the page."""
    calibrated = calibrate_test(results)
    scored = _scored(results, calibrated)
    test_scores = scored[0][2]
    calibration_rows = [(title, set_metrics(scores)) for title, _, scores in scored]
    evaluation = evaluate(results.test, results.class_names, results.groups, test_scores)
    limits = {name: (one.low, one.high) for name, one in evaluation.figures.items()}
    test, test_intervals = calibration_rows[0][1], {name: limits[name] for name in METRICS}
    counts = class_metrics.confusion_counts(results)
    confident = mistakes.most_confident(results)
    sets = prediction_sets.evaluate_sets(results)
    sections = _draw(results, scored, counts, confident, sets)
    files = {
        f"{figure.name}.{kind}": render(figure.figure, kind)
        for figures in sections.values()
        for figure in figures
        for kind in ("svg", "png")
    }
    rows, groups = evaluation.classes, evaluation.groups
    # Classes without samples have no F1 and come last.
    by_f1 = sorted(rows, key=lambda row: (math.isnan(row.f1.value), row.f1.value))
    html = _template().render(
        results=results,
        val=set_metrics(score_samples(*results.val)),
        test=test,
        intervals=test_intervals,
        figures_of_test=evaluation.figures,
        alike=set_figures(*results.val, rank(*results.val), LEVEL),
        alike_labels=LABELS,
        wrong=int(len(test_scores.correct) - test_scores.correct.sum()),
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
        calibration_rows=calibration_rows,
        calibration=calibrated.description,
        sets=sets,
        drawn_classes_note=weight_plots.drawn_classes_note(results),
        mistakes=confident,
        zip=zip,
        shown=mistakes.shown_values(results, confident),
        LEVEL=LEVEL,
        RESAMPLES=RESAMPLES,
        SEED=SEED,
    )
    return Page(html, files, test, test_intervals, evaluation.csv(), sets)


def pictures(results: RunResults) -> dict[str, bytes]:
    """Draw the figures of the page alone; return them as PNG files by name, without the suffix."""
    counts, confident = class_metrics.confusion_counts(results), mistakes.most_confident(results)
    scored = _scored(results, calibrate_test(results))
    sets = prediction_sets.evaluate_sets(results)
    sections = _draw(results, scored, counts, confident, sets)
    return {
        figure.name: render(figure.figure, "png")
        for figures in sections.values()
        for figure in figures
    }


def _scored(results: RunResults, calibrated: CalibratedTest) -> list[tuple[str, str, SampleScores]]:
    """Return title, name of the figure and scores of the test set, plain and calibrated."""
    scored = [("Without calibration", "reliability", score_samples(*results.test))]
    if calibrated.test is not None:
        scored.append(("Calibrated", "reliability-calibrated", score_samples(*calibrated.test)))
    return scored


def _draw(
    results: RunResults,
    scored: list[tuple[str, str, SampleScores]],
    counts: npt.NDArray[np.int64],
    confident: list[mistakes.Mistake],
    sets: prediction_sets.PredictionSets | None,
) -> dict[str, list[CaptionedFigure]]:
    """Draw the figures of each section."""
    return {
        "learning": learning_curves.draw(results),
        "confusion": [confusion_matrix.draw(results, counts)],
        "reliability": [
            reliability_diagram.draw(scores, name, title, set_metrics(scores)["ece"])
            for title, name, scores in scored
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
    environment.filters["number"] = _number
    return environment.get_template("page.html")


def _number(value: float, digits: int = 4) -> str:
    """Format a number for a table; NaN as a dash."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
