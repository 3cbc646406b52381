"""Full-batch solvers for softmax regression, with certificates. They need torch alone."""

from softmax_torch.solvers.fit import ConvergenceWarning, Progress, Solution, fit
from softmax_torch.solvers.path import CrossValidation, cross_validate, path

__all__ = [
    "ConvergenceWarning",
    "CrossValidation",
    "Progress",
    "Solution",
    "cross_validate",
    "fit",
    "path",
]
