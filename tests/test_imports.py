"""Importing is quick and needs torch alone; imports point one way; the README is what CI runs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import softmax_torch

PACKAGE = Path(softmax_torch.__file__).parent
ROOT = PACKAGE.parent
TRAINING = ["lightning", "torchvision", "torchmetrics", "sklearn", "triton"]
EXPORT = ["onnx", "onnxruntime", "onnxscript", "safetensors"]
HEAVY = [*TRAINING, *EXPORT, "matplotlib", "PIL", "pyarrow"]

# Each room may import itself and those before it.
FLOORS = [
    ["maths"],
    ["ops"],
    ["loss"],
    ["functional"],
    ["metrics"],
    ["modules"],
    ["heads"],
    ["storage"],
    ["backbones"],
    ["calibration"],
    ["parallel"],
    ["solvers"],
    ["estimator"],
    ["readers"],
    ["preprocessing"],
    ["predictor"],
    ["lightning_compat"],
    ["export"],
    ["data"],
    ["training"],
    ["report"],
    ["cli"],
]
# What rooms may import besides torch.
EXTRAS = {
    "data": [*TRAINING, "pyarrow"],
    "lightning_compat": ["lightning"],
    "training": TRAINING,
    "cli": [*TRAINING, "pyarrow"],
    "backbones": ["torchvision"],
    "estimator": ["sklearn"],
    "export": [*EXPORT, "PIL", "pyarrow"],
    "report": ["matplotlib", "lightning", "sklearn"],
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


@pytest.mark.parametrize(
    "program",
    [
        "import softmax_torch",
        # and using it on a CPU
        "import torch, softmax_torch as s; m = s.SoftmaxRegression(2, 3);"
        "m.loss(torch.ones(4, 2), torch.zeros(4, dtype=torch.long)).backward()",
        # what a star takes, and what there is
        "import softmax_torch; from softmax_torch import *; dir(softmax_torch)",
    ],
)
def test_import_needs_torch_alone(program: str) -> None:
    code = f"import sys; {program}; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    # torch itself imports none of them here; if it did, this test could say nothing.
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    floor = next(i for i, rooms in enumerate(FLOORS) if room(path) in rooms)
    allowed = {name for rooms in FLOORS[: floor + 1] for name in rooms} | {"__version__"}
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "softmax_torch":
            # ``from softmax_torch import checks`` names a room, other names come from those above.
            assert parts[1] in allowed, f"{room(path)} imports {name}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_no_extra_but_its_own(path: Path) -> None:
    heavy = {name for name in imports(path) if name.split(".")[0] in HEAVY}
    # The kernels of a GPU, which nothing imports before a GPU asks for them.
    allowed = ["triton"] if path.name == "triton_kernels.py" else EXTRAS.get(room(path), [])
    assert all(name.split(".")[0] in allowed for name in heavy), f"{room(path)} imports {heavy}"


def test_ci_runs_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = [line for line in readme.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    train, test = commands
    assert train.endswith("python train.py fit")
    assert "pytest" in test
    assert test in (ROOT / ".ci" / "run").read_text().splitlines()


def test_readme_points_to_what_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = [part.split(")")[0] for part in readme.split("](")[1:]]
    assert targets
    assert [t for t in targets if not t.startswith("http") and not (ROOT / t).exists()] == []


def test_python_example_of_the_readme_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    examples = [block.split("```")[0] for block in readme.split("```python\n")[1:]]
    names: dict[str, object] = {}
    for example in examples:
        exec(example, names)
    assert names["probabilities"].shape == (1000, 3)
    assert (names["probabilities"].sum(1) - 1).abs().max() < 1e-5
