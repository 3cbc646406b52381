"""The number of threads of a training step: one where the step is too small to gain from several.

torch divides an operation among its threads from some ten thousand numbers on, and waits for all of
them. Where another process keeps a core busy, the thread on that core comes late by milliseconds,
in each of some ten operations of a step that takes a quarter of one: on 2 cores, ``fit`` on digits
took 30 times as long. Such a step has little to divide. Its time on one thread and on two, in us
(784 -> 10, SGD with momentum, an idle machine):

    samples              128     512     2048
    products, millions   1.0     4.0     16
    one thread           450     1100    4100
    two threads          440     1030    3000

The choice is a function of the sizes alone, never of the load: results may differ in their last
bits between numbers of threads, and a resumed run must give those of an uninterrupted one. Who sets
OMP_NUM_THREADS gets that number in every step; ``torch.set_num_threads`` sets the most.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["SMALL", "is_small", "one_thread_if"]

SMALL = 1 << 21
"""Products in a matrix product, samples x features x classes, up to which it counts as small."""


def is_small(samples: int | None, features: int, classes: int) -> bool:
    """Return whether a linear layer has so little to do that one thread is to do it.

    False where the number of samples is unknown, or the environment sets OMP_NUM_THREADS.
    """
    if samples is None or "OMP_NUM_THREADS" in os.environ:
        return False
    return samples * features * classes <= SMALL


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
