"""Write IDX files, and a small MNIST of generated images, for tests."""

import gzip
import struct
from pathlib import Path

import torch
from torch import Tensor


def write_idx(path: Path, values: Tensor) -> None:
    """Write a tensor of bytes or int32 as an IDX file, gzipped if the name ends in .gz."""
    code, order = (0x08, "u1") if values.dtype == torch.uint8 else (0x0C, ">i4")
    header = struct.pack(f">BBBB{values.dim()}I", 0, 0, code, values.dim(), *values.shape)
    content = header + values.numpy().astype(order).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(root: Path, name: str = "MNIST") -> Path:
    """Write 600 + 100 images in MNIST's files: each class has a bright patch at its own height."""
    generator = torch.Generator().manual_seed(0)
    raw = root / name / "raw"
    for stem, n in (("train", 600), ("t10k", 100)):
        labels = torch.arange(n) % 10
        images = torch.randint(100, (n, 28, 28), generator=generator)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[2 * label : 2 * label + 6, 4:24] += 100
        write_idx(raw / f"{stem}-images-idx3-ubyte", images.to(torch.uint8))
        write_idx(raw / f"{stem}-labels-idx1-ubyte", labels.to(torch.uint8))
    return root
