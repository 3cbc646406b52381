"""Wheels and source distributions, with and without a compiler, installed and used. No network.

The new environments see the packages of this one (torch, numpy), but not the package itself.
"""

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import softmax_torch

ROOT = Path(softmax_torch.__file__).parents[1]
SCRIPTS = Path(sys.executable).parent  # CMake and Ninja of the extra dev
LIBRARY = "softmax_torch/ops/native/libsoftmax_torch.so"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "hatch_build.py").exists(), reason="needs a checkout"),
    pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="needs hatchling"),
]
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


class Built(NamedTuple):
    """A wheel or source distribution, and what pip printed."""

    path: Path
    output: str


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The files that hatchling knows of, without those that git ignores."""
    names = ["softmax_torch", "tests", "configs", "docs", "benchmarks", "examples"]
    folder = tmp_path_factory.mktemp("checkout")
    for name in names:
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, folder)
    return folder


def environment(*path: str | Path, **variables: str) -> dict[str, str]:
    """An environment whose PATH has these folders alone."""
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LANG") if name in os.environ}
    return kept | {"PATH": os.pathsep.join(map(str, path))} | variables


# Without optimisation the kernels compile in a third of the time.
WITH = environment(SCRIPTS, "/usr/local/bin", "/usr/bin", "/bin", CMAKE_BUILD_TYPE="Debug")


def pip(*arguments: str | Path, env: dict[str, str] = WITH) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def wheel(source: Path, folder: Path, env: dict[str, str] = WITH) -> Built:
    options = ["--no-build-isolation", "--no-deps", "--no-index"]
    output = pip("wheel", "-v", *options, "-w", folder, source, env=env)
    (path,) = folder.glob("*.whl")
    return Built(path, output)


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory) -> Path:
    """A source distribution of a checkout in which the library was built."""
    (checkout / LIBRARY).write_bytes(b"of an earlier build")
    folder = tmp_path_factory.mktemp("sdist")
    program = f"from hatchling.build import build_sdist; build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=checkout, env=WITH, check=True)
    (path,) = folder.glob("*.tar.gz")
    return path


def installed(wheel: Path, folder: Path) -> Path:
    """Install a wheel into a new environment; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # A plain path: the .pth files in it, one of which may name a checkout, are not read.
    Path(purelib, "torch_of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    return python


PROGRAM = """
import torch
import softmax_torch

z = torch.randn(64, 10, dtype=torch.float64, requires_grad=True)
y = torch.arange(64) % 10
softmax_torch.cross_entropy(z, y, label_smoothing=0.1).backward()
expected, = torch.autograd.grad(
    torch.nn.functional.cross_entropy(z, y, label_smoothing=0.1), z
)
torch.testing.assert_close(z.grad, expected)
print(softmax_torch.__file__)
softmax_torch.show_config()
"""


def used(python: Path, folder: Path) -> list[str]:
    """Use the package away from any checkout; return the lines of show_config."""
    done = subprocess.run(
        [python, "-c", PROGRAM],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment("/usr/bin", "/bin"),
    )
    assert done.returncode == 0, done.stderr
    file, *lines = done.stdout.splitlines()
    assert Path(file).is_relative_to(python.parents[1])
    return lines


def files(built: Built) -> set[str]:
    return set(zipfile.ZipFile(built.path).namelist())


def command(python: Path, folder: Path, *words: str) -> str:
    """Run a command of the installed package away from any checkout; return what it printed."""
    done = subprocess.run(
        [python.with_name(words[0]), *words[1:]],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment("/usr/bin", "/bin", COLUMNS="80"),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def use_program(python: Path, folder: Path) -> None:
    """Train on a table by a shipped configuration, by the script and by the module."""
    folder.mkdir()
    rows = "".join(f"{k},{'ab'[k % 2]},{'xy'[k % 2]}\n" for k in range(40))
    (folder / "my.csv").write_text(f"size,color,kind\n{rows}")
    flags = ["--data.file", "my.csv", "--data.target", "kind", "--trainer.accelerator", "cpu"]
    printed = command(python, folder, "softmax-torch", "fit", "--config", "table", *flags)
    assert "softmax-torch test runs/table" in printed.splitlines()[-1]
    module = ["python", "-m", "softmax_torch"]
    assert "test        accuracy 1.0000" in command(python, folder, *module, "test", "runs/table")
    assert command(python, folder, *module, "info").startswith("softmax_torch ")
    text = command(python, folder, "softmax-torch", "fit", "--config", "table", "--help")
    assert "--data.ignore LIST" in text
    assert "linear_probe" in text


@needs_compiler
def test_a_wheel_with_native_kernels(checkout, tmp_path):
    built = wheel(checkout, tmp_path / "wheel")
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert built.path.name == f"softmax_torch-{softmax_torch.__version__}-py3-none-{platform}.whl"
    names = files(built)
    assert {LIBRARY, "softmax_torch/py.typed"} <= names
    configs = {f"softmax_torch/configs/{path.name}" for path in (ROOT / "configs").iterdir()}
    assert configs <= names
    assert not any("/native/src/" in name or name.endswith("CMakeLists.txt") for name in names)
    python = installed(built.path, tmp_path / "venv")
    assert "cpu: softmax_torch.ops.native" in used(python, tmp_path)
    use_program(python, tmp_path / "elsewhere")


def without_anything(folder: Path) -> dict[str, str]:
    folder.mkdir()
    return environment(folder)


WITHOUT = {
    # CMake finds no compiler that works.
    "compiler": lambda folder: WITH | {"CC": "/bin/false", "CXX": "/bin/false"},
    # There is neither CMake nor anything that it needs.
    "CMake": without_anything,
}


@pytest.mark.parametrize("what", WITHOUT)
def test_a_wheel_without_a_compiler(what, checkout, tmp_path):
    """The library of an earlier build in the checkout stays out of it."""
    (checkout / LIBRARY).write_bytes(b"of an earlier build")
    built = wheel(checkout, tmp_path / "wheel", WITHOUT[what](tmp_path / "nothing"))
    assert built.path.name == f"softmax_torch-{softmax_torch.__version__}-py3-none-any.whl"
    assert "the native CPU kernels could not be built" in built.output
    names = files(built)
    assert LIBRARY not in names
    assert "softmax_torch/configs/digits.yaml" in names
    lines = used(installed(built.path, tmp_path / "venv"), tmp_path)
    assert "cpu: softmax_torch.ops.cpu" in lines
    (line,) = [line for line in lines if line.startswith("native kernels: ")]
    assert line.startswith("native kernels: no libsoftmax_torch.so, which a C++ compiler makes")


def test_the_source_distribution_has_the_sources_and_no_library(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {
        "hatch_build.py",
        "train.py",
        "configs/digits.yaml",
        "tests/conftest.py",
        "softmax_torch/py.typed",
        "softmax_torch/ops/native/CMakeLists.txt",
        "softmax_torch/ops/native/library.py",
    }
    sources = (ROOT / "softmax_torch/ops/native/src").iterdir()
    assert expected | {str(path.relative_to(ROOT)) for path in sources} <= names
    assert LIBRARY not in names


@pytest.mark.parametrize("compiler", [pytest.param(True, marks=needs_compiler), False])
def test_a_source_distribution_installed(compiler, sdist, tmp_path):
    env = WITH if compiler else WITHOUT["compiler"](tmp_path)
    built = wheel(sdist, tmp_path / "wheel", env)
    lines = used(installed(built.path, tmp_path / "venv"), tmp_path)
    assert f"cpu: softmax_torch.ops.{'native' if compiler else 'cpu'}" in lines


@needs_compiler
def test_an_editable_installation_serves_its_checkout_and_yields_to_pythonpath(checkout, tmp_path):
    (checkout / LIBRARY).unlink(missing_ok=True)
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    # pip builds with the Python that it installs for, which has to see hatchling.
    purelib = next(folder.glob("lib/python*/site-packages"))
    (purelib / "torch_of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    options = ["--no-build-isolation", "--no-deps", "--no-index"]
    pip("--python", python, "install", *options, "-e", checkout)
    assert (checkout / LIBRARY).stat().st_size > 1000
    other = shutil.copytree(checkout, tmp_path / "other")

    def where(**variables: str) -> list[str]:
        program = "import softmax_torch as s; print(s.__file__); s.show_config()"
        env = environment("/usr/bin", "/bin", **variables)
        done = subprocess.run(
            [python, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=env
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    lines = where()
    assert lines[0] == str(checkout / "softmax_torch" / "__init__.py")
    assert "cpu: softmax_torch.ops.native" in lines
    # Another checkout comes first on PYTHONPATH, with its own library or without one.
    lines = where(PYTHONPATH=str(other))
    assert lines[0] == str(other / "softmax_torch" / "__init__.py")
    assert "cpu: softmax_torch.ops.native" in lines
    (other / LIBRARY).unlink()
    lines = where(PYTHONPATH=str(other))
    assert lines[0] == str(other / "softmax_torch" / "__init__.py")
    assert "cpu: softmax_torch.ops.cpu" in lines


COMPILER = """#!/bin/sh
for argument; do
  case "$argument" in {refused}) echo "unknown option $argument" >&2; exit 1;; esac
done
exec c++ "$@"
"""


@needs_compiler
@pytest.mark.parametrize(
    ("refused", "isas"),
    [("-mavx512*", "avx2, baseline"), ("-mavx*|-mfma|-ffp-contract*|-fno-rtti", "baseline")],
)
def test_an_old_compiler_leaves_out_what_it_does_not_know(refused, isas, checkout, tmp_path):
    compiler = tmp_path / "old-c++"
    compiler.write_text(COMPILER.format(refused=refused))
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    built = wheel(checkout, tmp_path / "wheel", WITH | {"CXX": str(compiler)})
    names = zipfile.ZipFile(built.path).read(LIBRARY)
    for isa in ("avx512", "avx2"):
        assert (isa.encode() + b"\0" in names) == (isa in isas)
    lines = used(installed(built.path, tmp_path / "venv"), tmp_path)
    assert any(line.startswith("native kernels: ") for line in lines)
    assert "cpu: softmax_torch.ops.native" in lines


def test_a_compiler_without_vector_extensions_is_refused(checkout, tmp_path):
    """As MSVC is: configuring fails, and the wheel is pure Python."""
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\nfor file; do case "$file" in *.cxx|*.cpp)'
        ' grep -q vector_size "$file" && exit 1;; esac; done\nexec /usr/bin/c++ "$@"\n'
    )
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    built = wheel(checkout, tmp_path / "wheel", WITH | {"CXX": str(compiler)})
    assert built.path.name.endswith("-py3-none-any.whl")
    assert "expected GCC or Clang" in built.output


def test_pip_fetches_cmake_and_ninja_only_where_they_can_be_used(checkout, tmp_path):
    program = "from hatchling.build import *; print(get_requires_for_build_wheel())"

    def needed(*names: str, **variables: str) -> str:
        folder = tmp_path / "-".join(names or ["none"])
        folder.mkdir(exist_ok=True)
        for name in names:
            tool = folder / name
            tool.write_text("#!/bin/sh\necho cmake version 3.17.5\n")
            tool.chmod(0o755)
        env = environment(folder, **variables)
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=checkout, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert needed() == "[]"
    assert needed("cmake", "make") == "[]"
    assert needed("g++", "make") == "['cmake>=3.18']"
    assert needed("clang++") == "['cmake>=3.18', 'ninja>=1.10']"
    assert needed("c++", "cmake", "ninja") == "['cmake>=3.18']"  # this CMake is too old
    assert needed("g++", HATCH_BUILD_NO_HOOKS="true") == "[]"  # on demand, no library
