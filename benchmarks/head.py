"""The cost of the head in a net: a CNN with our loss against the same CNN with torch's.

    python benchmarks/head.py [--batch_sizes 128 512] [--classes 10 1000] [--repeats 80]
                              [--threads 2] [--device cpu] [--markdown FILE]

``small_cnn`` on images of 28 x 28, SGD, in plain loops that take turns step by step:

torch      nn.Linear and F.cross_entropy on the features
ours       SoftmaxRegression.loss on the features

First both train 50 steps from the same parameters: their losses must agree to 1e-5 of the first.
Then whole steps (forward, backward, update) are compared: their medians, and the median ratio of
two consecutive steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmax_torch import SoftmaxRegression, backbones

STEPS, CLOSE = 50, 1e-5
ROUNDS = 8

Step = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--repeats", type=int, default=80)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.device}")
    lines = [
        "| batch | classes | largest difference of losses | torch, ms | ours, ms | ours / torch |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for batch_size in options.batch_sizes:
        for classes in options.classes:
            difference = check(classes, batch_size, options.device)
            times = race(classes, batch_size, options)
            a, b = (1e3 * statistics.median(times[name]) for name in ("torch", "ours"))
            # The ratio within a turn, whose two steps run under the same conditions.
            ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
            lines.append(
                f"| {batch_size} | {classes} | {difference:.0e} | {a:.1f} | {b:.1f} | {ratio:.3f} |"
            )
            print(lines[-1], flush=True)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n")


def contestants(classes: int, device: str) -> dict[str, Step]:
    """Return a step of each, from the same parameters; a step returns the loss before it."""
    steps: dict[str, Step] = {}
    for name in ("torch", "ours"):
        torch.manual_seed(0)
        backbone = backbones.make("small_cnn").to(device)
        head = SoftmaxRegression(backbone.out_features, classes).to(device)
        steps[name] = stepper(
            backbone, head, torch_loss if name == "torch" else SoftmaxRegression.loss
        )
    return steps


def torch_loss(head: SoftmaxRegression, features: Tensor, y: Tensor) -> Tensor:
    """Return the loss by torch's own functions."""
    return F.cross_entropy(head.linear(features), y)


def stepper(
    backbone: nn.Module,
    head: SoftmaxRegression,
    loss_of: Callable[[SoftmaxRegression, Tensor, Tensor], Tensor],
) -> Step:
    """Return a step of SGD."""
    parameters = [*backbone.parameters(), *head.parameters()]
    # No momentum and small steps: both would amplify differences of rounding.
    optimizer = torch.optim.SGD(parameters, lr=0.01)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(head, backbone(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def batch(n: int, classes: int, device: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return images of noise with a bright patch in a place that depends on the class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    x = 0.5 * torch.rand(n, 28, 28, generator=generator)
    for image, label in zip(x, (y % 100).tolist(), strict=True):
        row, column = 2 * (label // 10), 2 * (label % 10)
        image[row : row + 8, column : column + 8] += 0.5
    return x.to(device), y.to(device)


def check(classes: int, batch_size: int, device: str, steps: int = STEPS) -> float:
    """Return the largest difference of losses relative to the first; assert that it is < 1e-5."""
    both = contestants(classes, device)
    losses = {name: [] for name in both}
    for seed in range(steps):
        x, y = batch(batch_size, classes, device, seed)
        for name, step in both.items():
            losses[name].append(step(x, y))
    ours, theirs = (torch.stack(losses[name]).double() for name in ("ours", "torch"))
    assert ours[-1] < ours[0], "nothing was learnt, so the losses prove nothing"
    difference = float((ours - theirs).abs().max() / theirs[0])
    assert difference < CLOSE, f"losses differ by {difference:.1e} of the first"
    return difference


def race(classes: int, batch_size: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of each step, turn by turn, without the first two turns of a round.

    Each round makes both contestants anew: the place of their parameters in memory makes a
    difference of a few percent, constant over steps.
    """
    x, y = batch(batch_size, classes, options.device, 0)
    times: dict[str, list[float]] = {"torch": [], "ours": []}
    for _ in range(ROUNDS):
        both = contestants(classes, options.device)
        for turn in range(options.repeats // ROUNDS + 2):
            for name in sorted(both, reverse=bool(turn % 2)):
                wait(options.device)
                began = time.perf_counter()
                both[name](x, y)
                wait(options.device)
                if turn >= 2:
                    times[name].append(time.perf_counter() - began)
    return times


def wait(device: str) -> None:
    """Wait until the device has finished."""
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
