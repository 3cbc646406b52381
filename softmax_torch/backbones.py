"""Backbones: from images to features (N, D), which a softmax regression classifies.

    x (N, H, W) grey or (N, 3, H, W) colour, in [0, 1]
      -> (N, 3, H, W), grey in all three channels        ``as_colour``, the one place that knows
      -> (x - mean) / std, as the net was trained        torchvision's nets alone
      -> features (N, D)                                 the net without its last linear layer

A backbone is made by its name, so that a checkpoint needs to hold no code.

>>> backbone = make("small_cnn")
>>> backbone(torch.rand(2, 28, 28)).shape
torch.Size([2, 128])
>>> backbone.out_features
128
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from softmax_torch.heads import find_head
from softmax_torch.storage.safe_read import read_torch_file

__all__ = ["Backbone", "as_colour", "load", "make", "weights_in"]

ROWS = 256
"""Images that pass through a net together where nothing is learnt from them: activations of 8192
images of 28 x 28 would take 800 MB in ``small_cnn``, and are no quicker."""

SEVERAL_HEADS = ("googlenet", "inception_v3")
"""Nets of torchvision that are trained with auxiliary classifiers, which would be left over."""


class Backbone(nn.Module):
    """A net without its last layer, with what has to be done to images before it.

    Args:
        net: from images (N, 3, H, W) to features (N, D).
        out_features: D.
        head: the name of the linear layer that was taken off, whose numbers a file of weights may
            hold; empty if the net had none.
        mean, std: of each channel, as the net was trained.

    Input is (N, H, W), (N, 1, H, W) or (N, 3, H, W), floating point in [0, 1]; output (N, D).
    Convolutions are laid out with channels last.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        out_features: int,
        head: str = "",
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        std: tuple[float, ...] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        self.out_features, self.head = out_features, head
        self.normalizes = any(mean) or set(std) != {1.0}
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, D) of images; some at a time in evaluation, with the same result.

        Raises:
            ValueError: x are no images.
        """
        images = as_colour(x)
        # What is compiled or exported takes any N, which it must not be asked for.
        if self.training or torch.compiler.is_compiling() or len(x) <= ROWS:
            return self._features(images)
        return torch.cat([self._features(part) for part in torch.split(images, ROWS)])

    def _features(self, images: Tensor) -> Tensor:
        if self.normalizes:
            images = (images - self.mean) / self.std
        features: Tensor = self.net(images.contiguous(memory_format=torch.channels_last))
        return features


def as_colour(x: Tensor) -> Tensor:
    """Images (N, 3, H, W), of (N, H, W), (N, 1, H, W) or (N, 3, H, W); without a copy."""
    images = x.unsqueeze(1) if x.dim() == 3 else x
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            "input: expected images of shape (N, H, W), (N, 1, H, W) or (N, 3, H, W), got "
            f"{tuple(x.shape)}"
        )
    return images.expand(-1, 3, -1, -1)


def make(name: str) -> Backbone:
    """The backbone of this name, with random weights drawn from torch's generator.

    Args:
        name: "small_cnn", three convolutions for small images; or any classifier of torchvision
            that ends in a linear layer, such as "resnet18" or "vit_b_16".

    Raises:
        ValueError: there is none of this name, or it does not end in one linear layer.
        ImportError: it is one of torchvision's, which is not installed.
    """
    return small_cnn() if name == "small_cnn" else from_torchvision(name)


def small_cnn() -> Backbone:
    """Three convolutions of 3 x 3 with BatchNorm, for images of 8 x 8 to some 64 x 64: D = 128."""

    def block(into: int, out: int, pool: nn.Module) -> list[nn.Module]:
        convolution = nn.Conv2d(into, out, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True), pool]

    net = nn.Sequential(
        *block(3, 32, nn.MaxPool2d(2)),
        *block(32, 64, nn.MaxPool2d(2)),
        *block(64, 128, nn.AdaptiveAvgPool2d(1)),
        nn.Flatten(),
    )
    return Backbone(net, 128)


def from_torchvision(name: str) -> Backbone:
    """A classifier of torchvision without its last layer; see ``make``."""
    from torchvision import models

    if name in SEVERAL_HEADS:
        raise ValueError(f"backbone: expected a net with one head, got {name!r}, which has several")
    if name not in models.list_models(module=models):
        raise ValueError(
            "backbone: expected 'small_cnn' or the name of a classifier of torchvision "
            f"(torchvision.models.list_models(module=torchvision.models)), got {name!r}"
        )
    net = models.get_model(name, weights=None)
    try:
        head, linear = find_head(net)
    except ValueError as error:
        raise ValueError(f"backbone: {name} cannot be used, {error}") from None
    owner, _, last = head.rpartition(".")
    setattr(net.get_submodule(owner), last, nn.Identity())
    trained = models.get_model_weights(name).DEFAULT.transforms()
    return Backbone(net, linear.in_features, head, tuple(trained.mean), tuple(trained.std))


def load(backbone: nn.Module, path: str | Path) -> None:
    """Take the weights of a backbone from a file, which is read without running code from it.

    Args:
        backbone: one made by ``make``, or a module of one's own.
        path: what ``torch.save`` wrote of the net's ``state_dict``, as torchvision's files are, in
            which the numbers of the net's own head are passed over; or a checkpoint of a run.

    Raises:
        FileNotFoundError, ValueError: see ``weights_in``; or weights are missing, too many or of
            another shape: they are named, and the backbone is as it was.
    """
    found = weights_in(path)
    net, head = backbone, ""
    if isinstance(backbone, Backbone):
        net, head = backbone.net, backbone.head
    if "model.linear.weight" in found:  # of a run
        prefix = "backbone.net." if isinstance(backbone, Backbone) else "backbone."
        found = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    expected = net.state_dict()
    given = {k: v for k, v in found.items() if k not in (f"{head}.weight", f"{head}.bias")}
    wrong = {
        "missing": [k for k in expected if k not in given],
        "unexpected": [k for k in given if k not in expected],
        "of another shape": [
            k for k, v in given.items() if k in expected and v.shape != expected[k].shape
        ],
    }
    if any(wrong.values()):
        said = "; ".join(f"{what}: {some(names)}" for what, names in wrong.items() if names)
        raise ValueError(f"backbone_weights: expected those of the backbone in {path}, got {said}")
    net.load_state_dict(given)


def weights_in(path: str | Path) -> dict[str, Tensor]:
    """The state_dict in a file, or of a net in the checkpoint of a run; read without running code.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds something else.
    """
    found = read_torch_file(Path(path), "a state_dict", mmap=True)
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"{path}: expected a state_dict, tensors by name; got something else")
    return found


def some(names: list[str]) -> str:
    """The first of many names, and how many there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
