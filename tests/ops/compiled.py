"""Compile the kernels as they are launched, and print registers, spills and the width of loads.

    python tests/ops/compiled.py [--sm 80 90] [--only NAME]

The tiles are those that ``ops.gpu`` chooses for each width, and the compiler gets the hints that
Triton derives from a launch: numbers that are 1, and those that are multiples of 16.
"""

import argparse
import itertools
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from softmax_torch.ops import gpu, triton_index_loss, triton_kernels

DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}

PLAIN = [
    *(("fp32", C) for C in (10, 12, 32, 33, 1000, 16384, 32000)),
    *(("bf16", C) for C in (10, 1000, 32000, 128256)),
]
"""Logits (N, C) of a whole loss of class indices."""

GENERAL = {
    ("fp32", (64, 10)): (False, True),
    ("fp32", (64, 1000)): (True,),
    ("fp32", (64, 10, 49)): (True,),
    ("fp32", (64, 100, 49)): (True,),
    ("bf16", (64, 16384)): (True,),
    ("bf16", (64, 128256)): (False, True),
    ("fp16", (64, 10)): (True,),
    ("fp64", (64, 10)): (True,),
    ("fp64", (64, 128256)): (True,),
}
"""Logits of the other kernels, with every number of a row, or the NLL alone (False)."""


def compiled(kernel, arguments: dict, sm: int, warps: int):
    """Compile a kernel for these arguments: numbers, None, constants, and types of pointers."""
    signature, values, hints = {}, {}, {}
    constants = {p.name for p in kernel.params if p.is_constexpr}
    free = {p.name for p in kernel.params if p.do_not_specialize}
    for i, name in enumerate(kernel.arg_names):
        value = arguments[name]
        if name in constants or value is None or (value == 1 and name not in free):
            signature[name], values[(i,)] = "constexpr", value
        elif isinstance(value, str):
            signature[name] = "*" + value
            hints[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if value % 16 == 0 and name not in free:
                hints[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, hints)
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options={"num_warps": warps})


def index_kernels(dtype: str, C: int, every: bool):
    """Yield (kernel, arguments, warps) of a whole loss; with ``every`` option or none."""
    z = torch.empty(4096, C, dtype=DTYPES[dtype], device="meta")
    t = gpu._tiling(z)
    parts = triton_index_loss.PARTS.value
    counted = {"y": "i64", "w": "fp32" if every else None, "parts": "fp32", "N": 4096, "C": C}
    counted |= {"ignore": -100, "PARTS": parts}
    if dtype == "fp32" and C == 10:
        yield triton_index_loss.count_rows, counted | {"ROWS": gpu.COUNTED_ROWS}, 4
        totals = {"totals": "fp32", "parts": "fp32", "loss": dtype, "totals_size": 1000}
        totals |= {"programs": 4, "MEAN": True, "PARTS": parts, "TILE": gpu.COUNTED_ROWS}
        yield triton_index_loss.add_totals, totals, 4
    arguments = counted | {"z": dtype, "dz": dtype, "out": "fp32", "z_n": C, "d_n": C}
    arguments |= {"programs": 4, "eps": 0.1, "zeta": 0.1, "MEAN": True, "SMOOTH": every}
    arguments |= {"SQUARED": every, "VECTOR": gpu._vector(z, z, t), "ONE": t.one}
    arguments |= {"TILE": t.tile, "ROWS": t.rows}
    narrow = C <= gpu.NARROW
    kernel = triton_index_loss.narrow_index_loss if narrow else triton_index_loss.index_loss
    yield kernel, arguments, t.warps
    rows, classes = gpu.ONE_PROGRAM
    if C <= classes:
        t = gpu._index_tiling(z, rows, C)
        yield kernel, arguments | {"N": rows, "parts": None, "ROWS": t.rows}, t.warps


def row_kernels(dtype: str, shape: tuple[int, ...], every: bool):
    """Yield (kernel, arguments, warps) of the kernels of rows; with ``every`` number or the NLL."""
    z = torch.empty(shape, dtype=DTYPES[dtype], device="meta")
    t, acc = gpu._tiling(z), "fp64" if dtype == "fp64" else "fp32"
    N, C, M = gpu._sizes(z)
    arguments = dict(zip(("z_n", "z_c", "z_m"), gpu._strides(z), strict=True))
    arguments |= dict(zip(("d_n", "d_c", "d_m"), gpu._strides(z), strict=True))
    arguments |= {"z": dtype, "y": "i64", "u": acc if every else None, "R": N * M, "C": C, "M": M}
    arguments |= {"u_n": 0, "u_c": 1, "u_m": 0, "a_r": 1, "b_r": 1, "w_r": 1}
    arguments |= {"ACC": gpu._acc(z), "UNIT": t.unit, "D_UNIT": t.unit, "ONE": t.one}
    arguments |= {"TILE": t.tile, "ROWS": t.rows, "VECTOR": gpu._vector(z, z, t)}
    more = acc if every else None
    numbers = arguments | {"nll": acc, "smooth": more, "lse": more}
    yield triton_kernels.row_numbers, numbers, t.warps
    gradients = arguments | {"a": acc, "b": more, "w": more, "dz": dtype}
    yield triton_kernels.row_gradients, gradients | {"totals": None}, t.warps
    yield triton_kernels.row_gradients, gradients | {"totals": acc}, t.warps
    results = {"lse": acc, "entropy": acc, "argmax": "i64", "rank": "i64"}
    tile = {"TILE": gpu._statistics_tile(z, t)}
    yield triton_kernels.row_statistics, arguments | results | tile, t.warps


SHARED = {80: 164 << 10, 90: 228 << 10}
"""Bytes of shared memory of a multiprocessor."""


def resident(sm: int, registers: int, shared: int, warps: int) -> int:
    """Return how many programs a multiprocessor can hold at a time.

    It has 64 warps, 32 programs and 65536 registers, which a warp gets in units of 256. A program
    takes 1 KiB of shared memory besides its own.
    """
    of_a_warp = -(-registers * 32 // 256) * 256
    return min(64 // warps, 32, 65536 // of_a_warp // warps, SHARED[sm] // (shared + 1024))


def report(what: str, result, sm: int) -> None:
    """Print registers and local memory of a compiled kernel, the width of its loads, and how many
    programs fit on a multiprocessor."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(result.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run(
            [tool, "-res-usage", path], capture_output=True, text=True, check=True
        ).stdout
    registers = re.search(r"REG:(\d+)", usage)
    stack, local = re.search(r"STACK:(\d+)", usage), re.search(r"LOCAL:(\d+)", usage)
    spilled = int(stack[1]) + int(local[1])
    print(
        f"sm_{sm} {what}: {registers[1]} registers, "
        f"{'no local memory' if spilled == 0 else f'{spilled} bytes of local memory'}, "
        f"{widest_load(result.asm['ptx'])} bytes a load, "
        f"{result.metadata.num_warps} warps, {result.metadata.shared} bytes shared, "
        f"{resident(sm, int(registers[1]), result.metadata.shared, result.metadata.num_warps)} "
        "programs a multiprocessor",
        flush=True,
    )


def widest_load(ptx: str) -> int:
    """Return the bytes of the widest load from global memory, of one thread by one instruction."""
    sizes = [1]
    for vector, bits in re.findall(r"ld\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)", ptx):
        sizes.append(int(vector or 1) * int(bits) // 8)
    sizes += [int(size, 16) for size in re.findall(r"cp\.async\.c.*\], (0x\w+)", ptx)]
    return max(sizes)


def cases():
    """Yield (name, kernel, arguments, warps) of everything that is launched."""
    for (dtype, C), every in itertools.product(PLAIN, (False, True)):
        for kernel, arguments, warps in index_kernels(dtype, C, every):
            yield f"{dtype} {C} {'all' if every else 'nll'}", kernel, arguments, warps
    for (dtype, shape), numbers in GENERAL.items():
        size = " x ".join(map(str, shape[1:]))
        for every in numbers:
            for kernel, arguments, warps in row_kernels(dtype, shape, every):
                name = f"{dtype} {size} {'all' if every else 'nll'}"
                yield name + " total" * bool(arguments.get("totals")), kernel, arguments, warps
    for x in ("bf16", "fp32"):
        arguments = {"x": x, "factor": "fp32", "size": 4096, "ACC": triton_kernels.SINGLE}
        yield x, triton_kernels.scale, arguments | {"TILE": 4096}, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sm", type=int, nargs="+", default=[80, 90], help="architectures")
    parser.add_argument("--only", default="", help="part of the names of kernels and cases")
    options = parser.parse_args()
    for sm in options.sm:
        for case, kernel, arguments, warps in cases():
            name = f"{kernel.__name__} {case}"
            # The kernels of most training steps for both; the others for the newest alone.
            if options.only in name and (sm == max(options.sm) or "index_loss" in name):
                report(name, compiled(kernel, arguments, sm, warps), sm)


if __name__ == "__main__":
    main()
