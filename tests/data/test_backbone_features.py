"""Features of a frozen backbone: computed once, taken up again, and never those of another."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import models

from softmax_torch.data import (
    BackboneFeaturesDataModule,
    Split,
    TensorDataModule,
    backbone_features,
    extraction,
)
from softmax_torch.data.frozen import FrozenNet
from softmax_torch.data.progress import Reporter, reporting_to
from softmax_torch.files import lock


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
    """Counts the images it is shown; ends the process, as it were, after so many blocks."""

    images = 0
    blocks_left = 1000

    def features(self, images: Tensor, scale: float, device: torch.device) -> Tensor:
        if Counted.blocks_left == 0:
            raise KeyboardInterrupt
        Counted.blocks_left -= 1
        Counted.images += len(images)
        return super().features(images, scale, device)


class Messages(Reporter):
    """Keeps messages, and the descriptions of bars."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, label: str, text: str) -> None:
        self.lines.append(f"{label}: {text}")

    def bar(self, label: str, text: str, done: int, total: int, transient: bool = False) -> Any:
        self.lines.append(f"{label}: {text} from {done} to {total}")
        return super().bar(label, text, done, total, transient)


@pytest.fixture
def messages() -> Iterator[list[str]]:
    reporter = Messages()
    with reporting_to(reporter):
        yield reporter.lines


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blocks of two images, a net that is small, and a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extraction, "BLOCK", 2)
    monkeypatch.setattr(backbone_features, "BLOCK", 2)
    monkeypatch.setattr(backbone_features, "FrozenNet", Counted)
    monkeypatch.setattr(Counted, "images", 0)
    monkeypatch.setattr(Counted, "blocks_left", 1000)


def made(**options: Any) -> BackboneFeaturesDataModule:
    settings = {"source": Images(), "backbone": "squeezenet1_1", "layer": "features.3", "size": 16}
    return BackboneFeaturesDataModule(**(settings | options))


def computed(**options: Any) -> tuple[int, dict[str, Tensor]]:
    """How many images were shown to the net, and the features."""
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


def test_the_second_time_they_are_read(
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


def test_preparing_computes_nothing() -> None:
    """Lightning prepares on one process alone; features are computed in ``setup``."""
    data = made()
    data.prepare_data()
    assert Counted.images == 0
    assert not data.source.splits
    assert not files("*")


def test_an_interrupted_computation_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
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
        ({"backbone": "squeezenet1_0"}, 24),
        ({"backbone_seed": 1}, 24),
        ({"size": 18}, 24),
        ({"half": True}, 24),
        ({"source": Images(first=9)}, 24),
        ({"source": Images(scale=1 / 127)}, 24),
        ({"limit": 6}, 6),  # the other parts are the same
        ({"limit": 3}, 3),  # and so are those that are larger
    ],
)
def test_others_are_not_taken_for_them(other: dict[str, Any], images: int) -> None:
    computed()
    shown, features = computed(**other)
    # Of images of which one has changed a part may be the same.
    assert images - 9 <= shown <= images if "source" in other else shown == images
    again, first = computed(**other), computed()
    assert (again[0], first[0]) == (0, 0)  # each has a place of its own
    assert all(again[1][part].equal(features[part]) for part in features)


def test_what_features_are_made_of() -> None:
    """Each part of it by itself: their shape, which is compared too, may be the same."""

    def made_of(
        name: str = "squeezenet1_1", seed: int = 0, layer: str = "features.1", size: int = 16
    ) -> dict[str, Any]:
        return FrozenNet(name, None, seed, layer, size).made_of

    mine = made_of()
    for options, differ in (
        ({}, set()),
        ({"name": "squeezenet1_0"}, {"backbone", "weights"}),
        ({"seed": 1}, {"weights"}),
        ({"layer": "features.0"}, {"layer"}),  # before a ReLU
        ({"size": 18}, {"size"}),
    ):
        other = made_of(**options)
        assert {name for name in mine if mine[name] != other[name]} == differ


def test_images_are_known_by_their_shape_and_type_too() -> None:
    """where their bytes are the same, and by every one of those."""
    x = torch.zeros(5, 8, 8, dtype=torch.uint8)
    last = x.clone()
    last[4, 7, 7] = 1
    others = x, last, x.view(5, 4, 16), x.view(10, 4, 8), x.view(torch.int8)
    assert len({backbone_features.digest_of(of) for of in others}) == len(others)


def test_features_that_are_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """as those of a net with other weights than it was made for may be."""

    def features(self: FrozenNet, images: Tensor, *_: Any) -> Tensor:
        return torch.full((len(images), self.in_features), torch.inf)

    monkeypatch.setattr(Counted, "features", features)
    with pytest.raises(ValueError, match="train set: expected finite numbers, got NaN or inf"):
        computed()


class Sorted(Images):
    """The same, in the order of their classes."""

    def read_splits(self) -> dict[str, Split]:
        splits = super().read_splits()
        train = splits["train"]
        return splits | {"train": train.rows(train.y.argsort())}


def test_a_limit_that_leaves_none_of_a_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"limit: expected .* first 4, got none of 1 .* such as 1"):
        computed(source=Sorted(), limit=4)
    assert Counted.images == 0
    computed(source=Sorted(), limit=14)


def test_a_file_of_other_things_is_computed_anew(messages: list[str]) -> None:
    """where it lies under the name of what is wanted."""
    _, expected = computed()
    path = files("*.json")[0]
    notes = json.loads(path.read_text())
    notes["made_of"]["weights"] = "of another net"
    path.write_text(json.dumps(notes))
    messages.clear()
    shown, features = computed()
    assert shown in (15, 5, 4)
    assert "made of other things: weights; missing features are recomputed" in str(messages)
    assert all(features[part].equal(expected[part]) for part in features)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a byte": (lambda path: damage(path), 2, "of 3 blocks do not have their digest"),
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
            lock(folder)

        class Waits(Messages):
            def message(self, label: str, text: str) -> None:
                super().message(label, text)
                if "waiting" in text:
                    other.communicate("enough")
                else:  # this process holds the lock
                    with pytest.raises(BlockingIOError):
                        lock(folder)

        reporter = Waits()
        with reporting_to(reporter):
            shown, _ = computed()
    assert shown == 0
    assert reporter.lines[0] == f"features: waiting for another process, which computes {folder}"
    assert len(reporter.lines) == 4


def test_the_head_of_weights_in_a_file_does_not_matter(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = models.resnet18(num_classes=7)
    torch.save(net.state_dict(), "net.pt")
    of_file = FrozenNet("resnet18", "net.pt", 0, None, 32)
    images = torch.randint(256, (2, 32, 32), dtype=torch.uint8)
    got = of_file.features(images, 1 / 255, torch.device("cpu"))
    assert got.shape == (2, of_file.in_features) == (2, 512)
    assert of_file.net.state_dict()["conv1.weight"].equal(net.state_dict()["conv1.weight"])
    other = FrozenNet("resnet18", None, 3, None, 32)
    assert other.made_of["weights"] != of_file.made_of["weights"]


def test_a_seed_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = (FrozenNet("squeezenet1_1", None, 5, "features.3", 16) for _ in range(2))
    assert first.made_of == second.made_of
    assert torch.get_rng_state().equal(before)


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
    assert "expected the names of this backbone, got others (x)" in said("other.pt")
    assert "numbers.pt: expected a state_dict" in said("numbers.pt")
    assert "expected features.0.weight of shape (64, 3, 3, 3), got (1,)" in said("shape.pt")
    assert "noise.pt: expected a state_dict, got a file that is damaged" in said("noise.pt")
    assert "expected a file, or one of IMAGENET1K_V1, DEFAULT" in said("none.pt")
    assert not files("*.npy")


def test_a_disk_without_room_is_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(extraction.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"MB for features, got 0.0 MB that are free"):
        computed()
    assert Counted.images == 0
