"""MNIST and its relatives: official sets, downloads, and messages about missing files."""

import gzip
import hashlib
import sys
from pathlib import Path

import pytest
import torch
from mnist_files import write_idx, write_mnist
from torchvision import datasets

from softmax_torch.data import MNISTDataModule


def offline(root: Path, variant: str = "MNIST") -> MNISTDataModule:
    return MNISTDataModule(variant, root=str(root), download=False)


def test_official_split_is_kept(mnist_root: Path) -> None:
    data = offline(mnist_root)
    data.prepare_data()
    data.setup()
    assert {name: len(s) for name, s in data.splits.items()} == {
        "train": 540,
        "val": 60,
        "test": 100,
    }
    test = datasets.MNIST(mnist_root, train=False)
    assert torch.equal(data.splits["test"].x, test.data)
    assert torch.equal(data.splits["test"].y, test.targets)
    x, _ = next(iter(data.train_dataloader()))
    assert x.dtype == torch.float32
    assert 0 <= x.min() < x.max() <= 1


def test_the_real_mnist_has_its_class_counts(real_mnist_root: Path) -> None:
    data = offline(real_mnist_root)
    data.prepare_data()
    data.setup()
    assert {name: len(s) for name, s in data.splits.items()} == {
        "train": 54000,
        "val": 6000,
        "test": 10000,
    }
    together = data.class_counts + torch.bincount(data.splits["val"].y)
    # http://yann.lecun.com/exdb/mnist: 60,000 images, 5,923 zeros, 6,742 ones, ...
    assert together.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_root_comes_from_the_environment(mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTMAX_TORCH_DATA", str(mnist_root))
    assert MNISTDataModule().root == mnist_root
    assert MNISTDataModule(root="elsewhere").root == Path("elsewhere")
    monkeypatch.delenv("SOFTMAX_TORCH_DATA")
    assert MNISTDataModule().root == Path("data")


@pytest.mark.parametrize("variant", ["FashionMNIST", "KMNIST"])
def test_data_sets_with_the_file_names_of_mnist(tmp_path: Path, variant: str) -> None:
    data = offline(write_mnist(tmp_path, variant), variant)
    data.setup()
    assert len(data.splits["test"]) == 100


def test_qmnist_labels_are_the_first_column(tmp_path: Path) -> None:
    for part in ("train", "test"):
        labels = torch.arange(20 * 8, dtype=torch.int32).reshape(20, 8)
        labels[:, 0] = torch.arange(20) % 10
        raw = tmp_path / "QMNIST" / "raw"
        write_idx(raw / f"qmnist-{part}-images-idx3-ubyte.gz", torch.zeros(20, 28, 28).byte())
        write_idx(raw / f"qmnist-{part}-labels-idx2-int.gz", labels)
    data = offline(tmp_path, "QMNIST")
    data.setup()
    assert data.splits["test"].y.tolist() == [*range(10), *range(10)]


def test_emnist_letters_are_transposed_and_counted_from_zero(tmp_path: Path) -> None:
    transposed = torch.zeros(26, 28, 28, dtype=torch.uint8)
    transposed[:, 3, :] = 255  # a column, as EMNIST stores it
    for part in ("train", "test"):
        raw = tmp_path / "EMNIST" / "raw"
        write_idx(raw / f"emnist-letters-{part}-images-idx3-ubyte", transposed)
        write_idx(raw / f"emnist-letters-{part}-labels-idx1-ubyte", torch.arange(1, 27).byte())
    data = offline(tmp_path, "EMNIST-letters")
    assert data.num_classes == 26
    data.setup()
    assert data.splits["test"].y.tolist() == list(range(26))
    assert (data.splits["test"].x[:, :, 3] == 255).all()


@pytest.mark.parametrize(
    ("variant", "classes"),
    [("MNIST", 10), ("EMNIST-byclass", 62), ("EMNIST-bymerge", 47), ("EMNIST-balanced", 47)],
)
def test_sizes_are_known_without_files(variant: str, classes: int) -> None:
    data = MNISTDataModule(variant)
    assert (data.in_features, data.num_classes) == (784, classes)


def test_torchvision_agrees_on_classes_and_file_names(tmp_path: Path) -> None:
    for part, names in datasets.EMNIST.classes_split_dict.items():
        data = offline(tmp_path, f"EMNIST-{part}")
        assert data.num_classes == len([name for name in names if name != "N/A"])
    urls = [url for part in ("train", "test") for url, _ in datasets.QMNIST.resources[part]]
    assert [Path(url).stem for url in urls] == offline(tmp_path, "QMNIST")._missing()
    names = [Path(name).stem for name, _ in datasets.MNIST.resources]
    assert names == offline(tmp_path)._missing()


@pytest.mark.parametrize("download", [False, True])
def test_the_error_for_missing_files_says_how_to_get_them(
    tmp_path: Path, download: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        sys.stdout.write("Downloading ...")
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(datasets.MNIST, "download", no_network)
    data = MNISTDataModule(root=str(tmp_path), download=download)
    with pytest.raises(FileNotFoundError) as raised:
        data.prepare_data()
    message = str(raised.value)
    assert str(tmp_path / "MNIST" / "raw") in message
    for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "set root", "Digits"):
        assert name in message
    assert ("could not be downloaded" in message) is download
    assert capfd.readouterr().out == ""


def test_existing_files_are_not_downloaded_again(
    mnist_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNISTDataModule, "_download", lambda self: pytest.fail("downloaded"))
    MNISTDataModule(root=str(mnist_root)).prepare_data()


def test_files_with_wrong_contents_are_named(mnist_root: Path) -> None:
    labels = mnist_root / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    write_idx(labels, torch.zeros(599, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"train-labels.*each of the 600 images, got shape \(599,"):
        offline(mnist_root).setup()
    write_idx(labels, torch.full((600,), 250, dtype=torch.uint8))
    with pytest.raises(IndexError, match=r"train-labels.*in \[0, 10\), got 250 in row 0"):
        offline(mnist_root).setup()
    images = mnist_root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    write_idx(images, torch.zeros(600, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"expected images \(N, 28, 28\) of bytes, got \(600, 8"):
        offline(mnist_root).setup()
    write_idx(images, torch.zeros(600, 28, 28, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"of bytes, got \(600, 28, 28\) of torch\.int32"):
        offline(mnist_root).setup()


def test_invalid_letters_are_named_by_their_stored_number(tmp_path: Path) -> None:
    raw = tmp_path / "EMNIST" / "raw"
    for part in ("train", "test"):
        write_idx(raw / f"emnist-letters-{part}-images-idx3-ubyte", torch.zeros(2, 28, 28).byte())
        labels = torch.tensor([26, 0 if part == "test" else 1]).byte()
        write_idx(raw / f"emnist-letters-{part}-labels-idx1-ubyte", labels)
    with pytest.raises(IndexError, match=r"test-labels.*in \[1, 27\), got 0 in row 1"):
        offline(tmp_path, "EMNIST-letters").setup()


@pytest.mark.parametrize("packed", [False, True])
def test_files_must_have_the_given_digests(tmp_path: Path, packed: bool) -> None:
    raw = write_mnist(tmp_path) / "MNIST" / "raw"
    name = "train-labels-idx1-ubyte"
    if packed:
        content = (raw / name).read_bytes()
        (raw / name).unlink()
        name += ".gz"
        (raw / name).write_bytes(gzip.compress(content))
    digest = hashlib.sha256((raw / name).read_bytes()).hexdigest()
    MNISTDataModule(root=str(tmp_path), sha256={name: digest.upper()}).setup()
    wrong = MNISTDataModule(root=str(tmp_path), sha256={name: "0" * 64})
    with pytest.raises(ValueError, match=f"{name}: expected a file with SHA-256 000.*{digest}"):
        wrong.setup()
    unknown = MNISTDataModule(root=str(tmp_path), sha256={"labels": digest})
    with pytest.raises(ValueError, match=f"expected names among .*{name}.*, got labels"):
        unknown.setup()


class Network:
    """A replacement of torchvision's download, which fetches archives and unpacks them.

    Args:
        root: folder for the files on the server.
        fail: number of the download that fails.
        die: number of the file after half of which the process is killed.
        full: number of the file for which the disk is full.
    """

    def __init__(self, root: Path, fail: int = -1, die: int = -1, full: int = -1) -> None:
        self.files = sorted((write_mnist(root) / "MNIST" / "raw").iterdir())
        self.fail, self.die, self.full = fail, die, full
        self.downloads = 0

    def __call__(self, data: datasets.MNIST) -> None:
        raw = Path(data.raw_folder)
        raw.mkdir(parents=True, exist_ok=True)
        if all((raw / path.name).exists() for path in self.files):
            return  # torchvision too only checks that they exist
        for i, path in enumerate(self.files):
            archive = raw / f"{path.name}.gz"
            if not archive.exists():
                if i == self.fail:
                    raise RuntimeError("Error downloading: no route to host")
                self.downloads += 1
                archive.write_bytes(gzip.compress(path.read_bytes()))
            if i in (self.die, self.full):
                (raw / path.name).write_bytes(path.read_bytes()[:-1])
                raise KeyboardInterrupt if i == self.die else OSError("No space left on device")
            (raw / path.name).write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    "trouble", [{"fail": 0}, {"fail": 3}, {"die": 0}, {"die": 3}, {"full": 0}, {"full": 3}, {}]
)
def test_a_download_is_resumed_and_leaves_no_partial_files(
    trouble: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(tmp_path / "server", **trouble)
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: network(self))
    root = tmp_path / "data"
    data = MNISTDataModule(root=str(root))
    if "fail" in trouble:
        with pytest.raises(FileNotFoundError, match=r"could not be downloaded .*no route to host"):
            data.prepare_data()
    elif "full" in trouble:
        with pytest.raises(FileNotFoundError, match=r"could not be downloaded .*No space left"):
            data.prepare_data()
    elif "die" in trouble:
        with pytest.raises(KeyboardInterrupt):
            data.prepare_data()
    # Every file in the final folder is complete.
    for path in (root / "MNIST" / "raw").glob("*"):
        assert path.read_bytes() == (tmp_path / "server" / "MNIST" / "raw" / path.name).read_bytes()
    network.fail = network.die = network.full = -1
    data.prepare_data()
    data.setup()
    assert len(data.splits["test"]) == 100
    assert network.downloads == 4  # each once
    assert sorted(path.name for path in root.iterdir()) == ["MNIST"]
