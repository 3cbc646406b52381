"""The number of threads of a small computation: one, where several have little to gain.

torch divides an operation among its threads from some ten thousand numbers on, and waits for all of
them. Where another process keeps a core busy, the thread on that core comes late by milliseconds,
in each of some ten operations of a training step that takes a quarter of one: on 2 cores, ``fit``
on digits took 30 times as long. A fit by a solver, an evaluation or a calibration of few samples is
a sequence of such operations too. They have little to divide. The time of a training step on one
thread and on two, in us (784 -> 10, SGD with momentum, an idle machine):

    samples              128     512     2048
    products, millions   1.0     4.0     16
    one thread           450     1100    4100
    two threads          440     1030    3000

Fits to digits (1797 x 64, 10 classes) on 2 cores, in ms: medians of five on an idle machine and
beside a process that keeps one core busy, the least of five beside some ten busy processes:

                              idle      a core busy     both busy
    solvers.fit, two threads    41               66          1490
    solvers.fit, one            44               46           225
    SoftmaxClassifier, two      65              175          5460
    SoftmaxClassifier, one      66               87           540

The choice is a function of the sizes alone, never of the load: results may differ in their last
bits between numbers of threads, and a resumed run must give those of an uninterrupted one. The
number before is restored afterwards; torch keeps it per thread of the program (one that first uses
torch while another is within the context begins with 1). ``torch.set_num_threads`` sets the most.
To have all of them at every size, set the environment variable SOFTMAX_TORCH_THREADS:

    auto    one thread for small computations (the default)
    all     the threads of torch for all of them

OMP_NUM_THREADS, by which users choose a number for the whole program, stands for "all" too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["SMALL", "WIDE", "is_small", "is_small_fit", "one_thread_if"]

SMALL = 1 << 21
"""Products in a matrix product, samples x features x classes, up to which it counts as small."""

WIDE = 512
"""Features above which a solver has all threads, however few the samples are: it factors matrices
(features, features), which takes 20 ms at 512 on one thread, and 90 ms at 1000."""


def is_small(samples: int | None, features: int, classes: int) -> bool:
    """Return whether a linear layer has so little to do that one thread is to do it.

    False where the number of samples is unknown, or the environment asks for all threads.

    Raises:
        ValueError: SOFTMAX_TORCH_THREADS has another value than "auto" or "all".
    """
    if samples is None or all_threads():
        return False
    return samples * features * classes <= SMALL


def is_small_fit(samples: int | None, features: int, classes: int) -> bool:
    """Return whether one thread is to fit a linear layer by a solver."""
    return features <= WIDE and is_small(samples, features, classes)


def all_threads() -> bool:
    """Return whether the environment asks for all threads of torch at every size."""
    choice = os.environ.get("SOFTMAX_TORCH_THREADS") or "auto"
    if choice not in ("auto", "all"):
        raise ValueError(f"SOFTMAX_TORCH_THREADS: expected auto or all, got {choice}")
    return choice == "all" or "OMP_NUM_THREADS" in os.environ


@contextmanager
def one_thread_if(small: bool) -> Iterator[None]:
    """Let torch use one thread within the context, if ``small``."""
    threads = torch.get_num_threads()
    if not small or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
