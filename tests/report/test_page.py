"""The page: whole, well-formed, harmless whatever its data are called, and alone in the world."""

import base64
import itertools
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import look
from made import evaluated, made

from softmax_torch.report import page
from softmax_torch.report.findings import Evaluated, Findings
from softmax_torch.report.page import Page, compose
from softmax_torch.report.writing import write

VOID = {"meta", "link", "img", "br", "hr"}
HOSTILE = '<script>alert("1")</script>\'"&'
SECTIONS = ["figures", "learning", "confusion", "classes", "calibration", "weights", "mistakes"]


class Tree(HTMLParser):
    """Tags with their attributes, and the text; tags that are not closed in order are an error."""

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


def without_figures(monkeypatch: pytest.MonkeyPatch, findings: Findings) -> Tree:
    """The page with figures that take no time to draw."""
    with monkeypatch.context() as patch:
        patch.setattr(page, "drawn", lambda figure, kind: b"<svg/>")
        return Tree(compose(findings).html)


@pytest.fixture(scope="module")
def composed() -> Page:
    return compose(made(5, shape=(28, 28), name="five classes"))


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
    for name, value in composed.scores.items():
        low, high = composed.intervals[name]
        assert f"{value:.4f}" in tree.text
        assert f"{low:.4f} to {high:.4f}" in tree.text


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


def test_nothing_leaves_the_page(composed: Page) -> None:
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
def test_what_came_with_data_is_escaped(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = made(
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
    tree = without_figures(monkeypatch, findings)
    assert {"script", "i", "b"}.isdisjoint(tag for tag, _ in tree.tags)
    assert tree.text.count(HOSTILE) > 20
    assert "{{ 7 * 7 }}" in tree.text
    assert any(HOSTILE in image["alt"] for image in tree.all("img"))


def test_each_figure_stands_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = made(3, shape=(2,))
    text = without_figures(monkeypatch, findings).text
    names = {"accuracy": "accuracy", "nll": "NLL", "brier": "Brier score", "ece": "ECE"}
    for name, label in names.items():
        val, test = (page.figures(page.judge(*of))[name] for of in (findings.val, findings.test))
        assert f"{label}{val:.4f}{test:.4f}" in text
    y, predicted = findings.test.y, findings.test.logits.argmax(1)
    assert f"{int((predicted != y).sum())} of 200 predictions are wrong" in text
    for i, j in itertools.permutations(range(3), 2):
        taken = int(((y == i) & (predicted == j)).sum())
        assert f"c{i}c{j}{taken}{100 * taken / int((y == i).sum()):.1f}%" in text


def test_many_classes_are_shortened_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = without_figures(monkeypatch, made(64, n=900, shape=(2, 2)))
    assert "The 60 classes of 64 with the lowest F1." in tree.text
    f1 = re.findall(r"c\d+?(?:\d\.\d{3}){2}(\d\.\d{3})\d", tree.text)
    assert len(f1) == 60
    assert f1 == sorted(f1)


def test_a_class_without_samples_is_not_among_the_lowest(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = evaluated(900, 64, 2)
    z[:, 5], y = -100.0, y.where(y != 5, 6)
    findings = made(64, n=900, shape=(2, 2), test=Evaluated(z, y), history=[])
    text = without_figures(monkeypatch, findings).text
    table = text[text.index("The 60 classes of 64") : text.index("macro average")]
    assert "c5" not in re.findall(r"c\d+", re.sub(r"(\d\.\d{3}|–){3}\d+", " ", table))
    assert "–" not in table


def test_mistakes_of_a_table_have_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = made(3, n=30, shape=(2,))
    tree = without_figures(monkeypatch, findings)
    wrong = (findings.test.logits.argmax(1) != findings.test.y).nonzero().flatten().tolist()
    assert wrong
    for row in wrong[:20]:
        first, second = findings.x[row].tolist()
        assert f"{first:.4g}{second:.4g}" in tree.text.replace("\n", "")
    assert "column 0column 1" in tree.text


def test_what_there_is_not_is_said_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    z, _ = evaluated(40, 3, 0)
    y = z.argmax(1)
    findings = made(
        n=40, val=Evaluated(z, y), test=Evaluated(z, y), weight=None, history=[], shape=(4,)
    )
    tree = without_figures(monkeypatch, findings)
    sections = [section["id"] for section in tree.all("section")]
    assert sections == ["figures", "confusion", "classes", "calibration", "mistakes", "run"]
    assert "No sample of the test set is wrong." in tree.text
    assert "There is no best temperature on the validation set: expected some sample" in tree.text
    assert "Calibration by" not in tree.text
    assert {link["href"][1:] for link in tree.all("a")} == set(sections)


def test_before_and_after_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    val, test = evaluated(3000, 3, 0, scale=5.0), evaluated(500, 3, 1, scale=5.0)
    findings = made(n=500, val=val, test=test, shape=(2,))
    text = without_figures(monkeypatch, findings).text
    rows = {
        label: [float(value) for value in re.findall(r"\d\.\d{4}", line)]
        for label, line in re.findall(r"(as the model says it|calibrated)((?:\d\.\d{4}){4})", text)
    }
    before, after = rows["as the model says it"], rows["calibrated"]
    assert after[0] == before[0]
    assert after[1] < before[1] - 0.1
    assert after[3] < before[3] / 2
    assert before[3] == pytest.approx(page.figures(page.judge(*test))["ece"], abs=1e-4)


def test_one_test_sample_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    without_figures(monkeypatch, made(2, n=1, shape=(3,)))


@pytest.mark.parametrize("kind", ["images", "table"])
def test_in_a_browser(kind: str, composed: Page, tmp_path: Path) -> None:
    """Hostile names as they are; nothing wider than a phone, no complaint, no request."""
    if kind == "images":
        made_page = composed
    else:
        names, columns = (HOSTILE * 5, "W" * 200), ("W" * 50,) * 12
        made_page = compose(
            made(2, n=60, shape=(12,), class_names=names, feature_names=columns, history=[])
        )
    seen = look(write(made_page, tmp_path), tmp_path / "profile")
    assert len(seen.pages) == 2
    for one in seen.pages:
        assert one["scroll_width"] <= one["width"]
        assert one["loaded"] == one["images"] == len(made_page.files) // 2
    assert seen.console == []
    assert seen.requests == []


def test_the_browser_would_have_seen_it(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '<!DOCTYPE html><p style="width: 900px">wide</p><img src="http://example.org/x.png">'
        '<img src="/near.png"><script>console.error("wrong")</script>'
    )
    seen = look(tmp_path, tmp_path / "profile")
    assert seen.pages[0]["scroll_width"] > 900
    assert seen.pages[0]["loaded"] == 0
    assert '"wrong"' in seen.console[0]
    assert {"http://example.org/x.png", "/near.png"} <= set(seen.requests)


def test_a_report_is_written_as_a_whole(composed: Page, tmp_path: Path) -> None:
    first, second = write(composed, tmp_path), write(composed, tmp_path)
    assert (first, second) == (tmp_path / "report", tmp_path / "report_1")
    for folder in (first, second):
        assert (folder / "index.html").read_text(encoding="utf-8") == composed.html
        written = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
        assert written == composed.files
    assert {path.name for path in tmp_path.iterdir()} == {"report", "report_1"}


def test_an_empty_folder_is_left_as_it_is(tmp_path: Path) -> None:
    """A rename would put the report in its place."""
    (tmp_path / "report").mkdir()
    assert write(Page("<p>", {}, {}, {}), tmp_path) == tmp_path / "report_1"
    assert list((tmp_path / "report").iterdir()) == []


def test_another_reports_name_is_not_taken(
    composed: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes between the look for a free name and the taking of it."""
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        if target.name == "report":
            (target / "figures").mkdir(parents=True)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert write(composed, tmp_path).name == "report_1"
    assert list((tmp_path / "report" / "figures").iterdir()) == []


def test_nothing_is_left_of_a_report_that_fails(
    composed: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: .*report could not be written"):
        write(composed, tmp_path)
    assert list(tmp_path.iterdir()) == []
