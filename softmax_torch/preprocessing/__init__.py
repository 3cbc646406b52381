"""Turn raw inputs into the tensors that a model takes, by state fitted on the training split.

    raw (a file, a folder, arrays)  ->  x (n, ...), floating point  ->  class names

A ``Preprocessing`` holds everything between a user's data and a model: the size of images, the
columns of a table with their means and categories, the class names. It is fitted once, on the
training split, and never changes afterwards, so that later inputs are treated in the same way. Its
state consists of numbers, strings, lists and dicts, so that a checkpoint or JSON can hold it and
reading it runs no code. ``softmax_torch.readers`` reads the files.
"""

from typing import Any

from softmax_torch.preprocessing.features import FeaturesPreprocessing
from softmax_torch.preprocessing.images import ImagePreprocessing
from softmax_torch.preprocessing.interface import Preprocessing, same
from softmax_torch.preprocessing.standardization import Standardization
from softmax_torch.preprocessing.table import TablePreprocessing

__all__ = [
    "FeaturesPreprocessing",
    "ImagePreprocessing",
    "Preprocessing",
    "Standardization",
    "TablePreprocessing",
    "from_state_dict",
    "same",
]

KINDS: tuple[type[Preprocessing], ...] = (
    FeaturesPreprocessing,
    ImagePreprocessing,
    TablePreprocessing,
)


def from_state_dict(state: dict[str, Any]) -> Preprocessing:
    """Rebuild a preprocessing of any kind from its ``state_dict()``.

    Raises:
        ValueError: the kind is unknown, for example because a later version wrote the state.
    """
    kinds = {kind.kind: kind for kind in KINDS}
    if state.get("kind") not in kinds:
        raise ValueError(
            f"preprocessing: expected one of {', '.join(kinds)}, got {state.get('kind')!r}"
        )
    return kinds[state["kind"]].from_state_dict(state)
