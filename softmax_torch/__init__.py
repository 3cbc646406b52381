"""Softmax regression (multinomial logistic regression) for PyTorch."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softmax_torch import functional
    from softmax_torch.estimator import SoftmaxClassifier as SoftmaxClassifier
    from softmax_torch.functional import (
        cross_entropy,
        cross_entropy_outputs,
        linear_cross_entropy,
        linear_cross_entropy_outputs,
    )
    from softmax_torch.loss.config import show_config
    from softmax_torch.loss.route import route_of
    from softmax_torch.modules import CrossEntropyLoss, SoftmaxRegression
    from softmax_torch.predictor import load as load

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

# Imported on first use. torch takes two seconds, within which the program could not be interrupted
# by Ctrl+C without a traceback: its handlers are installed by a module of this package.
_HOMES = {
    "CrossEntropyLoss": "modules",
    "SoftmaxRegression": "modules",
    "cross_entropy": "functional",
    "cross_entropy_outputs": "functional",
    "linear_cross_entropy": "functional",
    "linear_cross_entropy_outputs": "functional",
    "route_of": "loss.route",
    "show_config": "loss.config",
    # These need more than torch, and are not in __all__.
    "SoftmaxClassifier": "estimator",
    "load": "predictor",
}
_MODULES = ("functional", "loss", "maths", "modules", "ops")
"""Modules that are attributes of the package without an import of their own."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found  # for the next use, past this function
        return found

    def __dir__() -> list[str]:
        needs = {"SoftmaxClassifier": "sklearn", "load": "PIL"}
        missing = {name for name, other in needs.items() if not find_spec(other)}
        return sorted({*globals(), *_HOMES, *_MODULES} - missing)
