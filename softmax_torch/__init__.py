"""Softmax regression (multinomial logistic regression) for PyTorch."""

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
