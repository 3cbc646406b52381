"""The in-memory loader: every row once, in an order that is a function of seed and epoch."""

import pytest
import torch

from softmax_torch.data import Batches


def numbered(n: int, **options: object) -> Batches:
    """A data set whose inputs and labels are the numbers of its rows."""
    return Batches(torch.arange(float(n)).unsqueeze(1), torch.arange(n), **options)


def rows(batches: Batches) -> list[int]:
    return [int(i) for _, y in batches for i in y]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 11, None])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_row_once(batch_size: int | None, shuffle: bool) -> None:
    batches = numbered(10, batch_size=batch_size, shuffle=shuffle)
    sizes = [len(y) for _, y in batches]
    assert len(sizes) == len(batches)
    assert all(size == min(batch_size or 10, 10) for size in sizes[:-1])
    assert sorted(rows(batches)) == list(range(10))
    for x, y in batches:
        assert torch.equal(x.squeeze(1), y.float())


def test_order_is_a_function_of_seed_and_epoch() -> None:
    first, second = (numbered(100, batch_size=7, shuffle=True, seed=3) for _ in range(2))
    assert rows(first) == rows(first)  # iterating changes nothing
    start = rows(first)
    first.set_epoch(5)
    second.set_epoch(4)
    second.set_epoch(5)
    assert rows(first) == rows(second) != start
    assert rows(numbered(100, batch_size=7, shuffle=True, seed=4)) != start


def test_neighbouring_seeds_share_no_order() -> None:
    orders = set()
    for seed in range(4):
        batches = numbered(50, batch_size=50, shuffle=True, seed=seed, world_size=2)
        for epoch in range(4):
            batches.set_epoch(epoch)
            orders.add(tuple(rows(batches)))
    assert len(orders) == 16


@pytest.mark.parametrize(("n", "world_size"), [(10, 1), (10, 2), (11, 2), (7, 4), (2, 3)])
def test_evaluation_is_shared_out_exactly(n: int, world_size: int) -> None:
    shards = [numbered(n, batch_size=2, rank=r, world_size=world_size) for r in range(world_size)]
    assert sorted(i for shard in shards for i in rows(shard)) == list(range(n))
    assert [len(list(shard)) for shard in shards] == [len(shard) for shard in shards]


@pytest.mark.parametrize(("n", "world_size"), [(10, 2), (11, 2), (7, 4)])
def test_ranks_of_training_take_the_same_number_of_steps(n: int, world_size: int) -> None:
    shards = [
        numbered(n, batch_size=2, shuffle=True, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    assert len({tuple(len(y) for _, y in shard) for shard in shards}) == 1
    seen = [i for shard in shards for i in rows(shard)]
    assert set(seen) == set(range(n))
    assert len(seen) == -(-n // world_size) * world_size


def test_bytes_become_scaled_numbers() -> None:
    stored = torch.tensor([[0, 51], [102, 255]], dtype=torch.uint8)
    for batch_size in (None, 1):
        batches = Batches(stored, torch.zeros(2), batch_size, scale=1 / 255)
        x = torch.cat([x for x, _ in batches])
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, torch.tensor([[0, 0.2], [0.4, 1]]))
    assert stored.tolist() == [[0, 51], [102, 255]]


def test_numbers_keep_their_type_and_are_not_written_to() -> None:
    x = torch.ones(4, 2, dtype=torch.float64)
    assert [b.dtype for b, _ in Batches(x, torch.zeros(4), 2, scale=3)] == [torch.float64] * 2
    assert x.sum() == 8


def test_a_whole_batch_is_made_once() -> None:
    batches = Batches(torch.zeros(4, 2, dtype=torch.uint8), torch.zeros(4), shuffle=True)
    [(first, _)], [(second, _)] = batches, batches
    assert first is second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"batch_size: expected at least 1 or None, got 0"),
        ({"rank": 2, "world_size": 2}, r"rank: expected a number in \[0, 2\), got 2"),
    ],
)
def test_refuses(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        numbered(3, **options)


def test_refuses_tensors_of_different_length() -> None:
    with pytest.raises(ValueError, match="expected the same length, got 3 and 2"):
        Batches(torch.zeros(3, 1), torch.zeros(2))
