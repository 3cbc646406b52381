"""Full-batch solvers for softmax regression that certify how near the optimum they are.

They need torch alone. ``fit`` finds one solution, ``path`` one for each strength of the penalty,
``cross_validate`` chooses the strength, ``inference`` gives standard errors.
"""

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
