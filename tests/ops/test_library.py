"""The library of native kernels: its choice, its refusal with a reason, and torch's one pool."""

import _ctypes
import ctypes
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from support import Finished, in_forks

import softmax_torch
from softmax_torch.ops import backends, cpu, native
from softmax_torch.ops.native import calls, library


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is loaded or chosen yet, and the environment asks for nothing."""
    monkeypatch.delenv("SOFTMAX_TORCH_ISA", raising=False)
    monkeypatch.setattr(backends, "_choice", "auto")
    library._load.cache_clear()
    backends._cpu.cache_clear()
    yield
    monkeypatch.undo()
    library._load.cache_clear()
    backends._cpu.cache_clear()
    library.load()  # the library takes its best instruction set and torch's pool again


@pytest.fixture
def built(fresh):
    """The library itself; the test is skipped without one."""
    found = library.load()
    if found is None:
        pytest.skip(library.reason())
    return found


@pytest.fixture
def missing(fresh, monkeypatch, tmp_path):
    """A checkout without the library."""
    monkeypatch.setattr(library, "PATH", tmp_path / "libsoftmax_torch.so")


def shown(capsys) -> list[str]:
    softmax_torch.show_config()
    return capsys.readouterr().out.splitlines()


# Programs of their own processes. What does not fit could kill one that loads it.

CHOICE = "from softmax_torch.ops import backends as b; print(b.cpu_choice())"
IMPORT = "import sys, softmax_torch; print('softmax_torch.ops.native.library' in sys.modules)"
SHOW = "from softmax_torch import cli; cli.main(['info'])"
POOL = """if True:
    import pathlib, re, torch
    import torch.nn.functional as F
    from softmax_torch import cross_entropy
    from softmax_torch.ops import backends

    torch.set_num_threads(2)
    z, y = torch.randn(4096, 1000, requires_grad=True), torch.arange(4096) % 1000
    F.cross_entropy(z, y).backward()
    threads = len(list(pathlib.Path("/proc/self/task").iterdir()))
    with backends.cpu_kernels("native"):
        cross_entropy(z, y).backward()
    assert len(list(pathlib.Path("/proc/self/task").iterdir())) == threads
    maps = pathlib.Path("/proc/self/maps").read_text()
    assert "libsoftmax_torch.so" in maps
    print(*set(re.findall(r"\\S*/lib(?:gomp|omp|iomp)\\S*", maps)), sep="\\n")
"""
LIBRARIES = """if True:
    import pathlib, sys, torch, softmax_torch
    from softmax_torch.ops import backends
    from softmax_torch.ops.native import library

    for path in sorted(pathlib.Path({folder!r}).iterdir()):
        library._load.cache_clear()
        backends._cpu.cache_clear()
        library.PATH = path
        z = torch.zeros(3, 2, requires_grad=True)
        softmax_torch.cross_entropy(z, torch.tensor([0, 1, 0])).backward()
        softmax_torch.show_config()
"""

REFUSED = {
    "another": (lambda path: shutil.copy(_ctypes.__file__, path), "is another library: .*"),
    "cut": (
        lambda path: path.write_bytes(library.PATH.read_bytes()[:10000]),
        r"is cut off: build it again \(CONTRIBUTING.md\)",
    ),
    "empty": (lambda path: path.write_bytes(b""), "cannot be loaded: .*file too short"),
    "folder": (lambda path: path.mkdir(), "cannot be loaded: .*"),
    "text": (lambda path: path.write_text("int main\n" * 99), "cannot be loaded: .*"),
}
CHOICES = ["torch", "native", "auto", ""]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, Finished]:
    """What became of every program, each in its own process."""
    programs = {f"choice {name}": (CHOICE, {"SOFTMAX_TORCH_KERNELS": name}) for name in CHOICES}
    programs["choice fast"] = (
        "from softmax_torch import cross_entropy",
        {"SOFTMAX_TORCH_KERNELS": "fast"},
    )
    programs |= {name: (globals()[name], {}) for name in ("IMPORT", "SHOW", "POOL")}
    if library.PATH.exists():
        folder = tmp_path_factory.mktemp("refused")
        for name, (make, _) in REFUSED.items():
            make(folder / f"{name}.so")
        programs["LIBRARIES"] = (LIBRARIES.format(folder=str(folder)), {})
    usual = {"SOFTMAX_TORCH_KERNELS": "auto", "SOFTMAX_TORCH_ISA": ""}
    return in_forks({name: (code, usual | more) for name, (code, more) in programs.items()})


def printed(finished: Finished) -> str:
    assert finished.code == 0, finished.stderr
    return finished.stdout


# The choice.


def test_native_kernels_where_they_are(built):
    assert backends.kernels(torch.empty(0)) is native
    assert library.reason() == ""
    with backends.cpu_kernels("torch"):
        assert backends.kernels(torch.empty(0)) is cpu
        with backends.cpu_kernels("native"):
            assert backends.kernels(torch.empty(0)) is native
        assert backends.kernels(torch.empty(0)) is cpu
    assert backends.kernels(torch.empty(0)) is native


def test_torch_kernels_where_they_are_not(missing):
    assert library.load() is None
    assert backends.kernels(torch.empty(0)) is cpu
    assert "no libsoftmax_torch.so, which a C++ compiler makes" in library.reason()


def test_native_kernels_by_force_are_an_error_without_a_library(missing, monkeypatch):
    message = "SOFTMAX_TORCH_KERNELS=native: no native kernels: no libsoftmax_torch.so"
    with pytest.raises(RuntimeError, match=message), backends.cpu_kernels("native"):
        pass
    assert backends.cpu_choice() == "auto"
    monkeypatch.setattr(backends, "_choice", "native")
    with pytest.raises(RuntimeError, match=message):
        backends.kernels(torch.empty(0))


def test_a_block_restores_the_choice_after_an_error(fresh):
    with pytest.raises(ZeroDivisionError), backends.cpu_kernels("torch"):
        raise ZeroDivisionError
    assert backends.cpu_choice() == "auto"


@pytest.mark.parametrize("choice", CHOICES)
def test_the_environment_chooses(choice, built, finished):
    assert printed(finished[f"choice {choice}"]) == f"{choice or 'auto'}\n"


def test_another_choice_is_rejected(fresh, finished):
    with pytest.raises(ValueError, match="cpu_kernels: expected auto, native or torch, got 'fast'"):
        backends.cpu_kernels("fast").__enter__()
    assert finished["choice fast"].code == 1
    assert "SOFTMAX_TORCH_KERNELS: expected auto, native or" in finished["choice fast"].stderr


def test_an_import_loads_nothing(finished):
    assert printed(finished["IMPORT"]) == "False\n"


def test_torch_kernels_by_force_do_not_look_for_the_library(fresh, monkeypatch):
    monkeypatch.setattr(library, "load", lambda: pytest.fail("loaded"))
    with backends.cpu_kernels("torch"):
        assert backends.kernels(torch.empty(0)) is cpu


# The library.


def test_the_library_needs_the_c_library_alone(built):
    """No second OpenMP, C++ or compiler's library: their names would stand in its tables."""
    content = library.PATH.read_bytes()
    for name in (b"GOMP_", b"omp_get", b"__kmpc", b"libgomp", b"libomp", b"libiomp"):
        assert name not in content
    for name in (b"libstdc++", b"libc++", b"libgcc_s", b"libpython", b"libtorch", b"libc10"):
        assert name not in content


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_native_kernels_run_in_the_pool_of_torch(built, finished):
    """A native call loads no other OpenMP library and starts no threads beside torch's."""
    loaded = printed(finished["POOL"]).split()
    assert len(loaded) == 1, loaded
    assert Path(loaded[0]).name == library.pool(built)


def test_without_the_pool_of_torch_the_calling_thread_works(built, monkeypatch, capsys):
    monkeypatch.setattr(library, "_gomp_parallel", lambda: None)
    library._load.cache_clear()
    found = library.load()
    assert found is not None
    assert found.parallel is None
    assert library.pool(found) == "none"
    assert any("the calling one alone" in line for line in shown(capsys))


def test_a_torch_without_the_symbol_has_no_pool(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert library._gomp_parallel() is None
    path = tmp_path / "lib" / "libtorch_cpu.so"
    path.parent.mkdir()
    shutil.copy(_ctypes.__file__, path)
    assert library._gomp_parallel() is None
    with pytest.raises(OSError, match="dlopen"):  # it was not loaded
        ctypes.CDLL(str(path), mode=os.RTLD_LAZY | os.RTLD_NOLOAD)
    ctypes.CDLL(str(path))
    assert library._gomp_parallel() is None


@pytest.mark.parametrize("name", ["avx512", "avx2", "baseline", "sse9"])
def test_an_instruction_set_by_force(name, built, monkeypatch):
    monkeypatch.setenv("SOFTMAX_TORCH_ISA", name)
    library._load.cache_clear()
    if name in built.isas:
        found = library.load()
        assert found is not None
        assert found.isa == name
    else:
        message = f"SOFTMAX_TORCH_ISA: expected one of {', '.join(built.isas)}, got {name}"
        with pytest.raises(RuntimeError, match=message):
            library.load()


def test_the_best_instruction_set_is_taken(built):
    assert built.isa == built.isas[0]
    assert list(built.isas) == [s for s in ("avx512", "avx2", "baseline") if s in built.isas]
    assert "baseline" in built.isas
    assert built.functions.softmax_torch_select(b"sse9") != 0


def test_an_instruction_set_by_force_needs_a_library(missing, monkeypatch):
    monkeypatch.setenv("SOFTMAX_TORCH_ISA", "baseline")
    with pytest.raises(RuntimeError, match="SOFTMAX_TORCH_ISA=baseline: no native kernels: no lib"):
        library.load()


def test_structures_have_the_sizes_of_the_library(built):
    """Every field has 8 bytes: equal sizes are equal offsets."""
    kinds = "Weight Array Rows Samples Pass Statistics"
    structures = [getattr(calls, kind) for kind in kinds.split()]
    sizes = (ctypes.c_int64 * len(structures))()
    built.functions.softmax_torch_sizes(sizes)
    assert list(sizes) == [ctypes.sizeof(s) for s in structures]


# Libraries that are refused.


def test_files_that_are_no_library_of_ours(built, finished):
    lines = printed(finished["LIBRARIES"]).splitlines()
    assert lines.count("cpu: softmax_torch.ops.cpu") == len(REFUSED)
    found = [line for line in lines if line.startswith("native kernels: ")]
    for line, (name, (_, said)) in zip(found, REFUSED.items(), strict=True):
        assert re.fullmatch(f"native kernels: {name}.so {said}", line), line


def test_a_library_of_another_interface(built, monkeypatch):
    monkeypatch.setattr(library, "INTERFACE", 999)
    library._load.cache_clear()
    assert library.load() is None
    assert library.reason() == (
        f"libsoftmax_torch.so has interface {built.functions.softmax_torch_interface()},"
        " expected 999: build it again (CONTRIBUTING.md)"
    )


def test_a_library_of_other_sources(built, monkeypatch, tmp_path):
    sources = shutil.copytree(library.SOURCES, tmp_path / "src")
    monkeypatch.setattr(library, "SOURCES", sources)
    library._load.cache_clear()
    assert library.load() is not None
    with (sources / "kernels.cpp").open("a") as file:
        file.write("// an edit\n")
    library._load.cache_clear()
    assert library.load() is None
    assert library.reason() == (
        "libsoftmax_torch.so was built from other sources: build it again (CONTRIBUTING.md)"
    )
    shutil.rmtree(sources)  # as in an installed package
    library._load.cache_clear()
    assert library.load() is not None


# What show_config says.


def test_show_config_with_native_kernels(built, capsys):
    lines = shown(capsys)
    assert "cpu: softmax_torch.ops.native" in lines
    assert f"native kernels: {built.isa} (available: {', '.join(built.isas)})" in lines
    assert any(line.startswith("native threads: torch's, of lib") for line in lines)
    assert any(line.startswith("transparent huge pages: ") for line in lines)


def test_show_config_says_why_there_are_no_native_kernels(missing, monkeypatch, capsys):
    assert f"native kernels: {library.reason()}" in shown(capsys)
    monkeypatch.setattr(backends, "_choice", "native")
    expected = f"cpu: none: SOFTMAX_TORCH_KERNELS=native: no native kernels: {library.reason()}"
    assert expected in shown(capsys)
    monkeypatch.setattr(backends, "_choice", "torch")
    lines = shown(capsys)
    assert "cpu: softmax_torch.ops.cpu" in lines
    assert "native kernels: switched off by SOFTMAX_TORCH_KERNELS or cpu_kernels" in lines


def test_the_package_as_a_program_shows_it(fresh, capsys, finished):
    lines = printed(finished["SHOW"]).splitlines()
    # The other process may have another number of threads, and says so in the second line.
    here = shown(capsys)
    assert (lines[0], lines[2:]) == (here[0], here[2:])
