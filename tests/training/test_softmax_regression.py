"""LitSoftmaxRegression: scikit-learn's objective, figures, schedules, and what it refuses."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error
from trainers import trainer

from softmax_torch.data import Batches, DigitsDataModule, Split, TensorDataModule
from softmax_torch.training import LitSoftmaxRegression

D, K = 3, 4


class Blobs(TensorDataModule):
    """Three features, four overlapping classes of different sizes."""

    def __init__(self, batch_size: int | None = None) -> None:
        super().__init__(D, K, batch_size, val_fraction=0.2, seed=0)

    def read(self) -> tuple[Split, Split]:
        generator = torch.Generator().manual_seed(0)
        y = torch.arange(300).sqrt().long() % K
        x = torch.eye(K, D)[y] * 2 + torch.randn(300, D, generator=generator)
        return Split(x[:200], y[:200]), Split(x[200:], y[200:])


def fitted(data: TensorDataModule, epochs: int, **options: Any) -> LitSoftmaxRegression:
    torch.manual_seed(0)
    lit = LitSoftmaxRegression(data.in_features, data.num_classes, **options)
    trainer(epochs, barebones=False).fit(lit, data)
    return lit


@pytest.mark.parametrize("class_weight", [None, "balanced", [1.0, 2.0, 0.5, 3.0]])
@pytest.mark.parametrize("C", [0.1, 10.0])
def test_objective_is_scikit_learns(class_weight: str | list[float] | None, C: float) -> None:
    """At scikit-learn's optimum the gradient of ours vanishes; L2 is on the weight alone."""
    data = Blobs()
    lit = LitSoftmaxRegression(D, K, C=C, class_weight=class_weight)
    trainer(1, limit_train_batches=0).fit(lit, data)
    train = data.splits["train"]
    weights = dict(enumerate(class_weight)) if isinstance(class_weight, list) else class_weight
    peer = LogisticRegression(C=C, class_weight=weights, tol=1e-10, max_iter=10000)
    peer.fit(train.x.double().numpy(), train.y.numpy())
    lit.double()
    with torch.no_grad():
        lit.model.linear.weight.copy_(torch.from_numpy(peer.coef_))
        lit.model.linear.bias.copy_(torch.from_numpy(peer.intercept_))
    loss = lit.objective(lit.model.logits(train.x.double()), train.y)
    at_optimum = torch.autograd.grad(loss, list(lit.model.parameters()))
    assert max(g.abs().max().item() for g in at_optimum) < 1e-6
    # and it does not vanish elsewhere
    with torch.no_grad():
        lit.model.linear.weight.mul_(1.01)
    loss = lit.objective(lit.model.logits(train.x.double()), train.y)
    away = torch.autograd.grad(loss, list(lit.model.parameters()))
    assert max(g.abs().max().item() for g in away) > 1e-5


@pytest.mark.slow
def test_full_batches_reach_scikit_learns_optimum() -> None:
    data = Blobs(batch_size=None)
    lit = fitted(data, 300, C=1.0, optimizer=partial(torch.optim.SGD, lr=0.3, momentum=0.9))
    train = data.splits["train"]
    peer = LogisticRegression(C=1.0, tol=1e-10, max_iter=10000)
    peer.fit(train.x.double().numpy(), train.y.numpy())
    expected = torch.from_numpy(peer.coef_).float()
    torch.testing.assert_close(lit.model.linear.weight.detach(), expected, rtol=1e-3, atol=1e-3)


def test_label_smoothing_is_torchs() -> None:
    data = Blobs()
    data.setup()
    lit = LitSoftmaxRegression(D, K, label_smoothing=0.2)
    x, y = data.splits["train"]
    expected = F.cross_entropy(lit.model.logits(x), y, label_smoothing=0.2)
    torch.testing.assert_close(lit.objective(lit.model.logits(x), y), expected)


class Steps(Callback):
    """Callback that keeps the logits before each step."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.targets: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, *_: Any) -> None:
        for x, y, _ in batch:
            self.logits.append(pl_module.model.logits(x).detach())
            self.targets.append(y)


def figures(logits: Tensor, y: Tensor) -> dict[str, float]:
    return {
        "accuracy": (logits.argmax(1) == y).float().mean().item(),
        "nll": F.cross_entropy(logits, y).item(),
        "ece": multiclass_calibration_error(logits.softmax(1), y, K, n_bins=15).item(),
    }


def test_figures_are_of_whole_sets() -> None:
    data, steps = Blobs(batch_size=7), Steps()
    lit = LitSoftmaxRegression(D, K, label_smoothing=0.1, class_weight="balanced", steps_per_call=1)
    fitting = trainer(1, steps)
    fitting.fit(lit, data)
    got = dict(fitting.callback_metrics)
    got |= trainer(1).test(lit, data, verbose=False)[0]
    sets = {
        "train": (torch.cat(steps.logits), torch.cat(steps.targets)),
        "val": (lit.model.logits(data.splits["val"].x), data.splits["val"].y),
        "test": (lit.model.logits(data.splits["test"].x), data.splits["test"].y),
    }
    for name, (logits, y) in sets.items():
        for figure, expected in figures(logits.detach(), y).items():
            if (name, figure) == ("train", "ece"):
                continue
            assert float(got[f"{name}/{figure}"]) == pytest.approx(expected, rel=1e-5), name
    assert math.isfinite(got["train/loss"])


@pytest.mark.parametrize(
    ("scheduler", "interval", "expected"),
    [
        (partial(torch.optim.lr_scheduler.StepLR, step_size=1), "epoch", 0.1**2),
        (partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5), "step", 0.5**8),
        (partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode="max", patience=0), "epoch", 0.1),
    ],
)
def test_schedules_count_epochs_or_steps(scheduler: Any, interval: Any, expected: float) -> None:
    lit = LitSoftmaxRegression(
        D,
        K,
        optimizer=partial(torch.optim.SGD, lr=1.0),
        lr_scheduler=scheduler,
        lr_interval=interval,
    )
    fitting = trainer(2)
    fitting.fit(lit, Blobs(batch_size=40))
    assert fitting.global_step == 8
    assert fitting.optimizers[0].param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "LBFGS"])
def test_any_optimizer_of_torch_learns(name: str) -> None:
    # Without a line search LBFGS diverges or not by the last digits: its batches differ.
    options = {"line_search_fn": "strong_wolfe"} if name == "LBFGS" else {}
    optimizer = partial(getattr(torch.optim, name), lr=0.05, **options)
    lit = fitted(Blobs(batch_size=40), 5, optimizer=optimizer)
    data = Blobs()
    data.setup()
    x, y = data.splits["train"]
    assert lit.model.loss(x, y) < math.log(K)


def test_figures_are_from_before_a_step_that_evaluates_often() -> None:
    data, lit = Blobs(), LitSoftmaxRegression(D, K, optimizer=torch.optim.LBFGS)
    data.setup()
    expected = lit.model.loss(*data.splits["train"]).item()
    fitting = trainer(1)
    fitting.fit(lit, data)
    assert float(fitting.callback_metrics["train/loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(fitting.callback_metrics["train/nll"]) == pytest.approx(expected, rel=1e-5)


def test_balanced_weights_are_scikit_learns() -> None:
    data = Blobs()
    lit = LitSoftmaxRegression(D, K, class_weight="balanced")
    trainer(1, limit_train_batches=0).fit(lit, data)
    counts = torch.bincount(data.splits["train"].y)
    assert lit.criterion.weight is not None
    torch.testing.assert_close(lit.criterion.weight, len(data.splits["train"]) / (K * counts))


def test_a_target_out_of_range_stops_before_any_update() -> None:
    data = Batches(torch.randn(8, D), torch.tensor([0, 1, 2, 3, 0, 1, 9, 2]), 8)
    lit = LitSoftmaxRegression(D, K)
    before = {name: value.clone() for name, value in lit.state_dict().items()}
    with pytest.raises(IndexError, match=r"\[0, 4\).*got 9"):
        trainer(1).fit(lit, data, data)
    assert all(torch.equal(value, before[name]) for name, value in lit.state_dict().items())


def test_divergence_is_an_error_before_a_checkpoint(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    keep = ModelCheckpoint(tmp_path, monitor="val/nll", save_last=True)
    lit = LitSoftmaxRegression(64, 10, optimizer=partial(torch.optim.SGD, lr=1e38))
    fitting = Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[keep],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with pytest.raises(FloatingPointError, match=r"expected a finite number, got .*learning rate"):
        fitting.fit(lit, DigitsDataModule())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((D, K + 1), "num_classes: the model has 5, Blobs has 4"),
        ((D + 1, K), "in_features: the model has 4, Blobs has 3"),
    ],
)
def test_sizes_that_do_not_fit_the_data(sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(1).fit(LitSoftmaxRegression(*sizes), Blobs())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"C": 0.0}, "C: expected a number above 0"),
        ({"C": math.nan}, "C: expected a number above 0"),
        ({"label_smoothing": 1.5}, r"label_smoothing: expected a number in \[0, 1\], got 1.5"),
        ({"class_weight": [1.0, 2.0]}, "class_weight: .* 4 classes, got 2"),
        ({"class_weight": [1.0, 2.0, -1.0, 1.0]}, "class_weight: expected .* >= 0, got -1.0"),
        ({"class_weight": [1.0, math.nan, 1.0, 1.0]}, "class_weight: expected finite .* got nan"),
        ({"class_weight": [1.0, 1.0, 1.0, math.inf]}, "class_weight: expected finite .* got inf"),
        ({"class_weight": [0.0] * 4}, "class_weight: expected a number above 0 for some class"),
        ({"class_weight": "even"}, "class_weight: expected .*balanced.*got 'even'"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LitSoftmaxRegression(D, K, **options)


@pytest.mark.parametrize("options", [{"C": 1.0}, {"class_weight": "balanced"}])
def test_counting_needs_a_data_module(options: dict[str, Any]) -> None:
    loader = Batches(torch.randn(8, D), torch.zeros(8, dtype=torch.long))
    with pytest.raises(ValueError, match="expected a data module with class_counts"):
        trainer(1).fit(LitSoftmaxRegression(D, K, **options), loader, loader)


def test_balanced_needs_every_class() -> None:
    class Gap(Blobs):
        def read(self) -> tuple[Split, Split]:
            train, test = super().read()
            return train.rows(train.y != 2), test

    with pytest.raises(ValueError, match=r"of every class, got none of \[2\]"):
        trainer(1).fit(LitSoftmaxRegression(D, K, class_weight="balanced"), Gap())


def test_a_checkpoint_restores_the_model(tmp_path: Path) -> None:
    lit = LitSoftmaxRegression(D, K, bias=False, C=2.0, optimizer=partial(torch.optim.SGD, lr=0.2))
    fitting = trainer(1)
    fitting.fit(lit, Blobs())
    fitting.save_checkpoint(tmp_path / "a.ckpt")
    again = LitSoftmaxRegression.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    x = torch.randn(5, D)
    assert torch.equal(lit(x), again(x))
    assert again.criterion.C == 2.0


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    lit = LitSoftmaxRegression(D + 1, K)
    saving = trainer(1)
    saving.strategy.connect(lit)
    saving.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"in_features: .* has 3, the checkpoint 4"):
        trainer(1).test(LitSoftmaxRegression(D, K), Blobs(), ckpt_path=tmp_path / "a.ckpt")
