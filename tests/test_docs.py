"""The page about the method: its code runs, its commands draw, its pictures can be drawn again."""

import shlex
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from softmax_torch import cli
from softmax_torch.report.diagrams import DIAGRAMS, plot

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "softmax_regression.md"


def blocks(language: str) -> list[str]:
    parts = PAGE.read_text().split(f"```{language}\n")[1:]
    return [part.split("```")[0] for part in parts]


def test_python_blocks_run_in_order() -> None:
    names: dict[str, object] = {}
    assert len(blocks("python")) >= 8
    for block in blocks("python"):
        assert "assert " in block
        exec(compile(block, str(PAGE), "exec"), names)


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    for program, script, *args in lines:
        assert (program, script) == ("python", "train.py")
        cli.main(args)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(DIAGRAMS)


@pytest.mark.parametrize("name", DIAGRAMS)
def test_a_figure_is_drawn_as_it_is_kept(name: str, tmp_path: Path) -> None:
    """Not byte by byte, which fonts and versions of matplotlib decide, but in size."""
    kept, drawn = PAGE.parent / f"{name}.svg", plot(name, tmp_path / f"{name}.svg")
    boxes = [ET.fromstring(path.read_text()).attrib["viewBox"] for path in (kept, drawn)]
    assert boxes[0] == boxes[1]
    assert f"({name}.svg)" in PAGE.read_text()


def test_links_lead_somewhere() -> None:
    targets = [part.split(")")[0] for part in PAGE.read_text().split("](")[1:]]
    assert targets
    assert [t for t in targets if not (PAGE.parent / t).exists()] == []
