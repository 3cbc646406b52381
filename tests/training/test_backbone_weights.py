"""Weights of a backbone from files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Own, classifier, data, same
from torch import Tensor, nn
from trainers import trainer

from softmax_torch import backbones
from softmax_torch.training import LitClassifier


@pytest.mark.slow
def test_a_torchvision_backbone_loads_weights(tmp_path: Path) -> None:
    """From torchvision's files, whose head is ignored, and from a run; only when a fit begins."""
    torch.manual_seed(1)
    from torchvision import models

    net = models.get_model("resnet18", weights=None)
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    lit = classifier(
        backbone="resnet18", backbone_weights=str(tmp_path / "resnet18.pth"), freeze_backbone=True
    )
    run = trainer(1, limit_train_batches=1, limit_val_batches=1)
    run.fit(lit, data())
    theirs = net.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in lit.backbone.net.state_dict().items())  # type: ignore[union-attr, operator]
    run.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "resnet18.pth").unlink()
    other = backbones.make("resnet18")
    backbones.load(other, tmp_path / "a.ckpt")
    assert same(other.state_dict(), lit.backbone.state_dict())
    # the checkpoint does not need the file
    again = LitClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert again.backbone_weights is None
    trainer(1, limit_train_batches=1, limit_val_batches=1).fit(lit, data())


class Nested(nn.Module):
    """A user's backbone with a part named ``backbone``, as in the checkpoint of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = 5
        self.backbone, self.neck = nn.Linear(64, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.neck(self.backbone(x.flatten(1)))


@pytest.mark.parametrize("archive", [True, False])  # False: as torch wrote until 1.6
def test_a_users_backbone_loads_weights(archive: bool, tmp_path: Path) -> None:
    """From its state_dict, and from a run."""
    lit = classifier(backbone=Nested())
    torch.save(
        lit.backbone.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=archive
    )
    run = trainer(1, limit_train_batches=0)
    run.fit(lit, data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    for name in ("a.pth", "a.ckpt"):
        other = Nested()
        assert not same(other.state_dict(), lit.backbone.state_dict())
        backbones.load(other, tmp_path / name)
        assert same(other.state_dict(), lit.backbone.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.weight"), r"missing: 0.weight$"),
        (lambda s: s.update(extra=torch.ones(1)), r"unexpected: extra$"),
        (
            lambda s: s.update({"1.bias": torch.ones(3)}),
            r"of another shape: 1.bias \(3,\) for \(32,\)$",
        ),
        (lambda s: s.update(note="text"), "got something else"),
    ],
)
def test_mismatched_weights_are_named(change: Any, message: str, tmp_path: Path) -> None:
    net = backbones.make("small_cnn")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = backbones.make("small_cnn").net.state_dict()
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        backbones.load(net, tmp_path / "a.pth")
    assert same(net.state_dict(), before)


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.pth: expected a state_dict, got no such file"):
        trainer(1).fit(classifier(backbone_weights=str(tmp_path / "a.pth")), data())
    (tmp_path / "a.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.pth: expected a state_dict, got .*damaged"):
        backbones.load(Own(), tmp_path / "a.pth")
