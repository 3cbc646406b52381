"""Resources of a head with split classes on several ranks: measured, and as predicted.

    python benchmarks/scale.py [--rows 128] [--features 64] [--classes 40000] [--markdown FILE]
    python benchmarks/scale.py --million

The first command runs training steps on gloo ranks of this machine, one thread each. Loss and
gradients are compared with float64 in one process. Then torch's profiler counts the allocator's
peak, the matrix products and the messages. The program stops unless they equal the predictions of
``scale_model``: memory within 0.5%, flops and messages exactly. Seconds are medians; they are
printed beside the prediction for this machine's speed of products, copies and messages, and not
checked. At the end it prints the prediction for 10 million classes on 64 GPUs; ``python
benchmarks/scale_model.py`` prints others.

``--million`` trains a million classes of 64 features on 1, 2 and 4 ranks and checks the memory that
the operating system gave the processes: less than 1.5e9 bytes on 2 ranks together.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

# Set before torch is imported, or its profiler prints the libraries that it could not find.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scale_model import Hardware, Link, Step, markdown_table, parse_arguments, predicted_table
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from softmax_torch.functional import linear_cross_entropy
from softmax_torch.parallel import ShardedSoftmaxRegression

OPTIMIZERS: dict[int, Callable[..., torch.optim.Optimizer]] = {
    0: lambda p: torch.optim.SGD(p, lr=20.0),
    1: lambda p: torch.optim.SGD(p, lr=5.0, momentum=0.9),
    2: lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
}
"""Optimizers by the numbers they keep per parameter; fused Adam has no intermediate tensors."""

MILLION = Step(rows=128, features=64, classes=1_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help="rows of a step, on all ranks together")
    parser.add_argument("--features", type=int)
    parser.add_argument("--classes", type=int)
    parser.add_argument("--repeats", type=int, default=5, help="steps that are timed")
    parser.add_argument("--million", action="store_true", help="train a million classes")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file too")
    options = parser.parse_args()
    if options.million and (options.rows or options.features or options.classes):
        parser.error(f"--million: expected no sizes, as they are given: {MILLION}")
    table = (
        million()
        if options.million
        else f"{measured(options)}\n{predicted_table(parse_arguments([]))}"
    )
    print(table, end="")
    if options.markdown:
        options.markdown.write_text(table)


# On the ranks of this machine


def spawn(work: Callable[..., Any], steps: list[Step], *more: Any) -> list[list[Any]]:
    """Return for each step the results of ``work(step, *more)`` on all ranks of one group."""
    size = steps[0].data * steps[0].ranks
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_a_rank, (size, folder, work, steps, *more), nprocs=size)
        found = [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(size)]
    return [list(ranks) for ranks in zip(*found, strict=True)]


def on_a_rank(
    rank: int, size: int, folder: str, work: Callable[..., Any], steps: list[Step], *more: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=size,
        timeout=timedelta(minutes=5),
    )
    torch.save([work(step, *more) for step in steps], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


class Training:
    """A head, the rows of this rank, and an optimizer; ``step`` runs a training step."""

    def __init__(self, step: Step) -> None:
        self.mesh = init_device_mesh(
            "cpu", (step.data, step.ranks), mesh_dim_names=("data", "classes")
        )
        torch.manual_seed(0)
        mesh: DeviceMesh = self.mesh["classes"]
        self.model = ShardedSoftmaxRegression(
            step.features, step.classes, mesh=mesh, dtype=step.dtype
        )
        x, self.y = samples(step)
        part = slice(self.mesh.get_local_rank("data") * step.n, None)
        self.y = self.y[part][: step.n].clone()
        self.x = x[part][: step.n].to(step.dtype, copy=True).requires_grad_()
        self.optimizer = OPTIMIZERS[step.states](self.model.parameters())

    def gradients(self) -> Tensor:
        """Return the loss of this rank's rows; average its gradients over the row shares."""
        self.optimizer.zero_grad()
        self.x.grad = None
        loss = self.model.loss(self.x, self.y)
        loss.backward()
        if self.mesh.size(0) > 1:
            for parameter in self.model.parameters():
                local = parameter.grad.to_local()
                dist.all_reduce(local, group=self.mesh.get_group("data"))
                local /= self.mesh.size(0)
        return loss.detach()

    def step(self) -> Tensor:
        loss = self.gradients()
        self.optimizer.step()
        return loss


def samples(step: Step) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(step.rows, step.features, generator=generator)
    return x, torch.randint(step.classes, (step.rows,), generator=generator)


class Measurement(NamedTuple):
    """The resources of a rank's training step."""

    memory: int
    flops: int
    messages: list[tuple[tuple[int, ...], int]]  # shape and bytes per number
    seconds: float
    losses: list[float]
    on: Hardware


def measure(step: Step, repeats: int, folder: str) -> Measurement:
    """Return the allocator's peak up to the third step, and the operations of one more step."""
    with profiled(profile_memory=True) as memory:
        training = Training(step)
        losses = [training.step().item() for _ in range(3)]
    check(step, folder)
    with profiled(record_shapes=True) as operations:
        training.step()
    flops, messages = 0, []
    for event in events(operations):
        shapes = event.shapes()
        if event.name() == "gloo:all_reduce":
            messages.append((tuple(shapes[0]), ITEMSIZE[event.dtypes()[0]]))
        if event.name() in ("aten::mm", "aten::addmm", "aten::addmm_"):
            # (rows, inner) x (inner, columns); addmm has the summand before them
            a, b = shapes[1:3] if "add" in event.name() else shapes[:2]
            flops += 2 * a[0] * a[1] * b[1]
    seconds = []
    for _ in range(repeats):
        dist.barrier()
        began = time.perf_counter()
        losses.append(training.step().item())
        seconds.append(time.perf_counter() - began)
    return Measurement(
        peak(memory), flops, messages, statistics.median(seconds), losses, hardware(step)
    )


ITEMSIZE = {"long int": 8, "float": 4, "c10::BFloat16": 2}
"""Bytes of a number, by the profiler's names of dtypes."""


def profiled(**what: bool) -> torch.profiler.profile:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], **what)


def events(profile: torch.profiler.profile) -> list[Any]:
    return sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())


def peak(profile: torch.profiler.profile) -> int:
    held = most = 0
    for event in events(profile):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def check(step: Step, folder: str) -> None:
    """Assert that the gradients of the first step equal float64 in one process."""
    training = Training(step)
    loss = training.gradients()
    true = torch.load(f"{folder}/{step.dtype}.pt", mmap=True)
    K, data = training.model.shard, training.mesh.get_local_rank("data")
    rows = slice(data * step.n, (data + 1) * step.n)
    dist.all_reduce(loss, group=training.mesh.get_group("data"))
    weight, bias = (parameter.grad.to_local() for parameter in training.model.parameters())
    pairs = {
        "loss": (loss / step.data, true["loss"]),
        "dx": (training.x.grad / step.data, true["dx"][rows]),
        "dW": (weight, true["dW"][K.start : K.stop]),
        "db": (bias, true["db"][K.start : K.stop]),
    }
    for name, (got, expected) in pairs.items():
        error = float((got.double() - expected).abs().max() / true[name].abs().max())
        assert error < (1e-5 if step.dtype == torch.float32 else 2e-2), f"{name}: {error:.1e}"


def one_process(step: Step, file: str) -> None:
    """Save loss and gradients of the first step in float64."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(step.features, step.classes, dtype=step.dtype).double()
    x, y = samples(step)
    x = x.to(step.dtype).double().requires_grad_()
    loss = linear_cross_entropy(x, layer.weight, y, linear_bias=layer.bias)
    dx, dW, db = torch.autograd.grad(loss, (x, *layer.parameters()))
    torch.save({"loss": loss.detach(), "dx": dx, "dW": dW, "db": db}, file)


def hardware(step: Step) -> Hardware:
    """Return the speed of a product of the step's shape, a copy, and messages of two sizes."""
    b, D, K = step.block, step.features, step.K
    x, W, z = torch.randn(b, D), torch.randn(K, D), torch.empty(b, K)
    other, group = torch.empty_like(z), dist.group.WORLD
    small, large = torch.zeros(1), torch.zeros(1 << 20)

    def seconds(call: Callable[[], Any]) -> float:
        times = []
        for _ in range(7):
            dist.barrier()
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    flops = 2 * b * D * K / seconds(lambda: torch.mm(x, W.t(), out=z))
    bandwidth = 2 * z.numel() * 4 / seconds(lambda: other.copy_(z))
    ranks = dist.get_world_size()
    link = Link(0.0, float("inf"))
    if ranks > 1:
        of_small, of_large = (
            seconds(lambda t=t: dist.all_reduce(t, group=group)) for t in (small, large)
        )
        turns = 2 * (ranks - 1)
        latency = of_small / turns
        link = Link(latency, turns / ranks * large.nbytes / (of_large - of_small))
    return Hardware(flops, bandwidth, link, link)


def measured(options: argparse.Namespace) -> str:
    """Return a table of runs on 1, 2 and 4 ranks beside the predictions."""
    alone = Step(options.rows or 128, options.features or 64, options.classes or 40_000)
    print(f"{alone.classes} classes x {alone.features} features, {alone.rows} rows; torch ", end="")
    print(f"{torch.__version__}, one thread per rank, {os.cpu_count()} cores")
    two, four = alone._replace(ranks=2), alone._replace(ranks=4)
    others = [two._replace(states=1), two._replace(states=2)]
    others.append(two._replace(states=1, dtype=torch.bfloat16))
    rows: list[list[str]] = []
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for dtype in (torch.float32, torch.bfloat16):
            one_process(alone._replace(dtype=dtype), f"{folder}/{dtype}.pt")
        for steps in ([alone], [two, *others], [four, two._replace(data=2)]):
            for step, (found, *_) in zip(
                steps, spawn(measure, steps, options.repeats, folder), strict=True
            ):
                compare(step, found)
                seconds = sum(step.seconds(found.on).values())
                first = first or (found, seconds)
                rows.append(line(step, found, seconds, *first))
    head = ["data x class ranks", "type, optimizer", "memory, MB", "predicted", "error"]
    head += ["memory / one rank", "Gflop", "predicted", "messages", "MB", "predicted"]
    head += ["s", "predicted", "s / one rank", "predicted"]
    return markdown_table(head, rows)


def compare(step: Step, found: Measurement) -> None:
    """Assert that a run agrees with the prediction."""
    expected = step.peak()
    error = found.memory / expected - 1
    assert abs(error) < 0.005, f"{step}: {found.memory} bytes, {expected} predicted ({error:.1%})"
    assert found.flops == step.flops(), f"{step}: {found.flops} flops, {step.flops()} predicted"
    messages = [(message.numbers, message.itemsize) for message in step.messages()]
    assert found.messages == messages, f"{step}: sent {found.messages}, {messages} predicted"
    assert found.losses[-1] < found.losses[0], f"{step}: losses {found.losses}"


def line(
    step: Step, found: Measurement, seconds: float, first: Measurement, first_seconds: float
) -> list[str]:
    """Return a row of the table; ``seconds`` are predicted, ``first`` is the run on one rank."""
    memory = step.peak()
    sent = sum(torch.Size(shape).numel() * itemsize for shape, itemsize in found.messages)
    predicted = sum(message.size for message in step.messages())
    optimizer = ("SGD", "momentum", "Adam")[step.states]
    return [
        f"{step.data} x {step.ranks}",
        f"{str(step.dtype).removeprefix('torch.')}, {optimizer}",
        f"{found.memory / 1e6:.2f}",
        f"{memory / 1e6:.2f}",
        f"{found.memory / memory - 1:+.2%}",
        f"{found.memory / first.memory:.3f}",
        f"{found.flops / 1e9:.3f}",
        f"{step.flops() / 1e9:.3f}",
        f"{len(found.messages)}",
        f"{sent / 1e6:.3f}",
        f"{predicted / 1e6:.3f}",
        f"{found.seconds:.3f}",
        f"{seconds:.3f}",
        f"{found.seconds / first.seconds:.2f}",
        f"{seconds / first_seconds:.2f}",
    ]


# A million classes


def status(name: str) -> int:
    """Return a size of this process in bytes, as the operating system counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def train(step: Step) -> tuple[int, int, list[float]]:
    """Return the peak bytes of the process and of the allocator in training, and the losses."""
    with profiled(profile_memory=True):  # libraries allocate memory when first called
        Training(step._replace(classes=1000)).step()
    before = status("VmRSS")
    with profiled(profile_memory=True) as memory:
        training = Training(step)
        losses = [training.step().item() for _ in range(6)]
    return status("VmHWM") - before, peak(memory), losses


def million() -> str:
    """Return a table of training a million classes on 1, 2 and 4 ranks."""
    rows: list[list[str]] = []
    alone = 0
    for ranks in (1, 2, 4):
        step = MILLION._replace(ranks=ranks)
        taken, held, losses = zip(*spawn(train, [step])[0], strict=True)
        predicted = step.peak()
        assert losses[0][-1] < losses[0][0] / 2, losses[0]
        assert abs(max(held) / predicted - 1) < 0.005, (held, predicted)
        assert ranks != 2 or sum(taken) < 1.5e9, taken
        alone = alone or max(held)
        sizes = [f"{max(held) / 1e6:.1f}", f"{predicted / 1e6:.1f}", f"{max(held) / alone:.3f}"]
        first, last = (f"{losses[0][i]:.2f}" for i in (0, -1))
        rows.append([f"{ranks}", *sizes, f"{sum(taken) / 1e6:.0f}", first, last])
    print(f"{MILLION.classes} classes x {MILLION.features} features, {MILLION.rows} rows, SGD")
    head = ["ranks", "allocator, MB a rank", "predicted", "/ one rank", "processes, MB together"]
    return markdown_table([*head, "first loss", "sixth"], rows)


if __name__ == "__main__":
    main()
