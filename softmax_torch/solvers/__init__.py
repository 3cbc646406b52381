"""Full-batch solvers for softmax regression, with certificates. They need torch alone."""

from softmax_torch.solvers.fit import ConvergenceWarning, Solution, fit
from softmax_torch.solvers.inference import Inference, inference
from softmax_torch.solvers.path import CrossValidation, cross_validate, path
from softmax_torch.solvers.run import Progress

__all__ = [
    "ConvergenceWarning",
    "CrossValidation",
    "Inference",
    "Progress",
    "Solution",
    "cross_validate",
    "fit",
    "inference",
    "path",
]
