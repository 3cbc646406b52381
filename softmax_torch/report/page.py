"""The page: what was found, as one HTML file that asks nothing of anyone.

Everything is in it: the style, and the figures as SVG in data: URIs, each with a space of names of
its own, so that no two share an id. There is no script, and a content security policy under which a
browser would run none and fetch nothing. What came with data is escaped by jinja2.
"""

from __future__ import annotations

import base64
import math
from typing import NamedTuple

import jinja2

from softmax_torch.report import classes, confusion, learning, mistakes, reliability, weights
from softmax_torch.report.findings import MANY, Findings
from softmax_torch.report.metrics import LEVEL, RESAMPLES, SEED, figures, intervals, judge
from softmax_torch.report.picture import Picture
from softmax_torch.report.rescaled import rescaled
from softmax_torch.report.style import drawn

__all__ = ["Page", "compose"]

PAIRS = 10
"""Most confused pairs in the table."""


class Page(NamedTuple):
    """A report: its HTML, its figures as files by name, and what the test set came to.

    Attributes:
        scores: the figures of the test set (see ``report.metrics``).
        intervals: of these, at ``metrics.LEVEL``.
    """

    html: str
    files: dict[str, bytes]
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]


class Shown(NamedTuple):
    """A picture as the page has it; its width is that of the figure, in CSS pixels."""

    src: str
    alt: str
    caption: str
    width: int
    height: int


def compose(findings: Findings) -> Page:
    """Judge, draw and write it all down."""
    before, after = judge(*findings.test), rescaled(findings)
    judged = [("As the model says it", "reliability", before)]
    if after.test is not None:
        judged.append(("Calibrated", "reliability-calibrated", judge(*after.test)))
    scores = [(title.lower(), figures(one)) for title, _, one in judged]
    test, ranges = scores[0][1], intervals(before)
    counts = classes.confusion(findings)
    confident = mistakes.most_confident(findings)
    sections = {
        "learning": learning.pictures(findings),
        "confusion": [confusion.picture(findings, counts)],
        "reliability": [
            reliability.picture(one, name, title, score["ece"])
            for (title, name, one), (_, score) in zip(judged, scores, strict=True)
        ],
        "weights": weights.pictures(findings),
        "mistakes": mistakes.pictures(findings, confident),
    }
    files = {
        f"{picture.name}.{kind}": drawn(picture.figure, kind)
        for some in sections.values()
        for picture in some
        for kind in ("svg", "png")
    }
    rows = classes.per_class(findings)
    # Those that have none, of which there are no samples, come last.
    worst = sorted(rows, key=lambda row: (math.isnan(row.f1), row.f1))
    html = _template().render(
        findings=findings,
        val=figures(judge(*findings.val)),
        test=test,
        intervals=ranges,
        wrong=int(len(before.right) - before.right.sum()),
        pictures={
            name: [_shown(one, files[f"{one.name}.svg"]) for one in some]
            for name, some in sections.items()
        },
        rows=rows if len(rows) <= MANY else worst[:MANY],
        macro=classes.macro(rows),
        pairs=classes.most_confused(counts, PAIRS),
        scores=scores,
        calibration=after.words,
        which_weights=weights.which(findings),
        mistakes=confident,
        columns=_columns(findings),
        LEVEL=LEVEL,
        RESAMPLES=RESAMPLES,
        SEED=SEED,
    )
    return Page(html, files, test, ranges)


def _columns(findings: Findings) -> list[tuple[int, str]]:
    """Features of a table whose values are shown with mistakes, and their names; none of images."""
    if findings.image_shape is not None:
        return []
    names = findings.feature_names
    return [
        (d, f"feature {d}" if names is None else names[d])
        for d in mistakes.shown_features(findings)
    ]


def _shown(picture: Picture, svg: bytes) -> Shown:
    src = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    width, height = (round(96 * inches) for inches in picture.figure.get_size_inches())
    return Shown(src, picture.alt, picture.caption, width, height)


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
    """A number for a table; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
