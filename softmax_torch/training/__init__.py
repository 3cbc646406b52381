"""Training with Lightning. Needs the ``train`` extra."""

from softmax_torch.training.classifier import LitClassifier
from softmax_torch.training.softmax_regression import LitSoftmaxRegression

__all__ = ["LitClassifier", "LitSoftmaxRegression"]
