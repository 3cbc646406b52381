"""Features in files of every format: mapped, checked with the file named, split by class."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from safetensors.torch import save_file
from torch import Tensor

from softmax_torch.data import Batches, FeaturesDataModule, Split, tensor_data_module
from softmax_torch.solvers import fit
from softmax_torch.training import LitSoftmaxRegression

Files = str | list[str]


def made(n: int = 60, dtype: torch.dtype = torch.float32) -> Split:
    generator = torch.Generator().manual_seed(n)
    y = torch.arange(n) % 3
    x = torch.randn(n, 4, generator=generator) + 2 * torch.eye(3, 4)[y]
    return Split(x.to(dtype), y)


def as_pt(at: Path, x: Tensor, y: Tensor) -> Files:
    torch.save({"x": x, "y": y}, at.with_suffix(".pt"))
    return str(at.with_suffix(".pt"))


def as_safetensors(at: Path, x: Tensor, y: Tensor) -> Files:
    save_file({"x": x, "y": y}, at.with_suffix(".safetensors"))
    return str(at.with_suffix(".safetensors"))


def as_arrays(at: Path, x: Tensor, y: Tensor) -> Files:
    files = [f"{at}_x.npy", f"{at}_y.npy"]
    for file, values in zip(files, (x, y), strict=True):
        np.save(file, values.numpy())
    return files


def as_tensors(at: Path, x: Tensor, y: Tensor) -> Files:
    files = [f"{at}_x.pt", f"{at}_y.pt"]
    for file, values in zip(files, (x, y), strict=True):
        torch.save(values, file)
    return files


def in_capitals(at: Path, x: Tensor, y: Tensor) -> Files:
    file = Path(as_pt(at, x, y))
    return str(file.rename(file.with_suffix(".PT")))


KINDS = {
    "pt": as_pt,
    "safetensors": as_safetensors,
    "npy": as_arrays,
    "two pt": as_tensors,
    "PT": in_capitals,
}


def data(root: Path, write: Callable[..., Files] = as_pt, **options: object) -> FeaturesDataModule:
    train, test = write(root / "train", *made(60)), write(root / "test", *made(30))
    return FeaturesDataModule(train, test, **options)


def is_mapped(x: Tensor) -> bool:
    """Return whether the memory of a tensor belongs to a file, by /proc/self/maps."""
    at = x.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(a, 16) for a in line.split()[0].split("-"))
        if start <= at < end:
            return len(line.split()) > 5 and Path(line.split()[5]).is_file()
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_format_are_mapped(kind: str, tmp_path: Path) -> None:
    found = data(tmp_path, KINDS[kind])
    found.setup()
    assert (found.in_features, found.num_classes) == (4, 3)
    x, y = found.splits["test"]
    assert is_mapped(x)
    assert not is_mapped(y)
    torch.testing.assert_close(x, made(30).x)
    assert y.equal(made(30).y)
    assert [len(found.splits[part]) for part in ("train", "val")] == [54, 6]
    assert torch.bincount(found.splits["val"].y).tolist() == [2, 2, 2]


def test_a_validation_set_from_a_file(tmp_path: Path) -> None:
    found = data(tmp_path, val=as_pt(tmp_path / "val", *made(9)))
    found.setup()
    assert [len(split) for split in found.splits.values()] == [60, 9, 30]
    assert all(is_mapped(split.x) for split in found.splits.values())


def test_names_of_classes(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\ncow\nowl\n")
    found = data(tmp_path, class_names=str(tmp_path / "names.txt"))
    assert found.num_classes == 4
    assert found.preprocessing.class_names == ("cat", "dog", "cow", "owl")
    assert found.preprocessing.kind == "features"
    assert data(tmp_path).preprocessing.class_names == ("0", "1", "2")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_in_batches(dtype: torch.dtype, tmp_path: Path) -> None:
    train = as_pt(tmp_path / "train", *made(60, dtype))
    found = FeaturesDataModule(train, train, batch_size=20)
    found.setup()
    assert found.splits["train"].x.dtype == dtype
    x, _ = next(iter(found.train_dataloader()))
    assert x.dtype == torch.float32


def as_in_float64(root: Path, value: float) -> FeaturesDataModule:
    """Return float64 features; one number among them is the given value."""
    x, y = made(60, torch.float64)
    x[4, 2] = value
    train = as_arrays(root / "train", x, y)
    return FeaturesDataModule(train, train)


@pytest.mark.parametrize("solver", ["auto", None])
def test_float64_features_give_the_model_of_float32(solver: str | None, tmp_path: Path) -> None:
    found = as_in_float64(tmp_path, 0.5)
    weight = fitted(found, solver=solver)
    x, y = (torch.from_numpy(np.load(file)) for file in found.files["train"])
    single = as_arrays(tmp_path / "single", x.float(), y)
    torch.testing.assert_close(weight, fitted(FeaturesDataModule(single, single), solver=solver))
    assert next(iter(found.test_dataloader()))[0].dtype == torch.float32


def test_a_model_in_float64_gets_float64_features(tmp_path: Path) -> None:
    found = as_in_float64(tmp_path, 1 / 3)
    lit = LitSoftmaxRegression(4, 3)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(
        max_epochs=1, accelerator="cpu", precision="64-true", enable_checkpointing=False, **quiet
    ).fit(lit, found)
    assert next(iter(found.test_dataloader()))[0].dtype == torch.float64


def test_numbers_beyond_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"float32's range, up to 3.4e\+38, got 1e\+300 in row 4"):
        as_in_float64(tmp_path, -1e300).setup()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16, torch.bool])
def test_features_of_other_types_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    x, y = made(60)
    file = as_safetensors(tmp_path / "a", x.abs().to(dtype), y)
    found = FeaturesDataModule(file, file)
    found.setup()
    first = next(iter(found.test_dataloader()))[0]
    assert first.dtype == torch.float32
    assert torch.equal(first, x.abs().to(dtype).float())


def visited(found: FeaturesDataModule) -> list[list[float]]:
    return [x.sum().item() for x, _ in found.train_dataloader()]


@pytest.mark.parametrize("batch_size", [None, 7])
def test_splits_of_large_features_are_not_copied(
    batch_size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches, splits and fingerprints are those of copies."""
    small = data(tmp_path, batch_size=batch_size)
    small.setup()
    monkeypatch.setattr(tensor_data_module, "MAX_COPIED_BYTES", 100)
    large = data(tmp_path, batch_size=batch_size)
    large.setup()
    assert len(large.splits["train"].x) == 60
    assert is_mapped(large.splits["train"].x)
    assert large.class_counts.equal(small.class_counts)
    assert large.fingerprint == small.fingerprint
    assert visited(large) == pytest.approx(visited(small))
    for a, b in zip(large.val_dataloader(), small.val_dataloader(), strict=True):
        assert a[0].equal(b[0])
        assert a[1].equal(b[1])


def test_another_draw_from_large_features_has_another_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the labels of the remaining samples, sorted by class, are the same."""
    monkeypatch.setattr(tensor_data_module, "MAX_COPIED_BYTES", 100)
    x, y = made(60)
    order = y.argsort(stable=True)
    train = as_pt(tmp_path / "sorted", x[order], y[order])
    one, again, other = (FeaturesDataModule(train, train, seed=seed) for seed in (0, 0, 1))
    for found in (one, again, other):
        found.setup()
    assert one.splits["train"].y.equal(other.splits["train"].y)
    assert one.fingerprint == again.fingerprint != other.fingerprint


def fitted(found: FeaturesDataModule, **options: object) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lit = LitSoftmaxRegression(4, 3, C=1.0, **options)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    epochs = 3 if lit.convex is None else 30  # a solver stops at its optimum
    Trainer(max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, **quiet).fit(
        lit, found
    )
    return lit.model.linear.weight.detach()


@pytest.mark.parametrize("solver", ["auto", None])
def test_training_on_mapped_features_gives_the_result_of_copies(
    solver: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_size = None if solver else 16
    small = fitted(data(tmp_path, batch_size=batch_size), solver=solver)
    monkeypatch.setattr(tensor_data_module, "MAX_COPIED_BYTES", 100)
    large = fitted(data(tmp_path, batch_size=batch_size), solver=solver)
    torch.testing.assert_close(large, small)


def test_a_solver_reads_large_features_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no validation rows are drawn, nothing is copied."""
    monkeypatch.setattr(tensor_data_module, "MAX_COPIED_BYTES", 100)
    found = data(tmp_path, val=as_pt(tmp_path / "val", *made(9)))
    found.setup()
    [(x, y)] = found.train_dataloader()
    [[(in_training, _, _)]] = Batches(x, y, shuffle=True, steps=3, ahead=True)
    assert is_mapped(x)
    assert in_training.data_ptr() == x.data_ptr() == found.splits["train"].x.data_ptr()
    weight = fitted(data(tmp_path, val=as_pt(tmp_path / "val", *made(9))), solver="auto")
    torch.testing.assert_close(weight.double(), fit(x, y).weight, atol=1e-3, rtol=1e-3)


def replaced(x: Tensor | None = None, y: Tensor | None = None) -> Split:
    """Return valid samples with x or y replaced."""
    good = made()
    return Split(good.x if x is None else x, good.y if y is None else y)


@pytest.mark.parametrize(
    ("train", "error", "message"),
    [
        (replaced(x=torch.zeros(59, 4)), ValueError, "class index for each of 59 samples"),
        (replaced(y=torch.zeros(60)), TypeError, "an integer type, got torch.float32"),
        (replaced(y=torch.zeros(60, 2).long()), ValueError, r"got shape \(60, 2\)"),
        (replaced(x=torch.zeros(60)), ValueError, r"features \(N, D\), got shape \(60,\)"),
        (replaced(x=torch.full((60, 4), torch.nan)), ValueError, "NaN or infinity in 60"),
        (replaced(y=torch.arange(60) % 3 - 1), IndexError, r"labels in \[0, 2\), got -1 in row 0"),
        (replaced(y=(torch.arange(60) == 7).long()), ValueError, "2 samples of each class"),
    ],
)
def test_unusable_samples_are_refused_with_their_file(
    train: Split, error: type[Exception], message: str, tmp_path: Path
) -> None:
    mine = as_pt(tmp_path / "mine", *train)
    with pytest.raises(error, match=message) as raised:
        FeaturesDataModule(mine, mine).setup()
    assert "mine.pt" in str(raised.value) or "each class" in message


def test_a_test_label_without_training_samples(tmp_path: Path) -> None:
    train = as_pt(tmp_path / "train", *made())
    test = as_pt(tmp_path / "other", *replaced(y=torch.full((60,), 5)))
    with pytest.raises(IndexError, match=r"other.pt: expected labels in \[0, 3\), got 5 in row 0"):
        FeaturesDataModule(train, test).setup()


def test_files_with_other_contents_are_refused(tmp_path: Path) -> None:
    good = as_pt(tmp_path / "good", *made())

    def said(train: Files, **options: object) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as raised:
            FeaturesDataModule(train, good, **options).setup()
        return str(raised.value)

    torch.save({"x": torch.zeros(3, 2)}, tmp_path / "x.pt")
    torch.save({"x": 1, "y": 2}, tmp_path / "numbers.pt")
    x, y = made()
    for name, other in (("complex", x + 1j), ("scalar", x.sum())):
        torch.save({"x": other, "y": y}, tmp_path / f"{name}.pt")
        assert f"{name}.pt: expected tensors of real" in said(str(tmp_path / f"{name}.pt"))
    save_file({"x": x.sum(), "y": y}, tmp_path / "scalar.safetensors")
    assert "scalar.safetensors: expected tensors" in said(str(tmp_path / "scalar.safetensors"))
    np.save(tmp_path / "other.npy", x.numpy().astype(">f4"))
    assert "other.npy: expected an array of numbers, a row a sample, got >f4" in said(
        [str(tmp_path / "other.npy")] * 2
    )
    (tmp_path / "noise.pt").write_bytes(b"noise")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    (tmp_path / "twice.txt").write_text("a\na\n")
    assert "x.pt: expected tensors x and y, got x" in said(str(tmp_path / "x.pt"))
    assert "numbers.pt: expected tensors" in said(str(tmp_path / "numbers.pt"))
    for name in ("noise.pt", "noise.safetensors"):
        assert f"{name}: expected tensors, got a file that is damaged" in said(str(tmp_path / name))
    assert "none.pt: expected tensors, got no such file" in said(str(tmp_path / "none.pt"))
    assert "a.csv: expected a file that ends in .npy" in said(str(tmp_path / "a.csv"))
    assert "got 3 files" in said([good, good, good])
    assert "good.pt: expected one tensor, got x, y" in said([good, good])
    (tmp_path / "latin.txt").write_bytes("chevêche\nb\n".encode("latin1"))
    assert "latin.txt: expected text in UTF-8" in said(
        good, class_names=str(tmp_path / "latin.txt")
    )
    assert "two alike" in said(good, class_names=str(tmp_path / "twice.txt"))
    assert "expected a text file" in said(good, class_names=str(tmp_path / "none.txt"))
