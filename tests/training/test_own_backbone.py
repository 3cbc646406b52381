"""A net by its import path: trained, resumed, predicted and exported, never by surprise."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import softmax_torch
from softmax_torch import backbones, cli
from softmax_torch.training import LitClassifier

NETS = """
from torch import nn

class Net(nn.Sequential):
    out_features = 12
    def __init__(self, channels=3):
        super().__init__(nn.Unflatten(1, (1, 8)), nn.Conv2d(1, channels, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten())

def small():
    return Net(3)

class Wide(Net):
    out_features = 13

class Sized(nn.Flatten):
    def __init__(self, size):
        super().__init__()

def nothing():
    return 3

NUMBER = 3
"""
FLAGS = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A working directory with my_nets.py, which is not on sys.path, and an image."""
    (tmp_path / "my_nets.py").write_text(NETS)
    Image.fromarray(np.full((8, 8), 100, np.uint8)).save(tmp_path / "1.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    sys.modules.pop("my_nets", None)
    yield tmp_path
    sys.modules.pop("my_nets", None)


def fit(*flags: str, backbone: str = "my_nets.Net") -> None:
    cli.main(["fit", "--model", "LitClassifier", "--model.backbone", backbone, *FLAGS, *flags])


def test_a_net_by_import_path_from_training_to_export(here: Path) -> None:
    path = "runs/digits/version_0/last.ckpt"
    fit("--trainer.max_epochs", "1")
    cli.main(["fit", "--resume", "runs/digits/version_0", "--trainer.max_epochs", "2"])
    cli.main(["test", "--ckpt_path", path, *FLAGS])
    given = ["--ckpt_path", path, "--input", "1.png", "--backbone", "my_nets.Net"]
    cli.main(["predict", *given, "--output", "p.csv"])
    cli.main(["export", *given, "--output", "model.safetensors"])
    classifier = softmax_torch.load(path, backbone="my_nets.Net")
    p = classifier.predict_proba("1.png")
    again = softmax_torch.load("model.safetensors", backbone="my_nets.Net")
    assert torch.equal(again.predict_proba("1.png"), p)
    lit = LitClassifier.load_from_checkpoint(path, backbone="my_nets.Net", weights_only=True)
    x = classifier.preprocessing.tensor("1.png")
    torch.testing.assert_close(lit.eval()(x).exp(), p)
    # A checkpoint alone imports nothing.
    del sys.modules["my_nets"]
    for file in (path, "model.safetensors"):
        with pytest.raises(ValueError, match=r"expected my_nets.Net, the net in .*got none"):
            softmax_torch.load(file)
    with pytest.raises(ValueError, match=r"expected my_nets.Net, .* got my_nets.Wide"):
        softmax_torch.load(path, backbone="my_nets.Wide")
    with pytest.raises(ValueError, match=r"expected my_nets.Net, the net of the checkpoint, to be"):
        LitClassifier.load_from_checkpoint(path, weights_only=True)
    assert "my_nets" not in sys.modules
    (here / "my_nets.py").unlink()
    with pytest.raises(ImportError, match="expected a module my_nets that can be imported"):
        softmax_torch.load(path, backbone="my_nets.Net")


def test_a_function_may_make_the_net(here: Path) -> None:
    assert type(backbones.make("my_nets.small")).__name__ == "Net"
    assert str(here) not in sys.path


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("no_such_module.Net", ImportError, "a module no_such_module that .*No module named"),
        ("my_nets.Nut", ValueError, "a class or function Nut in my_nets, got nothing of this name"),
        ("my_nets.NUMBER", ValueError, "a class or function NUMBER in my_nets, got int"),
        ("my_nets.Sized", ValueError, r"my_nets.Sized\(\) to make a net, got .*'size'"),
        ("my_nets.nothing", ValueError, r"an attribute out_features, .* got int$"),
        ("torch.nn.Flatten", ValueError, r"an attribute out_features, .* got Flatten without it"),
    ],
)
def test_an_import_path_without_a_net_is_refused(
    here: Path, path: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        backbones.make(path)


def test_a_net_with_other_features_is_refused_before_the_run(here: Path) -> None:
    with pytest.raises(ValueError, match=r"Wide takes, .*: two of them give \(2, 12\), not"):
        fit(backbone="my_nets.Wide")
    assert not (here / "runs" / "digits" / "version_0" / "last.ckpt").exists()
