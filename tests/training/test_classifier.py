"""A net that ends in softmax regression: what is trained when, towards what, and how it goes on."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from trainers import trainer

from softmax_torch import SoftmaxRegression, backbones, predictor
from softmax_torch.data import Batches, DigitsDataModule, Split
from softmax_torch.data.batches import Batch
from softmax_torch.training import LitClassifier, LitSoftmaxRegression, checkpoint
from softmax_torch.training.calibrating_trainer import CalibratingTrainer
from softmax_torch.training.mixing import Mixing
from softmax_torch.training.runs import RunLogger
from softmax_torch.training.saving import RunCheckpoint, Stopped

SGD = partial(torch.optim.SGD, lr=0.05)


class Few(DigitsDataModule):
    """100 of the digits to train on, which is quick."""

    def read(self) -> Any:
        train, test = super().read()
        return train.rows(torch.arange(120)), test.rows(torch.arange(50))


class Own(nn.Module):
    """A backbone of somebody's own, with dropout and statistics."""

    def __init__(self, out_features: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.out_features = out_features
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, out_features), nn.BatchNorm1d(out_features), nn.Dropout(0.3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def classifier(**options: Any) -> LitClassifier:
    torch.manual_seed(0)
    return LitClassifier(64, 10, **({"optimizer": SGD} | options))


def data() -> Few:
    return Few(batch_size=30)


def parts(lit: LitClassifier) -> dict[str, dict[str, Tensor]]:
    """Copies of the numbers of backbone and head."""
    return {
        name: {k: v.clone() for k, v in getattr(lit, name).state_dict().items()}
        for name in ("backbone", "model")
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


# What the net is


def test_softmax_regression_is_the_case_without_a_backbone() -> None:
    """The same bits of the same class; and its checkpoint names none of a net's settings."""
    results = []
    for kind, options in ((LitClassifier, {"backbone": None}), (LitSoftmaxRegression, {})):
        torch.manual_seed(0)
        lit = kind(64, 10, optimizer=SGD, C=1.0, class_weight="balanced", **options)
        trainer(2).fit(lit, data())
        results.append(lit.state_dict())
    assert list(results[1]) == ["model.linear.weight", "model.linear.bias"]
    assert same(*results)
    assert set(lit.hparams) == {
        *("in_features", "num_classes", "bias", "lr_interval", "C", "label_smoothing", "tol"),
        *("class_weight", "solver", "steps_per_call", "log_every_n_steps"),
    }


@pytest.mark.parametrize("options", [{}, {"C": 1.0, "class_weight": [1.0, 2.0] * 5, "z_loss": 0.1}])
def test_steps_are_those_of_a_plain_loop(options: dict[str, Any]) -> None:
    """nn.Linear on the same features, F.cross_entropy, and the terms written out."""
    lit = classifier(steps_per_call=3, **options)
    net = backbones.make("small_cnn")
    net.load_state_dict(lit.backbone.state_dict())
    head = nn.Linear(128, 10)
    head.load_state_dict(lit.model.linear.state_dict())
    batches = data()
    trainer(2).fit(lit, batches)
    optimizer = SGD([*net.parameters(), *head.parameters()])
    loader = Batches(*batches.splits["train"], 30, shuffle=True, steps=1000, scale=1 / 16)
    weight = torch.tensor(options["class_weight"]) if options else torch.ones(10)
    total = weight[batches.splits["train"].y].sum()
    for epoch in range(2):
        loader.set_epoch(epoch)
        for steps in loader:
            for x, y, _ in steps:  # type: ignore[union-attr]
                z = head(net(x))
                loss = F.cross_entropy(z, y, weight)
                if options:
                    loss = loss + 0.1 * z.logsumexp(1).square().sum() / weight[y].sum()
                    loss = loss + head.weight.square().sum() / (2 * total)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    torch.testing.assert_close(lit.model.linear.weight, head.weight, rtol=1e-4, atol=1e-6)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(lit.backbone.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [10, 200])  # fewer and more than features
def test_losses_in_a_net_are_torchs(classes: int) -> None:
    """over some steps from the same numbers, to 1e-5 of the first."""
    losses = []
    for ours in (True, False):
        torch.manual_seed(0)
        net = backbones.make("small_cnn")
        head = SoftmaxRegression(128, classes)
        optimizer = SGD([*net.parameters(), *head.parameters()], momentum=0.9)
        x, y = torch.rand(8, 32, 8, 8), torch.randint(classes, (8, 32))
        losses.append([])
        for images, targets in zip(x, y, strict=True):
            features = net(images)
            if ours:
                loss = head.loss(features, targets)
            else:
                loss = F.cross_entropy(head.linear(features), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5 * losses[1][0])


def noting(calls: list[str], name: str, real: Any) -> Any:
    """A function that does the same and is noted."""
    return lambda *args: (calls.append(name), real(*args))[1]


def noting_size(sizes: list[int], real: Any, logits: Tensor, targets: Tensor) -> None:
    assert not logits.requires_grad
    sizes.append(logits.numel())
    real(logits, targets)


@pytest.mark.parametrize("block", [1 << 20, 70, 5])  # of logits: all at once, 7 rows, or one
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_many_classes_are_fused_and_counted(block: int, precision: Any, monkeypatch: Any) -> None:
    """With C > D nothing is seen but the fused loss; figures and parameters are those of logits."""
    monkeypatch.setattr("softmax_torch.training.classifier.BLOCK", block)
    outcomes = []
    for fuses in (True, False):
        lit = classifier(backbone=Own(6), label_smoothing=0.1, class_weight=[1.0, 2.0] * 5)
        assert lit.fuses
        lit.fuses = fuses
        calls: list[str] = []
        for name in ("objective", "fused_objective"):
            monkeypatch.setattr(lit, name, noting(calls, name, getattr(lit, name)))
        sizes: list[int] = []  # of what is counted at once
        noted = partial(noting_size, sizes, lit.sums.add_rows)
        monkeypatch.setattr(lit.sums, "add_rows", noted)
        run = trainer(2, precision=precision)
        run.fit(lit, data())
        assert not fuses or max(sizes) <= max(block, 10)
        assert set(calls) == {"fused_objective" if fuses else "objective"}
        figures = {name: float(value) for name, value in run.callback_metrics.items()}
        outcomes.append((figures, lit.model.linear.weight.detach()))
    (figures, W), (expected, expected_W) = outcomes
    close = 1e-5 if precision == "32-true" else 2e-2
    assert figures == pytest.approx(expected, rel=close)
    assert {"train/loss", "train/accuracy", "train/nll", "val/nll"} <= figures.keys()
    torch.testing.assert_close(W, expected_W, rtol=close, atol=close)


def test_evaluation_in_parts_is_that_of_the_whole(monkeypatch: Any) -> None:
    net = backbones.make("small_cnn").eval()
    x = torch.rand(11, 8, 8)
    whole = net(x)
    monkeypatch.setattr(backbones, "ROWS", 4)
    sizes: list[int] = []
    net.net.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    torch.testing.assert_close(net(x), whole)
    net.train()(x)  # whose statistics are of the whole batch
    assert sizes == [4, 4, 3, 11]


def test_grey_is_a_colour() -> None:
    grey, net = torch.rand(2, 8, 8), backbones.make("small_cnn").eval()
    expected = net(grey)
    for x in (grey.unsqueeze(1), grey.unsqueeze(1).repeat(1, 3, 1, 1)):
        torch.testing.assert_close(net(x), expected)


def test_a_net_of_torchvision_by_name(tmp_path: Path) -> None:
    """trained, saved, and rebuilt by its name alone; images are normalized as it was trained."""
    lit = classifier(backbone="resnet18")
    trainer(1, limit_train_batches=1, limit_val_batches=1).fit(lit, data())
    x = torch.rand(3, 3, 8, 8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    plain = lit.backbone.net((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))  # type: ignore[operator, union-attr]
    lit.eval()
    torch.testing.assert_close(lit.backbone(x).shape, plain.shape)
    fitted = trainer(1)
    fitted.strategy.connect(lit)
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    again = LitClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    assert torch.equal(lit(x), again(x))
    expected = lit.backbone.net((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))  # type: ignore[operator, union-attr]
    torch.testing.assert_close(again.features(x), expected)


# What is trained when


class States(Callback):
    """The numbers of backbone and head as each epoch ends, and whether it is in training mode."""

    def __init__(self) -> None:
        self.states: list[dict[str, dict[str, Tensor]]] = []
        self.modes: list[set[bool]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.states.append(parts(pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.modes.append({m.training for m in pl_module.backbone.modules()})


def test_a_frozen_backbone_stays_as_it_is() -> None:
    """its statistics too, while the head learns; no optimizer state is kept for it."""
    lit, states = classifier(freeze_backbone=True), States()
    before = parts(lit)
    run = trainer(2, states)
    run.fit(lit, data())
    assert same(before["backbone"], parts(lit)["backbone"])
    assert not same(before["model"], parts(lit)["model"])
    assert all(mode == {False} for mode in states.modes)
    assert len(run.optimizers[0].param_groups[0]["params"]) == 2
    assert not any(p.requires_grad for p in lit.backbone.parameters())  # no gradient is formed
    assert not any(module.training for module in lit.train().backbone.modules())


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")
def test_a_part_in_evaluation_mode_stays_there() -> None:
    """of a net of one's own that is trained."""
    net = Own()
    statistics = net.layers[2].eval()
    lit, before = classifier(backbone=net), statistics.running_mean.clone()  # type: ignore[operator, union-attr]
    trainer(1).fit(lit, data())
    assert torch.equal(statistics.running_mean, before)  # type: ignore[arg-type]
    assert net.layers[3].training


def test_a_backbone_is_unfrozen_at_its_epoch() -> None:
    lit, states = classifier(freeze_backbone=True, unfreeze_at_epoch=2), States()
    before = parts(lit)["backbone"]
    trainer(4, states).fit(lit, data())
    changed = [not same(before, state["backbone"]) for state in states.states]
    assert changed == [False, False, True, True]
    assert states.modes[0] == {False}
    assert states.modes[-1] == {True}
    # and a new fit begins anew
    again = States()
    trainer(1, again).fit(lit, data())
    assert again.modes[0] == {False}


def test_a_backbone_is_unfrozen_in_one_process(monkeypatch: Any) -> None:
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(ValueError, match="unfreeze_at_epoch: expected one process, got 2"):
        trainer(1).fit(classifier(freeze_backbone=True, unfreeze_at_epoch=1), data())


def test_a_backbone_may_have_a_rate_of_its_own() -> None:
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    lit = classifier(backbone_lr=1e-3, lr_scheduler=schedule)
    before = parts(lit)
    run = trainer(1)
    run.fit(lit, data())
    head, backbone = run.optimizers[0].param_groups
    assert (head["lr"], backbone["lr"]) == pytest.approx((0.025, 5e-4))
    assert {id(p) for p in head["params"]} == {id(p) for p in lit.model.parameters()}
    assert {id(p) for p in backbone["params"]} == {id(p) for p in lit.backbone.parameters()}
    assert not same(before["backbone"], parts(lit)["backbone"])


def test_a_schedule_that_knows_one_rate_is_refused() -> None:
    one = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=9)
    lit = classifier(backbone_lr=1e-3, lr_scheduler=one)
    with pytest.raises(ValueError, match=r"backbone_lr: expected a schedule .* got OneCycleLR"):
        trainer(1).fit(lit, data())


def test_a_schedule_may_begin_at_rates_of_0() -> None:
    """which are equal then, and scaled all the same."""
    warm_up = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: epoch / 2)
    run = trainer(1)
    run.fit(classifier(backbone_lr=1e-3, lr_scheduler=warm_up), data())
    assert [group["lr"] for group in run.optimizers[0].param_groups] == pytest.approx([0.025, 5e-4])


# Mixed images


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8)])
def test_mixup_is_that_of_its_formula(shape: tuple[int, ...]) -> None:
    x, y = torch.rand(6, *shape), torch.tensor([0, 1, 2, 3, 1, 0])
    torch.manual_seed(3)
    mixed = Mixing(0.4, 0.0, 4)(Batch(x, y, y))
    torch.manual_seed(3)
    lam = float(torch.distributions.Beta(0.4, 0.4).sample())
    one = F.one_hot(y, 4).float()
    torch.testing.assert_close(mixed.x, lam * x + (1 - lam) * x.roll(1, 0))
    torch.testing.assert_close(mixed.y, lam * one + (1 - lam) * one.roll(1, 0))
    assert mixed.whole is y
    assert 0.01 < lam < 0.99  # or this test could say nothing


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8)])
def test_cutmix_puts_in_a_box_and_says_its_share(shape: tuple[int, ...]) -> None:
    x, y = torch.rand(6, *shape), torch.tensor([0, 1, 2, 3, 1, 0])
    before, shares = x.clone(), []
    for seed in range(20):
        torch.manual_seed(seed)
        mixed = Mixing(0.0, 1.0, 4)(Batch(x, y, y))
        other = mixed.x != x
        assert torch.equal(mixed.x[other], x.roll(1, 0)[other])
        box = other.reshape(-1, 8, 8).any(0)
        assert torch.equal(box, box.any(0) & box.any(1, keepdim=True))  # it is one
        share = box.float().mean()
        one = F.one_hot(y, 4).float()
        torch.testing.assert_close(mixed.y, (1 - share) * one + share * one.roll(1, 0))
        shares.append(float(share))
    assert len({share for share in shares if 0 < share < 1}) > 5
    assert torch.equal(x, before)


@pytest.mark.parametrize("options", [{}, {"class_weight": [1.0, 2.0] * 5}, {"z_loss": 0.01}])
@pytest.mark.parametrize("features", [6, 16])
def test_the_objective_of_mixed_images(options: dict[str, Any], features: int) -> None:
    """is a mean of those of both classes, fused or not."""
    lit = classifier(backbone=Own(features), mixup=0.4, label_smoothing=0.1, **options)
    trainer(1, limit_train_batches=0).fit(lit, data())
    x, y = torch.rand(9, 8, 8), torch.arange(9)
    torch.manual_seed(3)
    mixed = lit.mixing(Batch(x, y, y))  # type: ignore[misc]
    lam = float(mixed.y[0, 0])
    lit.eval()
    z, weight = lit.logits(mixed.x), torch.tensor(options.get("class_weight", [1.0] * 10))
    both = [
        F.cross_entropy(z, t, weight, reduction="sum", label_smoothing=0.1) for t in (y, y.roll(1))
    ]
    expected = lam * both[0] + (1 - lam) * both[1]
    expected = expected + lit.z_loss * z.logsumexp(1).square().sum()
    expected = expected / weight[y].sum()
    torch.testing.assert_close(lit.objective(z, mixed.y, y), expected)
    torch.testing.assert_close(lit.fused_objective(lit.features(mixed.x), mixed.y, y), expected)
    run = trainer(1)
    run.fit(lit.train(), data())
    assert "train/loss" in run.callback_metrics
    assert "train/accuracy" not in run.callback_metrics


def test_vectors_are_not_mixed() -> None:
    y = torch.arange(4)
    with pytest.raises(ValueError, match=r"mixup and cutmix: expected images .* got \(4, 64\)"):
        Mixing(0.4, 0.0, 4)(Batch(torch.rand(4, 64), y, y))


def test_both_take_turns() -> None:
    torch.manual_seed(0)
    mixing, x, y = Mixing(1.0, 1.0, 4), torch.rand(4, 8, 8), torch.arange(4)
    cut = [bool((mixing(Batch(x, y, y)).x == x).any()) for _ in range(20)]
    assert 3 < sum(cut) < 17


# Checkpoints


class At(Callback):
    def __init__(self, call: int) -> None:
        self.call = call

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.call:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("call", [1, 2, 3, 5])  # of two an epoch: in the first, at ends, unfrozen
def test_a_run_with_chance_in_it_goes_on_bit_for_bit(call: int, tmp_path: Path) -> None:
    """Dropout, Mixup and CutMix, BatchNorm, two rates, and a backbone that thaws."""

    def fit(root: Path, *callbacks: Callback) -> tuple[Any, ...]:
        lit = classifier(
            backbone=Own(),
            optimizer=partial(torch.optim.Adam, lr=0.01),
            freeze_backbone=True,
            unfreeze_at_epoch=1,
            backbone_lr=1e-3,
            mixup=0.4,
            cutmix=1.0,
            steps_per_call=2,
        )
        folder = root / "a" / "version_0"
        found, _ = checkpoint.newest(folder)
        logger = RunLogger(root, "a", folder if folder.exists() else None)
        run = trainer(
            3, *callbacks, RunCheckpoint(seconds=1e9), logger=logger, enable_checkpointing=True
        )
        try:
            run.fit(lit, data(), ckpt_path=found and found.path, weights_only=True)
        finally:
            logger.close()
        return [v.tolist() for v in lit.state_dict().values()], logger.path.read_text()

    expected = fit(tmp_path / "alone")
    with pytest.raises(Stopped):
        fit(tmp_path, At(call))
    assert fit(tmp_path) == expected


def test_a_checkpoint_is_calibrated_and_predicts(tmp_path: Path) -> None:
    """The logits that a calibration is fitted to are those of evaluation."""
    lit = classifier(optimizer=partial(torch.optim.Adam, lr=0.01))
    batches = data()
    run = trainer(3, kind=CalibratingTrainer)
    run.fit(lit, batches)
    path = tmp_path / "a.ckpt"
    run.save_checkpoint(path)
    lit.train()
    [before, after] = run.calibrate(lit, batches, str(path))
    x, y = batches.splits["val"]
    lit.eval()
    z = lit.logits(x / 16).detach()
    assert before["val/nll"] == pytest.approx(float(F.cross_entropy(z, y)), rel=1e-5)
    assert lit.calibration is not None
    expected = float(F.cross_entropy(lit.calibration(z), y))
    assert after["val/nll"] == pytest.approx(expected, rel=1e-5)
    assert after["val/nll"] < before["val/nll"]
    # and it alone predicts
    p = predictor.load(path).network(x / 16).softmax(1)
    torch.testing.assert_close(p, z.softmax(1))


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path) -> None:
    run = trainer(1, limit_train_batches=0)
    run.fit(classifier(), data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"backbone: .* has resnet18, the checkpoint small_cnn"):
        trainer(1).test(classifier(backbone="resnet18"), data(), ckpt_path=tmp_path / "a.ckpt")


def test_a_module_is_not_in_a_checkpoint_but_its_numbers_are(tmp_path: Path) -> None:
    lit = classifier(backbone=Own())
    run = trainer(1)
    run.fit(lit, data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = LitClassifier.load_from_checkpoint(
        tmp_path / "a.ckpt", backbone=Own(), weights_only=True
    )
    x = torch.rand(2, 8, 8)
    assert torch.equal(lit.eval()(x), again.eval()(x))
    with pytest.raises(ValueError, match="expected a backbone with a name, got one that was a mod"):
        predictor.load(tmp_path / "a.ckpt")


# Weights from files


def test_a_backbone_starts_from_a_file(tmp_path: Path) -> None:
    """of torchvision's kind, whose own head is passed over; of a run; only when a fit begins."""
    torch.manual_seed(1)
    from torchvision import models

    net = models.get_model("resnet18", weights=None)
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    lit = classifier(
        backbone="resnet18", backbone_weights=str(tmp_path / "resnet18.pth"), freeze_backbone=True
    )
    run = trainer(1, limit_train_batches=1, limit_val_batches=1)
    run.fit(lit, data())
    theirs = net.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in lit.backbone.net.state_dict().items())  # type: ignore[union-attr, operator]
    run.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "resnet18.pth").unlink()
    other = backbones.make("resnet18")
    backbones.load(other, tmp_path / "a.ckpt")
    assert same(other.state_dict(), lit.backbone.state_dict())
    # the checkpoint needs the file no more, and does not go back to it
    again = LitClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert again.backbone_weights is None
    trainer(1, limit_train_batches=1, limit_val_batches=1).fit(lit, data())


class Nested(nn.Module):
    """A net of somebody's own, a part of which is called as a backbone is in a run."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = 5
        self.backbone, self.neck = nn.Linear(64, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.neck(self.backbone(x.flatten(1)))


@pytest.mark.parametrize("archive", [True, False])  # False: as torch wrote until 1.6
def test_a_net_of_ones_own_starts_from_a_file(archive: bool, tmp_path: Path) -> None:
    """of its state_dict; of a run."""
    lit = classifier(backbone=Nested())
    torch.save(
        lit.backbone.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=archive
    )
    run = trainer(1, limit_train_batches=0)
    run.fit(lit, data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    for name in ("a.pth", "a.ckpt"):
        other = Nested()
        assert not same(other.state_dict(), lit.backbone.state_dict())
        backbones.load(other, tmp_path / name)
        assert same(other.state_dict(), lit.backbone.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.weight"), r"missing: 0.weight$"),
        (lambda s: s.update(extra=torch.ones(1)), r"unexpected: extra$"),
        (lambda s: s.update({"1.bias": torch.ones(3)}), r"of another shape: 1.bias$"),
        (lambda s: s.update(note="text"), "got something else"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: Any, message: str, tmp_path: Path) -> None:
    net = backbones.make("small_cnn")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = backbones.make("small_cnn").net.state_dict()
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        backbones.load(net, tmp_path / "a.pth")
    assert same(net.state_dict(), before)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.pth: expected a state_dict, got no such file"):
        trainer(1).fit(classifier(backbone_weights=str(tmp_path / "a.pth")), data())
    (tmp_path / "a.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.pth: expected a state_dict, got .*damaged"):
        backbones.load(Own(), tmp_path / "a.pth")


# What cannot be


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backbone": "resnet81"}, ValueError, "backbone: expected 'small_cnn' or .*'resnet81'"),
        ({"backbone": "googlenet"}, ValueError, "one head, got 'googlenet', which has several"),
        ({"backbone": "squeezenet1_1"}, ValueError, "squeezenet1_1 cannot be used, .*Conv2d"),
        ({"backbone": nn.Flatten()}, TypeError, "an attribute out_features, .* got Flatten"),
        ({"backbone": 3}, TypeError, "backbone: expected a name, module or None, got 3"),
        ({"backbone": None, "freeze_backbone": True}, ValueError, "freeze_backbone: expected a ba"),
        ({"backbone": None, "backbone_lr": 0.1}, ValueError, "backbone_lr: expected a backbone be"),
        ({"unfreeze_at_epoch": 1}, ValueError, "unfreeze_at_epoch: expected freeze_backbone besi"),
        ({"freeze_backbone": True, "unfreeze_at_epoch": 0}, ValueError, "at least 1, got 0"),
        (
            {"freeze_backbone": True, "backbone_lr": 0.1},
            ValueError,
            "0.1 and one that stays frozen",
        ),
        ({"backbone_lr": 0.0}, ValueError, "backbone_lr: expected a number above 0, got 0.0"),
        ({"mixup": -1.0}, ValueError, "mixup: expected a number >= 0, got -1.0"),
        ({"cutmix": float("nan")}, ValueError, "cutmix: expected a number >= 0, got nan"),
        ({"z_loss": -1.0}, ValueError, "z_loss: expected a number >= 0, got -1.0"),
    ],
)
def test_options_are_checked_at_once(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        classifier(**options)


class Picky(nn.Flatten):
    """Says what it takes as ``vit_b_16`` does."""

    out_features = 64

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[1] == 224, "Wrong image height!")
        return super().forward(x)


class Giving(Picky):
    """Gives something else than features."""

    def __init__(self, give: Any) -> None:
        super().__init__()
        self.give = give

    def forward(self, x: Tensor) -> Any:
        return self.give(x.flatten(1))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (Giving(lambda x: (x, x)), r"Giving takes, .*: two of them give tuple, not \(2, 64\)"),
        (Giving(lambda x: {"out": x}), r"Giving takes, .*: two of them give dict, not"),
        (Giving(lambda x: x.mean((2, 3))), r"Giving takes, .*: Dimension out of range"),
        (Giving(lambda x: x[:, 1:]), r"Giving takes, .*: two of them give \(2, 63\), not"),
        (Picky(), r"Picky takes, got some of shape \(8, 8\): Wrong image height!"),
        ("small_cnn", r"small_cnn takes, got some of shape \(64,\): input: expected images"),
        ("alexnet", r"alexnet takes, got some of shape \(8, 8\): "),
        (nn.Linear(8, 5), r"Linear takes, .*\(8, 8\)"),
    ],
)
def test_samples_that_a_backbone_does_not_take(backbone: Any, message: str) -> None:
    class Vectors(Few):
        def read(self) -> Any:
            return [Split(split.x.flatten(1), split.y) for split in super().read()]

    images = Vectors(30) if backbone == "small_cnn" else data()
    with pytest.raises(ValueError, match=f"backbone: expected samples that {message}"):
        trainer(1).fit(classifier(backbone=backbone), images)


def test_a_process_without_samples_has_a_gradient_of_nothing() -> None:
    lit = classifier()
    trainer(1, limit_train_batches=0).fit(lit, data())
    statistics = parts(lit)["backbone"]
    y = torch.empty(0, dtype=torch.long)
    objective = lit.objective(lit.logits(torch.empty(0, 8, 8)), y, torch.tensor([3]))
    gradients = torch.autograd.grad(objective, list(lit.parameters()))
    assert not any(g.any() for g in gradients)
    assert same(parts(lit)["backbone"], statistics)
