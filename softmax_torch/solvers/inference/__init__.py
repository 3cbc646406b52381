"""Coefficients with their uncertainty: standard errors, intervals, tests and their summary.

``inference`` fits, and returns an ``Inference``. The files:

    call                 parse the arguments, fit, and put the result together
    names                names of features and classes, labels, data frames
    information          the information matrix, its inverse, collinear columns
    covariance           model-based and sandwich covariances, also of a penalised fit
    result               the numbers, and what follows from them
"""

from softmax_torch.solvers.inference.call import inference
from softmax_torch.solvers.inference.result import Inference

__all__ = ["Inference", "inference"]
