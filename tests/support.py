"""Helpers shared by tests: a plain reference loss, sets of options, and groups of processes."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from softmax_torch.ops.native import library

ROOT = Path(__file__).parents[1]

OTHER_KERNELS = [] if library.load() is None else pytest.mark.slow
"""Torch's kernels are tested among the slow tests where native ones serve."""


class Finished(NamedTuple):
    """The exit status of a program, and what it printed."""

    code: int
    stdout: str
    stderr: str


def need_library() -> None:
    """Skip a test where there are no native kernels."""
    if library.load() is None:
        pytest.skip(library.reason())


def reference(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    sample_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float | Tensor = 1.0,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Return ``cross_entropy`` by definition: -sum_c w_c t_c log p_c with smoothed t; z-loss."""
    if softcap is not None:
        input = softcap * (input / softcap).tanh()
    input = logit_scale * input
    at = min(1, input.dim() - 1)
    C, soft = input.shape[at], target.shape == input.shape
    ignored = torch.zeros(target.shape, dtype=torch.bool) if soft else target == ignore_index
    if not soft:
        target = F.one_hot(target.masked_fill(ignored, 0), C).movedim(-1, at).to(input.dtype)
    w = torch.ones(C, dtype=input.dtype) if weight is None else weight
    w = w.view(-1, *(1 for _ in input.shape[at + 1 :]))
    t = (1 - label_smoothing) * target + label_smoothing / C
    loss = -(w * t * input.log_softmax(at)).sum(at)
    counts = torch.ones_like(loss) if soft else (~ignored).to(loss.dtype)
    if sample_weight is not None:
        counts = counts * sample_weight
    z = z_loss * input.logsumexp(at).square()
    if reduction == "none":
        return (loss + z) * counts
    if reduction == "sum":
        return ((loss + z) * counts).sum()
    if normalizer is not None:
        return ((loss + z) * counts).sum() / normalizer
    share = counts if soft else counts * (w * target).sum(at)
    return (loss * counts).sum() / share.sum() + (z * counts).sum() / counts.sum()


def results(f: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
    """Return the value of f and the gradients of a fixed weighted sum of it in the leaves."""
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)
    value = f(*leaves)
    upstream = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).view(value.shape)
    gradients: Sequence[Tensor] = torch.autograd.grad(value, leaves, upstream) if leaves else ()
    return [value.detach(), *gradients]


def in_everything(f: Callable[..., Tensor], *tensors: Tensor, **given) -> list[Tensor]:
    """Return ``results`` of f in the tensors and in the real tensors among its options."""
    leaves = {
        name: value
        for name, value in given.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    numbers = {name: value for name, value in given.items() if name not in leaves}

    def g(*values: Tensor) -> Tensor:
        options = dict(zip(leaves, values[len(tensors) :], strict=True))
        return f(*values[: len(tensors)], **options, **numbers)

    return results(g, *tensors, *leaves.values())


def double(*arguments):
    """Return the arguments in float64."""
    return [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]


def largest(x: Tensor, at_least: float) -> float:
    """Return the largest absolute value of the finite numbers in x, or ``at_least``."""
    sizes = x.nan_to_num(0, 0, 0).abs().flatten()
    return float(torch.cat([sizes, sizes.new_tensor([at_least])]).max())


def assert_close(
    found: Tensor, truth: Tensor, rtol: float, atol: float, equal_nan: bool = False
) -> None:
    """Do what ``torch.testing.assert_close`` does, in a quarter of its time for small tensors."""
    alike = found.shape == truth.shape and found.dtype == truth.dtype
    if not alike or not torch.allclose(found, truth, rtol, atol, equal_nan):
        torch.testing.assert_close(found, truth, rtol=rtol, atol=atol, equal_nan=equal_nan)


def peak_memory(f: Callable[[], object]) -> int:
    """Return the peak bytes of tensors during f, beyond those held before."""
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        f()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def products(f: Callable[[], object], classes: int) -> int:
    """Return the number of matrix products during f of which a factor has this many classes."""
    with torch.profiler.profile(record_shapes=True, acc_events=True) as profile:
        f()
    names = ("aten::mm", "aten::addmm", "aten::addmm_")
    shapes = [e.input_shapes for e in profile.events() if e.name in names]
    return sum(any(classes in shape for shape in of_one) for of_one in shapes)


def in_processes(work: Callable[..., None], size: int, *args: object) -> None:
    """Run work(rank, *args) in ``size`` new processes with one thread each.

    They are forks of a server that has imported torch and what it imports at a first DTensor, which
    takes seconds.
    """
    mp.set_forkserver_preload(["torch._dynamo", "torch.distributed.tensor"])
    mp.start_processes(_in_process, (work, args), nprocs=size, start_method="forkserver")


def in_group(work: Callable[..., None], size: int, folder: Path | str, *args: object) -> None:
    """Run work(rank, folder, *args) in ``size`` new processes, a gloo group."""
    in_processes(_in_group, size, work, size, str(folder), *args)


def _in_process(rank: int, work: Callable[..., None], args: Sequence[object]) -> None:
    torch.set_num_threads(1)
    work(rank, *args)
    # DTensor's cache of meshes keeps a group and its threads alive after its destruction. A thread
    # that frees a tensor while Python shuts down sometimes aborts the process
    # (https://github.com/pytorch/pytorch/issues/190489): skip the shutdown.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _in_group(rank: int, work: Callable[..., None], size: int, folder: str, *args: object) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet{size}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    work(rank, folder, *args)
    dist.destroy_process_group()


FORKS = """
import importlib, json, os, sys, tempfile

importlib.import_module(sys.argv[1])
finished = []
for program, environment in json.loads(sys.argv[2]):
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if (child := os.fork()) == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.environ |= environment
            exec(program, {"__name__": "__main__"})
            sys.stdout.flush()
            os._exit(0)  # a shutdown of Python takes a second, as after an exception
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        finished.append([code, out.read(), err.read()])
print(json.dumps(finished))
"""


def in_forks(
    programs: dict[str, tuple[str, dict[str, str]]], after: str = "torch"
) -> dict[str, Finished]:
    """Run Python programs, each with its environment, one after the other.

    They are forks of a process that has imported the module ``after``, which takes seconds.
    """
    done = subprocess.run(
        [sys.executable, "-c", FORKS, after, json.dumps([*programs.values()])],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    [found] = done.stdout.splitlines()
    return dict(zip(programs, (Finished(*each) for each in json.loads(found)), strict=True))


TORCHS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "weight": {"weight": True},
    "weight, none": {"weight": True, "reduction": "none"},
    "smoothing": {"label_smoothing": 0.1},
    "all smoothing": {"label_smoothing": 1.0},
    "weight, smoothing": {"weight": True, "label_smoothing": 0.3},
    "weight, smoothing, sum": {"weight": True, "label_smoothing": 0.3, "reduction": "sum"},
    "weight, smoothing, none": {"weight": True, "label_smoothing": 0.3, "reduction": "none"},
}
"""Options that torch has too; ``options`` replaces True by a tensor."""

OURS = {
    "sample weight": {"sample_weight": True},
    "sample weight, none": {"sample_weight": True, "reduction": "none"},
    "z-loss": {"z_loss": 0.1},
    "z-loss, sum": {"z_loss": 0.1, "reduction": "sum"},
    "all": {"weight": True, "label_smoothing": 0.3, "sample_weight": True, "z_loss": 0.1},
    "all, none": {
        "weight": True,
        "label_smoothing": 0.3,
        "sample_weight": True,
        "z_loss": 0.1,
        "reduction": "none",
    },
    "mask": {"sample_weight": "mask"},
    "mask, none": {"sample_weight": "mask", "reduction": "none"},
    "softcap": {"softcap": 1.5},
    "softcap, none": {"softcap": 1.5, "reduction": "none"},
    "scale": {"logit_scale": 0.7},
    "softcap, scale": {"softcap": 1.5, "logit_scale": True},
    "scale that is trained, none": {"logit_scale": True, "reduction": "none"},
    "normalizer": {"normalizer": 7},
    "normalizer that is trained": {"normalizer": True},
    "all of these": {
        "weight": True,
        "label_smoothing": 0.3,
        "sample_weight": True,
        "z_loss": 0.1,
        "softcap": 1.5,
        "logit_scale": 0.7,
        "normalizer": 7.0,
    },
}
"""Options that torch has not."""

COMMON = [
    name
    for name in TORCHS | OURS
    if name in TORCHS or name.startswith(("sample weight", "z-loss", "all", "mask", "softcap, sc"))
]
common_option = pytest.mark.parametrize("chosen", [(TORCHS | OURS)[n] for n in COMMON], ids=COMMON)
"""The options of torch, and of ours those that combine others."""

every_option = pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(chosen, id=name, marks=[] if name in COMMON else pytest.mark.slow)
        for name, chosen in (TORCHS | OURS).items()
    ],
)


def options(chosen: dict, classes: int, rows: tuple[int, ...], dtype: torch.dtype) -> dict:
    """Return the options with random tensors in place of True, and of "mask" one of bool."""
    tensors = {"weight": (classes,), "sample_weight": rows}
    given = {
        name: torch.rand(tensors.get(name, ()), dtype=dtype) + 0.5 if value is True else value
        for name, value in chosen.items()
    }
    if chosen.get("sample_weight") == "mask":
        given["sample_weight"] = torch.arange(math.prod(rows)).reshape(rows) % 3 != 1
    return given
