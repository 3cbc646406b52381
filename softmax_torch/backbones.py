"""Backbones: from images to features (N, D), which a softmax regression classifies.

    x (N, H, W) grey or (N, 3, H, W) colour, in [0, 1]
      -> (N, 3, H, W), grey in all three channels        ``as_colour``
      -> (x - mean) / std, as the net was trained        for nets of torchvision
      -> features (N, D)                                 the net without its last linear layer

A backbone is made by its name, so that a checkpoint holds no code. The name of a user's own net is
its import path. It is imported only where the user gives it, never because a file names it: to
import a module runs its code. This file also removes the heads of the frozen nets in
``data.frozen``.

>>> backbone = make("small_cnn")
>>> backbone(torch.rand(2, 28, 28)).shape
torch.Size([2, 128])
>>> backbone.out_features
128
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor, nn

from softmax_torch.heads import find_head
from softmax_torch.storage.safe_read import read_torch_file

__all__ = [
    "Backbone",
    "as_colour",
    "import_net",
    "imports_refused",
    "is_import_path",
    "load",
    "load_state_dict",
    "make",
    "read_state_dict",
    "remove_head",
]

EVALUATED_IMAGES = 256
"""Images that pass through a net together in evaluation: in ``small_cnn`` 8192 images of 28 x 28
take 800 MB of activations, and are no faster."""

IMPORTS_REFUSED: ContextVar[bool] = ContextVar("imports_refused", default=False)
"""Whether import paths are refused, see ``imports_refused``."""

SEVERAL_HEADS = ("googlenet", "inception_v3")
"""Nets of torchvision with auxiliary classifiers, which would remain beside the head."""


class Backbone(nn.Module):
    """A net without its last layer, and the preparation of images for it.

    Args:
        net: from images (N, 3, H, W) to features (N, D).
        out_features: D.
        head: name of the removed linear layer, whose weights a file may hold; empty if there was
            none.
        mean, std: of each channel, in the net's training.

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
        """Return features (N, D) of images; in evaluation at most ``EVALUATED_IMAGES`` at once.

        Raises:
            ValueError: x has another shape than images.
        """
        images = as_colour(x)
        # A compiled or exported net takes any N, so that it must not branch on N.
        if self.training or torch.compiler.is_compiling() or len(x) <= EVALUATED_IMAGES:
            return self._features(images)
        return torch.cat([self._features(part) for part in torch.split(images, EVALUATED_IMAGES)])

    def _features(self, images: Tensor) -> Tensor:
        if self.normalizes:
            images = (images - self.mean) / self.std
        features: Tensor = self.net(images.contiguous(memory_format=torch.channels_last))
        return features


def as_colour(x: Tensor) -> Tensor:
    """Return images (N, H, W), (N, 1, H, W) or (N, 3, H, W) as (N, 3, H, W), without a copy."""
    images = x.unsqueeze(1) if x.dim() == 3 else x
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            "input: expected images of shape (N, H, W), (N, 1, H, W) or (N, 3, H, W), got "
            f"{tuple(x.shape)}"
        )
    return images.expand(-1, 3, -1, -1)


def make(name: str) -> nn.Module:
    """Return the backbone of this name, with random weights from torch's generator.

    Args:
        name: "small_cnn", three convolutions for small images; any classifier of torchvision that
            ends in a linear layer, such as "resnet18" or "vit_b_16"; or an import path (see
            ``import_net``), which has a dot.

    Raises:
        ValueError: there is no such net, or it does not end in one linear layer.
        ImportError: torchvision is not installed, or the module of an import path is not found.
    """
    if is_import_path(name):
        if IMPORTS_REFUSED.get():
            raise ValueError(
                f"backbone: expected {name}, the net of the checkpoint, to be named when it is "
                "loaded, since that runs the code of a module; got none"
            )
        return import_net(name)
    return small_cnn() if name == "small_cnn" else from_torchvision(name)


@contextmanager
def imports_refused() -> Iterator[None]:
    """Let ``make`` refuse import paths, while names come from a file."""
    token = IMPORTS_REFUSED.set(True)
    try:
        yield
    finally:
        IMPORTS_REFUSED.reset(token)


def is_import_path(name: str) -> bool:
    """Return whether the name of a backbone is an import path, as ``my_nets.Net`` is."""
    return "." in name


def import_net(path: str) -> nn.Module:
    """Import a user's class or function, and return the net that it makes without arguments.

    Args:
        path: such as "my_nets.Net". The module may lie in the working directory.

    Raises:
        ImportError: the module cannot be imported.
        ValueError: it has no such class or function, or this makes no net with ``out_features``.
    """
    module_name, _, name = path.rpartition(".")
    # Programs that pip installed do not search the working directory.
    before, sys.path = sys.path, [*sys.path, str(Path.cwd())]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ImportError(
            f"backbone: expected a module {module_name} that can be imported, in the working "
            f"directory or on PYTHONPATH, got {error}"
        ) from error
    finally:
        sys.path = before
    made = getattr(module, name, None)
    if not callable(made):
        raise ValueError(
            f"backbone: expected a class or function {name} in {module_name}, got "
            + ("nothing of this name" if made is None else type(made).__name__)
        )
    try:
        net = made()
    except TypeError as error:
        raise ValueError(f"backbone: expected {path}() to make a net, got {error}") from error
    if not isinstance(net, nn.Module) or not isinstance(getattr(net, "out_features", None), int):
        lacking = " without it" if isinstance(net, nn.Module) else ""
        raise ValueError(
            f"backbone: expected {path}() to return a module with an attribute out_features, the "
            f"number D of its features, got {type(net).__name__}{lacking}"
        )
    return net


def small_cnn() -> Backbone:
    """Return three 3 x 3 convolutions with BatchNorm and D = 128, for about 8 x 8 to 64 x 64."""

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
    """Return a classifier of torchvision without its last layer; see ``make``."""
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
        head, D = remove_head(net)
    except ValueError as error:
        raise ValueError(f"backbone: {name} cannot be used, {error}") from None
    trained = models.get_model_weights(name).DEFAULT.transforms()
    return Backbone(net, D, head, tuple(trained.mean), tuple(trained.std))


def remove_head(net: nn.Module) -> tuple[str, int]:
    """Replace the last linear layer of a net by the identity; return its name and D.

    Raises:
        ValueError: the net does not end in a linear layer.
    """
    name, linear = find_head(net)
    net.set_submodule(name, nn.Identity())
    return name, linear.in_features


def load(backbone: nn.Module, path: str | Path) -> None:
    """Load the weights of a backbone from a file, which is read without running code from it.

    Args:
        backbone: made by ``make``, or a user's module.
        path: a ``state_dict`` of the net, written by ``torch.save`` as torchvision's files are,
            whose weights of the removed head are ignored; or a checkpoint of a run.

    Raises:
        FileNotFoundError, ValueError: see ``read_state_dict`` and ``load_state_dict``.
    """
    found = read_state_dict(path)
    net, head, prefix = backbone, "", "backbone."
    if isinstance(backbone, Backbone):
        net, head, prefix = backbone.net, backbone.head, "backbone.net."
    if "model.linear.weight" in found:  # a checkpoint of a run
        found = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    ignored = {f"{head}.weight", f"{head}.bias"}
    load_state_dict(net, found, ignored, f"backbone_weights {path}")


def load_state_dict(
    net: nn.Module, state_dict: dict[str, Tensor], ignored: set[str], label: str
) -> None:
    """Load a state_dict, without ``ignored`` names, into a net that lost a part of its layers.

    Raises:
        ValueError: weights are missing, unexpected or of another shape. The message begins with the
            label and names them; the net is unchanged.
    """
    expected = net.state_dict()
    given = {k: v for k, v in state_dict.items() if k not in ignored}
    wrong = {
        "missing": [k for k in expected if k not in given],
        "unexpected": [k for k in given if k not in expected],
        "of another shape": [
            f"{k} {tuple(v.shape)} for {tuple(expected[k].shape)}"
            for k, v in given.items()
            if k in expected and v.shape != expected[k].shape
        ],
    }
    if any(wrong.values()):
        got = "; ".join(f"{fault}: {listed(names)}" for fault, names in wrong.items() if names)
        raise ValueError(f"{label}: expected the weights of the backbone, got {got}")
    net.load_state_dict(given)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the state_dict in a file or in the checkpoint of a run, without running its code.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds something else.
    """
    found = read_torch_file(Path(path), "a state_dict", mmap=True)
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"{path}: expected a state_dict, tensors by name; got something else")
    return found


def listed(names: list[str]) -> str:
    """Return the first of many names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
