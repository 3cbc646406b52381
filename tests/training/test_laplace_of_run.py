"""A run's Laplace approximation has the prior of its penalty, and its training samples."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import C, D, RowsDataModule
from torch import nn
from trainers import trainer

from softmax_torch import conformal, laplace
from softmax_torch.storage.checkpoints import read_checkpoint
from softmax_torch.training import LitClassifier, LitSoftmaxRegression
from softmax_torch.training.calibrating_trainer import CalibratingTrainer
from softmax_torch.training.lit_base import LitBase
from softmax_torch.training.run_checkpoint import RunCheckpoint

SGD = partial(torch.optim.SGD, lr=0.1)


def run(folder: Path, model: LitBase, batch_size: int | None = 8) -> str:
    """Train for two epochs; return the last checkpoint."""
    quiet(folder).fit(model, RowsDataModule(batch_size))
    return str(folder / "last.ckpt")


def quiet(folder: Path) -> CalibratingTrainer:
    made = trainer(2, RunCheckpoint(folder), kind=CalibratingTrainer, enable_checkpointing=True)
    assert isinstance(made, CalibratingTrainer)
    return made


@pytest.mark.parametrize(
    ("options", "precision", "source"),
    [
        ({"C": 0.5}, 2.0, "from C 0.5 of the run"),
        ({}, 1.0, "the run has no penalty"),
        ({"optimizer": partial(SGD, weight_decay=0.01)}, 0.32, "from weight decay 0.01 of the run"),
        (
            {"optimizer": partial(torch.optim.Adam, weight_decay=0.01), "C": 4.0},
            0.57,
            "from C 4 and weight decay 0.01 of the run",
        ),
        ({"optimizer": torch.optim.AdamW}, 1.0, "the run has no penalty"),  # decay 0.01, decoupled
        (
            {
                "optimizer": partial(SGD, weight_decay=0.01),
                "class_weight": [1.0, 2.0, 3.0, 4.0],
            },
            0.81,  # the weights of the 32 samples add up to 81
            "from weight decay 0.01 of the run",
        ),
    ],
)
def test_prior_and_samples_are_those_of_the_run(
    options: dict[str, Any], precision: float, source: str, tmp_path: Path
) -> None:
    path = run(tmp_path, LitSoftmaxRegression(D, C, **options))
    model, data = LitSoftmaxRegression(D, C, **options), RowsDataModule(8)
    prior, (before, after) = quiet(tmp_path).fit_laplace(model, data, path)
    assert prior.precision == pytest.approx(precision)
    assert prior.source == source
    assert model.laplace is None  # as before
    assert before["val/nll"] != after["val/nll"]
    x, y = data.splits["train"]
    assert len(x) == 32
    weight = torch.tensor(options.get("class_weight", [1.0] * C))
    content = read_checkpoint(Path(path))
    state = content["state_dict"]
    expected = laplace.fit(
        [(x, weight[y])],
        state["model.linear.weight"],
        state["model.linear.bias"],
        prior_precision=precision,
    )
    stored = laplace.from_state_dict(content["laplace"])
    torch.testing.assert_close(stored.covariance(x.double()), expected.covariance(x.double()))


def test_the_prior_is_that_of_the_c_that_validation_chose(tmp_path: Path) -> None:
    options: dict[str, Any] = {"C": [0.01, 10.0], "solver": "newton"}
    run(tmp_path, LitSoftmaxRegression(D, C, **options), None)
    for name in ("best", "last"):
        path = tmp_path / f"{name}.ckpt"
        chosen = read_checkpoint(path)["optimizer_states"][0]["fits"][-1]["C"]
        prior, _ = quiet(tmp_path).fit_laplace(
            LitSoftmaxRegression(D, C, **options), RowsDataModule(None), str(path)
        )
        assert prior == (pytest.approx(1 / chosen), f"from C {chosen:g} of the run")
    assert chosen == 10


def test_features_are_those_of_the_net_in_evaluation_mode(tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(D, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5))
        made.out_features = 6  # type: ignore[assignment]
        return made

    def made() -> LitClassifier:
        return LitClassifier(D, C, backbone=net())

    path = run(tmp_path, made())
    model, data = made(), RowsDataModule(8)
    prior, _ = quiet(tmp_path).fit_laplace(model, data, path, structure="full", prior_precision=3.0)
    assert prior == (3.0, "as asked for")
    x = data.splits["train"].x
    with torch.no_grad():
        features = model.eval().features(x)
    head = model.model.linear
    expected = laplace.fit(features, head.weight, head.bias, prior_precision=3.0, structure="full")
    got = laplace.from_state_dict(read_checkpoint(Path(path))["laplace"])
    assert got.structure == "full"
    at = features.double()
    torch.testing.assert_close(got.covariance(at), expected.covariance(at))


def test_sets_are_fitted_to_logits_that_are_calibrated_once(tmp_path: Path) -> None:
    path = run(tmp_path, LitSoftmaxRegression(D, C))
    model, data, ours = LitSoftmaxRegression(D, C), RowsDataModule(8), quiet(tmp_path)
    ours.calibrate(model, data, path, "vector")
    model.calibrated = True  # as by the flag --calibrated
    ours.fit_sets(model, data, path, level=0.5, score="lac", calibrated=True)
    x, y = data.splits["val"]
    with torch.no_grad():
        z = model.logits(x)
    assert model.post_hoc.conformal is not None
    expected = conformal.fit(z, y, 0.5, "lac", calibration=model.calibration)
    torch.testing.assert_close(model.post_hoc.conformal.threshold, expected.threshold)


def test_nothing_is_evaluated_before_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = LitSoftmaxRegression(D, C), RowsDataModule(8), run(tmp_path, LitSoftmaxRegression(D, C))
    monkeypatch.setattr(CalibratingTrainer, "validate", None)
    monkeypatch.setattr(laplace.full, "LARGEST", 2)
    ours = quiet(tmp_path)
    for fit, message in (
        (partial(ours.fit_laplace, prior_precision=-1.0), "prior_precision: .* > 0, got -1"),
        (partial(ours.fit_laplace, structure="full"), "structure: expected at most 2 coefficients"),
        (partial(ours.fit_sets, level=2.0), "level: expected a number above 0 and below 1, got 2"),
        (partial(ours.fit_sets, calibrated=True), "calibrated: expected a checkpoint with a calib"),
        (ours.choose_threshold, "threshold: expected a model of two classes"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(*given)
