"""A step on accumulated gradients is the step on one batch with the samples of all of them."""

from functools import partial
from typing import Any

import pytest
import torch
from rows import C, D, RowsDataModule
from torch import nn
from trainers import trainer

from softmax_torch.training import LitClassifier, LitSoftmaxRegression

WEIGHT = [1.0, 0.5, 2.0, 3.0]


def model(kind: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    optimizer = partial(torch.optim.SGD, lr=0.3, momentum=0.9)
    backbone = {"backbone": None} if kind is LitClassifier else {}
    return kind(D, C, optimizer=optimizer, **backbone, **options)


def plain_loop(batch_size: int, every: int, class_weight: list[float] | None) -> torch.Tensor:
    """The weight after two epochs of a plain loop that joins batches."""
    lit, data = model(LitSoftmaxRegression), RowsDataModule()
    data.setup()
    optimizer = torch.optim.SGD(lit.parameters(), lr=0.3, momentum=0.9)
    loss = nn.CrossEntropyLoss(None if class_weight is None else torch.tensor(class_weight))
    batches = data._batches("train", batch_size, shuffle=True)
    for epoch in range(2):
        batches.set_epoch(epoch)
        listed = list(batches)
        for first in range(0, len(listed), every):
            x, y = (torch.cat(part) for part in zip(*listed[first : first + every], strict=True))
            optimizer.zero_grad()
            loss(lit.model.linear(x), y).backward()
            optimizer.step()
    return lit.model.linear.weight.detach()


@pytest.mark.parametrize(
    ("batch_size", "every"),
    [
        (4, 3),  # 8 batches: groups of 3, 3 and 2
        (5, 2),  # 6 of 5 samples and one of 2: alone in the last group
        (5, 4),  # groups of 5, 5, 5, 5 and of 5, 5, 2
    ],
)
@pytest.mark.parametrize("kind", [LitSoftmaxRegression, LitClassifier])
@pytest.mark.parametrize("class_weight", [None, WEIGHT])
def test_a_group_of_batches_is_one_batch(
    batch_size: int, every: int, kind: Any, class_weight: list[float] | None
) -> None:
    lit = model(kind, class_weight=class_weight)
    run = trainer(2, accumulate_grad_batches=every)
    run.fit(lit, RowsDataModule(batch_size))
    expected = plain_loop(batch_size, every, class_weight)
    torch.testing.assert_close(lit.model.linear.weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_after_they_were_averaged() -> None:
    """A group of 8 batches of 4 with clipping is a batch of 32 with clipping."""
    weights = []
    for batch_size, every in ((32, 1), (4, 8)):
        lit = model(LitSoftmaxRegression)
        options = {"accumulate_grad_batches": every, "gradient_clip_val": 0.1}
        trainer(3, **options).fit(lit, RowsDataModule(batch_size))
        weights.append(lit.model.linear.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_an_optimizer_that_evaluates_several_times_is_refused() -> None:
    lit = LitSoftmaxRegression(D, C, optimizer=partial(torch.optim.LBFGS, lr=0.1))
    with pytest.raises(ValueError, match="accumulate_grad_batches: expected 1 with LBFGS"):
        trainer(1, accumulate_grad_batches=2).fit(lit, RowsDataModule())
