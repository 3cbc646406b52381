"""The in-memory loader: every row once, in an order that seed and epoch determine."""

from pathlib import Path

import numpy as np
import pytest
import torch

from softmax_torch.data import Batches, batches
from softmax_torch.data.batches import Batch
from softmax_torch.ops import backends
from softmax_torch.ops.native import library


def numbered(n: int, **options: object) -> Batches:
    """Return a loader whose inputs and labels are the row numbers."""
    return Batches(torch.arange(float(n)).unsqueeze(1), torch.arange(n), **options)


def rows(batches: Batches) -> list[int]:
    return [int(i) for _, y in batches for i in y]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 11, None])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_row_is_visited_once(batch_size: int | None, shuffle: bool) -> None:
    batches = numbered(10, batch_size=batch_size, shuffle=shuffle)
    sizes = [len(y) for _, y in batches]
    assert len(sizes) == len(batches)
    assert all(size == min(batch_size or 10, 10) for size in sizes[:-1])
    assert sorted(rows(batches)) == list(range(10))
    for x, y in batches:
        assert torch.equal(x.squeeze(1), y.float())


def test_seed_and_epoch_determine_the_order() -> None:
    first, second = (numbered(100, batch_size=7, shuffle=True, seed=3) for _ in range(2))
    assert rows(first) == rows(first)  # iterating changes nothing
    start = rows(first)
    first.set_epoch(5)
    second.set_epoch(4)
    second.set_epoch(5)
    assert rows(first) == rows(second) != start
    assert rows(numbered(100, batch_size=7, shuffle=True, seed=4)) != start


def test_neighbouring_seeds_have_different_orders() -> None:
    orders = set()
    for seed in range(4):
        batches = numbered(50, batch_size=50, shuffle=True, seed=seed, world_size=2)
        for epoch in range(4):
            batches.set_epoch(epoch)
            orders.add(tuple(rows(batches)))
    assert len(orders) == 16


@pytest.mark.parametrize(("n", "world_size"), [(10, 1), (10, 2), (11, 2), (7, 4), (2, 3)])
def test_ranks_divide_the_evaluation_exactly(n: int, world_size: int) -> None:
    shards = [numbered(n, batch_size=2, rank=r, world_size=world_size) for r in range(world_size)]
    assert sorted(i for shard in shards for i in rows(shard)) == list(range(n))
    assert [len(list(shard)) for shard in shards] == [len(shard) for shard in shards]


def steps_of(batches: Batches) -> list[Batch]:
    return [batch for steps in batches for batch in steps]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 100])
def test_steps_are_consecutive_batches(steps: int, ahead: bool) -> None:
    options = {"batch_size": 4, "shuffle": True, "seed": 5}
    single = [(x.flatten().tolist(), y.tolist()) for x, y in numbered(30, **options)]
    batches = numbered(30, steps=steps, ahead=ahead, **options)
    assert [len(part) for part in batches] == [min(steps, 8 - i) for i in range(0, 8, steps)]
    assert len(batches) == -(-8 // steps)
    got = steps_of(batches)
    assert [(x.flatten().tolist(), y.tolist()) for x, y, _ in got] == single
    assert all(whole.equal(y) for _, y, whole in got)


@pytest.mark.parametrize(
    ("n", "world_size", "batch_size"), [(10, 2, 4), (11, 2, 4), (9, 2, 4), (7, 4, None), (13, 3, 5)]
)
@pytest.mark.parametrize("ahead", [False, True])
def test_ranks_divide_the_batches_of_one_process(
    n: int, world_size: int, batch_size: int | None, ahead: bool
) -> None:
    """No row is dropped or doubled, and each step uses the rows of a single process's step."""
    options = {"batch_size": batch_size, "shuffle": True, "steps": 2, "ahead": ahead}
    alone = steps_of(numbered(n, **options))
    shares = [
        steps_of(numbered(n, rank=rank, world_size=world_size, **options))
        for rank in range(world_size)
    ]
    for i, batch in enumerate(alone):
        mine = [share[i] for share in shares]
        assert sorted(int(y) for part in mine for y in part.y) == sorted(batch.y.tolist())
        assert max(len(part.y) for part in mine) - min(len(part.y) for part in mine) <= 1
        for part in mine:
            assert sorted(part.whole.tolist()) == sorted(batch.y.tolist())
            assert part.x.flatten().tolist() == part.y.tolist()
    assert {len(share) for share in shares} == {len(alone)}


@pytest.mark.parametrize(("n", "world_size"), [(10, 2), (11, 2), (7, 4)])
def test_ranks_of_single_pairs_take_the_same_number_of_steps(n: int, world_size: int) -> None:
    shards = [
        numbered(n, batch_size=4, shuffle=True, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    assert len({tuple(len(y) for _, y in shard) for shard in shards}) == 1
    seen = [i for shard in shards for i in rows(shard)]
    assert set(seen) == set(range(n))
    assert len(seen) == -(-n // world_size) * world_size


@pytest.mark.parametrize("ahead", [False, True])
def test_a_saved_state_resumes_within_an_epoch(ahead: bool) -> None:
    options = {"batch_size": 4, "shuffle": True, "steps": 2, "ahead": ahead}
    batches = numbered(30, **options)
    batches.set_epoch(3)
    iterator = iter(batches)
    for _ in range(2):
        next(iterator)
    state = batches.state_dict()
    rest = [y.tolist() for steps in iterator for _, y, _ in steps]
    again = numbered(30, **options)
    again.load_state_dict(state)
    iter(again)  # an iterator that is not used changes nothing
    again.set_epoch(3)
    assert [y.tolist() for _, y, _ in steps_of(again)] == rest
    again.set_epoch(4)
    assert len(steps_of(again)) == 8
    again.load_state_dict(batches.state_dict())  # saved at the end of an epoch
    assert len(steps_of(again)) == 8


class Watched:
    """A tensor that records which rows are read."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.read = x, []

    def __getattr__(self, name: str) -> object:
        return getattr(self.x, name)

    def index_select(self, dim: int, rows: torch.Tensor) -> torch.Tensor:
        self.read += rows.tolist()
        return self.x.index_select(dim, rows)


def test_a_memory_map_is_read_ahead_in_ascending_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One group of batches ahead; the batches equal those of numbers in memory."""
    monkeypatch.setattr(batches, "ROWS_PER_READ", 10)
    values = np.random.default_rng(0).integers(0, 255, (50, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", values)
    mapped = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="r+"))
    options = {"batch_size": 8, "shuffle": True, "steps": 3, "scale": 1 / 255}
    y = torch.arange(50)
    got = steps_of(Batches(mapped, y, ahead=True, **options))
    expected = steps_of(Batches(torch.from_numpy(values), y, **options))
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
    ahead = Batches(mapped, y, ahead=True, **options)
    ahead.x = Watched(mapped)
    groups = iter(ahead)
    first = torch.cat([y for _, y, _ in next(groups)])
    groups.close()  # waits for the group that is being read
    assert ahead.x.read[:24] == first.sort().values.tolist()
    assert ahead.x.read[24:] == sorted(ahead.x.read[24:])
    assert len(ahead.x.read) == 48


def test_bytes_become_scaled_numbers() -> None:
    stored = torch.tensor([[0, 51], [102, 255]], dtype=torch.uint8)
    for batch_size in (None, 1):
        batches = Batches(stored, torch.zeros(2), batch_size, scale=1 / 255)
        x = torch.cat([x for x, _ in batches])
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, torch.tensor([[0, 0.2], [0.4, 1]]))
    assert stored.tolist() == [[0, 51], [102, 255]]


def test_floats_keep_their_type_and_x_is_not_changed() -> None:
    x = torch.ones(4, 2, dtype=torch.float64)
    assert [b.dtype for b, _ in Batches(x, torch.zeros(4), 2, scale=3)] == [torch.float64] * 2
    assert x.sum() == 8


def test_a_batch_of_all_rows_is_converted_once() -> None:
    batches = Batches(torch.zeros(4, 2, dtype=torch.uint8), torch.zeros(4), shuffle=True)
    [(first, _)], [(second, _)] = batches, batches
    assert first is second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"batch_size: expected at least 1 or None, got 0"),
        ({"steps": 0}, r"steps: expected at least 1 or None, got 0"),
        ({"rank": 2, "world_size": 2}, r"rank: expected a number in \[0, 2\), got 2"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        numbered(3, **options)


def test_tensors_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the same length, got 3 and 2"):
        Batches(torch.zeros(3, 1), torch.zeros(2))


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3,), (1000,)], ids=str)
def test_bytes_are_gathered_as_scaled_floats(kernels: str, shape: tuple[int, ...]) -> None:
    """Each kernel gives the bits of a conversion and a product, in any order of rows."""
    if kernels == "native" and library.load() is None:
        pytest.skip(f"no native kernels: {library.reason()}")
    x = torch.randint(256, (70, *shape), dtype=torch.uint8)
    y = torch.arange(70)
    loaders = [Batches(x, y, 16, shuffle=True, steps=3, scale=1 / 255)]
    loaders += [Batches(x, y, 16, steps=2, scale=1 / 255, rank=r, world_size=2) for r in range(2)]
    with backends.cpu_kernels(kernels):
        for loader in loaders:
            for steps in loader:
                for batch in steps:
                    assert torch.equal(batch.x, x[batch.y].float() * (1 / 255))


def test_row_numbers_outside_x_are_refused() -> None:
    x, y = torch.zeros(4, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"rows: expected row numbers in \[0, 4\), got 1 to 4"):
        Batches(x, y, rows=torch.tensor([1, 4]))
