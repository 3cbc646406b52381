"""Full-batch solvers for softmax regression, with certificates. They need torch alone."""

from softmax_torch.solvers.fit import ConvergenceWarning, Progress, Solution, fit

__all__ = ["ConvergenceWarning", "Progress", "Solution", "fit"]
