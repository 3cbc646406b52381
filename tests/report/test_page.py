"""The page is complete, well-formed HTML, safe with any names in the data, and fetches nothing."""

import base64
import itertools
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import open_in_browser
from sample_results import make_results, make_set

from softmax_torch.decision_threshold import DecisionThreshold
from softmax_torch.report import page
from softmax_torch.report.decision_figures import decision_figures
from softmax_torch.report.evaluation import Evaluation
from softmax_torch.report.group_metrics import by_group
from softmax_torch.report.output import write_report
from softmax_torch.report.page import Page, compose, pictures
from softmax_torch.report.run_results import EvaluatedSet, Groups, RunResults

VOID = {"meta", "link", "img", "br", "hr"}
HOSTILE = '<script>alert("1")</script>\'"&'
NUMBER = r"(\d\.\d{3}|–)(?:\d\.\d{3} to \d\.\d{3})?"
CLASS_ROW = rf"(c\d+?){NUMBER * 5}\d"
SECTIONS = ["metrics", "learning", "confusion", "classes", "calibration", "weights", "mistakes"]


class Tree(HTMLParser):
    """Tags of a page with their attributes, and its text; asserts that tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def without_figures(monkeypatch: pytest.MonkeyPatch, results: RunResults) -> Tree:
    """Compose a page with empty figures, which saves the time to draw them."""
    with monkeypatch.context() as patch:
        patch.setattr(page, "render", lambda figure, kind: b"<svg/>")
        return Tree(compose(results).html)


@pytest.fixture(scope="module")
def composed() -> Page:
    return compose(make_results(5, shape=(28, 28), name="five classes"))


def svgs(html: str) -> list[bytes]:
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
    return [base64.b64decode(content) for content in found]


def test_everything_is_there(composed: Page) -> None:
    tree = Tree(composed.html)
    names = [name.removesuffix(".svg") for name in composed.files if name.endswith(".svg")]
    assert names == [
        *("learning-objective", "learning-nll", "learning-accuracy", "confusion"),
        *("reliability", "reliability-calibrated", "weights", "mistakes"),
    ]
    assert svgs(composed.html) == [composed.files[f"{name}.svg"] for name in names]
    assert all(composed.files[f"{name}.png"].startswith(b"\x89PNG") for name in names)
    assert [section["id"] for section in tree.all("section")] == [*SECTIONS, "run"]
    for words in ("five classes", "made by hand", "model:\n  C: 1.0\n", "1000 resamples, seed 0"):
        assert words in tree.text
    for one in composed.test.figures.values():
        assert f"{one.value:.4f}{one.low:.4f} to {one.high:.4f}" in tree.text


def test_the_pictures_for_loggers_are_those_of_the_page(
    composed: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "render", lambda figure, kind: kind.encode())
    drawn = pictures(make_results(5, shape=(28, 28), name="five classes"))
    assert {f"{name}.png" for name in drawn} == {n for n in composed.files if n.endswith("png")}
    assert set(drawn.values()) == {b"png"}


def test_headings_pictures_and_links_are_sound(composed: Page) -> None:
    tree = Tree(composed.html)
    levels = [int(tag[1]) for tag, _ in tree.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in tree.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in tree.all("a")} == {f"#{name}" for name in [*SECTIONS, "run"]}
    assert {link["href"].removeprefix("#") for link in tree.all("a")} <= set(ids)
    assert {attributes["aria-labelledby"] for attributes in tree.all("section")} <= set(ids)
    images = tree.all("img")
    assert len(images) == 8
    assert all(len(image["alt"]) > 40 for image in images)
    assert len({image["alt"] for image in images}) == len(images)
    assert all(header["scope"] in ("col", "row") for header in tree.all("th"))
    assert tree.all("html") == [{"lang": "en"}]


def test_the_page_loads_nothing_from_outside(composed: Page) -> None:
    tree = Tree(composed.html)
    assert not tree.all("script")
    for tag, attributes in tree.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "url(" not in composed.html
    assert "@import" not in composed.html
    [policy] = [m for m in tree.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"].startswith("default-src 'none'")
    for svg in svgs(composed.html):
        for element in ET.fromstring(svg).iter():
            assert not element.tag.endswith("script")
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:image/png;base64,"))


def test_the_page_is_small(composed: Page) -> None:
    assert len(composed.html) < 600_000


@pytest.mark.parametrize("shape", [(4, 4), (3,)])
def test_names_in_the_data_are_escaped(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = make_results(
        3,
        n=60,
        shape=shape,
        name=HOSTILE,
        class_names=(HOSTILE, f"</td>{HOSTILE}", "{{ 7 * 7 }}"),
        feature_names=None if len(shape) > 1 else (HOSTILE, "<b>", "c"),
        ids=[f"<i>{HOSTILE}"] * 60,
        facts=((HOSTILE, HOSTILE),),
        config=f"</pre>{HOSTILE}",
    )
    tree = without_figures(monkeypatch, results)
    assert {"script", "i", "b"}.isdisjoint(tag for tag, _ in tree.tags)
    assert tree.text.count(HOSTILE) > 20
    assert "{{ 7 * 7 }}" in tree.text
    assert any(HOSTILE in image["alt"] for image in tree.all("img"))


def test_each_number_is_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = Groups("site", ["north"] * 90 + ["south"] * 110)
    rule = DecisionThreshold(0.25, "c1")
    results = make_results(2, shape=(2,), groups=groups, threshold=rule)
    text = without_figures(monkeypatch, results).text
    val, test = (Evaluation(of, results.class_names).figures for of in (results.val, results.test))
    for name, one in test.items():
        assert f"{page.LABELS[name]}{val[name].value:.4f}{one.value:.4f}{one.low:.4f} to" in text
    y, predicted = results.test.y, results.test.logits.argmax(1)
    assert f"{int((predicted != y).sum())} of 200 predictions are wrong" in text
    p = results.test.logits.double().softmax(1)[:, 1]
    for t in (0.5, 0.25):
        decided = decision_figures((p >= t).long(), results.test.y).values()
        row = "".join(f"{one.value:.3f}{one.low:.3f} to {one.high:.3f}" for one in decided)
        assert f"{t:g}{row}" in text
    gaps = by_group(results.test, groups, results.class_names).gaps
    assert len(gaps) == 5
    for name, gap in gaps.items():
        value, low, high = (f"{x:.3f}" for x in gap.difference[:3])
        assert f"{page.LABELS[name]} is {value}, between {gap.high} and {gap.low}" in text
        chance = ": chance alone may explain it" * (gap.difference.low <= 0)
        assert f"interval {low} to {high}{chance})." in text
    for i, j in itertools.permutations(range(2), 2):
        taken = int(((y == i) & (predicted == j)).sum())
        assert f"c{i}c{j}{taken}{100 * taken / int((y == i).sum()):.1f}%" in text


def test_of_many_classes_those_with_the_lowest_f1_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = without_figures(monkeypatch, make_results(64, n=900, shape=(2, 2)))
    assert "The 60 of 64 classes with the lowest F1." in tree.text
    f1 = [row[3] for row in re.findall(CLASS_ROW, tree.text)]
    assert len(f1) == 60
    assert f1 == sorted(f1)


def test_a_class_without_samples_is_not_among_the_lowest(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = make_set(900, 64, 2)
    z[:, 5], y = -100.0, y.where(y != 5, 6)
    results = make_results(64, n=900, shape=(2, 2), test=EvaluatedSet(z, y), history=[])
    text = without_figures(monkeypatch, results).text
    table = text.partition("The 60 of 64 classes")[2].partition("macro average")[0]
    names = [row[0] for row in re.findall(CLASS_ROW, table)]
    assert len(names) == 60
    assert "c5" not in names
    assert "–" not in table


def test_mistakes_of_a_table_have_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    results = make_results(3, n=30, shape=(2,))
    tree = without_figures(monkeypatch, results)
    wrong = (results.test.logits.argmax(1) != results.test.y).nonzero().flatten().tolist()
    assert wrong
    for row in wrong[:20]:
        first, second = results.x[row].tolist()
        assert f"{first:.4g}{second:.4g}" in tree.text.replace("\n", "")
    assert "column 0column 1" in tree.text


def test_missing_parts_are_explained_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    z, _ = make_set(40, 3, 0)
    y = z.argmax(1)
    results = make_results(
        n=40, val=EvaluatedSet(z, y), test=EvaluatedSet(z, y), weight=None, history=[], shape=(4,)
    )
    tree = without_figures(monkeypatch, results)
    sections = [section["id"] for section in tree.all("section")]
    assert sections == ["metrics", "confusion", "classes", "calibration", "mistakes", "run"]
    assert "All predictions on the test set are correct." in tree.text
    assert "There is no best temperature on the validation set: expected some wrong" in tree.text
    assert "Calibrated by" not in tree.text
    assert {link["href"][1:] for link in tree.all("a")} == set(sections)


def test_before_and_after_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    val, test = make_set(3000, 3, 0, scale=5.0), make_set(500, 3, 1, scale=5.0)
    results = make_results(n=500, val=val, test=test, shape=(2,))
    text = without_figures(monkeypatch, results).text
    rows = {
        label: [float(value) for value in re.findall(r"\d\.\d{4}", line)]
        for label, line in re.findall(r"(Without calibration|Calibrated)((?:\d\.\d{4}){4})", text)
    }
    before, after = rows["Without calibration"], rows["Calibrated"]
    assert after[0] == before[0]
    assert after[1] < before[1] - 0.1
    assert after[3] < before[3] / 2
    ece = Evaluation(test, results.class_names).metrics["ece"]
    assert before[3] == pytest.approx(ece, abs=1e-4)


def test_a_laplace_approximation_is_a_row_and_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    test = make_set(500, 3, 1, scale=5.0)
    averaged = EvaluatedSet((test.logits / 5).log_softmax(1), test.y)
    results = make_results(
        n=500, test=test, shape=(2,), laplace=averaged, posterior="Laplace approximation (full)"
    )
    tree = without_figures(monkeypatch, results)
    text = tree.text
    assert sum(image["alt"].startswith("Laplace approximation: ") for image in tree.all("img")) == 1
    assert "Laplace approximation (full), from the checkpoint: probabilities that take" in text
    expected = Evaluation(averaged, results.class_names).metrics
    found = re.search(r"Laplace approximation((?:\d\.\d{4}){4})", text, re.IGNORECASE)
    assert found is not None
    values = [float(value) for value in re.findall(r"\d\.\d{4}", found[1])]
    assert values == [pytest.approx(value, abs=1e-4) for value in expected.values()]
    assert "Laplace" not in without_figures(monkeypatch, make_results(shape=(2,))).text


def test_one_test_sample_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    without_figures(monkeypatch, make_results(2, n=1, shape=(3,)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "table"])
def test_in_a_browser(kind: str, composed: Page, tmp_path: Path) -> None:
    """Hostile names; nothing is wider than a phone, no console message, no request."""
    if kind == "images":
        composed_page = composed
    else:
        names, columns = (HOSTILE * 5, "W" * 200), ("W" * 50,) * 12
        composed_page = compose(
            make_results(2, n=60, shape=(12,), class_names=names, feature_names=columns, history=[])
        )
    seen = open_in_browser(write_report(composed_page, tmp_path), tmp_path / "profile")
    assert len(seen.pages) == 2
    for one in seen.pages:
        assert one["scroll_width"] <= one["width"]
        assert one["loaded"] == one["images"] == len(composed_page.files) // 2
    assert seen.console == []
    assert seen.requests == []
    assert "google" not in composed_page.html  # which the browser itself may ask


@pytest.mark.slow
def test_the_browser_test_would_notice(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '<!DOCTYPE html><p style="width: 900px">wide</p><img src="http://example.org/x.png">'
        '<img src="/near.png"><script>console.error("wrong")</script>'
    )
    seen = open_in_browser(tmp_path, tmp_path / "profile")
    assert seen.pages[0]["scroll_width"] > 900
    assert seen.pages[0]["loaded"] == 0
    assert '"wrong"' in seen.console[0]
    assert {"http://example.org/x.png", "/near.png"} <= set(seen.requests)


def test_a_report_is_written_whole_under_the_first_free_name(
    composed: Page, tmp_path: Path
) -> None:
    first, second = write_report(composed, tmp_path), write_report(composed, tmp_path)
    assert (first, second) == (tmp_path / "report", tmp_path / "report_1")
    for folder in (first, second):
        assert (folder / "index.html").read_text(encoding="utf-8") == composed.html
        written = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
        assert written == composed.files
    assert {path.name for path in tmp_path.iterdir()} == {"report", "report_1"}


def test_an_empty_folder_is_left_as_it_is(tmp_path: Path) -> None:
    """A rename would replace it."""
    (tmp_path / "report").mkdir()
    page = Page("<p>", {}, Evaluation(make_set(9, 2, 0), ["no", "yes"]), None)
    assert write_report(page, tmp_path) == tmp_path / "report_1"
    assert list((tmp_path / "report").iterdir()) == []


def test_the_name_of_another_report_is_not_reused(
    composed: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes the name after this one has seen that it is free."""
    rename = Path.rename

    def rename_too_late(self: Path, target: Path) -> Path:
        if target.name == "report":
            (target / "figures").mkdir(parents=True)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_too_late)
    assert write_report(composed, tmp_path).name == "report_1"
    assert list((tmp_path / "report" / "figures").iterdir()) == []


def test_nothing_is_left_of_a_report_that_could_not_be_written(
    composed: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: .*report could not be written"):
        write_report(composed, tmp_path)
    assert list(tmp_path.iterdir()) == []
