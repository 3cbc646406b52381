"""The figures of the docs show what the library and torch compute, and docs/figures.py draws them.

docs/figures.py is a script and no module of the package: it is loaded from its path.
"""

import importlib.util
import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from torch import Tensor

from softmax_torch.report.plotting import render
from softmax_torch.solvers import fit

DOCS = Path(__file__).parents[1] / "docs"
NAMES = ["softmax", "cross-entropy", "gradient-descent"]
FULL_BATCH = {"gradient descent": "gradient_descent", "L-BFGS": "lbfgs", "Newton": "newton"}


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_figures", DOCS / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


figures = load_script()


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, Tensor]:
    return figures.overlapping_clouds()


@pytest.fixture(scope="module")
def gradient_descent() -> list[Axes]:
    return figures.gradient_descent().axes


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the figures as the script draws them now."""
    folder = tmp_path_factory.mktemp("figures")
    figures.main([str(folder)])
    return folder


def line(ax: Axes, label: str) -> tuple[Tensor, Tensor]:
    """Return x and y (n,) of the line whose label starts with ``label``."""
    [found] = [line for line in ax.lines if str(line.get_label()).startswith(label)]
    x, y = (torch.tensor(list(values), dtype=torch.float64) for values in found.get_data())
    return x, y


def objective_by_torch(w: Tensor, X: Tensor, y: Tensor) -> Tensor:
    W = torch.stack([-w, w])
    return F.cross_entropy(X @ W.T, y) + W.square().sum() / (2 * figures.C * len(y))


def test_bars_are_the_softmax_at_each_temperature() -> None:
    left, _ = figures.softmax().axes
    bars = {c.get_label(): c for c in left.containers if isinstance(c, BarContainer)}
    assert set(bars) == {"$T = 0.5$", "$T = 1$", "$T = 4$"}
    for label, container in bars.items():
        T = float(str(label).strip("$").removeprefix("T = "))
        heights = torch.tensor([bar.get_height() for bar in container], dtype=torch.float64)
        torch.testing.assert_close(heights, (figures.LOGITS / T).softmax(0))
    names = [text.get_text() for text in left.get_xticklabels()]
    assert names == ["$z_0 = 3$", "$z_1 = 2$", "$z_2 = 1$", "$z_3 = 0$", "$z_4 = -1$"]


def test_curves_are_the_softmax_of_the_logits_in_their_labels() -> None:
    _, right = figures.softmax().axes
    moving, p_0 = line(right, "$p_0$, of $z_0$")
    others = line(right, "$p_1$, of $z_1 = 1$")[1], line(right, "$p_2$, of $z_2 = -1$")[1]
    z = torch.stack([moving, torch.full_like(moving, 1.0), torch.full_like(moving, -1.0)], 1)
    torch.testing.assert_close(torch.stack([p_0, *others], 1), torch.softmax(z, 1))


def test_loss_of_a_probability_is_minus_its_logarithm() -> None:
    left, _ = figures.cross_entropy().axes
    p_y, nll = (torch.tensor(list(values)) for values in left.lines[0].get_data())
    assert 0 < p_y.min() < 0.01
    assert 0.99 < p_y.max() < 1
    torch.testing.assert_close(nll, -p_y.log(), rtol=1e-9, atol=1e-12)
    marked = torch.tensor(left.lines[1].get_xydata().tolist(), dtype=torch.float64)
    torch.testing.assert_close(marked[:, 1], -marked[:, 0].log(), rtol=1e-9, atol=1e-12)


def test_loss_and_gradient_of_a_margin_are_torchs() -> None:
    _, right = figures.cross_entropy().axes
    margin, nll = line(right, "loss")
    _, slope = line(right, "gradient")
    z = torch.stack([margin, torch.zeros_like(margin)], 1).requires_grad_()
    expected = F.cross_entropy(z, torch.zeros(len(z), dtype=torch.int64), reduction="none")
    expected.sum().backward()
    torch.testing.assert_close(nll, expected.detach())
    assert z.grad is not None
    torch.testing.assert_close(slope, z.grad[:, 0])
    assert slope[margin < -5].max() < -0.99  # confidently wrong
    assert slope[margin > 5].min() > -0.01  # confidently right


def test_contours_are_of_the_objective_as_torch_computes_it(
    samples: tuple[Tensor, Tensor],
) -> None:
    w = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-1.0, 3.0]], dtype=torch.float64)
    expected = torch.stack([objective_by_torch(w_i, *samples) for w_i in w])
    torch.testing.assert_close(figures.objective(*samples, w), expected)


@pytest.mark.parametrize("label", FULL_BATCH)
def test_a_full_batch_path_goes_down_to_the_optimum(
    label: str, samples: tuple[Tensor, Tensor], gradient_descent: list[Axes]
) -> None:
    path = torch.stack(line(gradient_descent[0], label), 1)
    assert path[0].tolist() == list(figures.START)
    F_path = figures.objective(*samples, path)
    assert len(path) >= 4
    assert (F_path.diff() < 1e-12).all()
    optimum = fit(*samples, C=figures.C, fit_intercept=False, tol=1e-12)
    torch.testing.assert_close(path[-1], optimum.weight[1], atol=1e-3, rtol=0)
    assert F_path[-1] <= optimum.objective * (1 + figures.TOL)
    above = line(gradient_descent[1], label)[1]
    visible = ~above.isnan()
    torch.testing.assert_close(
        above[visible], (F_path - optimum.objective)[visible], atol=1e-12, rtol=1e-3
    )


@pytest.mark.parametrize("label", FULL_BATCH)
def test_a_path_is_drawn_under_the_name_of_its_solver(
    label: str, samples: tuple[Tensor, Tensor], gradient_descent: list[Axes]
) -> None:
    path = figures.full_batch_path(*samples, FULL_BATCH[label])
    torch.testing.assert_close(torch.stack(line(gradient_descent[0], label), 1), path)


def test_steps_of_gradient_descent_follow_the_gradient(
    samples: tuple[Tensor, Tensor], gradient_descent: list[Axes]
) -> None:
    path = torch.stack(line(gradient_descent[0], "gradient descent"), 1)
    for before, after in itertools.pairwise(path[:11]):
        w = before.clone().requires_grad_()
        [g] = torch.autograd.grad(objective_by_torch(w, *samples), w)
        assert F.cosine_similarity(before - after, g, dim=0) > 1 - 1e-9


def test_sgd_takes_another_path_and_does_not_settle(
    samples: tuple[Tensor, Tensor], gradient_descent: list[Axes]
) -> None:
    X, y = samples
    path = torch.stack(line(gradient_descent[0], "mini-batch SGD"), 1)
    assert len(path) == 1 + figures.EPOCHS * len(y) // figures.BATCH
    values = figures.objective(X, y, path)
    assert values[-1] < 0.2 * values[0]
    assert (values.diff() > 0).any()  # some steps go up, as no full-batch step does
    full_batch = figures.full_batch_path(X, y, "gradient_descent")
    n = min(len(path), len(full_batch))
    assert (path[1:n] - full_batch[1:n]).norm(dim=1).min() > 1e-3
    # The same path in plain torch.
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(y), generator=generator) for _ in range(figures.EPOCHS)]
    w = path[0].clone()
    for rows in torch.cat(orders).view(-1, figures.BATCH):
        w.requires_grad_()
        W = torch.stack([-w, w])
        loss = F.cross_entropy(X[rows] @ W.T, y[rows])
        loss = loss + W.square().sum() / (2 * figures.C * len(y))
        [g] = torch.autograd.grad(loss, w)
        # w is both rows of W, and each row steps by its own gradient g / 2.
        w = (w - figures.LR * g / 2).detach()
    torch.testing.assert_close(path[-1], w)


@pytest.mark.parametrize("name", NAMES)
def test_panels_have_titles_and_labels(name: str) -> None:
    for ax in figures.FIGURES[name]().axes:
        assert ax.get_title(loc="left")
        assert ax.get_ylabel() or len(ax.get_legend_handles_labels()[1]) == 2
        assert ax.get_xlabel() or ax.get_xticklabels()[0].get_text()


def test_a_png_is_an_image(tmp_path: Path) -> None:
    import matplotlib.image
    from matplotlib import pyplot

    path = tmp_path / "a.png"
    path.write_bytes(render(figures.softmax(), "png"))
    pixels = matplotlib.image.imread(path, format="png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert pixels.shape[:2] == (510, 1200)
    assert pixels[..., :3].std() > 0.05
    assert pyplot.get_fignums() == []  # pyplot keeps no figure


@pytest.mark.slow
def test_the_script_writes_each_figure_and_nothing_else(drawn: Path) -> None:
    assert {path.name for path in drawn.iterdir()} == {f"{name}.svg" for name in NAMES}
    assert list(figures.FIGURES) == NAMES
    assert {path.name for path in DOCS.glob("*.svg")} >= {path.name for path in drawn.iterdir()}
    assert figures.FOLDER == DOCS


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_svg_is_xml_and_the_same_bytes_each_time(name: str, drawn: Path) -> None:
    content = (drawn / f"{name}.svg").read_bytes()
    root = ET.fromstring(content)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(root.findall(".//{http://www.w3.org/2000/svg}path")) > 30
    assert render(figures.FIGURES[name](), "svg") == content


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_figure_is_the_one_that_the_script_draws(name: str, drawn: Path) -> None:
    """To a hundredth of a point: another processor may round a path differently.

    Another version of matplotlib places letters and ticks differently. Then size and texts agree:
    an SVG has its texts as shapes of letters, and in comments.
    """
    committed = (DOCS / f"{name}.svg").read_text()
    now = (drawn / f"{name}.svg").read_text()
    for part in ("<!-- .*? -->", 'viewBox=".*?"'):
        assert re.findall(part, now) == re.findall(part, committed) != []
    if f"Matplotlib v{matplotlib.__version__}," in committed:
        number = r"-?\d+(?:\.\d+)?"
        assert re.split(number, now) == re.split(number, committed)
        values = [torch.tensor([float(x) for x in re.findall(number, s)]) for s in (now, committed)]
        torch.testing.assert_close(*values, atol=0.01, rtol=0)
