"""A linear probe: softmax regression on the features of a frozen net.

    python examples/linear_probe.py [--weights DEFAULT]

The net is torchvision's ResNet-18, with random weights unless weights are named, which are then
downloaded. The images are scikit-learn's digits. The penalty strength C is chosen by
cross-validation on the training set; the test set is used once, at the end.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from softmax_torch.solvers import cross_validate

LAYER = "layer2"  # any module of the net
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="name of torchvision weights; by default random")
    weights = parser.parse_args().weights

    torch.manual_seed(0)
    net = create_feature_extractor(get_model("resnet18", weights=weights).eval(), [LAYER])
    digits = load_digits()
    x = features(net, torch.from_numpy(digits.images).float() / 16)
    y = torch.from_numpy(digits.target)
    train, test = torch.randperm(len(y)).split([1200, len(y) - 1200])

    chosen = cross_validate(x[train], y[train], [1.0, 10.0, 100.0, 1e3, 1e4], folds=3)
    for C, nll, accuracy in zip(
        chosen.Cs, chosen.nll.mean(0).tolist(), chosen.accuracy.mean(0).tolist(), strict=True
    ):
        print(f"C {C:<6g} nll {nll:.4f}  accuracy {accuracy:.4f}")
    gap = chosen.solution.duality_gap / chosen.solution.objective
    print(f"best C {chosen.best:g}, relative duality gap {gap:.1e}")

    model = chosen.solution.module()
    right = model.predict_proba(x[test]).argmax(1) == y[test]
    print(f"test accuracy {right.float().mean():.4f}")


@torch.no_grad()
def features(net: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return features (n, D) of grey images (n, H, W) in [0, 1]: means of the layer's channels."""
    rgb = (images[:, None].expand(-1, 3, -1, -1) - MEAN[:, None, None]) / STD[:, None, None]
    rgb = interpolate(rgb, (32, 32), mode="bilinear", antialias=True)
    return torch.cat([net(batch)[LAYER].mean((2, 3)) for batch in rgb.split(128)])


if __name__ == "__main__":
    main()
