"""configs/image_folder.yaml on pictures that users have: never worse than guessing."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pictures import write_digits, write_images, write_photos, write_textures

from softmax_torch import cli
from softmax_torch.data import MNISTDataModule

CONFIG = Path(__file__).parents[1] / "configs" / "image_folder.yaml"


def write_mnist(folder: Path, root: Path, n: int) -> Path:
    """Write the first n training images of each digit."""
    mnist = MNISTDataModule(root=str(root), download=False)
    mnist.setup()
    x, y = mnist.splits["train"]
    return write_images(folder, {str(c): [*x[y == c][:n].numpy()] for c in range(10)})


def nlls(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> dict[str, float]:
    """Return the NLL of validation and test after a fit with the configuration as it is."""
    monkeypatch.chdir(folder.parent)
    flags = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    cli.main(["fit", "--config", str(CONFIG), "--data.root", str(folder), *flags])
    printed = capsys.readouterr().out
    return {
        name: float(x) for name, x in re.findall(r"^(?:best )?(\w+) .*?nll ([\d.]+)", printed, re.M)
    }


@pytest.mark.parametrize(
    ("write", "C", "most"),
    [
        # A uniform guess has log C. Of regions of photographs a linear model tells many.
        (lambda folder: write_photos(folder, 17), 6, math.log(6) - 0.2),
        # Stripes and blobs in any phase differ linearly in their brightness alone.
        (lambda folder: write_textures(folder, 40), 4, math.log(4)),
        pytest.param(lambda folder: write_photos(folder, 300), 6, 1.3, marks=pytest.mark.slow),
        pytest.param(lambda folder: write_digits(folder, 100), 10, 0.2, marks=pytest.mark.slow),
    ],
    ids=["100 photos", "textures", "photos", "digits"],
)
def test_pictures_end_below_the_uniform_guess(
    write: Callable[[Path], Path],
    C: int,
    most: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    found = nlls(write(tmp_path / "images"), monkeypatch, capsys)
    assert found["val"] <= math.log(C) + 5e-5  # printed with four digits
    assert found["test"] <= most


@pytest.mark.slow
def test_mnist_as_png_ends_below_the_uniform_guess(
    real_mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    found = nlls(write_mnist(tmp_path / "images", real_mnist_root, 300), monkeypatch, capsys)
    assert max(found["val"], found["test"]) < 0.5
