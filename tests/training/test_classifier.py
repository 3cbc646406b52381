"""A net that ends in softmax regression: the net, its loss, and when its backbone is trained."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from nets import SGD, Own, classifier, data, parts, same
from support import products
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassF1Score
from trainers import trainer

from softmax_torch import SoftmaxRegression, backbones
from softmax_torch.data import Batches
from softmax_torch.ops import budgets
from softmax_torch.training import LitClassifier, LitSoftmaxRegression
from softmax_torch.training.epoch_metrics import SampleFigures


def test_softmax_regression_is_a_classifier_without_backbone() -> None:
    """Both give the same bits; its checkpoint has no settings of a backbone."""
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
def test_steps_match_a_plain_torch_loop(options: dict[str, Any]) -> None:
    """The loop has nn.Linear on the same features, F.cross_entropy, and the other terms in full."""
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
def test_losses_in_a_net_match_torch(classes: int) -> None:
    """Over some steps from the same weights, to 1e-5 of the first loss."""
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
    """Return a function that does the same and notes its name."""
    return lambda *args: (calls.append(name), real(*args))[1]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_many_classes_use_the_fused_loss_and_its_figures(precision: Any, monkeypatch: Any) -> None:
    """With C > D only the fused loss is used; figures and parameters match those with logits."""
    outcomes = []
    for fuses in (True, False):
        metrics = {"f1": MulticlassF1Score(10, average="macro")}
        options = {"label_smoothing": 0.1, "class_weight": [1.0, 2.0] * 5, "metrics": metrics}
        lit = classifier(backbone=Own(6), **options)
        assert lit.fuses_loss
        lit.fuses_loss = fuses
        calls: list[str] = []
        for name in ("objective", "fused_objective"):
            monkeypatch.setattr(lit, name, noting(calls, name, getattr(lit, name)))
        real = lit.training_metrics.add_rows
        monkeypatch.setattr(lit.training_metrics, "add_rows", noting(calls, "logits", real))
        run = trainer(2, precision=precision)
        run.fit(lit, data())
        assert set(calls) == {"fused_objective"} if fuses else {"objective", "logits"}
        figures = {name: float(value) for name, value in run.callback_metrics.items()}
        outcomes.append((figures, lit.model.linear.weight.detach()))
    (figures, W), (expected, expected_W) = outcomes
    close = 1e-5 if precision == "32-true" else 2e-2
    assert figures == pytest.approx(expected, rel=close)
    assert {"train/loss", "train/accuracy", "train/nll", "val/nll", "val/f1"} <= figures.keys()
    torch.testing.assert_close(W, expected_W, rtol=close, atol=close)


@pytest.mark.parametrize("classes", [40, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_figures_of_the_fused_loss_are_those_of_the_logits(
    classes: int, dtype: torch.dtype, monkeypatch: Any
) -> None:
    """Those of each sample, without the other terms of the objective."""
    monkeypatch.setattr(budgets, "logits_budget", lambda x: 3 * classes * x.element_size())
    lit = LitClassifier(64, classes, backbone=Own(16), label_smoothing=0.1, z_loss=0.1)
    lit.to(dtype)
    features, y = torch.randn(40, 16, dtype=dtype), torch.randint(classes, (40,))
    with torch.no_grad():
        lit.model.linear.weight.mul_(20)  # some samples are certain
        y[::2] = lit.model.logits(features).argmax(1)[::2]
    objective, figures = lit.fused_objective(features, y)
    assert figures is not None
    assert objective.requires_grad
    expected = SampleFigures.of_logits(lit.model.logits(features).detach(), y)
    assert figures.correct.equal(expected.correct)
    assert 20 <= int(figures.correct.sum()) < 40
    close = {torch.float16: 1e-2, torch.bfloat16: 1e-1}.get(dtype, 1e-5)
    torch.testing.assert_close(figures.nll.float(), expected.nll, rtol=close, atol=1e-6)
    assert not any(values.requires_grad for values in figures)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weight": [1.0] * 97}])
def test_a_step_makes_three_products_with_many_classes(options: dict[str, Any]) -> None:
    """The logits and the gradients of features and weight; its figures take no other."""
    lit = LitClassifier(64, 97, backbone=Own(16), optimizer=SGD, **options)
    samples = TensorDataset(torch.randn(60, 64), torch.randint(97, (60,)))
    run, loader = trainer(1, limit_val_batches=0), DataLoader(samples, batch_size=30)
    assert products(lambda: run.fit(lit, loader, loader), 97) == 3 * 2
    assert run.global_step == 2
    assert {"train/accuracy", "train/nll"} <= run.callback_metrics.keys()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_figures_of_an_epoch_are_of_all_its_samples(accumulated: int) -> None:
    """At a learning rate of 0 they are those of the trained net on the whole set."""
    still = partial(torch.optim.SGD, lr=0.0)
    net = Own(6)
    net.layers = net.layers[:2]  # without batch statistics and dropout
    lit, few = classifier(backbone=net, optimizer=still, steps_per_call=2), data()
    run = trainer(1, accumulate_grad_batches=accumulated)
    run.fit(lit, few)
    x, y = few.splits["train"]
    z = lit.logits(x / 16).detach()
    got = run.callback_metrics
    assert float(got["train/accuracy"]) == float((z.argmax(1) == y).float().mean())
    assert float(got["train/nll"]) == pytest.approx(float(F.cross_entropy(z, y)), rel=1e-5)


def test_evaluation_in_parts_matches_the_whole_batch(monkeypatch: Any) -> None:
    net = backbones.make("small_cnn").eval()
    x = torch.rand(11, 8, 8)
    whole = net(x)
    monkeypatch.setattr(backbones, "EVALUATED_IMAGES", 4)
    sizes: list[int] = []
    net.net.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    torch.testing.assert_close(net(x), whole)
    net.train()(x)  # BatchNorm's statistics are of the whole batch
    assert sizes == [4, 4, 3, 11]


def test_grey_images_match_their_colour_copies() -> None:
    grey, net = torch.rand(2, 8, 8), backbones.make("small_cnn").eval()
    expected = net(grey)
    for x in (grey.unsqueeze(1), grey.unsqueeze(1).repeat(1, 3, 1, 1)):
        torch.testing.assert_close(net(x), expected)


def test_a_torchvision_net_is_trained_and_rebuilt_by_name(tmp_path: Path) -> None:
    """Images are normalized as in the net's own training."""
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


# When the backbone is trained


class States(Callback):
    """Parameters at the end of each epoch, and modes of the backbone's parts in each batch."""

    def __init__(self) -> None:
        self.states: list[dict[str, dict[str, Tensor]]] = []
        self.modes: list[set[bool]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.states.append(parts(pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.modes.append({m.training for m in pl_module.backbone.modules()})


def test_a_frozen_backbone_does_not_change() -> None:
    """Nor do its statistics; the head learns, and the optimizer has no state for the backbone."""
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
def test_a_part_in_evaluation_mode_stays_in_it() -> None:
    """The part is in a user's backbone that is trained."""
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
    # a new fit freezes it again
    again = States()
    trainer(1, again).fit(lit, data())
    assert again.modes[0] == {False}


def test_unfreezing_in_several_processes_is_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(ValueError, match="unfreeze_at_epoch: expected one process, got 2"):
        trainer(1).fit(classifier(freeze_backbone=True, unfreeze_at_epoch=1), data())


def test_a_backbone_can_have_its_own_learning_rate() -> None:
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


def test_a_schedule_that_sets_one_rate_is_refused() -> None:
    one = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=9)
    lit = classifier(backbone_lr=1e-3, lr_scheduler=one)
    with pytest.raises(ValueError, match=r"backbone_lr: expected a schedule .* got OneCycleLR"):
        trainer(1).fit(lit, data())


def test_a_schedule_may_begin_at_rates_of_0() -> None:
    """The rates are equal then, and scaled nevertheless."""
    warm_up = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: epoch / 2)
    run = trainer(1)
    run.fit(classifier(backbone_lr=1e-3, lr_scheduler=warm_up), data())
    assert [group["lr"] for group in run.optimizers[0].param_groups] == pytest.approx([0.025, 5e-4])


def test_a_process_without_samples_has_no_figures_of_a_fused_loss() -> None:
    lit, y = classifier(backbone=Own(6), class_weight=[1.0, 2.0] * 5), torch.empty(0).long()
    trainer(1, limit_train_batches=0).fit(lit, data())
    objective, figures = lit.fused_objective(torch.empty(0, 6), y, torch.tensor([3]))
    assert float(objective.detach()) == 0
    assert figures is not None
    assert (len(figures.correct), len(figures.nll)) == (0, 0)
    some = SampleFigures(torch.tensor([True, False]), torch.tensor([0.5, 1.0]))
    lit.training_metrics.add_steps(objective.detach().reshape(1))
    lit.training_metrics.add_figures(SampleFigures.joined([figures, some]))
    means = lit.training_metrics.result(lambda x: x)
    assert {n: float(v) for n, v in means.items()} == {"loss": 0, "accuracy": 0.5, "nll": 0.75}


def test_a_process_without_samples_has_zero_gradient() -> None:
    lit = classifier()
    trainer(1, limit_train_batches=0).fit(lit, data())
    statistics = parts(lit)["backbone"]
    y = torch.empty(0, dtype=torch.long)
    objective = lit.objective(lit.logits(torch.empty(0, 8, 8)), y, torch.tensor([3]))
    gradients = torch.autograd.grad(objective, list(lit.parameters()))
    assert not any(g.any() for g in gradients)
    assert same(parts(lit)["backbone"], statistics)
