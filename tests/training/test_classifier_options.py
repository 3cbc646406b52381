"""Options, data and backbones that LitClassifier refuses."""

from typing import Any

import pytest
import torch
from nets import Few, classifier, data
from torch import Tensor, nn
from trainers import trainer

from softmax_torch.backbones import Backbone
from softmax_torch.data import Split
from softmax_torch.preprocessing import ImagePreprocessing, Standardization


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backbone": "resnet81"}, ValueError, "backbone: expected 'small_cnn' or .*'resnet81'"),
        ({"backbone": "googlenet"}, ValueError, "one head, got 'googlenet', which has several"),
        ({"backbone": "squeezenet1_1"}, ValueError, "squeezenet1_1 cannot be used, .*Conv2d"),
        ({"backbone": nn.Flatten()}, TypeError, "an attribute out_features, .* got Flatten"),
        ({"backbone": 3}, TypeError, "backbone: expected a name, module or None, got 3"),
        ({"backbone": None, "freeze_backbone": True}, ValueError, "freeze_backbone: expected a ba"),
        ({"backbone": None, "backbone_lr": 0.1}, ValueError, "backbone_lr: expected a backbone be"),
        ({"unfreeze_at_epoch": 1}, ValueError, "unfreeze_at_epoch: expected freeze_backbone besi"),
        ({"freeze_backbone": True, "unfreeze_at_epoch": 0}, ValueError, "at least 1, got 0"),
        (
            {"freeze_backbone": True, "backbone_lr": 0.1},
            ValueError,
            "0.1 for one that stays frozen",
        ),
        ({"backbone_lr": 0.0}, ValueError, "backbone_lr: expected a number above 0, got 0.0"),
        ({"mixup": -1.0}, ValueError, "mixup: expected a number >= 0, got -1.0"),
        ({"cutmix": float("nan")}, ValueError, "cutmix: expected a number >= 0, got nan"),
        ({"z_loss": -1.0}, ValueError, "z_loss: expected a number >= 0, got -1.0"),
    ],
)
def test_options_are_checked_at_once(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        classifier(**options)


def test_a_net_that_standardises_refuses_standardised_images() -> None:
    class Standardised(Few):
        @property
        def preprocessing(self) -> ImagePreprocessing:
            plain = super().preprocessing
            plain.standardization = Standardization((0.3,), (0.4,))
            return plain

    net = Backbone(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), 12, mean=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="standardize: expected false for Backbone, which stand"):
        trainer(1).fit(classifier(backbone=net), Standardised(batch_size=30))
    trainer(1).fit(classifier(backbone=net), data())


class Picky(nn.Flatten):
    """Backbone that checks the size of its images, as ``vit_b_16`` does."""

    out_features = 64

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[1] == 224, "Wrong image height!")
        return super().forward(x)


class Giving(Picky):
    """Backbone that returns anything."""

    def __init__(self, give: Any) -> None:
        super().__init__()
        self.give = give

    def forward(self, x: Tensor) -> Any:
        return self.give(x.flatten(1))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (Giving(lambda x: (x, x)), r"Giving takes, .*: two of them give tuple, not \(2, 64\)"),
        (Giving(lambda x: {"out": x}), r"Giving takes, .*: two of them give dict, not"),
        (Giving(lambda x: x.mean((2, 3))), r"Giving takes, .*: Dimension out of range"),
        (Giving(lambda x: x[:, 1:]), r"Giving takes, .*: two of them give \(2, 63\), not"),
        (Picky(), r"Picky takes, got some of shape \(8, 8\): Wrong image height!"),
        ("small_cnn", r"small_cnn takes, got some of shape \(64,\): input: expected images"),
        ("alexnet", r"alexnet takes, got some of shape \(8, 8\): "),
        (nn.Linear(8, 5), r"Linear takes, .*\(8, 8\)"),
    ],
)
def test_samples_that_a_backbone_refuses(backbone: Any, message: str) -> None:
    class Vectors(Few):
        def read(self) -> Any:
            return [Split(split.x.flatten(1), split.y) for split in super().read()]

    images = Vectors(30) if backbone == "small_cnn" else data()
    with pytest.raises(ValueError, match=f"backbone: expected samples that {message}"):
        trainer(1).fit(classifier(backbone=backbone), images)
