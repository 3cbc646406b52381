"""The Laplace approximation of a head with many classes: time a sample, and memory.

    python benchmarks/laplace.py [--classes 3100] [--features 128] [--samples 6200] [--batch 256]
                                 [--threads 2] [--repeats 10] [--draws 100] [--markdown FILE]

fit        from the training samples to the Kronecker-factored posterior
probit     class probabilities by the probit approximation, of a batch and of one sample
sampling   the same by draws of the logits, which take O(C^2) operations a draw

Everything that is timed computes in float32, as ``load(..., laplace="probit")`` does. First, with
30 classes, the posterior must agree with the matrix normal distribution written out, (C P)^2
numbers; then, with all classes, the variances of two samples with U diag(s) U^T in float64.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from softmax_torch import laplace
from softmax_torch.laplace import KroneckerPosterior

TAU = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("classes", 3100), ("features", 128), ("samples", 6200), ("batch", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads")
    check_written_out()
    C, D = options.classes, options.features
    x, weight, bias = problem(options.samples, D, C)
    begin = time.perf_counter()
    posterior = laplace.fit(x, weight, bias, prior_precision=TAU)
    lines = [f"| fit to {options.samples} samples | {time.perf_counter() - begin:.2f} s |"]
    assert isinstance(posterior, KroneckerPosterior)
    check_variances(posterior, x[:2].double())
    stored = sum(t.nbytes for t in posterior.state_dict().values() if isinstance(t, Tensor))
    z = x @ weight.T + bias
    n, one = options.batch, slice(1)
    calls: dict[str, tuple[Callable[[], Tensor], int]] = {
        f"probit, {n} at a time": (lambda: posterior.predict_proba(z[:n], x[:n]), n),
        "probit, one at a time": (lambda: posterior.predict_proba(z[one], x[one]), 1),
        f"sampling, {options.draws} draws": (
            lambda: posterior.predict_proba(z[:8], x[:8], "sampling", draws=options.draws),
            8,
        ),
    }
    for name, (call, samples) in calls.items():
        milliseconds = 1e3 * median_seconds(call, options.repeats) / samples
        lines.append(f"| {name} | {milliseconds:.3f} ms a sample |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines.append(f"| stored | {stored / 2**20:.0f} MiB |")
    lines.append(f"| most memory of this process | {peak:.2f} GiB |")
    lines = [f"| {C} classes, {D} features | |", "| --- | ---: |", *lines]
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n")


def problem(n: int, D: int, C: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (n, D), weights (C, D) and biases (C,) of clusters, one a class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(C, D, generator=generator) / 2
    x = centres[torch.arange(n) % C] + torch.randn(n, D, generator=generator)
    return x, centres, -centres.square().sum(1) / 2


def check_written_out(C: int = 30, D: int = 5) -> None:
    """Compare with B (x) A + tau I, inverted as one matrix."""
    x, weight, bias = (t.double() for t in problem(300, D, C))
    p = (x @ weight.T + bias).softmax(1)
    phi = torch.cat([x - x.mean(0), torch.ones(len(x), 1).double()], 1)
    B = p.mean(0).diag() - p.T @ p / len(x)
    H = torch.kron(B, phi.T @ phi)
    covariance = torch.linalg.inv(H + TAU * torch.eye(len(H)).double()).view(C, D + 1, C, D + 1)
    S = torch.einsum("np,kplq,nq->nkl", phi[:5], covariance, phi[:5])
    centring = torch.eye(C).double() - 1 / C
    got = laplace.fit(x, weight, bias, prior_precision=TAU).covariance(x[:5])
    torch.testing.assert_close(got, centring @ S @ centring)


def check_variances(posterior: KroneckerPosterior, x: Tensor) -> None:
    """Compare variances, in float32 too, with those of a whole covariance."""
    expected = posterior.covariance(x).diagonal(dim1=1, dim2=2)
    for each in (posterior, posterior.to("cpu", torch.float32)):
        torch.testing.assert_close(
            each.variances(x.to(each.U)).double(), expected, rtol=1e-4, atol=1e-6
        )


def median_seconds(call: Callable[[], Tensor], repeats: int) -> float:
    """Return the median time of a call, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
