"""Softmax regression (multinomial logistic regression) for PyTorch."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from softmax_torch import functional
from softmax_torch.functional import (
    cross_entropy,
    cross_entropy_outputs,
    linear_cross_entropy,
    linear_cross_entropy_outputs,
)
from softmax_torch.loss.config import show_config
from softmax_torch.loss.route import route_of
from softmax_torch.modules import CrossEntropyLoss, SoftmaxRegression

__all__ = [
    "CrossEntropyLoss",
    "SoftmaxRegression",
    "cross_entropy",
    "cross_entropy_outputs",
    "functional",
    "linear_cross_entropy",
    "linear_cross_entropy_outputs",
    "route_of",
    "show_config",
]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from softmax_torch.estimator import SoftmaxClassifier as SoftmaxClassifier
    from softmax_torch.predictor import load as load
else:
    # Both need more than torch: they are not in __all__ and are imported on first use.
    def __getattr__(name: str) -> Any:
        if name == "SoftmaxClassifier":
            from softmax_torch.estimator import SoftmaxClassifier

            return SoftmaxClassifier
        if name == "load":
            from softmax_torch.predictor import load

            return load
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        needs = {"SoftmaxClassifier": "sklearn", "load": "PIL"}
        return sorted([*globals(), *(name for name, other in needs.items() if find_spec(other))])
