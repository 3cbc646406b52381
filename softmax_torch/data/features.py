"""Features that lie in files, as inputs: a linear probe is softmax regression on them.

They may be more than memory holds: files are mapped and looked at block by block, and a part that
is drawn from a large one is a list of row numbers.
"""

from __future__ import annotations

from pathlib import Path

from softmax_torch.data.module import Split, TensorDataModule, check
from softmax_torch.data.splits import enough, stratified
from softmax_torch.preprocessing import FeaturesPreprocessing
from softmax_torch.preprocessing.tensor_files import read_pair

__all__ = ["FeaturesDataModule"]


class FeaturesDataModule(TensorDataModule):
    """Features and labels that lie in files.

    Each of ``train``, ``val`` and ``test`` is a file with tensors x (N, ...) and y (N,), .pt or
    .safetensors; or two files, of x and of y, .npy or .pt. x is of any type (half precision is made
    float32 batch by batch), y of integers, the class indices.

    Args:
        train: the training set.
        test: the test set.
        val: the validation set; None to draw it from the training set.
        class_names: a text file with the name of a class in each line; by default there are as
            many classes as the training set has labels up to the largest.
        batch_size: see ``TensorDataModule``; None is what solvers want. With a file ``val``
            training features in float32 stay on disk then; otherwise they are made a tensor.
        val_fraction: share of each class that is drawn for validation.
        seed: see ``TensorDataModule``.

    Raises:
        FileNotFoundError, ValueError, TypeError: a file is not there or holds something else.
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
        files = {"train": train, "val": val, "test": test}
        self.files = {part: of for part, of in files.items() if of is not None}
        # A model is made to the size of its data, so that they are looked at here and now.
        self._read = {part: Split(*read_pair(of)) for part, of in self.files.items()}
        x, y = self._read["train"]
        if len(y) == 0 or x.dim() < 2:
            raise ValueError(f"{train}: expected features (N, D), got shape {tuple(x.shape)}")
        names = map(str, range(int(y.max()) + 1))
        self._names = tuple(names if class_names is None else lines(Path(class_names)))
        super().__init__(x[0].numel(), len(self._names), batch_size, val_fraction, seed)

    @property
    def preprocessing(self) -> FeaturesPreprocessing:
        """Vectors as they are, and the names of the classes."""
        return FeaturesPreprocessing(self.in_features, self._names)

    def read_splits(self) -> dict[str, Split]:
        """The parts, as they lie there or drawn."""
        splits = dict(self._read)
        for part, split in splits.items():
            check(split, str(self.files[part]), self.in_features, self.num_classes)
        if "val" not in splits:
            train = splits["train"]
            enough(train.y, 2, self._names)
            rest, drawn = stratified(train.y, self.val_fraction, self.seed)
            splits["train"] = self.taken("train", train, rest)
            splits["val"] = self.taken("val", train, drawn)
        return splits


def lines(path: Path) -> list[str]:
    """The lines of a text file: FileNotFoundError if there is none, ValueError if two are alike."""
    if not path.is_file():
        raise FileNotFoundError(f"class_names: expected a text file, got {path}, which is none")
    try:
        found = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got {error}") from None
    if len(set(found)) < len(found) or not all(found):
        raise ValueError(f"{path}: expected a name for each class, got two alike or an empty line")
    return found
