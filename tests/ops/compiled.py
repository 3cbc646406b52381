"""Compile every kernel for sm_80 and sm_90 and print registers, spills and the width of loads."""

import itertools
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from softmax_torch.ops import triton_kernels

ACC = {"fp64": triton_kernels.DOUBLE}

# tiles as gpu._tiling chooses them: (ONE, UNIT, TILE, ROWS), warps, and positions or 1
CUTS = {
    "narrow": ((True, False, 16, 128), 4, 1),
    "wide, 1024": ((True, True, 1024, 2), 4, 1),
    "wide, 16384": ((True, True, 16384, 1), 32, 1),
    "wide, many tiles": ((False, True, 8192, 1), 32, 1),
    "positions": ((True, False, 16, 128), 4, "any"),
    "positions, many tiles": ((False, False, 8, 128), 4, "any"),
}


def compiled(kernel, pointers: dict, numbers: dict, constants: dict, sm: int, warps: int):
    """Compile a kernel with pointers {name: type}, numbers {name: 1, 16 (a multiple) or any}."""
    signature, values, hints = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in pointers:
            signature[name] = "*" + pointers[name]
            hints[(i,)] = [["tt.divisibility", 16]]
        elif numbers.get(name) in (16, "any"):
            signature[name] = "i64"
            if numbers[name] == 16:
                hints[(i,)] = [["tt.divisibility", 16]]
        else:  # also strides of 1, and None
            signature[name], values[(i,)] = "constexpr", constants.get(name, numbers.get(name))
    source = ASTSource(kernel, signature, values, hints)
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options={"num_warps": warps})


def row_kernels(cut: str, z: str, terms: str):
    """Yield the arguments of ``compiled`` for every kernel of rows."""
    acc = "fp64" if z == "fp64" else "fp32"
    (one, unit, tile, rows), warps, M = CUTS[cut]
    if acc == "fp64":
        tile = min(tile, 8192 if one else 2048)
    constants = {
        "ACC": ACC.get(acc, triton_kernels.SINGLE),
        "UNIT": unit,
        "D_UNIT": M == 1,
        "ONE": one,
        "TILE": tile,
        "ROWS": rows,
    }
    numbers = dict.fromkeys(("z_n", "d_n", "C"), 16 if unit else "any")
    numbers |= {"R": "any", "M": M, "z_c": "any", "d_c": "any", "z_m": 1, "d_m": 1}
    numbers |= {"u_n": 16, "u_c": 1, "u_m": 1, "a_r": 1, "b_r": 1, "w_r": 1}
    smooth = {"u": acc} if terms == "all" else {}
    index = {"z": z, "y": "i64"} | smooth
    every = {"lse": acc, "smooth": acc} if smooth else {}
    weights = {"b": acc, "w": acc} if smooth else {}
    yield triton_kernels.row_numbers, index | {"nll": acc} | every, numbers, constants, warps
    gradient = index | {"a": acc, "dz": z} | weights
    yield triton_kernels.row_gradients, gradient, numbers, constants, warps
    yield triton_kernels.row_gradients, gradient | {"totals": acc}, numbers, constants, warps
    results = {"lse": acc, "entropy": acc, "argmax": "i64", "rank": "i64"}
    statistics = {"z": z, "y": "i64"} | results
    places = 2 if acc == "fp64" else 8  # as in gpu.row_statistics
    constants = constants | {"TILE": min(tile, places * 32 * warps // rows)}
    yield triton_kernels.row_statistics, statistics, numbers, constants, warps


def report(what: str, result, sm: int) -> None:
    """Print the registers and local memory of a compiled kernel, and the width of its loads."""
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
    ptx = result.asm["ptx"]
    wide = "v4.b32" in ptx or "v2.b64" in ptx
    print(
        f"sm_{sm} {what}: {registers[1]} registers, "
        f"{'no local memory' if spilled == 0 else f'{spilled} bytes of local memory'}, "
        f"{'16 bytes' if wide else 'less than 16 bytes'} a load",
        flush=True,
    )


def main() -> None:
    for sm in (80, 90):
        for cut, terms in itertools.product(CUTS, ("nll", "all")):
            z = "bf16" if "wide" in cut else "fp32"
            for kernel, pointers, numbers, constants, warps in row_kernels(cut, z, terms):
                name = f"{kernel.__name__}{' and total' if 'totals' in pointers else ''}"
                result = compiled(kernel, pointers, numbers, constants, sm, warps)
                report(f"{name} {cut} {z} {terms}", result, sm)
        for cut, z in (("narrow", "fp16"), ("wide, many tiles", "fp64")):
            for kernel, pointers, numbers, constants, warps in row_kernels(cut, z, "all"):
                result = compiled(kernel, pointers, numbers, constants, sm, warps)
                report(f"{kernel.__name__} {cut} {z} all", result, sm)
        for x in ("bf16", "fp32"):
            constants = {"ACC": triton_kernels.SINGLE, "TILE": 4096}
            pointers = {"x": x, "factor": "fp32"}
            result = compiled(triton_kernels.scale, pointers, {"size": "any"}, constants, sm, 8)
            report(f"scale {x}", result, sm)


if __name__ == "__main__":
    main()
