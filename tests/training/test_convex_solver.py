"""A full-batch solver in training: at the optimum, stepped, logged, saved and resumed."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from softmax_torch import cli
from softmax_torch.data import DigitsDataModule
from softmax_torch.solvers import ConvergenceWarning, fit
from softmax_torch.training import LitSoftmaxRegression

CONFIG = Path(__file__).parents[2] / "configs" / "mnist_newton.yaml"


def trainer(root: Path, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(
        default_root_dir=root, accelerator="cpu", **(quiet | {"max_epochs": 300} | options)
    )


def model(**options: Any) -> LitSoftmaxRegression:
    return LitSoftmaxRegression(64, 10, **({"C": 1.0, "solver": "auto"} | options))


def train_set(data: DigitsDataModule) -> tuple[torch.Tensor, torch.Tensor]:
    data.setup()
    x, y = data.splits["train"]
    return x.flatten(1).float() / 16, y


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({}, {}),
        ({"solver": "newton", "bias": False}, {"fit_intercept": False}),
        ({"class_weight": "balanced", "C": 0.1}, {"class_weight": "balanced", "C": 0.1}),
        ({"class_weight": [1.0, 2.0] * 5}, {"class_weight": [1.0, 2.0] * 5}),
    ],
)
def test_ends_at_the_optimum(options: dict[str, Any], same: dict[str, Any], tmp_path: Path) -> None:
    data, lit = DigitsDataModule(batch_size=None), model(**options)
    run = trainer(tmp_path, enable_checkpointing=False)
    run.fit(lit, data)
    best = fit(*train_set(data), **same)
    assert run.current_epoch < 300
    assert run.global_step == run.current_epoch
    torch.testing.assert_close(lit.model.linear.weight.double(), best.weight, atol=1e-3, rtol=1e-3)
    logged = run.callback_metrics
    assert logged["train/loss"].item() == pytest.approx(best.objective, rel=2e-6)
    assert logged["train/gap"] <= 1e-6
    assert "train/accuracy" not in logged
    assert logged["val/accuracy"] > 0.9
    assert lit.certificate is not None
    assert float(lit.certificate.split()[1].rstrip(",")) == pytest.approx(best.objective, rel=2e-6)


def test_an_epoch_is_one_outer_iteration(tmp_path: Path) -> None:
    data, lit = DigitsDataModule(batch_size=None), model()
    with pytest.warns(ConvergenceWarning, match=r"after 3 iterations .* trainer.max_epochs"):
        trainer(tmp_path, enable_checkpointing=False, max_epochs=3).fit(lit, data)
    with pytest.warns(ConvergenceWarning):
        three = fit(*train_set(data), max_iter=3)
    # ``fit`` moves the bias to its optimum at the end
    torch.testing.assert_close(lit.model.linear.weight.detach(), three.weight.float())


@pytest.mark.filterwarnings("ignore:the fit ended after")
@pytest.mark.parametrize("solver", ["lbfgs", "newton", "gradient_descent"])
def test_resuming_gives_the_same_bits(solver: Any, tmp_path: Path) -> None:
    def fitted(epochs: int, ckpt: Path | None = None) -> torch.Tensor:
        lit, data = model(solver=solver), DigitsDataModule(batch_size=None)
        run = trainer(tmp_path, enable_checkpointing=False, max_epochs=epochs)
        run.fit(lit, data, ckpt_path=ckpt, weights_only=True)
        run.save_checkpoint(tmp_path / "some.ckpt")
        return lit.model.linear.weight.detach()

    whole = fitted(7)
    part = fitted(4)
    assert not part.equal(whole)
    assert fitted(7, tmp_path / "some.ckpt").equal(whole)


@pytest.mark.parametrize(
    ("options", "batch_size", "match"),
    [
        ({}, 32, r"batch_size null.*, got \d+ batches"),
        ({"optimizer": torch.optim.SGD}, None, "neither an optimizer nor"),
        ({"label_smoothing": 0.1}, None, "label_smoothing=0, got 0.1"),
        ({"solver": "magic"}, None, "auto, lbfgs, .*got 'magic'"),
        ({"tol": 0.0}, None, "tol: expected a number above 0, got 0.0"),
    ],
)
def test_options_that_exclude_a_solver(
    options: dict[str, Any], batch_size: int | None, match: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=match):
        trainer(tmp_path, enable_checkpointing=False).fit(
            model(**options), DigitsDataModule(batch_size=batch_size)
        )


@pytest.mark.slow
def test_mnist_to_the_optimum(
    real_mnist_root: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """The shipped configuration, to its last figures, and the test of its checkpoint."""
    monkeypatch.chdir(tmp_path)
    cli.main(["fit", "--config", str(CONFIG), "--data.root", str(real_mnist_root)])
    out = capsys.readouterr().out
    assert "optimum     objective 0.2287167" in out
    text = (tmp_path / "runs/mnist_newton/version_0/metrics.csv").read_text().splitlines()
    rows = list(csv.DictReader(text))
    losses = torch.tensor([float(row["train/loss"]) for row in rows if row["train/loss"]])
    assert (losses.diff() < 1e-6).all()
    [test] = [float(row["test/accuracy"]) for row in rows if row["test/accuracy"]]
    assert test > 0.92
    cli.main(["test", "--ckpt_path", "runs/mnist_newton/version_0/last.ckpt"])
    assert f"accuracy {test:.4f}" in capsys.readouterr().out
