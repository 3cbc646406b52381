"""The page about the method: its code runs, its figures are shown, its links lead somewhere."""

from pathlib import Path

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


def test_each_figure_is_shown_and_the_script_that_draws_it_is_named() -> None:
    figures = {path.name for path in PAGE.parent.glob("*.svg")}
    assert len(figures) == 3
    assert all(f"({name})" in PAGE.read_text() for name in figures)
    assert [block.strip() for block in blocks("sh")] == ["python docs/figures.py"]


def test_links_lead_somewhere() -> None:
    targets = [part.split(")")[0] for part in PAGE.read_text().split("](")[1:]]
    assert targets
    assert [t for t in targets if not (PAGE.parent / t).exists()] == []
