"""A path over C in training: optimal fits, the best chosen by validation, resumed between fits."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from softmax_torch import cli
from softmax_torch.data import DigitsDataModule
from softmax_torch.solvers import ConvergenceWarning, fit
from softmax_torch.storage.checkpoints import read_checkpoint
from softmax_torch.training import LitSoftmaxRegression, convex_path
from softmax_torch.training.run_checkpoint import RunCheckpoint

CS = [1.0, 0.001, 30.0, 3000.0, 0.3]


def fitted(
    root: Path, ckpt: Path | None = None, epochs: int = 50, **options: Any
) -> LitSoftmaxRegression:
    """Return the model after a run in this folder."""
    lit = LitSoftmaxRegression(64, 10, **({"C": CS, "solver": "auto"} | options))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    Trainer(
        default_root_dir=root,
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[RunCheckpoint(root)],
        **quiet,
    ).fit(lit, DigitsDataModule(batch_size=None), ckpt_path=ckpt, weights_only=True)
    return lit


def fits(lit: LitSoftmaxRegression) -> list[dict[str, float]]:
    solver = lit.optimizers(use_pl_optimizer=False)
    assert isinstance(solver, convex_path.ConvexPath)
    return solver.fits


def train_set() -> tuple[torch.Tensor, torch.Tensor]:
    data = DigitsDataModule(batch_size=None)
    data.setup()
    x, y = data.splits["train"]
    return x.flatten(1).float() / 16, y


@pytest.mark.parametrize(
    "options", [{}, {"solver": "newton", "bias": False, "class_weight": "balanced"}]
)
def test_each_fit_is_the_optimum(options: dict[str, Any], tmp_path: Path) -> None:
    """Each fit has a certificate, whatever the fit before it; the run ends after the last."""
    lit = fitted(tmp_path, **options)
    same = {"fit_intercept": False, "class_weight": "balanced"} if options else {}
    assert [one["C"] for one in fits(lit)] == sorted(CS)
    assert lit.trainer.current_epoch == lit.global_step == len(CS)
    for one in fits(lit):
        alone = fit(*train_set(), C=one["C"], **same)
        assert one["train/gap"] <= 1e-6
        assert one["train/loss"] == pytest.approx(alone.objective, rel=2e-6)
    weight = lit.model.linear.weight.detach()
    torch.testing.assert_close(weight.double(), alone.weight, atol=2e-2, rtol=2e-2)
    assert lit.path is not None
    assert "5 values of C, 0.001 to 3000; relative duality gaps at most" in lit.path


def test_the_best_checkpoint_has_the_best_c(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model.solver", "auto", "--model.C", str(CS), "--data.batch_size", "null"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    config = {"model.optimizer": "null", "model.lr_scheduler": "null"}
    cli.main(["fit", *flags, *quiet, *[part for k, v in config.items() for part in (f"--{k}", v)]])
    [run] = Path("runs/digits").iterdir()
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    strength = {row["epoch"]: float(row["C"]) for row in rows if row["C"]}
    nll = {strength[row["epoch"]]: float(row["val/nll"]) for row in rows if row["val/nll"]}
    assert sorted(nll) == sorted(CS)
    best = min(nll, key=nll.__getitem__)
    assert min(CS) < best < max(CS)
    content = read_checkpoint(run / "best.ckpt")
    assert content["certificate"].endswith(f"C {best:g}")
    alone = fit(*train_set(), C=best)
    torch.testing.assert_close(
        content["state_dict"]["model.linear.weight"].double(), alone.weight, atol=1e-2, rtol=1e-2
    )
    # The test set is evaluated once, at the end.
    assert len([row for row in rows if row["test/nll"]]) == 1


def test_the_path_and_its_best_fit_are_reported(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(
        ["fit", "--model.solver", "auto", "--model.C", "[1, 30, 3000]", "--data.batch_size", "null"]
        + ["--model.optimizer", "null", "--model.lr_scheduler", "null"]
        + ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    )
    out = capsys.readouterr().out
    assert "path        3 values of C, 1 to 3000; relative duality gaps at most" in out
    assert "optimum     objective " in out
    assert ", C 30\n" in out  # not the last
    assert "best val    accuracy" in out
    assert "best.ckpt" in out


def test_resuming_between_two_fits_gives_the_same_bits(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole")
    with pytest.warns(ConvergenceWarning, match="C: expected a fit for each of 5 values, got 3"):
        fitted(tmp_path / "part", epochs=3)
    resumed = fitted(tmp_path / "part", tmp_path / "part" / "last.ckpt")
    assert fits(resumed) == fits(whole)
    assert len(resumed.optimizers(use_pl_optimizer=False).state_dict()["solved"]) == 3
    assert resumed.model.linear.weight.equal(whole.model.linear.weight)
    best = [torch.load(tmp_path / of / "best.ckpt")["certificate"] for of in ("whole", "part")]
    assert best[0] == best[1]
    # a finished path has no more fits
    again = fitted(tmp_path / "part", tmp_path / "part" / "last.ckpt")
    assert fits(again) == fits(whole)
    assert again.model.linear.weight.equal(whole.model.linear.weight)


@pytest.mark.filterwarnings("ignore:C. expected a fit for each")
def test_resuming_with_other_values_of_c_is_refused(tmp_path: Path) -> None:
    fitted(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"C: expected the values that the run began with"):
        fitted(tmp_path, tmp_path / "last.ckpt", C=[0.5, 1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": None}, "C: expected one number without a solver, got a list of 5"),
        ({"C": []}, r"different finite numbers above 0, got \[\]"),
        ({"C": [1.0, 0.0]}, r"got \[1.0, 0.0\]"),
        ({"C": [1.0, 1.0]}, r"got \[1.0, 1.0\]"),
        ({"C": [1.0, math.inf]}, r"got \[1.0, inf\]"),
        ({"C": [1.0, math.nan]}, r"got \[1.0, nan\]"),
    ],
)
def test_values_of_c_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LitSoftmaxRegression(64, 10, **({"C": CS, "solver": "auto"} | options))


def test_a_path_needs_a_validation_set(tmp_path: Path) -> None:
    lit = LitSoftmaxRegression(64, 10, C=CS, solver="auto")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", limit_val_batches=0, max_epochs=9, **quiet
    )
    with pytest.raises(ValueError, match="C: expected a validation set to choose one of several"):
        trainer.fit(lit, DigitsDataModule(batch_size=None))
