"""The Laplace approximation: probabilities that know how uncertain the weights of a head are.

Training ends at weights theta (C, P) that maximise the posterior; P = D + 1, the bias being the
weight of a feature that is always 1. Around them the posterior is close to a normal distribution
whose precision is the curvature there (MacKay 1992, "The Evidence Framework Applied to
Classification Networks"):

    theta ~ N(theta_MAP, H^-1),    H = sum_i w_i (diag p_i - p_i p_i^T) (x) phi_i phi_i^T + tau I

with p_i the probabilities of training sample i, w_i its weight, and phi_i = [x_i - mean x, 1]. The
logits are linear in theta: the first term is the Hessian of the NLL, not an approximation of it,
and it does not depend on y. tau is the precision of a normal prior. A fit with scikit-learn's C has
tau = 1 / C on its weights. Such a fit has no penalty on the bias, but the posterior needs a prior
there: the bias of a class that hardly occurs would have any value. It gets tau too, as the logit at
the mean of the features. It loses its effect as soon as a class has more than tau samples or so.

    kronecker    the sum becomes B (x) A: the mean of the first factors, the sum of the second
                 (Ritter et al. 2018, "A Scalable Laplace Approximation for Neural Networks").
                 Memory O(C^2 + D^2).
    full         H itself. Memory O(C^2 D^2), for small problems.

A vector that is added to the weights of all classes changes no probability: data say nothing about
this direction, and B 1 = 0. Everything here is about the C - 1 others. Covariances are those of the
centred logits z - mean z, and probabilities need differences of logits alone.

Far from the training samples the uncertainty grows as fast as the logits do, so the confidence
stays below 1 (Kristiadi et al. 2020, "Being Bayesian, Even Just a Bit, Fixes Overconfidence in ReLU
Networks"). ``posterior`` holds the predictive probabilities.

>>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
>>> weight, bias = torch.tensor([[-1.0], [1.0]]), torch.zeros(2)
>>> posterior = fit(x, weight, bias, prior_precision=1.0)
>>> far = torch.tensor([[20.0]])
>>> z = far @ weight.T + bias
>>> z.softmax(1).round(decimals=4), posterior.predict_proba(z, far)
(tensor([[0., 1.]]), tensor([[0.0339, 0.9661]]))
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from softmax_torch.laplace.full import LARGEST, FullPosterior, check_size
from softmax_torch.laplace.kronecker import KroneckerPosterior
from softmax_torch.laplace.posterior import METHODS, Method, Posterior
from softmax_torch.laplace.training_samples import check_head, samples_of

__all__ = [
    "LARGEST",
    "METHODS",
    "STRUCTURES",
    "FullPosterior",
    "KroneckerPosterior",
    "Method",
    "Posterior",
    "Structure",
    "check_prior_precision",
    "check_structure",
    "fit",
    "from_state_dict",
]

Structure = Literal["kronecker", "full"]
STRUCTURES: tuple[Structure, ...] = get_args(Structure)

POSTERIORS: dict[str, type[KroneckerPosterior] | type[FullPosterior]] = {
    "kronecker": KroneckerPosterior,
    "full": FullPosterior,
}


@torch.no_grad()
def fit(
    features: Tensor | Iterable[Tensor | tuple[Tensor, Tensor]],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    prior_precision: float = 1.0,
    structure: Structure = "kronecker",
) -> Posterior:
    """Return the Laplace approximation of a head's weights, float64 on a CPU.

    Args:
        features: the training samples (n, D) as the head sees them; or batches of them, read once,
            each (b, D) or a pair of (b, D) and weights (b,) >= 0. With class weights, the weight of
            a sample is that of its class.
        weight: weights (C, D) of the head.
        bias: its biases (C,), or None.
        prior_precision: tau > 0; 1 / C for a fit with the L2 penalty of scikit-learn's C.
        structure: "kronecker", or "full" for at most ``LARGEST`` coefficients.

    Raises:
        ValueError, TypeError: shapes do not fit, a number is not finite, a weight is negative,
            there is no sample of weight > 0, the prior precision is not positive, or a full
            posterior would be too large.
    """
    check_prior_precision(prior_precision)
    head = check_head(weight, bias)
    check_structure(structure, *head)
    return POSTERIORS[structure].fit(head, samples_of(features, head), float(prior_precision))


def check_structure(structure: Structure, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError for an unknown structure, or one too large for a head's (C, D) and (C,)."""
    if structure not in STRUCTURES:
        raise ValueError(f"structure: expected {' or '.join(STRUCTURES)}, got {structure!r}")
    if structure == "full":
        C, D = weight.shape
        check_size(C, D + (bias is not None))


def check_prior_precision(value: float) -> None:
    """Raise ValueError unless the precision of a prior is a finite number > 0."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"prior_precision: expected a number > 0, got {value}")


def from_state_dict(state: dict[str, Any]) -> Posterior:
    """Return the posterior with this ``state_dict``."""
    return POSTERIORS[state["structure"]].from_state_dict(state)
