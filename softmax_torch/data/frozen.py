"""A frozen net of torchvision that computes features of images, and a digest of its weights.

    images (b, H, W) or (b, 1 | 3, H, W)  ->  [0, 1]  ->  three channels  ->  size x size pixels
           ->  (x - mean) / std of ImageNet  ->  the net up to a layer  ->  (b, D), flattened

The layer is any module of the net, given by its dotted name. By default features are the input of
the head, the last linear layer, which is removed. The net is in evaluation mode, without gradients.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from softmax_torch.backbones import as_colour, load_state_dict, read_state_dict, remove_head
from softmax_torch.storage.block_cache import digest

__all__ = ["FrozenNet"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the three channels on ImageNet, as in torchvision's training."""


class FrozenNet:
    """A net of torchvision with its weights, cut at a layer.

    Args:
        name: of a classification model in ``torchvision.models``.
        weights: a file with its state_dict, whose head is ignored; or a name of torchvision's own
            weights, such as DEFAULT, which are downloaded; None for random weights.
        seed: of random weights.
        layer: dotted name of the module whose output the features are; None for the input of the
            head.
        size: width and height in pixels that images are resized to.

    Attributes:
        in_features: D, the number of features.
        made_of: name, layer, size, and a digest of the weights, on which the features depend.

    Raises:
        ValueError: there is no such model, layer or weights, or images are too small for it.
        FileNotFoundError: there is no such file, or the weights cannot be downloaded.
    """

    def __init__(
        self, name: str, weights: str | None, seed: int, layer: str | None, size: int
    ) -> None:
        known = models.list_models(module=models)
        if name not in known:
            raise ValueError(f"backbone: expected one of {', '.join(known)}; got {name!r}")
        self.name, self.weights, self.seed = name, weights, seed
        self.layer, self.size = layer, size
        with torch.device("meta"):  # shapes without numbers
            net = cut(models.get_model(name, weights=None).eval(), layer, name)
            image = torch.empty(1, 3, size, size)
        try:
            self.in_features = flat_output(net, image).shape[1]
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"size: expected one that {name} can take, got {size}: {error}"
            ) from None
        self._net: nn.Module | None = None

    @property
    def net(self) -> nn.Module:
        """The net with its weights, made at the first access."""
        if self._net is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                whole = models.get_model(self.name, weights=None).eval()
            names = set(whole.state_dict())
            self._net = cut(whole, self.layer, self.name)
            if self.weights is not None:
                removed = names - self._net.state_dict().keys()
                label = f"weights {self.weights}"
                load_state_dict(self._net, self._read_weights(), removed, label)
            # 1.5 times as fast for ResNet-18 at 28 x 28 pixels on a CPU, and as fast at others.
            self._net.to(memory_format=torch.channels_last)
        return self._net

    @property
    def made_of(self) -> dict[str, str | int | None]:
        """Everything that features depend on besides the images."""
        parts: list[bytes | memoryview] = []
        for name, value in self.net.state_dict().items():
            parts.append(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            parts.append(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return {
            "backbone": self.name,
            "layer": self.layer,
            "size": self.size,
            "weights": digest(*parts),
        }

    @torch.no_grad()
    def features(self, images: Tensor, scale: float, device: torch.device) -> Tensor:
        """Return features (b, D) of images, in float32 on the CPU.

        Args:
            images: (b, H, W) or (b, channels, H, W), of any dtype.
            scale: factor from their values to [0, 1].
            device: where the net works.
        """
        x = images.to(device).float() * scale
        x = as_colour(x)
        side = (self.size, self.size)
        if x.shape[2:] != side:
            x = nn.functional.interpolate(x, side, mode="bilinear", antialias=True)
        mean, std = (x.new_tensor(of)[:, None, None] for of in (MEAN, STD))
        x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)
        return flat_output(self.net.to(device), x).float().cpu()

    def _read_weights(self) -> dict[str, Tensor]:
        assert self.weights is not None
        named = models.get_model_weights(self.name).__members__
        if self.weights in named:
            try:
                found: dict[str, Tensor] = named[self.weights].get_state_dict(check_hash=True)
            except OSError as error:
                raise FileNotFoundError(
                    f"weights: expected {self.weights} of {self.name}, which could not be "
                    f"downloaded ({error}); a file with a state_dict may be given in its place"
                ) from None
            return found
        path = Path(self.weights)
        if not path.is_file():
            raise FileNotFoundError(
                f"weights: expected a file, or one of {', '.join(named)}; got {self.weights}"
            )
        return read_state_dict(path)


def cut(net: nn.Module, layer: str | None, name: str) -> nn.Module:
    """Return the net of this name up to a layer; ValueError if it has no such layer."""
    if layer is None:
        try:
            remove_head(net)
        except ValueError:
            raise ValueError(
                f"layer: expected a name, as {name} does not end in a linear layer; got none"
            ) from None
        return net
    known = [at for at, _ in net.named_modules() if at]
    if layer not in known:
        top = [at for at in known if "." not in at]
        raise ValueError(
            f"layer: expected a module of {name} ({', '.join(top)}, or one within them), got "
            f"{layer!r}"
        )
    part: nn.Module = create_feature_extractor(net, {layer: "features"})
    return part


def flat_output(net: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a cut net, flattened to (b, D)."""
    out = net(x)
    features: Tensor = out["features"] if isinstance(out, dict) else out
    return features.flatten(1)
