"""Features stored in files as inputs, for a linear probe (softmax regression on features).

The features may be larger than memory: files are mapped and read block by block, and a validation
split that is drawn from a large file is stored as a list of row numbers.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from softmax_torch.data.splits import Split, check_split, draw_splits
from softmax_torch.data.tensor_data_module import TensorDataModule
from softmax_torch.preprocessing import FeaturesPreprocessing
from softmax_torch.readers.tensor_files import read_pair

__all__ = ["FeaturesDataModule"]


class FeaturesDataModule(TensorDataModule):
    """Features and labels stored in files.

    Each of ``train``, ``val`` and ``test`` is one file with the tensors x (N, ...) and y (N,), .pt
    or .safetensors; or two files, of x and of y, .npy or .pt. x has any type of real numbers; they
    become float32 batch by batch, unless the model is in float64. y has an integer type, the class
    indices.

    Args:
        train: the training set.
        test: the test set.
        val: the validation set; None to draw it from the training set.
        class_names: a text file with one class name in each line; by default the classes are
            numbered, up to the largest label of the training set.
        batch_size: see ``TensorDataModule``; None, all samples, suits solvers. With a file ``val``,
            float32 training features then stay on disk; otherwise they are copied into memory.
        val_fraction: share of each class that is drawn for validation.
        seed: see ``TensorDataModule``.

    ``setup``, and the first access to ``preprocessing`` or a size, raise FileNotFoundError,
    ValueError or TypeError for files that are missing or hold something else.
    """

    def __init__(
        self,
        train: str | list[str],
        test: str | list[str],
        val: str | list[str] | None = None,
        class_names: str | None = None,
        batch_size: int | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(None, None, batch_size, val_fraction, seed)
        files = {"train": train, "val": val, "test": test}
        self.files = {name: given for name, given in files.items() if given is not None}
        self.class_names = class_names

    @cached_property
    def mapped(self) -> dict[str, Split]:
        """The splits as they are in the files: x mapped, y in memory."""
        splits = {name: Split(*read_pair(given)) for name, given in self.files.items()}
        x, y = splits["train"]
        if len(y) == 0 or x.dim() < 2:
            raise ValueError(
                f"{self.files['train']}: expected features (N, D), got shape {tuple(x.shape)}"
            )
        return splits

    @cached_property
    def preprocessing(self) -> FeaturesPreprocessing:
        """Unchanged vectors, and the names of the classes."""
        x, y = self.mapped["train"]
        names = [str(c) for c in range(int(y.max()) + 1)]
        if self.class_names is not None:
            names = read_class_names(Path(self.class_names))
        return FeaturesPreprocessing(x[0].numel(), names)

    def read_splits(self) -> dict[str, Split]:
        """Return the splits of the files, with the validation split drawn if it has no file."""
        splits = dict(self.mapped)
        for name, split in splits.items():
            check_split(split, str(self.files[name]), self.in_features, self.num_classes)
        if "val" not in splits:
            train, draws = splits["train"], {"val": (self.val_fraction, self.seed)}
            names = self.preprocessing.class_names
            rows = draw_splits(train.y, draws, names, self.files["train"])
            splits |= {name: self.subset(name, train, at) for name, at in rows.items()}
        return splits


def read_class_names(path: Path) -> list[str]:
    """Return the lines of a text file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8, or has an empty line or two equal lines.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"class_names: expected a text file, got {path}, which is not a file"
        )
    try:
        names = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got {error}") from None
    if len(set(names)) < len(names) or not all(names):
        raise ValueError(f"{path}: expected a name for each class, got two alike or an empty line")
    return names
