"""Find, check and load the native CPU kernels: libsoftmax_torch.so, built beside this file.

The library is built where the package is installed with a C++ compiler. It belongs to this file by
an interface number, and in a checkout by the digest of its sources too. ``load`` returns None where
there is no library or another one, and ``reason`` then says why in one line.

The kernels were compiled for several instruction sets. The best one that the processor has is
taken, or the one that SOFTMAX_TORCH_ISA names. They run on the threads of torch: the library has no
OpenMP of its own and is handed the entry of the pool that torch has loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = ["INTERFACE", "Library", "load", "pool", "reason"]

INTERFACE = 2
"""The interface of src/interface.h. Raise both where a signature or a structure changes."""

PATH = Path(__file__).with_name("libsoftmax_torch.so")
SOURCES = PATH.with_name("src")
REBUILD = "build it again (CONTRIBUTING.md)"


class Library(NamedTuple):
    """The loaded library.

    Attributes:
        functions: its functions.
        isa: the instruction set in use: "avx512", "avx2" or "baseline".
        isas: the sets that the library was built for and the processor has, best first.
        parallel: the address of torch's GOMP_parallel; None runs everything on the calling thread.
    """

    functions: ctypes.CDLL
    isa: str
    isas: tuple[str, ...]
    parallel: int | None


def load() -> Library | None:
    """Return the library, loaded on the first call, or None without one that fits.

    Raises:
        RuntimeError: for SOFTMAX_TORCH_ISA, if there is no such instruction set.
    """
    loaded = _load()
    if isinstance(loaded, Library):
        return loaded
    asked = os.environ.get("SOFTMAX_TORCH_ISA")
    if asked:
        raise RuntimeError(f"SOFTMAX_TORCH_ISA={asked}: no native kernels: {loaded}")
    return None


def reason() -> str:
    """Return why ``load`` returns None, in one line; "" where it returns a library."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else ""


def pool(library: Library) -> str:
    """Return the file name of the OpenMP library whose threads the kernels run on, or "none"."""
    if library.parallel is None:
        return "none"
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, _, last = line.split(" ", 1)[0].partition("-")
        if int(first, 16) <= library.parallel < int(last, 16):
            return Path(line.split()[-1]).name
    return "unknown"


@functools.cache
def _load() -> Library | str:
    """Return the library, or why there is none."""
    if not PATH.exists():
        return f"no {PATH.name}, which a C++ compiler makes (pip install -v . shows why it did not)"
    try:
        if _cut(PATH):
            return f"{PATH.name} is cut off: {REBUILD}"
        functions = ctypes.CDLL(str(PATH))
        interface = functions.softmax_torch_interface()
        if interface != INTERFACE:
            return f"{PATH.name} has interface {interface}, expected {INTERFACE}: {REBUILD}"
        if SOURCES.is_dir() and _text(functions.softmax_torch_sources) != _digest():
            return f"{PATH.name} was built from other sources: {REBUILD}"
        isas = tuple(_text(functions.softmax_torch_isas).split(","))
    except OSError as error:  # not readable, not a library, or one of another platform
        return f"{PATH.name} cannot be loaded: {error}".replace("\n", " ")
    except AttributeError as error:
        return f"{PATH.name} is another library: {error}"
    isa = os.environ.get("SOFTMAX_TORCH_ISA") or isas[0]
    if isa not in isas or functions.softmax_torch_select(isa.encode()) != 0:
        expected = ", ".join(isas)
        raise RuntimeError(f"SOFTMAX_TORCH_ISA: expected one of {expected}, got {isa}")
    parallel = _gomp_parallel()
    functions.softmax_torch_set_parallel(ctypes.c_void_p(parallel))
    return Library(functions, isa, isas, parallel)


def _cut(path: Path) -> bool:
    """Return whether an ELF file ends before its section headers, the last thing in it.

    A full disk leaves such a file, and loading it would kill the process (SIGBUS).
    """
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or not head.startswith(b"\x7fELF\x02\x01"):  # 64 bits, little-endian
        return False
    (start,) = struct.unpack_from("<Q", head, 40)
    size, count = struct.unpack_from("<HH", head, 58)
    return path.stat().st_size < int(start + size * count)


def _text(function: Any) -> str:
    """Return the text that a function of the library returns."""
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode()


def _digest() -> str:
    """Return the digest of the sources in a checkout, as CMakeLists.txt computes it."""
    files = [PATH.with_name("CMakeLists.txt"), *sorted(SOURCES.iterdir())]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _gomp_parallel() -> int | None:
    """Return the address of GOMP_parallel in the OpenMP library that torch has loaded, or None.

    The symbol is looked up among the dependencies of libtorch_cpu, so that no second library is
    loaded: a second pool would fight with torch's for the cores.
    """
    path = Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"
    try:
        torch_cpu = ctypes.CDLL(str(path), mode=os.RTLD_LAZY | os.RTLD_NOLOAD)
        return ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):  # torch of another make, or built without OpenMP
        return None
