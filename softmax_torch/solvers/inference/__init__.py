"""Coefficients with their uncertainty: standard errors, intervals, tests and their summary.

``inference`` fits, and returns an ``Inference``. The files:

    call                 check the arguments, fit, and put the result together
    names                names of features and classes, labels of any kind
    memory               what a covariance takes, and what there is
    groups               groups of samples that depend on each other
    model                the fit, without a penalty or with one
    column_subset        samples without some columns, for fits without some features
    firth                the likelihood with Firth's penalty: finite where classes separate
    constrained_maximum  its maximum, also with some coefficients fixed
    profile_likelihood   intervals and tests from its profile
    collinearity         columns that leave the coefficients undetermined
    information          the information matrix and its inverse
    covariance           model-based and sandwich covariances, also of a penalised fit
    coding               differences to a class, deviations from the mean, and their covariances
    weighted_grams       sums of outer products of rows, for the information
    refits               Newton's method for many weightings of the samples
    bootstrap            standard errors and intervals from resampled data
    hypothesis_tests     Wald, likelihood-ratio and score tests
    marginal_effects     effects of features on class probabilities
    effect_derivatives   formulas of the effects and of their standard errors
    probability_intervals
                         predicted probabilities with intervals
    normal               p-values and intervals from the normal distribution
    estimates            the numbers: coefficients, errors, intervals, p-values, criteria
    summary              the numbers as columns and as a table
    tables               tables as text, Markdown and HTML
    result               the numbers with tests, effects, predictions and tables
"""

from softmax_torch.solvers.inference.bootstrap import Bootstrap
from softmax_torch.solvers.inference.call import inference
from softmax_torch.solvers.inference.hypothesis_tests import TestResult
from softmax_torch.solvers.inference.marginal_effects import MarginalEffects
from softmax_torch.solvers.inference.probability_intervals import ProbabilityIntervals
from softmax_torch.solvers.inference.result import Inference

__all__ = [
    "Bootstrap",
    "Inference",
    "MarginalEffects",
    "ProbabilityIntervals",
    "TestResult",
    "inference",
]
