"""A stratified draw takes its share of each class and leaves every class in both parts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softmax_torch.data.splits import check_class_counts, stratified


@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=8),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 3),
)
def test_each_class_has_its_share(counts: list[int], fraction: float, seed: int) -> None:
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
    rest, part = stratified(y, fraction, seed)
    assert torch.equal(torch.cat([rest, part]).sort().values, torch.arange(len(y)))
    assert torch.equal(rest, rest.sort().values)
    assert torch.equal(part, part.sort().values)
    got = torch.bincount(y[part], minlength=len(counts))
    for n, k in zip(counts, got.tolist(), strict=True):
        assert 1 <= k <= n - 1
        assert abs(k - fraction * n) < 1 or k in (1, n - 1)
    wanted = round(len(y) * fraction)
    if all(1 <= fraction * n <= n - 1 for n in counts):
        assert len(part) == wanted


def test_the_seed_draws_the_part() -> None:
    y = torch.arange(300) % 3
    first = stratified(y, 0.2, 0)[1]
    assert torch.equal(first, stratified(y, 0.2, 0)[1])
    assert not torch.equal(first, stratified(y, 0.2, 1)[1])
    assert torch.bincount(y[first]).tolist() == [20, 20, 20]


def test_a_class_without_samples_is_allowed() -> None:
    rest, part = stratified(torch.tensor([0, 0, 2, 2]), 0.5, 0)
    assert len(rest) == len(part) == 2
    assert len(stratified(torch.tensor([0] * 5 + [2] * 5), 0.3, 0)[1]) == 3


def test_a_class_with_one_sample_cannot_be_split() -> None:
    y = torch.tensor([0, 0, 0, 1])
    with pytest.raises(ValueError, match=r"at least 2 samples of each class.* got 1 of class 1$"):
        stratified(y, 0.5, 0)
    with pytest.raises(ValueError, match=r"at least 3 samples .* got 1 of class dog$"):
        check_class_counts(y, 3, ["cat", "dog"])
    with pytest.raises(ValueError, match=r"class 9 and 2 other classes"):
        check_class_counts(torch.arange(12), 2)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_fraction_is_between_0_and_1(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        stratified(torch.tensor([0, 0]), fraction, 0)
