"""The diagrams show what the library and torch compute, and are written where there is no file."""

import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from torch import Tensor

from softmax_torch import cli
from softmax_torch.report import cross_entropy, descent, softmax
from softmax_torch.report.diagrams import DIAGRAMS, plot
from softmax_torch.solvers import fit

FULL_BATCH = {"gradient descent": "gradient_descent", "L-BFGS": "lbfgs", "Newton": "newton"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def problem() -> descent.Problem:
    return descent.Problem.made()


@pytest.fixture(scope="module")
def descended() -> list[Axes]:
    return descent.draw().axes


def line(ax: Axes, label: str) -> tuple[Tensor, Tensor]:
    """What is drawn under a label, (n,) and (n,)."""
    [found] = [line for line in ax.lines if str(line.get_label()).startswith(label)]
    x, y = (torch.tensor(list(values), dtype=torch.float64) for values in found.get_data())
    return x, y


def test_bars_are_the_softmax_at_each_temperature() -> None:
    left, _ = softmax.draw().axes
    bars = {c.get_label(): c for c in left.containers if isinstance(c, BarContainer)}
    assert set(bars) == {"$T = 0.5$", "$T = 1$", "$T = 4$"}
    for label, container in bars.items():
        T = float(str(label).strip("$").removeprefix("T = "))
        drawn = torch.tensor([bar.get_height() for bar in container], dtype=torch.float64)
        torch.testing.assert_close(drawn, (softmax.Z / T).softmax(0))
    names = [text.get_text() for text in left.get_xticklabels()]
    assert names == ["$z_0 = 3$", "$z_1 = 2$", "$z_2 = 1$", "$z_3 = 0$", "$z_4 = -1$"]


def test_curves_are_the_softmax_of_what_their_labels_say() -> None:
    _, right = softmax.draw().axes
    moving, p_0 = line(right, "$p_0$, of $z_0$")
    others = line(right, "$p_1$, of $z_1 = 1$")[1], line(right, "$p_2$, of $z_2 = -1$")[1]
    z = torch.stack([moving, torch.full_like(moving, 1.0), torch.full_like(moving, -1.0)], 1)
    torch.testing.assert_close(torch.stack([p_0, *others], 1), torch.softmax(z, 1))


def test_loss_of_a_probability_is_minus_its_logarithm() -> None:
    left, _ = cross_entropy.draw().axes
    p_y, nll = (torch.tensor(list(values)) for values in left.lines[0].get_data())
    assert 0 < p_y.min() < 0.01
    assert 0.99 < p_y.max() < 1
    torch.testing.assert_close(nll, -p_y.log(), rtol=1e-9, atol=1e-12)
    marked = torch.tensor(left.lines[1].get_xydata().tolist(), dtype=torch.float64)
    torch.testing.assert_close(marked[:, 1], -marked[:, 0].log(), rtol=1e-9, atol=1e-12)


def test_loss_and_gradient_of_a_margin_are_those_of_autograd() -> None:
    _, right = cross_entropy.draw().axes
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


def test_contours_are_of_the_objective_as_torch_has_it(problem: descent.Problem) -> None:
    w = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-1.0, 3.0]], dtype=torch.float64)
    for w_i, value in zip(w, problem.values(w), strict=True):
        W = torch.stack([-w_i, w_i])
        expected = F.cross_entropy(problem.X @ W.T, problem.y)
        expected = expected + W.square().sum() / (2 * descent.C * len(problem.y))
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("label", FULL_BATCH)
def test_a_full_batch_path_goes_down_to_the_optimum(
    label: str, problem: descent.Problem, descended: list[Axes]
) -> None:
    path = torch.stack(line(descended[0], label), 1)
    assert path[0].tolist() == list(descent.START)
    F_path = problem.values(path)
    assert len(path) >= 4
    assert (F_path.diff() < 1e-12).all()
    optimum = fit(problem.X, problem.y, C=descent.C, fit_intercept=False, tol=1e-12)
    torch.testing.assert_close(path[-1], optimum.weight[1], atol=1e-3, rtol=0)
    assert F_path[-1] <= optimum.objective * (1 + descent.TOL)
    above = line(descended[1], label)[1]
    seen = ~above.isnan()
    torch.testing.assert_close(
        above[seen], (F_path - optimum.objective)[seen], atol=1e-12, rtol=1e-3
    )


@pytest.mark.parametrize("label", FULL_BATCH)
def test_a_path_is_drawn_under_the_name_of_its_solver(
    label: str, problem: descent.Problem, descended: list[Axes]
) -> None:
    path = problem.full_batch(FULL_BATCH[label])
    torch.testing.assert_close(torch.stack(line(descended[0], label), 1), path)


def test_steps_of_gradient_descent_follow_the_gradient(descended: list[Axes]) -> None:
    problem = descent.Problem.made()
    path = torch.stack(line(descended[0], "gradient descent"), 1)
    for here, there in itertools.pairwise(path[:11]):
        w = here.clone().requires_grad_()
        W = torch.stack([-w, w])
        value = F.cross_entropy(problem.X @ W.T, problem.y)
        value = value + W.square().sum() / (2 * descent.C * len(problem.y))
        [g] = torch.autograd.grad(value, w)
        cosine = F.cosine_similarity(here - there, g, dim=0)
        assert cosine > 1 - 1e-9


def test_sgd_goes_its_own_way_and_is_not_at_rest(
    problem: descent.Problem, descended: list[Axes]
) -> None:
    path = torch.stack(line(descended[0], "mini-batch SGD"), 1)
    assert len(path) == 1 + descent.EPOCHS * len(problem.y) // descent.BATCH
    values = problem.values(path)
    assert values[-1] < 0.2 * values[0]
    assert (values.diff() > 0).any()  # some steps go up, as no full-batch step does
    gradient_descent = problem.full_batch("gradient_descent")
    n = min(len(path), len(gradient_descent))
    assert (path[1:n] - gradient_descent[1:n]).norm(dim=1).min() > 1e-3
    # All of it by hand, in torch's terms.
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(problem.y), generator=generator) for _ in range(descent.EPOCHS)]
    w = path[0].clone()
    for rows in torch.cat(orders).view(-1, descent.BATCH):
        w.requires_grad_()
        W = torch.stack([-w, w])
        loss = F.cross_entropy(problem.X[rows] @ W.T, problem.y[rows])
        loss = loss + W.square().sum() / (2 * descent.C * len(problem.y))
        [g] = torch.autograd.grad(loss, w)
        # w stands in both rows of W, each of which takes the step of its own gradient g / 2
        w = (w - descent.RATE * g / 2).detach()
    torch.testing.assert_close(path[-1], w)


@pytest.mark.parametrize("name", DIAGRAMS)
def test_labels_are_there(name: str) -> None:
    for ax in DIAGRAMS[name]().axes:
        assert ax.get_title(loc="left")
        assert ax.get_ylabel() or len(ax.get_legend_handles_labels()[1]) == 2
        assert ax.get_xlabel() or ax.get_xticklabels()[0].get_text()


def test_png_is_a_picture(tmp_path: Path) -> None:
    import matplotlib.image

    path = plot("softmax", tmp_path / "a.PNG")
    pixels = matplotlib.image.imread(path, format="png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert pixels.shape[:2] == (510, 1200)
    assert pixels[..., :3].std() > 0.05


def test_svg_is_xml_and_the_same_each_time(tmp_path: Path) -> None:
    first, second = plot("softmax", tmp_path / "a.svg"), plot("softmax", tmp_path / "b.svg")
    root = ET.fromstring(first.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(root.findall(".//{http://www.w3.org/2000/svg}path")) > 30
    assert first.read_bytes() == second.read_bytes()


def test_no_figure_is_left_in_pyplot(tmp_path: Path) -> None:
    from matplotlib import pyplot

    plot("softmax", tmp_path / "a.png")
    assert pyplot.get_fignums() == []


def test_a_file_of_the_name_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.svg"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"expected a new name, got .*mine\.svg"):
        plot("softmax", path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["a.pdf", "a", "svg"])
def test_another_suffix_is_refused_with_those_that_are_not(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"ends in \.png or \.svg, got .*{name}"):
        plot("softmax", tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected an existing folder, got .*nowhere"):
        plot("softmax", tmp_path / "nowhere" / "a.svg")


def test_command_writes_under_the_name_of_the_diagram_then_numbered(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["plot", "cross-entropy"])
    cli.main(["plot", "cross-entropy"])
    first, second = here / "cross-entropy.svg", here / "cross-entropy_1.svg"
    assert sorted(here.iterdir()) == sorted([first, second])
    assert capsys.readouterr().out.split() == ["diagram", first.name, "diagram", second.name]


def test_command_writes_where_it_is_told(here: Path) -> None:
    cli.main(["plot", "softmax", "--output", "x.png"])
    assert [path.name for path in here.iterdir()] == ["x.png"]


def test_command_names_the_diagrams_there_are(here: Path) -> None:
    with pytest.raises(ValueError, match="expected softmax, cross-entropy, gradient-descent; got"):
        cli.main(["plot", "sigmoid"])
    with pytest.raises(SystemExit):
        cli.main(["plot"])
    assert list(here.iterdir()) == []
