"""The host's part of a step on a GPU: launches, waits and time, without a GPU.

    python benchmarks/gpu_host.py [--counts] [--json FILE] [--only CASE]

``no_op_cuda.c`` takes the place of CUDA's runtime and driver: calls succeed, kernels do nothing.
torch and Triton run all of their own code for a GPU with it, and so does ``F.cross_entropy``, which
takes turns with ours. It needs a C compiler, torch built for CUDA, and Triton.

Time is that of the processor, of all threads: the backward pass of a GPU has its own thread, and a
busy machine lengthens the wait for it. A launch costs nothing here, and some microseconds on a
device, of which torch makes more: ratios are those of the worst case. --counts measures no time.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIBRARY = "NO_OP_CUDA_LIBRARY"
"""Environment variable that names the library, in the process that runs with it."""


def compiler() -> str | None:
    """Return a C compiler, None where there is none."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def headers() -> list[Path]:
    """Return the folders with CUDA's headers: those of torch's own CUDA, or Triton's copy."""
    site = Path(sysconfig.get_path("purelib"))
    found = [*site.glob("nvidia/cu*/include"), *site.glob("nvidia/cuda_runtime/include")]
    found.append(site / "triton" / "backends" / "nvidia" / "include")
    return [folder for folder in found if (folder / "driver_types.h").exists()]


def build(folder: Path) -> Path:
    """Compile the library into this folder; RuntimeError if that is not possible."""
    cc, include = compiler(), headers()
    if cc is None or not include:
        raise RuntimeError("expected a C compiler and CUDA's headers, which come with Triton")
    library = folder / "libcuda.so.1"
    command = [cc, "-w", "-O1", "-D_GNU_SOURCE", "-shared", "-fPIC", "-fvisibility=hidden"]
    command += [f"-I{path}" for path in include]
    subprocess.run([*command, "-o", library, HERE / "no_op_cuda.c", "-ldl"], check=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """Return the environment of a process that gets the library for CUDA."""
    folder = str(library.parent)
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | {
        LIBRARY: str(library),
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": folder,
        "TRITON_LIBCUDA_PATH": folder,
        "TRITON_DEFAULT_FP_FUSION": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": paths,
    }


class Counts(ctypes.Structure):
    """What the library counted so far."""

    _fields_ = [
        (name, ctypes.c_long)
        for name in (
            "launches",
            "waits",
            "copies_to_host",
            "copies_to_device",
            "pageable_copies",
            "graph_launches",
            "last_device",
        )
    ]


def counts() -> dict[str, int]:
    """Return the counts so far."""
    found = Counts.in_dll(ctypes.CDLL(os.environ[LIBRARY]), "no_op_counts")
    return {name: getattr(found, name) for name, _ in Counts._fields_}


def counted(f: Callable[[], Any]) -> dict[str, int]:
    """Return what a call adds to the counts, and the device of its last launch."""
    before = counts()
    f()
    after = counts()
    return {k: v if k == "last_device" else v - before[k] for k, v in after.items()}


def cases() -> dict[str, tuple[Callable[[], Any], Callable[[], Any] | None]]:
    """Return the steps of each case: ours, and torch's where it has the same."""
    import torch
    import torch.nn.functional as F

    from softmax_torch import cross_entropy, linear_cross_entropy

    def logits(
        N: int, C: int, dtype: torch.dtype = torch.float32, device: str = "cuda", **options: Any
    ) -> tuple[Callable[[], Any], Callable[[], Any] | None]:
        z = torch.zeros(N, C, dtype=dtype, device=device).requires_grad_()
        y = torch.zeros(N, dtype=torch.int64, device=device)
        if options.pop("weighted", False):
            options["weight"] = torch.ones(C, device=device)
        if options.pop("sampled", False):
            options["sample_weight"] = torch.ones(N, device=device)
        whole = torch.compile if options.pop("compiled", False) else lambda f: f
        if options.pop("soft", False):
            y = torch.zeros(N, C, dtype=dtype, device=device)

        def step(f: Callable[..., Any]) -> Callable[[], None]:
            loss_of = whole(lambda z: f(z, y, **options))

            def run() -> None:
                z.grad = None
                loss = loss_of(z)
                (loss if loss.dim() == 0 else loss.sum()).backward()

            return run

        torch_lacks = "z_loss" in options or "sample_weight" in options
        return step(cross_entropy), None if torch_lacks else step(F.cross_entropy)

    def layer(
        N: int, D: int, C: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Callable[[], Any], Callable[[], Any]]:
        x = torch.zeros(N, D, dtype=dtype, device="cuda")
        W = torch.zeros(C, D, dtype=dtype, device="cuda").requires_grad_()
        b = torch.zeros(C, dtype=dtype, device="cuda").requires_grad_()
        y = torch.zeros(N, dtype=torch.int64, device="cuda")

        def step(f: Callable[[], Any]) -> None:
            W.grad = b.grad = None
            f().backward()

        return (
            lambda: step(lambda: linear_cross_entropy(x, W, y, linear_bias=b)),
            lambda: step(lambda: F.cross_entropy(F.linear(x, W, b), y)),
        )

    def loader() -> Callable[[], Any]:
        from softmax_torch.data.batches import Batches, Steps

        x, y = torch.zeros(1000, 20), torch.zeros(1000, dtype=torch.int64)
        cuda = torch.device("cuda")
        batches = Batches(x, y, 100, shuffle=True, steps=2, device=cuda, ahead=True)

        def epoch() -> None:
            for steps in batches:
                assert isinstance(steps, Steps)
                for batch in steps:
                    assert batch.x.device.type == batch.whole.device.type == "cuda"

        return epoch

    def training() -> Callable[[], Any]:
        from softmax_torch import SoftmaxRegression
        from softmax_torch.training import closed_form

        model = SoftmaxRegression(784, 10).cuda()
        W, b = closed_form.parameters(model)
        x = torch.zeros(128, 784, device="cuda")
        y = torch.zeros(128, dtype=torch.int64, device="cuda")
        return lambda: closed_form.set_gradient(W, b, x, y, 0.0)

    every = {"weighted": True, "label_smoothing": 0.1}
    found = {
        "128 x 10": logits(128, 10),
        "1000 x 10": logits(1000, 10),
        "2000 x 10": logits(2000, 10),
        "1000 x 10, weights, smoothing": logits(1000, 10, **every),
        "1000 x 10, weights, smoothing, z-loss": logits(1000, 10, z_loss=0.1, **every),
        "512 x 1000, bfloat16": logits(512, 1000, torch.bfloat16),
        "1000 x 10, one loss per row": logits(1000, 10, reduction="none"),
        "1000 x 10, sample weights": logits(1000, 10, sampled=True),
        "1000 x 10, class probabilities": logits(1000, 10, soft=True),
        "128 x 10, compiled": logits(128, 10, compiled=True),
        "8192 x 1000, compiled": logits(8192, 1000, compiled=True),
        "1000 x 10 on the other device": logits(1000, 10, device="cuda:1"),
        "linear 128 x 784 x 10": layer(128, 784, 10),
        "linear 16384 x 64 x 128256, bfloat16, in 4 blocks": layer(
            16384, 64, 128256, torch.bfloat16
        ),
    }
    if importlib.util.find_spec("lightning") is not None:
        found["an epoch of 10 batches from memory"] = (loader(), None)
        name = "gradient of a training step, 128 x 784 x 10"
        found[name] = (training(), layer(128, 784, 10)[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", action="store_true", help="count, and measure no time")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--only", default="", help="part of the names of cases")
    options = parser.parse_args()
    if LIBRARY not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            library = build(Path(folder))
            command = [sys.executable, *sys.argv]
            sys.exit(subprocess.run(command, env=environment(library)).returncode)
    figures = {}
    print("| case | launches, ours | torch's | waits | us, ours | / torch |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, (ours, torchs) in cases().items():
        if options.only not in name:
            continue
        for step in filter(None, (ours, torchs)):
            step()  # compiles, and allocates for the first time
            step()
        figure: dict[str, Any] = {"ours": counted(ours)}
        if torchs is not None:
            figure["torch"] = counted(torchs)
        if not options.counts:
            figure["us"], figure["ratio"] = host_time(ours, torchs)
        figures[name] = figure
        print(f"| {name} | {' | '.join(cells(figure))} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.flush()
    os._exit(0)  # threads of torch would look for the device once more


def cells(figure: dict[str, Any]) -> list[str]:
    """Return the columns of a case."""
    ours, torchs = figure["ours"], figure.get("torch")
    us, ratio = figure.get("us"), figure.get("ratio")
    return [
        str(ours["launches"]),
        "" if torchs is None else str(torchs["launches"]),
        str(ours["waits"] + ours["copies_to_host"]),
        "" if us is None else f"{us:.0f}",
        "" if ratio is None else f"{ratio:.2f}",
    ]


def host_time(
    ours: Callable[[], Any], torchs: Callable[[], Any] | None
) -> tuple[float, float | None]:
    """Return the microseconds of a step, and their ratio to torch's: medians over turns."""
    times: dict[Callable[[], Any], list[float]] = {f: [] for f in (ours, torchs) if f is not None}
    for _ in range(120):
        for f, samples in times.items():
            start = time.process_time()
            for _ in range(25):
                f()
            samples.append((time.process_time() - start) / 25)
    if torchs is None:
        return statistics.median(times[ours]) * 1e6, None
    ratios = [a / b for a, b in zip(times[ours], times[torchs], strict=True)]
    return statistics.median(times[ours]) * 1e6, statistics.median(ratios)


if __name__ == "__main__":
    main()
