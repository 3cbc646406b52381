"""Softmax regression (multinomial logistic regression) for PyTorch."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from softmax_torch import functional
from softmax_torch.functional import cross_entropy, linear_cross_entropy
from softmax_torch.modules import CrossEntropyLoss, SoftmaxRegression

__all__ = [
    "CrossEntropyLoss",
    "SoftmaxRegression",
    "cross_entropy",
    "functional",
    "linear_cross_entropy",
]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from softmax_torch.estimator import SoftmaxClassifier as SoftmaxClassifier
else:
    # It needs scikit-learn, so that it is not in __all__ and comes when it is asked for.
    def __getattr__(name: str) -> Any:
        if name == "SoftmaxClassifier":
            from softmax_torch.estimator import SoftmaxClassifier

            return SoftmaxClassifier
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        found = ["SoftmaxClassifier"] if find_spec("sklearn") else []
        return sorted([*globals(), *found])
