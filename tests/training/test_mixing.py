"""Mixup and CutMix: mixed batches, and training on them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import Own, classifier, data
from trainers import trainer

from softmax_torch.data.batches import Batch
from softmax_torch.training.mixing import Mixing


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8)])
def test_mixup_matches_its_formula(shape: tuple[int, ...]) -> None:
    x, y = torch.rand(6, *shape), torch.tensor([0, 1, 2, 3, 1, 0])
    torch.manual_seed(3)
    mixed = Mixing(0.4, 0.0, 4)(Batch(x, y, y))
    torch.manual_seed(3)
    lam = float(torch.distributions.Beta(0.4, 0.4).sample())
    one = F.one_hot(y, 4).float()
    torch.testing.assert_close(mixed.x, lam * x + (1 - lam) * x.roll(1, 0))
    torch.testing.assert_close(mixed.y, lam * one + (1 - lam) * one.roll(1, 0))
    assert mixed.whole is y
    assert 0.01 < lam < 0.99  # else the test proves nothing


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8)])
def test_cutmix_pastes_a_box_and_weights_its_class_by_area(shape: tuple[int, ...]) -> None:
    x, y = torch.rand(6, *shape), torch.tensor([0, 1, 2, 3, 1, 0])
    before, shares = x.clone(), []
    for seed in range(20):
        torch.manual_seed(seed)
        mixed = Mixing(0.0, 1.0, 4)(Batch(x, y, y))
        other = mixed.x != x
        assert torch.equal(mixed.x[other], x.roll(1, 0)[other])
        box = other.reshape(-1, 8, 8).any(0)
        assert torch.equal(box, box.any(0) & box.any(1, keepdim=True))  # one rectangle
        share = box.float().mean()
        one = F.one_hot(y, 4).float()
        torch.testing.assert_close(mixed.y, (1 - share) * one + share * one.roll(1, 0))
        shares.append(float(share))
    assert len({share for share in shares if 0 < share < 1}) > 5
    assert torch.equal(x, before)


@pytest.mark.parametrize("options", [{}, {"class_weight": [1.0, 2.0] * 5}, {"z_loss": 0.01}])
@pytest.mark.parametrize("features", [6, 16])
def test_the_objective_of_mixed_images(options: dict[str, Any], features: int) -> None:
    """It is the mean of the objectives of both classes, with a fused loss or not."""
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
    expected = expected + lit.criterion.z_loss * z.logsumexp(1).square().sum()
    expected = expected / weight[y].sum()
    torch.testing.assert_close(lit.objective(z, mixed.y, y), expected)
    fused, figures = lit.fused_objective(lit.features(mixed.x), mixed.y, y)
    torch.testing.assert_close(fused, expected)
    assert figures is None
    run = trainer(1)
    run.fit(lit.train(), data())
    assert "train/loss" in run.callback_metrics
    assert "train/accuracy" not in run.callback_metrics


def test_vectors_are_not_mixed() -> None:
    y = torch.arange(4)
    with pytest.raises(ValueError, match=r"mixup and cutmix: expected images .* got \(4, 64\)"):
        Mixing(0.4, 0.0, 4)(Batch(torch.rand(4, 64), y, y))


def test_mixup_and_cutmix_alternate() -> None:
    torch.manual_seed(0)
    mixing, x, y = Mixing(1.0, 1.0, 4), torch.rand(4, 8, 8), torch.arange(4)
    cut = [bool((mixing(Batch(x, y, y)).x == x).any()) for _ in range(20)]
    assert 3 < sum(cut) < 17
