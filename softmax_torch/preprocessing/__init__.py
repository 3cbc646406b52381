"""From raw inputs to the numbers a model sees; fixed on the training split, kept in the checkpoint.

    raw (a file, a folder, arrays)  ->  x (n, ...), floating point  ->  class names

A ``Preprocessing`` is all that is between a user's data and a model: the size of images, the
columns of a table with their means and categories, the names of the classes. It is fixed once, on
the training split, and from then on never looks at data again: whatever comes later is treated
alike. Its state is of numbers, strings, lists and dicts alone, so that it lies in a checkpoint or
in JSON, and nothing is run to read it.
"""

from typing import Any

from softmax_torch.preprocessing.base import Preprocessing, same
from softmax_torch.preprocessing.features import FeaturesPreprocessing
from softmax_torch.preprocessing.images import ImagePreprocessing
from softmax_torch.preprocessing.table import TablePreprocessing

__all__ = [
    "FeaturesPreprocessing",
    "ImagePreprocessing",
    "Preprocessing",
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
    """The preprocessing that was saved.

    Raises:
        ValueError: of a kind that is not known, as a later version may have written it.
    """
    kinds = {kind.kind: kind for kind in KINDS}
    if state.get("kind") not in kinds:
        raise ValueError(
            f"preprocessing: expected one of {', '.join(kinds)}, got {state.get('kind')!r}"
        )
    return kinds[state["kind"]].from_state_dict(state)
