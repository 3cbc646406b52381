"""Importing needs torch alone; rooms import what EDGES says; CI runs the README's command."""

import ast
import runpy
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import Finished, in_forks

import softmax_torch

PACKAGE = Path(softmax_torch.__file__).parent
ROOT = PACKAGE.parent
TRAINING = ["lightning", "torchvision", "torchmetrics", "sklearn", "triton"]
EXPORT = ["onnx", "onnxruntime", "onnxscript", "safetensors"]
HEAVY = [*TRAINING, *EXPORT, "matplotlib", "PIL", "pyarrow"]

# The rooms of the package, and which others each imports: neither more nor fewer. `python
# docs/house.py` draws them for CONTRIBUTING.md.
EDGES: dict[str, list[str]] = {
    "maths": [],
    "shard_maths": ["maths"],
    "threads": [],
    "ops": ["maths", "shard_maths"],
    "loss": ["maths", "ops"],
    "functional": ["loss", "ops"],
    "metrics": ["functional", "maths"],
    "ranking_metrics": ["metrics"],
    "modules": ["functional", "loss"],
    "heads": ["loss", "modules", "ops"],
    "parallel": ["loss", "maths", "ops", "shard_maths"],
    "calibration": ["threads"],
    "conformal": ["calibration", "threads"],
    "decision_threshold": ["calibration"],
    "laplace": [],
    "post_hoc": ["calibration", "conformal", "decision_threshold", "laplace"],
    "storage": [],
    "solvers": ["maths", "metrics", "modules", "ops", "threads"],
    "estimator": ["solvers"],
    "backbones": ["heads", "storage"],
    "readers": ["storage"],
    "preprocessing": ["readers"],
    "predictor": [
        "backbones",
        "calibration",
        "conformal",
        "decision_threshold",
        "laplace",
        "modules",
        "post_hoc",
        "preprocessing",
        "storage",
        "threads",
    ],
    "lightning_compat": [],
    "export": [
        "backbones",
        "calibration",
        "conformal",
        "laplace",
        "modules",
        "post_hoc",
        "predictor",
        "preprocessing",
        "readers",
        "storage",
    ],
    "data": ["backbones", "ops", "preprocessing", "readers", "storage"],
    "training": [
        "backbones",
        "calibration",
        "conformal",
        "data",
        "decision_threshold",
        "functional",
        "laplace",
        "lightning_compat",
        "maths",
        "metrics",
        "modules",
        "ops",
        "post_hoc",
        "preprocessing",
        "solvers",
        "storage",
        "threads",
    ],
    "report": [
        "calibration",
        "conformal",
        "data",
        "decision_threshold",
        "metrics",
        "preprocessing",
        "ranking_metrics",
        "solvers",
        "storage",
        "threads",
        "training",
    ],
    "cli": [
        "calibration",
        "conformal",
        "data",
        "decision_threshold",
        "export",
        "laplace",
        "lightning_compat",
        "loss",
        "metrics",
        "post_hoc",
        "predictor",
        "preprocessing",
        "report",
        "solvers",
        "storage",
        "training",
    ],
    "__main__": ["cli"],
}
# What rooms may import besides torch.
EXTRAS = {
    "data": [*TRAINING, "pyarrow"],
    "lightning_compat": ["lightning"],
    "training": TRAINING,
    "cli": [*TRAINING, "pyarrow"],
    "backbones": ["torchvision"],
    "estimator": ["sklearn"],
    "export": [*EXPORT, "PIL", "pyarrow"],
    "report": ["matplotlib", "lightning"],
    "readers": ["PIL", "pyarrow"],
    "preprocessing": ["PIL", "pyarrow"],
    "storage": ["safetensors"],
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE / "configs"]


def room(path: Path) -> str:
    """The module or sub-package of softmax_torch that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


PROGRAMS = {
    "import": "import softmax_torch",
    "use on a CPU": "import torch, softmax_torch as s; m = s.SoftmaxRegression(2, 3);"
    "m.loss(torch.ones(4, 2), torch.zeros(4, dtype=torch.long)).backward()",
    "import of a star": "import softmax_torch; from softmax_torch import *; dir(softmax_torch)",
}


@pytest.fixture(scope="module")
def imported() -> dict[str, Finished]:
    """What each program printed: the packages of HEAVY that it imported."""
    show = f"import sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    return in_forks({name: (f"{code}; {show}", {}) for name, code in PROGRAMS.items()})


@pytest.mark.parametrize("program", PROGRAMS)
def test_import_needs_torch_alone(program: str, imported: dict[str, Finished]) -> None:
    assert imported[program].code == 0, imported[program].stderr
    # torch itself imports none of them here; if it did, this test could say nothing.
    assert imported[program].stdout.split() == []


@cache
def rooms_imported() -> dict[str, set[str]]:
    """The other rooms that the files of each room import."""
    found: dict[str, set[str]] = {}
    for path in files():
        if path == PACKAGE / "__init__.py":
            continue
        others = found.setdefault(room(path), set())
        for name in imports(path):
            if name.startswith("softmax_torch."):
                others.add(name.split(".")[1])
        others -= {room(path), "__version__"}
    return found


@pytest.mark.parametrize("name", sorted(rooms_imported().keys() | EDGES.keys()))
def test_a_room_imports_those_of_its_edges_and_no_others(name: str) -> None:
    assert name in EDGES, f"{name}: a room without edges"
    assert sorted(rooms_imported().get(name, ["no such room"])) == EDGES[name]


def test_rooms_do_not_import_in_a_circle() -> None:
    list(TopologicalSorter(EDGES).static_order())  # raises CycleError, with the circle


def test_files_do_not_import_in_a_circle() -> None:
    """Wherever in a file the import stands."""
    dotted = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files()
        if path != PACKAGE / "__init__.py"
    }
    graph = {}
    for module, path in dotted.items():
        # ``from a import b`` imports the file a.b where there is one, and otherwise a.
        named = {name if name in dotted else name.rpartition(".")[0] for name in imports(path)}
        graph[module] = named & dotted.keys() - {module}
    list(TopologicalSorter(graph).static_order())


def test_the_picture_of_the_house_is_that_of_the_edges() -> None:
    """`python docs/house.py` draws it anew."""
    house = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "house.py")))
    assert house.edges() == EDGES
    assert house.svg(EDGES) == house.PICTURE.read_text()
    text = house.PAGE.read_text()
    assert house.page(EDGES, text) == text


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_no_extra_but_its_own(path: Path) -> None:
    heavy = {name for name in imports(path) if name.split(".")[0] in HEAVY}
    # The kernels of a GPU, which nothing imports before a GPU asks for them.
    allowed = ["triton"] if path.name.startswith("triton_") else EXTRAS.get(room(path), [])
    assert all(name.split(".")[0] in allowed for name in heavy), f"{room(path)} imports {heavy}"


def test_ci_runs_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = [line for line in readme.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    train, test = commands
    assert train.endswith("python train.py fit")
    assert "pytest" in test
    assert test in (ROOT / ".ci" / "run").read_text().splitlines()
