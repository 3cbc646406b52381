"""Classifiers of every kind to export, with real raw inputs and what users of the files give."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from softmax_torch import backbones
from softmax_torch.calibration import Calibration
from softmax_torch.export import FORMATS
from softmax_torch.predictor import Predictor, network
from softmax_torch.preprocessing import (
    FeaturesPreprocessing,
    ImagePreprocessing,
    Preprocessing,
    Standardization,
    TablePreprocessing,
)
from softmax_torch.preprocessing.table import CategoricalColumn, NumericColumn

ROOT = Path(__file__).parents[2]
NAMES = [f"model{suffix}" for suffix in FORMATS]
N = 40

TABLE = {
    # Columns named like matrices and operations of the graphs; with missing and unknown values.
    "mul": ["blue", None, "ü", "green", 'red "q"', "NA", " blue ", "blue"] * 5,
    "numbers": [1000.4, 1000.5, None, 1000.6, 1000.75, 1000.5, 999.0, 1001.0] * 5,
    "size (cm)": [1, 2, 3, None, 2, 1, 1, 2] * 5,
    # In float32, standardising would leave no digits.
    "add": [1e9 + 1, 1e9 + 2, 1e9, 1e9 + 4, float("nan"), 1e9 - 3, 1e9 - 1, 1e9 + 2] * 5,
}
COLUMNS = (
    CategoricalColumn("mul", ("blue", 'red "q"', "ü"), True),
    NumericColumn("numbers", 1000.5, 0.1),
    CategoricalColumn("size (cm)", ("1", "2"), False),
    NumericColumn("add", 1e9, 2.0),
)


class Case(NamedTuple):
    """A classifier, real raw inputs, and these inputs as users of exported files give them."""

    predictor: Predictor
    raw: Any
    arrays: dict[str, np.ndarray[Any, Any]]  # for an ONNX file
    tensors: tuple[Tensor, ...]  # for a .pt2 file


def linear(preprocessing: Preprocessing, calibration: Calibration | None = None) -> Predictor:
    """Return a softmax regression as it is loaded from a checkpoint."""
    made = {"num_classes": len(preprocessing.class_names)}
    torch.manual_seed(0)
    linear = nn.Linear(preprocessing.in_features, made["num_classes"])
    net = network(made, {f"model.linear.{key}": t for key, t in linear.state_dict().items()})
    return Predictor(net, preprocessing, calibration, hyper_parameters=made)


def images() -> Case:
    raw = pixels(8, 6)
    temperature = Calibration(*torch.tensor([0.6, 0.0], dtype=torch.float64))
    predictor = linear(ImagePreprocessing((8, 6), False, "abc", 1 / 16), temperature)
    return Case(predictor, raw, {"image": raw.numpy()}, (raw,))


def colour() -> Case:
    """Return a net of somebody's own, with layers that behave differently in training."""
    raw = pixels(3, 9, 7)
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.rand(4), torch.rand(4) + 0.5
    layers = [nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Dropout(), nn.Linear(16, 4))
    predictor = Predictor(net, ImagePreprocessing((9, 7), True, "abcd"))
    return Case(predictor, raw, {"image": raw.numpy()}, (raw,))


def photos() -> Case:
    """Return a softmax regression on standardised images in colour."""
    raw = pixels(3, 9, 7)
    standardization = Standardization.fit(raw, 1 / 255)
    predictor = linear(ImagePreprocessing((9, 7), True, "abc", 1 / 255, standardization))
    return Case(predictor, raw, {"image": raw.numpy()}, (raw,))


def net() -> Case:
    """Return a net with a named backbone, whose weights are in channels-last layout."""
    torch.manual_seed(0)
    raw = pixels(9, 7)
    backbone, head = backbones.make("small_cnn").eval(), nn.Linear(128, 3)
    with torch.no_grad():  # otherwise all images would get one class
        head.bias -= head(backbone(raw / 255)).mean(0)
    weights = {f"backbone.{key}": t for key, t in backbone.state_dict().items()}
    weights |= {f"model.linear.{key}": t for key, t in head.state_dict().items()}
    made = {"num_classes": 3, "backbone": "small_cnn"}
    preprocessing = ImagePreprocessing((9, 7), False, "abc")
    predictor = Predictor(network(made, weights), preprocessing, hyper_parameters=made)
    return Case(predictor, raw, {"image": raw.numpy()}, (raw,))


def features() -> Case:
    raw = torch.randn(N, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    vector = Calibration(*torch.tensor([[0.5, 2, 1], [0.3, 0, -0.7]], dtype=torch.float64))
    predictor = linear(FeaturesPreprocessing(5, ("ä", "b c", ""), 0.25), vector)
    return Case(predictor, raw, {"features": raw.float().numpy()}, (raw.float(),))


def table() -> Case:
    predictor = linear(TablePreprocessing(COLUMNS, ("yes", "no")))
    text = ["" if value is None else value.strip() for value in TABLE["mul"]]
    size = ["" if value is None else str(value) for value in TABLE["size (cm)"]]
    numbers = {name: np.array(TABLE[name], dtype=np.float64) for name in ("numbers", "add")}
    arrays = {"mul": np.array(text, object), "size (cm)": np.array(size, object), **numbers}
    mul = [{"blue": 0, 'red "q"': 1, "ü": 2, "": 3, "NA": 3}.get(value, -1) for value in text]
    codes = [mul, [{"1": 0, "2": 1}.get(value, -1) for value in size]]
    matrix = torch.from_numpy(np.stack([*numbers.values()], 1))
    return Case(predictor, TABLE, arrays, (matrix, torch.tensor(codes).T))


def pixels(*shape: int) -> Tensor:
    """Return images of noise, from black to the full range."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(256, (N, *shape), generator=generator)
    return (noise * torch.linspace(0, 1, N).view(-1, *(1 for _ in shape))).to(torch.uint8)


CASES = {
    "images": images,
    "colour": colour,
    "photos": photos,
    "net": net,
    "features": features,
    "table": table,
}
