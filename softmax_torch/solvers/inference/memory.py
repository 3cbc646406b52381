"""The memory that a covariance takes, compared with what there is before any work is done.

A covariance of q = (K - 1) P coefficients has q^2 entries in float64. The sums over pairs of
classes, the information, its factor, its inverse and copies between them take ``COPIES`` times
that: 2.4 GB for 10 classes and 784 features with an intercept.
"""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["available", "needed", "refuse_large"]

COPIES = 6
"""Peak of the process beyond X, in covariances: 5.7 for 10 classes and 300 features."""


def needed(K: int, P: int, clusters: int = 0) -> int:
    """Return the bytes of a covariance of K classes and P columns, and of the scores of groups."""
    q = (K - 1) * P
    return 8 * q * (COPIES * q + clusters)


def available(device: torch.device) -> int | None:
    """Return the free bytes of a device; None if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def refuse_large(K: int, P: int, clusters: int, device: torch.device) -> None:
    """Raise MemoryError if a covariance takes more memory than is free.

    Args:
        K: number of classes.
        P: columns of the coefficients, with the intercept.
        clusters: number of groups whose scores are summed.
        device: where the covariance is computed.
    """
    free, size = available(device), needed(K, P, clusters)
    if free is not None and size > free:
        groups = f" and the scores of {clusters} groups" if clusters else ""
        raise MemoryError(
            f"X, y: expected a covariance that fits into {free / 1e9:.3g} GB of free memory; that "
            f"of {(K - 1) * P} coefficients ({K} classes, {P} columns with the intercept){groups} "
            f"takes about {size / 1e9:.3g} GB; drop columns, merge classes, or find coefficients "
            "alone with fit"
        )
