"""Features of a frozen backbone: computed once, resumed, and never mixed up with others."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reporters import Messages
from torch import Tensor
from torchvision import models

from softmax_torch.data import (
    BackboneFeaturesDataModule,
    Split,
    TensorDataModule,
    backbone_features,
)
from softmax_torch.data.frozen import FrozenNet
from softmax_torch.data.progress import reporting_to
from softmax_torch.storage import block_cache
from softmax_torch.storage.atomic_files import lock_folder


class Images(TensorDataModule):
    """A few noisy images of two classes."""

    def __init__(
        self, colours: int | None = None, first: int = 0, test: int = 4, scale: float = 1 / 255
    ) -> None:
        super().__init__(64 * (colours or 1), 2, 4, 0.25, 0, scale)
        self.colours, self.first, self.test = colours, first, test

    def read(self) -> tuple[Split, Split]:
        shape = (8, 8) if self.colours is None else (self.colours, 8, 8)
        generator = torch.Generator().manual_seed(1)
        x = torch.randint(256, (20, *shape), generator=generator, dtype=torch.uint8)
        x.view(-1)[0] = self.first
        y = torch.arange(20) % 2
        return Split(x, y), Split(x[: self.test], y[: self.test])


class Counted(FrozenNet):
    """Counts the images that it sees; raises KeyboardInterrupt after ``blocks_left`` blocks."""

    images = 0
    blocks_left = 1000

    def features(self, images: Tensor, scale: float, device: torch.device) -> Tensor:
        if Counted.blocks_left == 0:
            raise KeyboardInterrupt
        Counted.blocks_left -= 1
        Counted.images += len(images)
        return super().features(images, scale, device)


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set blocks of two images, a net that counts, and an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(block_cache, "BLOCK_ROWS", 2)
    monkeypatch.setattr(backbone_features, "BLOCK_ROWS", 2)
    monkeypatch.setattr(backbone_features, "FrozenNet", Counted)
    monkeypatch.setattr(Counted, "images", 0)
    monkeypatch.setattr(Counted, "blocks_left", 1000)


def made(**options: Any) -> BackboneFeaturesDataModule:
    settings = {"source": Images(), "backbone": "squeezenet1_1", "layer": "features.3", "size": 16}
    return BackboneFeaturesDataModule(**(settings | options))


def computed(**options: Any) -> tuple[int, dict[str, Tensor]]:
    """Return the number of images that the net saw, and the features."""
    before, data = Counted.images, made(**options)
    data.setup()
    return Counted.images - before, {part: split.x for part, split in data.splits.items()}


def files(pattern: str) -> list[Path]:
    return sorted(Path("features").rglob(pattern))


def test_features_are_those_of_the_net() -> None:
    data = made()
    data.setup()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = models.squeezenet1_1(weights=None).eval()
    images, y = data.source.splits["train"]
    x = images.float().unsqueeze(1).expand(-1, 3, -1, -1) / 255
    x = torch.nn.functional.interpolate(x, (16, 16), mode="bilinear", antialias=True)
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    expected = net.features[:4](x).detach().flatten(1)
    assert data.splits["train"].y.equal(y)
    assert data.in_features == expected.shape[1]
    torch.testing.assert_close(data.splits["train"].x, expected)


def test_colour_is_kept() -> None:
    _, grey = computed(source=Images(1))
    _, plain = computed()
    _, colour = computed(source=Images(3))
    assert grey["train"].equal(plain["train"])
    assert not colour["train"].equal(plain["train"])
    with pytest.raises(ValueError, match=r"images \(N, H, W\).* got a train set of shape \(15, 2,"):
        computed(source=Images(2))


def test_features_are_read_from_the_cache_the_second_time(
    messages: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    shown, first = computed()
    assert shown == 24
    assert messages[0] == "features: train of squeezenet1_1 from 0 to 15"
    messages.clear()
    shown, second = computed()
    assert shown == 0
    assert all(first[part].equal(second[part]) for part in first)
    assert messages[0].startswith("features: train 15 x ")
    messages.clear()
    data = made()
    data.prepare_data()
    data.setup()
    data.setup()
    assert len(messages) == 3  # one for each split
    assert capfd.readouterr() == ("", "")


def test_prepare_data_computes_nothing() -> None:
    """Lightning calls it on one process alone; features are computed in ``setup``."""
    data = made()
    data.prepare_data()
    assert Counted.images == 0
    assert not data.source.splits
    assert not files("*")


def test_an_interrupted_computation_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "blocks_left", 3)
    with pytest.raises(KeyboardInterrupt):
        computed()
    monkeypatch.setattr(Counted, "blocks_left", 1000)
    shown, resumed = computed()
    assert shown == 24 - 6
    for path in files("*"):
        if path.is_file():
            path.unlink()
    shown, whole = computed()
    assert shown == 24
    assert all(whole[part].equal(resumed[part]) for part in whole)


@pytest.mark.parametrize(
    ("other", "images"),
    [
        ({"layer": "features.2"}, 24),
        pytest.param({"backbone": "squeezenet1_0"}, 24, marks=pytest.mark.slow),
        pytest.param({"backbone_seed": 1}, 24, marks=pytest.mark.slow),
        pytest.param({"size": 18}, 24, marks=pytest.mark.slow),
        pytest.param({"half": True}, 24, marks=pytest.mark.slow),
        ({"source": Images(first=9)}, 24),
        ({"source": Images(scale=1 / 127)}, 24),
        ({"limit": 6}, 6),  # validation and test images are the same
        ({"limit": 3}, 3),  # although 3 are fewer than those
    ],
)
def test_other_features_have_another_cache(other: dict[str, Any], images: int) -> None:
    computed()
    shown, features = computed(**other)
    # If one image has changed, a split without that image is the same.
    assert images - 9 <= shown <= images if "source" in other else shown == images
    again, first = computed(**other), computed()
    assert (again[0], first[0]) == (0, 0)  # each has its own folder or file
    assert all(again[1][part].equal(features[part]) for part in features)


def test_the_digest_of_images_depends_on_shape_type_and_every_byte() -> None:
    x = torch.zeros(5, 8, 8, dtype=torch.uint8)
    last = x.clone()
    last[4, 7, 7] = 1
    others = x, last, x.view(5, 4, 16), x.view(10, 4, 8), x.view(torch.int8)
    assert len({backbone_features.digest_of(of) for of in others}) == len(others)


def test_infinite_features_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were not trained for a net may give them."""

    def features(self: FrozenNet, images: Tensor, *_: Any) -> Tensor:
        return torch.full((len(images), self.in_features), torch.inf)

    monkeypatch.setattr(Counted, "features", features)
    with pytest.raises(ValueError, match="train set: expected finite numbers, got NaN or inf"):
        computed()


class Sorted(Images):
    """The same images, sorted by class."""

    def read_splits(self) -> dict[str, Split]:
        splits = super().read_splits()
        train = splits["train"]
        return splits | {"train": train.rows(train.y.argsort())}


def test_a_limit_that_leaves_no_images_of_a_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"limit: expected .* first 4, got none of 1 .* such as 1"):
        computed(source=Sorted(), limit=4)
    assert Counted.images == 0
    computed(source=Sorted(), limit=14)


def test_a_cache_made_of_other_weights_is_recomputed(messages: list[str]) -> None:
    """Even if it has the right file name."""
    _, expected = computed()
    path = files("*.json")[0]
    notes = json.loads(path.read_text())
    notes["made_of"]["weights"] = "of another net"
    path.write_text(json.dumps(notes))
    messages.clear()
    shown, features = computed()
    assert shown in (15, 5, 4)
    assert "computed from other weights; missing features are recomputed" in str(messages)
    assert all(features[part].equal(expected[part]) for part in features)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a byte": (lambda path: damage(path), 2, "of 3 blocks do not match their digest"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-9]), 24, "cannot be read"),
    "gone": (lambda path: path.unlink(), 24, "cannot be read"),
    "notes": (lambda path: path.with_suffix(".json").write_text("{"), 24, "cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found_and_reported(kind: str, messages: list[str]) -> None:
    _, expected = computed()
    smallest = min(files("*.npy"), key=lambda path: path.stat().st_size)
    do, most, message = DAMAGES[kind]
    if kind == "a byte":
        smallest = next(path for path in files("*.npy") if len(np.load(path, "r")) == 5)
    do(smallest)
    messages.clear()
    shown, features = computed()
    assert 0 < shown <= most
    [damaged] = [line for line in messages if "recomputed" in line]
    assert str(smallest) in damaged
    assert message in damaged
    assert all(features[part].equal(expected[part]) for part in features)


HOLD = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


def test_processes_take_turns() -> None:
    computed()
    [folder] = [path for path in Path("features").iterdir() if path.is_dir()]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], **pipe) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            lock_folder(folder)

        class Waits(Messages):
            def message(self, label: str, text: str) -> None:
                super().message(label, text)
                if "waiting" in text:
                    other.communicate("enough")
                else:  # this process holds the lock
                    with pytest.raises(BlockingIOError):
                        lock_folder(folder)

        reporter = Waits()
        with reporting_to(reporter):
            shown, _ = computed()
    assert shown == 0
    assert reporter.lines[0] == f"features: waiting for another process, which computes {folder}"
    assert len(reporter.lines) == 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backbone": "resnet17"}, ValueError, "backbone: expected one of .*resnet18.*'resnet17'"),
        ({"layer": None}, ValueError, "layer: expected a name, as squeezenet1_1 does not end"),
        ({"layer": "layer9"}, ValueError, "layer: expected a module of .*features.*got 'layer9'"),
        ({"size": 1}, ValueError, "size: expected one that squeezenet1_1 can take, got 1"),
        ({"size": 0}, ValueError, "size: expected at least 1, got 0"),
        ({"limit": 0}, ValueError, "limit: expected at least 1 or null, got 0"),
    ],
)
def test_options_are_checked_at_once(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        made(**options)


def test_weights_are_checked(tmp_path: Path) -> None:
    def said(weights: str) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as raised:
            made(weights=weights).setup()
        return str(raised.value)

    state = models.squeezenet1_1(weights=None).state_dict()
    torch.save({"x": state["features.0.weight"]}, "other.pt")
    torch.save({"features.0.weight": 1}, "numbers.pt")
    torch.save(state | {"features.0.weight": torch.zeros(1)}, "shape.pt")
    Path("noise.pt").write_bytes(b"noise")
    assert "unexpected: x" in said("other.pt")
    assert "weights other.pt: expected the weights of the backbone, got missing" in said("other.pt")
    assert "numbers.pt: expected a state_dict" in said("numbers.pt")
    assert "of another shape: features.0.weight (1,) for (64, 3, 3, 3)" in said("shape.pt")
    assert "noise.pt: expected a state_dict, got a file that is damaged" in said("noise.pt")
    assert "expected a file, or one of IMAGENET1K_V1, DEFAULT" in said("none.pt")
    assert not files("*.npy")


def test_a_full_disk_is_reported_before_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(block_cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"MB of free disk space for features, got 0.0 MB"):
        computed()
    assert Counted.images == 0
