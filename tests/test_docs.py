"""The documentation: its code and commands run, its site builds, and nothing is fetched to read it.

A block that cannot run here has a comment with the reason before it: ``<!-- not run: ... -->``.
"""

import html.parser
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from mnist_files import write_mnist
from pages import blocks
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from softmax_torch import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]
FIGURES = sorted({path.stem for path in DOCS.glob("*.svg")} - {"house"})

INTERNAL = {
    *("__main__", "cli", "lightning_compat", "ops", "readers", "report", "storage", "threads"),
}
"""Rooms that the API reference leaves out."""

QUICK = ["--trainer.limit_train_batches", "3"]
FEWER = {
    "AdamW": QUICK,
    "digits_gradient_descent": ["--trainer.max_epochs", "5"],
    "mnist": QUICK,
    "image_folder": QUICK,
    "linear_probe": ["--data.size", "8", "--model.C", "[0.1, 1.0, 10.0]"],
}
"""Arguments that make a command quick, by an argument that it has."""


def write_images(folder: Path) -> None:
    write_mnist(folder / "data")
    for c, name in enumerate(("cat", "dog")):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (6, 6), 200 * c + i).save(folder / "images" / name / f"{i}.png")
    (folder / "photos").mkdir()
    for i in (1, 2):
        shutil.copy(folder / "images" / "cat" / f"{i}.png", folder / "photos")
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        y = torch.arange(60) % 3
        x = torch.randn(60, 4, generator=generator) + y[:, None]
        save_file({"x": x, "y": y}, str(folder / f"{part}.safetensors"))


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder ``runs`` after the first command of the page Getting started."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", "--trainer.max_epochs", "10"])
    return folder / "runs"


@pytest.fixture
def scene(tmp_path: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the commands of a page find what the page says is there."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_images(tmp_path)
    np.save(tmp_path / "images.npy", load_digits().images[:7].astype(np.uint8))
    monkeypatch.setenv("SOFTMAX_TORCH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_command(command: list[str]) -> None:
    program, script, *args = command
    if program == "torchrun" or script.startswith("examples/"):
        named = next(Path(part).name for part in command if part.startswith("examples/"))
        assert f'"{named}"' in (ROOT / "tests" / "test_examples.py").read_text()
        return
    assert (program, script) == ("python", "train.py")
    cli.main([*args, *(more for key, few in FEWER.items() if key in args for more in few)])


WORKFLOWS = ("tables.md", "inference.md")

FIRST = ("getting_started.md", "README.md")
"""The pages whose first command is the first run; the commands of others need one."""


@pytest.mark.parametrize(
    "page",
    # tests/test_workflow.py runs WORKFLOWS, and looks at what their commands print.
    [
        pytest.param(page, marks=[] if page.name == "README.md" else pytest.mark.slow)
        for page in PAGES
        if page.name not in WORKFLOWS
    ],
    ids=lambda page: page.name,
)
def test_the_code_and_the_commands_of_a_page_run_in_order(
    page: Path, scene: Path, digits_run: Path
) -> None:
    if page.name not in FIRST:
        shutil.copytree(digits_run, scene / "runs")
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.not_run:
            continue
        if block.language == "python":
            exec(compile(block.code, str(page), "exec"), names)
        elif block.language == "sh":
            for command in block.commands():
                run_command(command)
        else:
            assert block.language == "text"
    plt.close("all")
    if page.name == "README.md":
        assert names["probabilities"].shape == (1000, 3)
        assert (names["probabilities"].sum(1) - 1).abs().max() < 1e-5
    if page.name == "softmax_regression.md":
        code = [block.code for block in blocks(page) if block.language == "python"]
        assert len(code) >= 8
        assert all("assert " in block for block in code)


def test_fences_are_all_found() -> None:
    for page in PAGES:
        assert page.read_text().count("```") == 2 * len(blocks(page)), page


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [part.split(")")[0] for part in page.read_text().split("](")[1:]]
    files = [target.partition("#")[0] for target in targets if not target.startswith("http")]
    assert [file for file in files if file and not (page.parent / file).exists()] == []


def test_every_figure_is_shown() -> None:
    """The pages name each file; test_docs_figures.py compares it with a new drawing."""
    page = (DOCS / "softmax_regression.md").read_text()
    assert len(FIGURES) == 3
    assert all(f"({name}.svg)" in page for name in FIGURES)
    assert "`python docs/figures.py`" in page


class Fetches(html.parser.HTMLParser):
    """The addresses that a browser fetches to show a page, and the classes of its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.classes |= set(given.get("class", "").split())
        if tag == "link" and given.get("rel") not in ("prev", "next", "canonical"):
            self.addresses.append(given["href"])
        self.addresses += [given[name] for name in ("src", "srcset", "data") if name in given]
        self.addresses += re.findall(r"url\(([^)]*)\)", given.get("style", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_nothing_is_fetched_to_read_the_site(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert {page.name for page in pages} >= {f"{page.stem}.html" for page in DOCS.glob("*.md")}
    for page in pages:
        found = Fetches()
        found.feed(page.read_text())
        local = [a.partition("?")[0].partition("#")[0] for a in found.addresses]
        local = [a for a in local if not a.startswith("data:")]
        assert local
        # 404.html has the addresses of a site at the root of its server.
        here = [site / a.lstrip("/") if page.name == "404.html" else page.parent / a for a in local]
        assert [str(path) for path in here if not path.exists()] == []
        # The theme's script would fetch mermaid to draw a diagram.
        assert "mermaid" not in found.classes
    for style in site.rglob("*.css"):
        fetched = re.findall(r"(?:url\(|@import\s*)[\"']?([^\"')]+)", style.read_text())
        assert [a for a in fetched if "//" in a and not a.startswith("data:")] == []


@pytest.mark.slow
def test_the_site_searches_in_pages_opened_as_files(site: Path) -> None:
    """By an index that is a script, and a worker that needs no server."""
    index = (site / "search" / "search_index.js").read_text()
    assert index.startswith("var __index = ")
    assert "linear_cross_entropy" in index
    assert 'src="assets/iframe-worker.js"' in (site / "index.html").read_text()


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site: Path) -> None:
    page = (site / "api.html").read_text()
    anchors = {tuple(name.split(".")) for name in re.findall(r'id="(softmax_torch[\w.]+)"', page)}
    for room in sorted({name[1] for name in anchors}):
        module = import_module(f"softmax_torch.{room}")
        described = {name[-1] for name in anchors if name[1] == room}
        names = {
            n
            for n in getattr(module, "__all__", [])
            if isinstance(getattr(module, n), (type, FunctionType))
        }
        assert names - described == set(), room


def test_every_public_room_is_in_the_reference() -> None:
    """All but those that users do not import."""
    house = SimpleNamespace(**runpy.run_path(str(DOCS / "house.py")))
    described = set(re.findall(r"^::: softmax_torch\.(\w+)", (DOCS / "api.md").read_text(), re.M))
    assert described | INTERNAL == set(house.edges())
    assert not described & INTERNAL
