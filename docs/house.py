"""Draw which room of the package imports which: docs/house.svg, and the table in CONTRIBUTING.md.

    python docs/house.py

A room is a module or sub-package of softmax_torch. The rooms and their imports are ``EDGES`` in
tests/test_imports.py, which a test compares with the code. A room stands above all rooms that it
imports. To keep the picture legible, an edge is left out where a longer way leads to the same room;
the table has every edge. The same edges give the same bytes.
"""

import ast
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "house.svg"
PAGE = ROOT / "CONTRIBUTING.md"
START, END = "<!-- written by docs/house.py -->\n", "<!-- end of what docs/house.py writes -->\n"

WIDTH, HEIGHT = 124, 28  # a box, in pixels
ACROSS, DOWN = 20, 34  # the gaps between boxes and between rows
MARGIN = 16
SWEEPS = 20

Edges = dict[str, list[str]]


def edges() -> Edges:
    """Return EDGES of tests/test_imports.py, without importing that file."""
    for node in ast.parse((ROOT / "tests" / "test_imports.py").read_text()).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "EDGES":
            found: Edges = ast.literal_eval(ast.unparse(node.value or node))
            return found
    raise ValueError("tests/test_imports.py: expected EDGES, got none")


def levels(edges: Edges) -> dict[str, int]:
    """Return the row of each room, 0 the lowest: above its imports, close to its importers."""
    found: dict[str, int] = {}
    order = list(
        TopologicalSorter({room: sorted(edges[room]) for room in sorted(edges)}).static_order()
    )
    for room in order:
        found[room] = max((found[other] + 1 for other in edges[room]), default=0)
    for room in reversed(order):
        above = [found[other] for other in edges if room in edges[other]]
        found[room] = min(above, default=found[room] + 1) - 1
    return found


def direct(edges: Edges) -> Edges:
    """Return the edges that no longer way replaces (the transitive reduction)."""
    reached: dict[str, set[str]] = {}
    for room in sorted(edges, key=levels(edges).__getitem__):
        reached[room] = set(edges[room]).union(*(reached[other] for other in edges[room]))
    return {
        room: sorted(o for o in edges[room] if not any(o in reached[via] for via in edges[room]))
        for room in sorted(edges)
    }


def routes(edges: Edges) -> list[list[str]]:
    """Return each edge as the places it goes through, from the upper room down to the lower.

    A place is a room, or in a row that the line only passes "upper>lower@row".
    """
    level = levels(edges)
    return [
        [room, *(f"{room}>{o}@{row}" for row in range(level[room] - 1, level[o], -1)), o]
        for room, others in direct(edges).items()
        for o in others
    ]


def places(edges: Edges) -> dict[str, tuple[float, float]]:
    """Return the centre (x, y) of every place.

    The order in a row follows the mean position of the neighbours in the row before, in sweeps down
    and up, which keeps lines short and crossings few.
    """
    rows: dict[int, list[str]] = {}
    for room, level in levels(edges).items():
        rows.setdefault(level, []).append(room)
    neighbours: dict[str, list[str]] = {}
    for route in routes(edges):
        for place in route[1:-1]:
            rows[int(place.rpartition("@")[2])].append(place)
        for upper, lower in pairwise(route):
            neighbours.setdefault(upper, []).append(lower)
            neighbours.setdefault(lower, []).append(upper)

    def spread(row: list[str]) -> dict[str, float]:
        """Return x for each place of a row: boxes are wide, lines narrow, the middle is 0."""
        x, found = 0.0, {}
        for place in row:
            width = (ACROSS if "@" in place else WIDTH + ACROSS) / 2
            found[place] = x + width
            x += 2 * width
        return {place: at - x / 2 for place, at in found.items()}

    x = {place: at for level in sorted(rows) for place, at in spread(rows[level]).items()}
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for level in sorted(rows, reverse=down):
            side = set(rows.get(level + (1 if down else -1), []))
            mean = {}
            for place in rows[level]:
                near = [x[n] for n in neighbours.get(place, []) if n in side]
                mean[place] = sum(near) / len(near) if near else x[place]
            rows[level].sort(key=lambda place: (round(mean[place], 6), place))
            x.update(spread(rows[level]))
    left = min(at - WIDTH / 2 for at in x.values())
    top = max(rows)
    return {
        place: (
            x[place] - left + MARGIN,
            (top - level) * (HEIGHT + DOWN) + HEIGHT / 2 + MARGIN,
        )
        for level, row in rows.items()
        for place in row
    }


def svg(edges: Edges) -> str:
    """Return the picture: a box a room, and a line down to each room it imports."""
    at = places(edges)
    width = max(x for x, _ in at.values()) + WIDTH / 2 + MARGIN
    height = max(y for _, y in at.values()) + HEIGHT / 2 + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        'font-family="sans-serif" font-size="13" text-anchor="middle">',
        "<title>Which room of softmax_torch imports which</title>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        '<g fill="none" stroke="#8a94a6" stroke-width="1.2">',
    ]
    for route in routes(edges):
        (x, y), *rest = (at[place] for place in route)
        path = f"M{x:.1f} {y + HEIGHT / 2:.1f}"
        for x2, y2 in rest:
            start, end = y + HEIGHT / 2, y2 - HEIGHT / 2
            middle = (start + end) / 2
            path += f"C{x:.1f} {middle:.1f} {x2:.1f} {middle:.1f} {x2:.1f} {end:.1f}"
            x, y = x2, y2
            path += f"V{y2 + HEIGHT / 2:.1f}"  # through the row
        lines.append(f'<path d="{path.rpartition("V")[0]}"/>')
    lines += ["</g>", '<g fill="#eef2fb" stroke="#3f51b5">']
    for room in sorted(edges):
        x, y = at[room]
        lines.append(
            f'<rect x="{x - WIDTH / 2:.1f}" y="{y - HEIGHT / 2:.1f}" '
            f'width="{WIDTH}" height="{HEIGHT}" rx="5"/>'
        )
    lines += ["</g>", '<g fill="#1b2438">']
    lines += [
        f'<text x="{at[room][0]:.1f}" y="{at[room][1] + 4.5:.1f}">{room}</text>'
        for room in sorted(edges)
    ]
    return "\n".join([*lines, "</g>", "</svg>", ""])


def table(edges: Edges) -> str:
    """Return the rooms from the lowest up: name, first line of the docstring, imports."""
    level = levels(edges)
    lines = ["| room | what it holds | imports |", "| --- | --- | --- |"]
    for room in sorted(edges, key=lambda room: (level[room], room)):
        path = ROOT / "softmax_torch" / room
        module = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        link = f"softmax_torch/{room}" + ("/" if path.is_dir() else ".py")
        doc = (ast.get_docstring(ast.parse(module.read_text())) or "").split("\n")[0]
        lines.append(f"| [{room}]({link}) | {doc} | {', '.join(edges[room])} |")
    return "\n".join([*lines, ""])


def page(edges: Edges, text: str) -> str:
    """Return the text of CONTRIBUTING.md with the table put between its two marks."""
    before, rest = text.split(START)
    return before + START + "\n" + table(edges) + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    rooms = edges()
    PICTURE.write_text(svg(rooms))
    PAGE.write_text(page(rooms, PAGE.read_text()))
