"""Predict a training step with split classes: memory, flops, messages, seconds.

    python benchmarks/scale_model.py [--classes 10000000] [--gpus 64] [--flops 989e12] ...

``scale.py`` checks it. N rows of D features and C classes are on d x r ranks: d shares of the rows,
and for each of them r shares of the classes. A rank has n = N / d rows, K = ceil(C / r) classes and
P = K (D + 1) parameters of s bytes. Logits exist in blocks of b rows, B of them:

    b = max(1, min(n, L / (K s), I / (D s))),   B = ceil(n / b)      L, I: ops.backends' budgets

Peak bytes of a rank, with k numbers of optimizer state per parameter (SGD 0, momentum 1, Adam 2):

    parameters P s,   gradients P s,   optimizer k P s,   features 2 n D s (x and dx)
    workspace, s = 4:  4 b K [twice where K <= D]  +  4 K                     logits; a sum of dz
    workspace, s = 2:  8 b K  +  8 K  +  4 K D where B > 1      logits in both types, dz; dW's sum

or, before the first step, parameters and one block of random numbers: min(C D, 2^23) s.

Flops, of matrix products alone:

    8 n D K      logits, the same again in the backward pass, dW, dx

Bytes read and written, with e passes over each logit: in float32 7 forward (write; max; sub, exp;
sum) and 10 backward (write; sub, exp, mul; read for dx, dW, db), in bfloat16 32 and 44 bytes:

    products     B (3 K D s + 8 K D) + 4 n D s       W for logits, logits and dx; a sum of dW
    elementwise  68 n K  (s = 4),   76 n K  (s = 2)
    update       (3 + 2 k) P s

Messages, all of them all-reduces. The first step also compares the ranks' arguments, by 24 bytes.

    classes, forward     4 n             the largest logit of each row
                         8 n             sum of exponentials, and the logit of the class
    classes, backward    4 n D           dx
    data                 K D s, K s      gradients of weight and bias, where d > 1

Seconds, for F flops and M bytes a second, and a ring of p ranks with latency a and bandwidth w:

    step = max(flops / F, products / M) + (elementwise + update) / M + sum of messages
    message of S bytes = 2 (p - 1) a + 2 (p - 1) / p S / w

Products run at peak speed, and nothing overlaps: the first is too optimistic, the second too
pessimistic for a program that sends gradients while it computes.

This program measures nothing. By default it is 10 million classes on 64 GPUs, with the figures of
NVIDIA's data sheets: H100 SXM, 989 Tflop/s in bfloat16 without sparsity, 3.35 TB/s, 900 GB/s of
NVLink in both directions together (nvidia.com/en-us/data-center/h100); between nodes of 8, one
ConnectX-7 of 400 Gb/s for each GPU (DGX H100). The latencies, of a message in a node and between
nodes, are assumptions.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch

from softmax_torch.ops import budgets
from softmax_torch.parallel.modules import DRAW_BLOCK

__all__ = [
    "Hardware",
    "Link",
    "Message",
    "Step",
    "markdown_table",
    "parse_arguments",
    "predicted_table",
]


class Link(NamedTuple):
    """The connection of a ring of ranks."""

    latency: float  # seconds per message
    bandwidth: float  # bytes per second, out of a rank

    def seconds(self, size: int, ranks: int) -> float:
        """Return the seconds of an all-reduce of ``size`` bytes."""
        turns = 2 * (ranks - 1)
        return turns * self.latency + turns / ranks * size / self.bandwidth


class Hardware(NamedTuple):
    """The speed of a rank."""

    flops: float  # per second
    bandwidth: float  # of memory, bytes per second
    classes: Link  # between the ranks that share classes
    data: Link  # between those that share rows


class Message(NamedTuple):
    """An all-reduce."""

    what: str
    group: str  # "classes" or "data"
    numbers: tuple[int, ...]  # shape
    itemsize: int

    @property
    def size(self) -> int:
        return math.prod(self.numbers) * self.itemsize


class Step(NamedTuple):
    """A training step; see the equations above."""

    rows: int
    features: int
    classes: int
    data: int = 1
    ranks: int = 1
    dtype: torch.dtype = torch.float32
    states: int = 0
    device: str = "cpu"

    @property
    def n(self) -> int:
        """Return the rows of a rank."""
        assert self.rows % self.data == 0, f"{self.rows} rows on {self.data} shares"
        return self.rows // self.data

    @property
    def K(self) -> int:  # noqa: N802 the letter of the equations
        """Return the classes of the first rank, which has the most."""
        return -(-self.classes // self.ranks)

    @property
    def block(self) -> int:
        """Return the rows whose logits exist at a time."""
        there = torch.empty(0, device="cpu" if self.device == "cpu" else "meta")
        s = self.dtype.itemsize
        of_logits = budgets.logits_budget(there) // (self.K * s)
        return max(1, min(self.n, of_logits, budgets.input_budget(there) // (self.features * s)))

    @property
    def blocks(self) -> int:
        return -(-self.n // self.block)

    def memory(self) -> dict[str, int]:
        """Return the peak bytes of a rank by use."""
        n, D, K, s = self.n, self.features, self.K, self.dtype.itemsize
        parameters = K * (D + 1) * s
        logits = self.block * K
        if s == 4:
            workspace = 4 * logits * (2 if K <= D else 1) + 4 * K
        else:
            workspace = 8 * logits + 8 * K
            workspace += 4 * K * D if self.blocks > 1 else 0
        return {
            "parameters": parameters,
            "gradients": parameters,
            "optimizer": self.states * parameters,
            "features": 2 * n * D * s,
            "workspace": workspace,
        }

    def peak(self) -> int:
        """Return the peak bytes of a rank, including its initialization."""
        memory = self.memory()
        drawn = min(self.classes * self.features, DRAW_BLOCK) * self.dtype.itemsize
        return max(sum(memory.values()), memory["parameters"] + drawn)

    def flops(self) -> int:
        """Return the flops of a rank's matrix products."""
        return 8 * self.n * self.features * self.K

    def traffic(self) -> dict[str, int]:
        """Return the bytes that a rank reads and writes."""
        n, D, K, s = self.n, self.features, self.K, self.dtype.itemsize
        parameters = K * (D + 1) * s
        return {
            "products": self.blocks * K * D * (3 * s + 8) + 4 * n * D * s,
            "elementwise": n * K * (68 if s == 4 else 76),
            "update": (3 + 2 * self.states) * parameters,
        }

    def messages(self) -> list[Message]:
        """Return the messages of a rank, in order."""
        n, D, K, s = self.n, self.features, self.K, self.dtype.itemsize
        sent = [
            Message("largest logit", "classes", (n,), 4),
            Message("sums of a row", "classes", (2, n), 4),
            Message("dx", "classes", (n, D), 4),
        ]
        if self.data > 1:
            sent += [Message("dW", "data", (K, D), s), Message("db", "data", (K,), s)]
        return sent

    def seconds(self, on: Hardware) -> dict[str, float]:
        """Return the seconds of a step by part."""
        traffic = self.traffic()
        of = {"classes": (on.classes, self.ranks), "data": (on.data, self.data)}
        found = dict.fromkeys(of, 0.0)
        for message in self.messages():
            link, ranks = of[message.group]
            found[message.group] += link.seconds(message.size, ranks)
        return {
            "products": max(self.flops() / on.flops, traffic["products"] / on.bandwidth),
            "elementwise": traffic["elementwise"] / on.bandwidth,
            "update": traffic["update"] / on.bandwidth,
            **found,
        }


def main() -> None:
    options = parse_arguments()
    text = predicted_table(options)
    print(text, end="")
    if options.markdown:
        options.markdown.write_text(text)


def parse_arguments(args: list[str] | None = None) -> argparse.Namespace:
    """Parse the step and the hardware, by default from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16384, help="of a step, on all ranks together")
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10_000_000)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--states", type=int, choices=[0, 1, 2], default=2, help="2: Adam")
    parser.add_argument("--flops", type=float, default=989e12, help="of a GPU, a second")
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="of its memory, bytes/s")
    parser.add_argument("--gigabytes", type=float, default=80, help="its memory, in 1e9 bytes")
    parser.add_argument("--link", type=float, default=450e9, help="in a node, one way, bytes/s")
    parser.add_argument("--network", type=float, default=50e9, help="between nodes, one way")
    parser.add_argument("--link-latency", type=float, default=5e-6, help="seconds per message")
    parser.add_argument("--network-latency", type=float, default=15e-6)
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    return parser.parse_args(args)


def predicted_table(options: argparse.Namespace) -> str:
    """Return a table of memory and seconds for every layout of the GPUs."""
    rows = []
    for data in (2**i for i in range(options.gpus.bit_length())):
        ranks = options.gpus // data
        step = Step(
            options.rows,
            options.features,
            options.classes,
            data,
            ranks,
            getattr(torch, options.dtype),
            options.states,
            "cuda",
        )
        within = Link(options.link_latency, options.link)
        between = Link(options.network_latency, options.network)
        # Ranks that split classes are neighbours; ranks that split rows are further apart.
        on = Hardware(
            options.flops,
            options.bandwidth,
            within if ranks <= options.gpus_per_node else between,
            within if options.gpus <= options.gpus_per_node else between,
        )
        memory, seconds = step.memory(), step.seconds(on)
        total = sum(memory.values())
        rows.append(
            [f"{data} x {ranks}", *(f"{size / 1e9:.2f}" for size in memory.values())]
            + [f"{total / 1e9:.2f}" + (" (too much)" if total > options.gigabytes * 1e9 else "")]
            + [f"{t * 1e3:.2f}" for t in (*seconds.values(), sum(seconds.values()))]
        )
    head = (
        f"Predicted: {step.classes} classes x {step.features} features, {step.rows} rows per step, "
        f"{options.dtype}, {options.states} numbers of optimizer state per parameter, on "
        f"{options.gpus} GPUs of {options.flops:g} flop/s:\n\n"
        "    memory = parameters + gradients + optimizer + features + workspace\n"
        f"    step   = max(flops / {options.flops:g}, products' bytes / {options.bandwidth:g})\n"
        f"             + (elementwise + update bytes) / {options.bandwidth:g}\n"
        "             + sum over messages of S bytes: 2 (p - 1) latency + 2 (p - 1) / p S / "
        "bandwidth\n\n"
    )
    parts = [f"{name}, GB" for name in (*memory, "memory")]
    return head + markdown_table(
        ["data x class ranks", *parts, *(f"{name}, ms" for name in (*seconds, "step"))], rows
    )


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in markdown with aligned columns."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in (head, *rows)
    ]
    rule = "| " + " | ".join("-" * (w - 1) + ":" for w in widths) + " |"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


if __name__ == "__main__":
    main()
