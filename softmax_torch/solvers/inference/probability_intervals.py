"""Class probabilities of samples with standard errors and intervals, by the delta method.

For a sample x~ = [x, 1] with logits z = theta x~ and probabilities p, the log-odds of class k are

    logit p_k = z_k - log sum_{l != k} exp z_l
    d logit p_k / dz = (e_k - p) / (1 - p_k) = e_k - q_k        q_k the softmax without class k

With the covariance V of theta and the covariance S of the logits, S_lm = x~^T V_lm x~, the variance
of logit p_k is

    s_k^2 = (e_k - p)^T S (e_k - p) / (1 - p_k)^2 = (e_k - q_k)^T S (e_k - q_k)

and the ends of the interval are sigmoid(logit p_k -+ quantile * s_k), which lie in [0, 1] (Fox &
Hong 2009, Journal of Statistical Software 32(1), 2.2, which R's ``effects`` follows). They are not
the intervals p_k -+ quantile * p_k (1 - p_k) s_k, which may leave [0, 1].

The first form takes K^2 operations for all classes of a sample, but loses digits where p_k is near
1. So the second is used for the most probable class; the others have p_k <= 1/2.

>>> import torch
>>> from softmax_torch.solvers import inference
>>> X = torch.arange(8.0).unsqueeze(1)
>>> fit = inference(X, [0, 0, 1, 0, 1, 0, 1, 1])
>>> found = fit.predict_intervals([[0.0], [7.0]])
>>> torch.stack([found.lower, found.probabilities, found.upper])[:, :, 1].T  # of class 1
tensor([[0.0042, 0.1111, 0.7887],
        [0.2113, 0.8889, 0.9958]], dtype=torch.float64)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers import inputs
from softmax_torch.solvers.inference.information import dense_rows
from softmax_torch.solvers.inference.names import frame_columns
from softmax_torch.solvers.inference.normal import checked_confidence, quantile
from softmax_torch.solvers.inference.tables import frame_of
from softmax_torch.solvers.samples import Samples

__all__ = ["ProbabilityIntervals", "probabilities", "probability_intervals", "samples_like"]

COVARIANCES = 1 << 22
"""Entries of covariances of logits at a time: 32 MiB."""


@dataclass(frozen=True, eq=False)
class ProbabilityIntervals:
    """Class probabilities of n samples with their uncertainty, float64.

    Attributes:
        probabilities: (n, K).
        standard_errors: of the probabilities (n, K).
        logit_standard_errors: of the log-odds log(p / (1 - p)), on whose scale intervals are
            symmetric (n, K).
        lower: lower ends of the intervals (n, K), in [0, 1].
        upper: upper ends (n, K), in [0, 1].
        class_names: names of the classes (K,).
        confidence: confidence level of the intervals.
    """

    probabilities: Tensor
    standard_errors: Tensor
    logit_standard_errors: Tensor = field(repr=False)
    lower: Tensor
    upper: Tensor
    class_names: tuple[str, ...]
    confidence: float

    def to_dict(self) -> dict[str, list[Any]]:
        """Return columns with an entry for each sample and class, sample by sample.

        They are sample, class, probability, standard_error, lower and upper.
        """
        n, K = self.probabilities.shape
        return {
            "sample": [i for i in range(n) for _ in range(K)],
            "class": list(self.class_names) * n,
            "probability": self.probabilities.flatten().tolist(),
            "standard_error": self.standard_errors.flatten().tolist(),
            "lower": self.lower.flatten().tolist(),
            "upper": self.upper.flatten().tolist(),
        }

    def to_frame(self) -> Any:
        """Return the columns of ``to_dict`` as a pandas frame with the index (sample, class).

        Raises:
            ImportError: pandas is not installed.
        """
        return frame_of(self.to_dict(), ["sample", "class"])


def samples_like(
    X: Any, columns: int, names: Sequence[Any] | None, device: torch.device
) -> Samples:
    """Return X (n, columns) as samples for passes in float64.

    Raises:
        TypeError, ValueError: as ``fit``; there are more or fewer columns; X is a frame whose
            columns are not ``names``, if these are given.
    """
    given = frame_columns(X)
    if given is not None and names is not None and given != list(names):
        missing = [name for name in names if name not in given]
        other = [name for name in given if name not in names]
        got = "them in another order"
        if missing or other:
            got = f"a frame without {missing[:10]} and with {other[:10]} besides"
        raise ValueError(f"X: expected the columns of the fit in their order, got {got}")
    samples = inputs.as_samples(X, device, torch.float64)
    if samples.d != columns:
        raise ValueError(f"X: expected {columns} columns as in the fit, got {samples.d}")
    return samples


def probabilities(samples: Samples, theta: Tensor) -> Tensor:
    """Return the class probabilities (n, K) for theta (K, P) of X as given."""
    bias = theta.shape[1] > samples.d
    z = theta.new_empty(samples.n, len(theta))
    for at, block in samples.blocks(len(theta)):
        z[at] = block.logits(theta, bias)
    return z.softmax(1)


def probability_intervals(
    samples: Samples,
    theta: Tensor,
    covariance: Tensor,
    class_names: tuple[str, ...],
    confidence: float,
) -> ProbabilityIntervals:
    """Return intervals for theta (K, P) of X as given, with the covariance (K P, K P).

    This takes O(n K^2 P^2) time and one pass. Any coding of the classes gives the same.
    """
    confidence = checked_confidence(confidence)
    K, P = theta.shape
    p, logit, error = (theta.new_empty(samples.n, K) for _ in range(3))
    step = max(1, COVARIANCES // K**2)
    for x, at in dense_rows(samples, P > samples.d):
        for start in range(0, len(x), step):
            piece = x[start : start + step]
            rows = slice(at.start + start, at.start + start + len(piece))
            z = piece @ theta.T
            p[rows] = z.softmax(1)
            S = _logit_covariance(piece, covariance.view(K, P, K, P))
            logit[rows], error[rows] = _log_odds(z, S)
    spread = quantile(confidence) * error
    return ProbabilityIntervals(
        probabilities=p,
        standard_errors=logit.sigmoid() * (-logit).sigmoid() * error,
        logit_standard_errors=error,
        lower=(logit - spread).sigmoid(),
        upper=(logit + spread).sigmoid(),
        class_names=class_names,
        confidence=confidence,
    )


def _logit_covariance(x: Tensor, V: Tensor) -> Tensor:
    """Return x^T V_lm x (B, K, K) for rows x (B, P) and V (K, P, K, P)."""
    (B, P), K = x.shape, len(V)
    S = x.new_empty(B, K, K)
    for k in range(K):
        products = (x @ V[k, :, k:].reshape(P, -1)).view(B, K - k, P)
        S[:, k, k:] = S[:, k:, k] = torch.einsum("bmp,bp->bm", products, x)
    return S


def _log_odds(z: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Return logit p (B, K) and its standard errors (B, K), for logits z (B, K) and S (B, K, K)."""
    log_p = z.log_softmax(1)
    p = log_p.exp()
    top = z.argmax(1, keepdim=True)  # (B, 1)
    Sp = torch.einsum("bkl,bl->bk", S, p)
    rest = 1 - p.scatter(1, top, 0.0)  # 1 - p_k, but 1 for the most probable class
    pSp = (p * Sp).sum(1, keepdim=True)
    variance = (S.diagonal(dim1=1, dim2=2) - 2 * Sp + pSp) / rest.square()
    logit = log_p - rest.log()
    others = z.scatter(1, top, -math.inf)
    a = -others.softmax(1).scatter(1, top, -1.0)  # e_k - q_k
    variance.scatter_(1, top, torch.einsum("bk,bkl,bl->b", a, S, a).unsqueeze(1))
    logit.scatter_(1, top, z.gather(1, top) - others.logsumexp(1, keepdim=True))
    return logit, variance.clamp_min(0).sqrt()
