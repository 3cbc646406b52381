"""How many bytes a linear layer and its loss hold or read at a time."""

from __future__ import annotations

import sys

from torch import Tensor

__all__ = ["input_budget", "logits_budget"]


def logits_budget(x: Tensor) -> int:
    """Return the bytes of logits that a linear layer with input x may hold at a time.

    32 MiB on a CPU: at (N, D, C) = (2048, 512, 32000) blocks of 16, 32 and 64 MiB take 1390, 1260
    and 1190 ms, and two blocks of 32 MiB are all it holds beyond the gradients.

    1 GiB on a GPU: the 4096 x 128256 bfloat16 logits of a large head are one block, whose dW is
    written once. Each of several blocks reads and writes a float32 dW, 8 C D bytes. By the data
    sheet of an H200 (4.8e12 bytes and 989e12 operations a second) that is 275 / n of the time of
    its products, 6 n C D operations for n rows: 7% for 4096 rows, 27% for 1024.
    """
    return (32 if x.device.type == "cpu" else 1024) << 20


def input_budget(x: Tensor) -> int:
    """Return the bytes of its input x that a linear layer reads at a time.

    12 MiB on a CPU: the product for the gradient then finds in cache the input that the product for
    the logits has read. At (60000, 784, 10) blocks of 6, 12 and 50 MiB and the whole input take 42,
    41, 48 and 52 ms. A GPU has no such limit: its memory is fast enough.
    """
    return 12 << 20 if x.device.type == "cpu" else sys.maxsize
