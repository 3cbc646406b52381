"""Compile the native CPU kernels while hatchling builds a wheel, or build the wheel without them.

CMake makes ``libsoftmax_torch.so`` from ``softmax_torch/ops/native``. It links against neither
Python nor torch, so that one wheel, py3-none-<platform>, serves every version of both. An editable
install puts the library into the checkout. Where CMake, a generator or a C++ compiler is missing or
fails, the wheel is pure Python (py3-none-any), and ``softmax_torch`` uses its torch kernels.

scikit-build-core does much of this. But its editable installs, in both modes (1.1), put an import
finder before ``sys.path``, so that a second checkout on PYTHONPATH would import the first; and its
retry without CMake does not cover a CMake that is not installed.
"""

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OLDEST_CMAKE = (3, 18)
FOLDER = "softmax_torch/ops/native"
LIBRARY = "libsoftmax_torch.so"


class NativeKernels(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Return what pip has to fetch: CMake and Ninja if the system lacks them, with a compiler.

        Without a compiler nothing is fetched: they could do nothing.
        """
        if not _compiler():
            return []
        needed = [] if _cmake_is_recent() else ["cmake>=3.18"]
        return needed if _generator() else [*needed, "ninja>=1.10"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library: for an editable install in the checkout, else for the wheel."""
        self.build = tempfile.TemporaryDirectory()
        build = self.build.name
        wheel = version != "editable"
        try:
            self._run_cmake([f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build}"] if wheel else [])
        except (OSError, subprocess.CalledProcessError) as error:
            # A library of an earlier build in the checkout does no harm: it is refused unless it
            # was built from the same sources.
            self.app.display_warning(
                f"{getattr(error, 'stdout', None) or error}\n"
                "*** softmax_torch: the native CPU kernels could not be built (see above).\n"
                "*** They need a C++ compiler, GCC or Clang. The package is installed without\n"
                "*** them, and uses its torch kernels."
            )
            return
        if wheel:
            build_data["force_include"][f"{build}/{LIBRARY}"] = f"{FOLDER}/{LIBRARY}"
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{re.sub('[-.]', '_', sysconfig.get_platform())}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self.build.cleanup()

    def _run_cmake(self, options: list[str]) -> None:
        """Configure and build; what CMake prints is in the CalledProcessError of a failure."""
        configure = ["-S", str(Path(self.root, FOLDER)), "-B", self.build.name, *options]
        if "CMAKE_GENERATOR" not in os.environ and shutil.which("ninja"):
            configure.append("-GNinja")
        for arguments in (configure, ["--build", self.build.name, "--parallel"]):
            subprocess.run(
                ["cmake", *arguments],
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )


def _compiler() -> str | None:
    """Return a C++ compiler as CMake would look for one."""
    names = [os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, filter(None, names))), None)


def _generator() -> str | None:
    return shutil.which("ninja") or shutil.which("make")


def _cmake_is_recent() -> bool:
    try:
        said = subprocess.run(["cmake", "--version"], capture_output=True, text=True).stdout
    except OSError:
        return False
    found = re.search(r"(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= OLDEST_CMAKE
