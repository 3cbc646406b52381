"""The frozen net: what its digest depends on, and the weights that it is given."""

from pathlib import Path
from typing import Any

import torch
from torchvision import models

from softmax_torch.data.frozen import FrozenNet


def test_the_digest_depends_on_each_argument() -> None:
    """Each alone, since features of the same shape may differ in any of them."""

    def made_of(
        name: str = "squeezenet1_1", seed: int = 0, layer: str = "features.1", size: int = 16
    ) -> dict[str, Any]:
        return FrozenNet(name, None, seed, layer, size).made_of

    mine = made_of()
    for options, differ in (
        ({}, set()),
        ({"name": "squeezenet1_0"}, {"backbone", "weights"}),
        ({"seed": 1}, {"weights"}),
        ({"layer": "features.0"}, {"layer"}),  # the layer before a ReLU, of the same shape
        ({"size": 18}, {"size"}),
    ):
        other = made_of(**options)
        assert {name for name in mine if mine[name] != other[name]} == differ


def test_weights_in_a_file_may_have_another_head(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = models.resnet18(num_classes=7)
    file = tmp_path / "net.pt"
    torch.save(net.state_dict(), file)
    of_file = FrozenNet("resnet18", str(file), 0, None, 32)
    images = torch.randint(256, (2, 32, 32), dtype=torch.uint8)
    got = of_file.features(images, 1 / 255, torch.device("cpu"))
    assert got.shape == (2, of_file.in_features) == (2, 512)
    assert of_file.net.state_dict()["conv1.weight"].equal(net.state_dict()["conv1.weight"])
    other = FrozenNet("resnet18", None, 3, None, 32)
    assert other.made_of["weights"] != of_file.made_of["weights"]


def test_random_weights_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = (FrozenNet("squeezenet1_1", None, 5, "features.3", 16) for _ in range(2))
    assert first.made_of == second.made_of
    assert torch.get_rng_state().equal(before)
