"""The command ``report``: a page about a run, with the metrics that ``test`` prints."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from softmax_torch import cli
from softmax_torch.cli import commands
from softmax_torch.data import DigitsDataModule, TableDataModule
from softmax_torch.preprocessing import ImagePreprocessing, Standardization
from softmax_torch.report import page
from softmax_torch.report.page import Page
from softmax_torch.report.run_results import RunResults
from softmax_torch.report.trainer import describe, pixel_weight, raw_rows
from softmax_torch.solvers import ConvergenceWarning
from softmax_torch.storage.checkpoints import read_checkpoint
from softmax_torch.training import LitSoftmaxRegression

RUN = "runs/digits/version_0"
FLAGS = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run on digits."""
    folder = tmp_path_factory.mktemp("report")
    cli.main(["fit", *FLAGS, "--trainer.max_epochs", "3", "--runs", str(folder / "runs")])
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as working directory."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[RunResults]:
    """The results that pages are composed of, with empty figures to save time."""
    kept: list[RunResults] = []

    def compose(results: RunResults) -> Page:
        kept.append(results)
        return page.compose(results)

    monkeypatch.setattr(page, "render", lambda figure, kind: b"<svg/>")
    monkeypatch.setattr(commands, "compose", compose)
    return kept


def test_a_report_of_a_run(here: Path, capsys: Any) -> None:
    cli.main(["test", "--ckpt_path", f"{RUN}/best.ckpt"])
    figures = dict(re.findall(r"(\w+) (\d\.\d{4})", capsys.readouterr().out))
    before = {path: path.read_bytes() for path in (here / RUN).iterdir()}
    cli.main(["report", RUN])
    lines = capsys.readouterr().out.splitlines()
    labels = [line[:12].strip() for line in lines]
    assert labels == ["evaluated", "test", "95% from", "to", "report"]
    assert lines[0].endswith(f"{RUN}/best.ckpt on 359 samples, 10 classes")
    assert f"{RUN}/report/index.html" in lines[-1]
    numbers = [dict(re.findall(r"(\w+) (\d\.\d{4})", line)) for line in lines[1:4]]
    assert numbers[0].items() >= figures.items() > set()
    for name, value in numbers[0].items():
        assert numbers[1][name] <= value <= numbers[2][name]
    html = (here / RUN / "report" / "index.html").read_text(encoding="utf-8")
    for value in numbers[0].values():
        assert value in html
    for words in ("<h1>digits, version_0</h1>", "1294 train, 144 val, 359 test", "DigitsData"):
        assert words in html
    drawn = {path.name for path in (here / RUN / "report" / "figures").iterdir()}
    assert {"weights.svg", "weights.png", "mistakes.svg", "learning-nll.png"} <= drawn
    assert {path: path.read_bytes() for path in before} == before  # the run is as it was
    assert {path.name for path in (here / RUN).iterdir()} - {"report"} == {p.name for p in before}


def test_results_are_those_of_the_run(here: Path, composed: list[RunResults]) -> None:
    cli.main(["report", RUN, *FLAGS])
    [results] = composed
    content = read_checkpoint(here / RUN / "best.ckpt")
    weight = content["state_dict"]["model.linear.weight"]
    assert results.weight is not None
    assert torch.equal(results.weight, weight)
    assert results.step == content["global_step"]
    assert results.class_names == tuple("0123456789")
    assert results.image_shape == (8, 8)
    x = results.x.flatten(1).float() / 16
    logits = x @ weight.T + content["state_dict"]["model.linear.bias"]
    torch.testing.assert_close(results.test.logits, logits)
    assert (results.test.logits.argmax(1) == results.test.y).double().mean() > 0.9
    assert len(results.val.y) == 144
    assert results.ids[:2] == ["0", "1"]
    assert results.config == (here / RUN / "config.yaml").read_text()
    assert {"train/loss", "val/nll"} <= {name for row in results.history for name in row}
    assert dict(results.facts)["seeds"] == "run 0, data 0"


@pytest.mark.slow
def test_another_checkpoint_and_a_second_report(here: Path, composed: list[RunResults]) -> None:
    cli.main(["calibrate", "--ckpt_path", f"{RUN}/last.ckpt"])
    own = read_checkpoint(here / RUN / "last.ckpt")["calibration"]["scale"]
    cli.main(["report", RUN, *FLAGS])
    first = (here / RUN / "report" / "index.html").read_bytes()
    cli.main(["report", RUN, "--ckpt_path", f"{RUN}/last.ckpt", *FLAGS])
    assert [results.calibration is None for results in composed] == [True, False]
    assert composed[1].calibration is not None
    assert composed[1].calibration.scale == own
    assert not torch.equal(
        composed[1].test.logits, composed[1].calibration(composed[1].test.logits)
    )
    html = (here / RUN / "report_1" / "index.html").read_text(encoding="utf-8")
    assert "from the checkpoint." in html
    assert (here / RUN / "report" / "index.html").read_bytes() == first


@pytest.mark.slow
def test_the_last_checkpoint_of_a_solver_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, composed: list[RunResults]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.warns(ConvergenceWarning):
        cli.main(
            ["fit", *FLAGS, "--trainer.max_epochs", "3", "--data.batch_size", "null"]
            + ["--model.optimizer", "null", "--model.lr_scheduler", "null"]
            + ["--model.solver", "lbfgs"]
        )
    cli.main(["report", RUN, *FLAGS])
    assert dict(composed[0].facts)["checkpoint"] == "last.ckpt, after step 3"
    names = {path.stem for path in (tmp_path / RUN / "report" / "figures").iterdir()}
    assert {"learning-objective", "learning-gap", "learning-gradient-norm"} <= names


def test_the_rows_of_a_table_are_those_of_its_file(here: Path) -> None:
    """Row by row, by the column that names them."""
    lines = [f"{k},{k / 8:.3f},{'ab'[k % 2]}" for k in range(60)]
    (here / "a.csv").write_text("\n".join(["key,size,kind", *lines]))
    data = TableDataModule("a.csv", "kind", id_column="key")
    data.setup()
    raw = raw_rows(data)
    assert raw is not None
    assert raw.columns == ("size",)
    texts = zip(data.test_ids, raw.table.column("size").to_pylist(), strict=True)
    assert [f"{key},{float(size):.3f}" for key, size in texts] == [
        lines[int(key)].rpartition(",")[0] for key in data.test_ids
    ]
    assert raw_rows(DigitsDataModule()) is None


def test_preprocessing_is_described_in_one_line() -> None:
    state = {
        "kind": "table",
        "columns": [{"name": "a"}],
        "scale": 1 / 3,
        "size": [8, 9],
        "id": None,
    }
    assert describe(state | {"size": [8, 9], "class_names": ["x"] * 9}) == (
        "table; 1 columns; scale 0.333333; size 8, 9; 9 class_names"
    )


@pytest.mark.parametrize(
    ("args", "kind", "message"),
    [
        ([], ValueError, "report: expected a run or a checkpoint after it, such as runs/"),
        (["--trainer.accelerator", "cpu"], ValueError, "expected a run or a checkpoint after"),
        (["nowhere"], FileNotFoundError, "nowhere: expected a run or a checkpoint"),
        (
            [RUN, "--ckpt_path", "no.ckpt"],
            FileNotFoundError,
            "no.ckpt: expected a checkpoint of a run, got no such file",
        ),
    ],
)
def test_a_missing_run_or_checkpoint_is_refused(
    args: list[str], kind: type[Exception], message: str, here: Path
) -> None:
    with pytest.raises(kind, match=message):
        cli.main(["report", *args])
    assert not (here / RUN / "report").exists()


def test_a_report_that_cannot_be_drawn_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted((here / RUN).iterdir())

    def fail(figure: object, kind: str) -> bytes:
        raise MemoryError

    monkeypatch.setattr(page, "render", fail)
    with pytest.raises(MemoryError):
        cli.main(["report", RUN, *FLAGS])
    assert sorted((here / RUN).iterdir()) == before


def test_help_shows_the_usage(capsys: Any) -> None:
    cli.main(["report", "--help"])
    assert "report RUN [options]" in capsys.readouterr().out


@pytest.mark.slow
def test_weights_of_the_real_digits(
    real_mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of MNIST is small, and ink in the middle counts against a 0."""
    monkeypatch.chdir(tmp_path)
    config = Path(__file__).parents[2] / "configs" / "mnist.yaml"
    cli.main(
        ["fit", "--config", str(config), "--data.root", str(real_mnist_root), *FLAGS]
        + ["--trainer.max_epochs", "1", "--data.batch_size", "1024"]
    )
    cli.main(["report", "runs/mnist/version_0", *FLAGS])
    html = (tmp_path / "runs" / "mnist" / "version_0" / "report" / "index.html").stat().st_size
    assert html < 2_000_000
    state = read_checkpoint(tmp_path / "runs" / "mnist" / "version_0" / "best.ckpt")["state_dict"]
    zero = state["model.linear.weight"].view(10, 28, 28)[0]
    assert zero[11:17, 11:17].mean() < 0 < zero[4:24, 4:24].abs().mean()


def test_weights_of_standardised_images_are_those_of_their_pixels() -> None:
    """With w of the report, the logits of two images differ by w times their pixels' difference."""
    v = torch.rand(20, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 0.2, 0.05]
    ).view(3, 1, 1)
    pixels = (v * 255).to(torch.uint8)
    preprocessing = ImagePreprocessing(
        (4, 5), True, "abc", 1 / 255, Standardization.fit(pixels, 1 / 255)
    )
    model = LitSoftmaxRegression(60, 3)
    w = pixel_weight(model, preprocessing)
    assert w is not None
    z = model.logits(preprocessing.tensor(pixels))
    scaled = pixels.flatten(1) / 255
    torch.testing.assert_close((scaled[0] - scaled[1]) @ w.T, z[0] - z[1], atol=1e-4, rtol=1e-4)
    plain = ImagePreprocessing((4, 5), True, "abc")
    assert torch.equal(pixel_weight(model, plain), model.model.linear.weight)
