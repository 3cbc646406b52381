"""Folders of pictures as users have them: photographs, textures, digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

__all__ = ["write_digits", "write_images", "write_photos", "write_textures"]

Pixels = npt.NDArray[np.uint8]


def write_images(folder: Path, images: dict[str, list[Pixels]], suffix: str = "png") -> Path:
    """Write the images of each class into a folder with its name."""
    for name, of_class in images.items():
        (folder / name).mkdir(parents=True)
        for i, pixels in enumerate(of_class):
            Image.fromarray(pixels).save(folder / name / f"{i:04d}.{suffix}")
    return folder


def write_photos(folder: Path, n: int, side: int = 32, classes: int = 6) -> Path:
    """Write n crops of each class, in colour: regions of two photographs, side by side."""
    generator = np.random.default_rng(0)
    images: dict[str, list[Pixels]] = {}
    photos = load_sample_images().images
    for c in range(classes):
        photo = photos[c % 2]
        H, W, _ = photo.shape
        width = W // ((classes + 1) // 2)
        left = (c // 2) * width
        crops = []
        for _ in range(n):
            top = generator.integers(0, H - side)
            at = left + generator.integers(0, width - side)
            crops.append(photo[top : top + side, at : at + side])
        images[f"region{c}"] = crops
    return write_images(folder, images)


def write_textures(folder: Path, n: int, side: int = 24) -> Path:
    """Write n grey pictures of each class: noise, stripes or blobs, on greys of their own."""
    generator = np.random.default_rng(1)
    rows, columns = np.indices((side, side))
    images: dict[str, list[Pixels]] = {name: [] for name in ("noise", "across", "along", "blobs")}
    for _ in range(n):
        phase = generator.uniform(0, 2 * np.pi, 2)
        noise = generator.normal(0, 1, (side, side))
        pictures = {
            "noise": noise,
            "across": np.sin(rows + phase[0]) + 0.5 * noise,
            "along": np.sin(columns + phase[0]) + 0.5 * noise,
            "blobs": np.sin(rows / 3 + phase[0]) * np.sin(columns / 3 + phase[1]) + 0.5 * noise,
        }
        for c, (name, picture) in enumerate(pictures.items()):
            images[name].append((113 + 10 * c + 40 * picture).clip(0, 255).astype(np.uint8))
    return write_images(folder, images)


def write_digits(folder: Path, n: int) -> Path:
    """Write the first n of scikit-learn's digits of each class, with white at 255."""
    digits = load_digits()
    bytes_of = (digits.images * 15.9375).astype(np.uint8)
    return write_images(folder, {str(c): [*bytes_of[digits.target == c][:n]] for c in range(10)})
