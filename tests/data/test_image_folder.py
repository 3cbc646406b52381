"""Folders of images as a data set: splits, classes, sizes, and the same bytes as in the files."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reporters import Messages

from softmax_torch import cli
from softmax_torch.data import ImageFolderDataModule, MNISTDataModule
from softmax_torch.data.progress import reporting_to
from softmax_torch.readers import images
from softmax_torch.readers.images import read_headers
from softmax_torch.solvers import fit


def write(folder: Path, classes: dict[str, int], size: tuple[int, int] = (6, 5)) -> Path:
    """Write the given number of images for each class: noise, brighter from class to class."""
    generator = np.random.default_rng(0)
    for c, (name, n) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            noise = generator.integers(0, 100, size) + 40 * c
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{i:02d}.png")
    return folder


def test_splits_given_by_folders(tmp_path: Path) -> None:
    for part, n in (("train", 8), ("validation", 3), ("test", 2)):
        write(tmp_path / part, {"cat": n, "dog": n + 1})
    data = ImageFolderDataModule(str(tmp_path))
    assert (data.in_features, data.num_classes) == (30, 2)
    data.setup()
    assert {part: len(split) for part, split in data.splits.items()} == {
        "train": 17,
        "val": 7,
        "test": 5,
    }
    x, y = data.splits["test"]
    assert (x.shape, x.dtype, y.tolist()) == ((5, 6, 5), torch.uint8, [0, 0, 1, 1, 1])
    assert data.test_ids == [f"test/cat/{i:02d}.png" for i in range(2)] + [
        f"test/dog/{i:02d}.png" for i in range(3)
    ]
    assert torch.equal(x[3], data.preprocessing.decode(tmp_path / data.test_ids[3]))
    assert data.preprocessing.class_names == ("cat", "dog")


def test_drawn_splits_keep_the_share_of_each_class(tmp_path: Path) -> None:
    write(tmp_path, {"cat": 20, "dog": 40})
    data = ImageFolderDataModule(str(tmp_path), val_fraction=0.25, test_fraction=0.2)
    data.setup()
    counts = {part: torch.bincount(split.y).tolist() for part, split in data.splits.items()}
    assert counts == {"train": [12, 24], "val": [4, 8], "test": [4, 8]}
    files = [path for part in data.files.values() for path in part]
    assert len(set(files)) == 60
    for part, split in data.splits.items():
        for file, image, c in zip(data.files[part], *split, strict=True):
            assert torch.equal(image, data.preprocessing.decode(file))
            assert file.parent.name == ("cat", "dog")[c]
    other = ImageFolderDataModule(str(tmp_path), val_fraction=0.25, test_fraction=0.2, seed=1)
    other.setup()
    assert other.files["test"] == data.files["test"]
    assert other.files["val"] != data.files["val"]


def test_folders_of_splits_have_several_names(tmp_path: Path) -> None:
    for part in ("Training", "VALID", "Testing"):
        write(tmp_path / part, {"cat": 3, "dog": 3})
    data = ImageFolderDataModule(str(tmp_path))
    assert data.preprocessing.class_names == ("cat", "dog")
    assert {part: len(files) for part, files in data.files.items()} == {
        "test": 6,
        "train": 6,
        "val": 6,
    }
    write(tmp_path / "val", {"cat": 1, "dog": 1})
    with pytest.raises(ValueError, match="expected one folder for val, got VALID and val"):
        ImageFolderDataModule(str(tmp_path)).setup()


def test_sizes_must_agree_unless_one_is_given(tmp_path: Path) -> None:
    write(tmp_path, {"cat": 4, "dog": 4})
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "cat" / "black.png")
    with pytest.raises(
        ValueError, match=r"size: expected a size .* 2 sizes: 6 x 5 .*, 9 x 9 .*black"
    ):
        ImageFolderDataModule(str(tmp_path)).setup()
    data = ImageFolderDataModule(str(tmp_path), size=(4, 3), val_fraction=0.3)
    assert data.preprocessing.image_shape == (3, 4, 3)
    data.setup()
    assert data.splits["train"].x.shape[1:] == (3, 4, 3)
    assert ImageFolderDataModule(str(tmp_path), size=(4, 3), color=False).in_features == 12


def test_size_and_colors_are_those_of_training(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write(tmp_path / part, {"cat": 2, "dog": 2})
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "test" / "cat" / "black.png")
    data = ImageFolderDataModule(str(tmp_path))
    assert data.preprocessing.image_shape == (6, 5)
    data.setup()
    assert data.splits["test"].x.shape == (5, 6, 5)


def test_folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"root: expected a folder with images, got .*none"):
        ImageFolderDataModule(str(tmp_path / "none")).setup()
    with pytest.raises(FileNotFoundError, match=r"expected images .*got no files"):
        ImageFolderDataModule(str(tmp_path)).setup()
    write(tmp_path, {"cat": 3})
    with pytest.raises(ValueError, match="at least two classes, got cat alone"):
        ImageFolderDataModule(str(tmp_path)).setup()
    write(tmp_path / "b", {"cat": 3, "dog": 1})
    few = ImageFolderDataModule(str(tmp_path / "b"))
    with monkeypatch.context() as patch:
        patch.setattr(images, "decode", lambda *args: pytest.fail("decoded"))
        with pytest.raises(ValueError, match=r"at least 3 samples of each class.*1 of class dog"):
            few.setup()
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(tmp_path / "b" / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png: expected an image in a folder named after"):
        ImageFolderDataModule(str(tmp_path / "b")).setup()
    write(tmp_path / "c" / "test", {"cat": 2})
    with pytest.raises(ValueError, match="expected a folder train beside test, got none"):
        ImageFolderDataModule(str(tmp_path / "c")).setup()
    write(tmp_path / "c" / "train", {"cat": 5, "dog": 5})
    write(tmp_path / "c" / "val", {"cat": 2, "mouse": 1})
    with pytest.raises(ValueError, match=r"val/mouse: expected a class .*\(cat, dog\), got mouse"):
        ImageFolderDataModule(str(tmp_path / "c")).setup()
    with pytest.raises(ValueError, match="test_fraction: expected"):
        ImageFolderDataModule(str(tmp_path / "c"), test_fraction=1.0)
    with pytest.raises(ValueError, match="size: expected"):
        ImageFolderDataModule(str(tmp_path / "c"), size=(0, 3))


def test_a_refused_run_writes_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    """Images with a good header and damaged pixels are found when they are decoded."""
    monkeypatch.chdir(tmp_path)
    cut = write(tmp_path / "images", {"cat": 9, "dog": 9}, (20, 20)) / "dog" / "03.png"
    cut.write_bytes(cut.read_bytes()[:200])
    assert read_headers([cut]) == ({(20, 20): cut}, False)
    settings = ["--data", "softmax_torch.data.ImageFolderDataModule", "--data.root", "images"]
    with pytest.raises(ValueError, match=r"got 1 that cannot(.|\n)*dog/03.png"):
        cli.main(["fit", *settings, "--trainer.max_epochs", "1"])
    assert not (tmp_path / "runs").exists()


def test_damaged_images_of_all_splits_are_named(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        cut = (
            write(tmp_path / part, {"cat": 3, "dog": 3}, (20, 20)) / "dog" / f"0{len(part) % 3}.png"
        )
        cut.write_bytes(cut.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"got 3 that cannot(.|\n)*test(.|\n)*train(.|\n)*val"):
        ImageFolderDataModule(str(tmp_path)).setup()


@pytest.mark.slow
def test_mnist_as_files_is_mnist_as_tensors(real_mnist_root: Path, tmp_path: Path) -> None:
    """300 images of each class give the same bytes in the same order, so the same accuracy."""
    mnist = MNISTDataModule(root=str(real_mnist_root), download=False)
    mnist.setup()
    tensors = {}
    for part, n in (("train", 300), ("val", 10), ("test", 100)):
        x, y = mnist.splits[part]
        rows = torch.cat([(y == c).nonzero().flatten()[:n] for c in range(10)])
        tensors[part] = x[rows], y[rows]
        for row in rows.tolist():
            folder = tmp_path / part / str(int(y[row]))
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[row].numpy()).save(folder / f"{row:05d}.png")
    files = ImageFolderDataModule(str(tmp_path))
    files.setup()
    accuracies = []
    for splits in (tensors, files.splits):
        x, y = splits["train"]
        solution = fit(x.flatten(1) / 255, y, C=1.0)
        x, y = splits["test"]
        z = x.flatten(1) / 255 @ solution.weight.T.float() + solution.bias.float()
        accuracies.append((z.argmax(1) == y).double().mean().item())
    assert accuracies[0] == accuracies[1] > 0.85
    for part, (x, y) in tensors.items():
        assert torch.equal(files.splits[part].x, x)
        assert torch.equal(files.splits[part].y, y)


def cut(path: Path) -> Path:
    """Damage the pixels of an image, not its header."""
    path.write_bytes(path.read_bytes()[:200])
    return path


def test_pixels_are_standardised_by_the_training_images(tmp_path: Path) -> None:
    write(tmp_path, {"cat": 20, "dog": 40})
    data = ImageFolderDataModule(str(tmp_path), batch_size=None)
    assert (data.in_features, data.num_classes) == (30, 2)
    assert not data.splits  # sizes come from headers alone
    x = data.preprocessing.tensor(data.splits["train"].x).double()
    assert x.mean() == pytest.approx(0, abs=1e-6)
    assert x.std(correction=0) == pytest.approx(1, abs=1e-6)
    for name, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        [(batch, _)] = loader
        assert torch.equal(batch, data.preprocessing.tensor(data.splits[name].x))
    plain = ImageFolderDataModule(str(tmp_path), batch_size=None, standardize=False)
    plain.setup()
    [(batch, _)] = plain.train_dataloader()
    assert torch.equal(batch, plain.splits["train"].x * (1 / 255))
    assert "mean" not in plain.preprocessing.state_dict()


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    write(tmp_path, {"cat": 4, "dog": 4, ".ipynb_checkpoints": 3, "__MACOSX": 3, ".git": 1})
    write(tmp_path / "cat", {".ipynb_checkpoints": 2})
    data = ImageFolderDataModule(str(tmp_path))
    assert data.preprocessing.class_names == ("cat", "dog")
    assert sum(len(split) for split in data.splits.values()) == 8


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / "bird").mkdir()
    with pytest.raises(FileNotFoundError, match=r"bird: expected images \(.png, .*got no files"):
        ImageFolderDataModule(str(tmp_path)).setup()
    for name in ("1.HEIC", "2.heic", "notes.txt", ".DS_Store"):
        (tmp_path / "bird" / name).touch()
    with pytest.raises(FileNotFoundError, match=r"bird: .*, got 2 \.heic, 1 \.txt$"):
        ImageFolderDataModule(str(tmp_path)).setup()


def test_files_that_are_no_images_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "train", {"cat": 4, "dog": 4})
    write(tmp_path / "test", {"cat": 1, "dog": 1})
    for name in ("train/cat/1.heic", "test/dog/2.heic", "train/README", "train/cat/.DS_Store"):
        (tmp_path / name).touch()
    with reporting_to(messages := Messages()):
        ImageFolderDataModule(str(tmp_path)).setup()
    skipped = [line for line in messages.lines if line.startswith("skipped")]
    assert skipped == ["skipped: 3 files that are no images: 2 .heic, 1 without a suffix"]


def test_unreadable_images_are_skipped_on_request(tmp_path: Path) -> None:
    write(tmp_path, {"cat": 10, "dog": 10}, (20, 20))
    cut(tmp_path / "cat" / "03.png")
    (tmp_path / "dog" / "05.png").write_text("no image, not even a header")
    with pytest.raises(ValueError, match=r"got 1 that cannot \(skip_unreadable leaves them out\)"):
        ImageFolderDataModule(str(tmp_path)).setup()  # of headers; pixels are next
    data = ImageFolderDataModule(str(tmp_path), skip_unreadable=True)
    with reporting_to(messages := Messages()):
        data.setup()
    assert "skipped: 2 unreadable images: cat/03.png, dog/05.png" in {
        line.replace("dog/05.png, cat/03.png", "cat/03.png, dog/05.png") for line in messages.lines
    }
    assert sum(len(split) for split in data.splits.values()) == 18
    for part, split in data.splits.items():
        for file, image, c in zip(data.files[part], *split, strict=True):
            assert torch.equal(image, data.preprocessing.decode(file))
            assert file.parent.name == ("cat", "dog")[c]
    shutil.copy(tmp_path / "dog" / "06.png", tmp_path / "dog" / "05.png")
    with reporting_to(messages := Messages()):
        ImageFolderDataModule(str(tmp_path), skip_unreadable=True).setup()
    assert "skipped: 1 unreadable image: cat/03.png" in messages.lines


def test_a_class_that_cannot_be_read_is_refused_though_images_are_skipped(tmp_path: Path) -> None:
    write(tmp_path, {"cat": 5, "dog": 5}, (20, 20))
    for path in (tmp_path / "dog").iterdir():
        cut(path)
    with pytest.raises(
        ValueError, match="expected training images of class dog, got none that can"
    ):
        ImageFolderDataModule(str(tmp_path), skip_unreadable=True).setup()


def test_a_run_without_standardising_does_not_go_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As runs of earlier versions, whose settings do not name it."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "images", {"cat": 9, "dog": 9})
    settings = ["--data", "ImageFolderDataModule", "--data.root", "images"]
    settings += [
        "--model.C",
        "1",
        "--model.solver",
        "null",
        "--name",
        "x",
        "--trainer.accelerator",
        "cpu",
    ]
    cli.main(["fit", *settings, "--data.standardize", "false", "--trainer.max_epochs", "1"])
    run = tmp_path / "runs" / "x" / "version_0"
    with pytest.raises(ValueError, match="standardize: expected false, as in the training of the"):
        cli.main(["test", "--ckpt_path", str(run / "best.ckpt"), "--data.standardize", "true"])
