"""Every argument of Lightning's Trainer does what Lightning says, or is refused by name.

``docs/training.md`` has a table of them. Most are tested with a trainer and 32 rows, on each kind
of model; those that the command line changes or refuses, with the command line.
"""

import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from program import ROOT

from softmax_torch.cli.trainer_arguments import share_processes

sys.path.append(str(ROOT / "tests" / "training"))

import flags_of_length  # noqa: F401 its checks register themselves
import flags_of_output  # noqa: F401
import flags_of_steps  # noqa: F401
from trainer_flags import REFUSED, SUPPORTED, fit

pytestmark = pytest.mark.filterwarnings(
    "ignore:You requested to overfit",
    "ignore:.*maximum number of iterations|.*max_epochs",
    "ignore:Found 1 module",
)


@pytest.mark.parametrize("name", [*SUPPORTED, *REFUSED])
def test_an_argument(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # torch's own tests forbid to set flags of cuDNN, in every process that imports them.
    flags = torch.backends.disable_global_flags.__globals__
    monkeypatch.setitem(flags, "__allow_nonbracketed_mutation_flag", True)
    (SUPPORTED | REFUSED)[name]()


def test_every_argument_of_the_trainer_is_tested_and_documented() -> None:
    installed = {name for name in inspect.signature(Trainer.__init__).parameters if name != "self"}
    assert installed == SUPPORTED.keys() | REFUSED.keys()
    page = (ROOT / "docs" / "training.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| (supported|refused) \|$", page, re.MULTILINE)
    documented = dict(rows)
    assert len(documented) == len(rows)
    assert documented == dict.fromkeys(SUPPORTED, "supported") | dict.fromkeys(REFUSED, "refused")


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of one of four processes of torchrun, on two machines."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("devices", [1, "1", "auto"])
def test_processes_of_torchrun_share_the_work(devices: int | str, torchrun: None) -> None:
    given = {"strategy": "auto", "devices": devices, "num_nodes": 1, "precision": None}
    shared = {"strategy": "ddp", "devices": 2, "num_nodes": 2, "precision": None}
    assert share_processes(given) == shared
    assert share_processes(given | {"devices": 2}) == given | {"devices": 2}
    assert share_processes(given | {"strategy": "ddp"}) == given | {"strategy": "ddp"}


def test_a_trainer_of_one_process_is_refused_under_torchrun(torchrun: None) -> None:
    expected = (
        r"expected the 4 processes of torchrun to share the work, by --trainer.strategy ddp "
        r"--trainer.devices 2 --trainer.num_nodes 2, got a trainer of 1"
    )
    with pytest.raises(ValueError, match=expected):
        fit()


def test_a_trainer_of_one_process_is_refused_under_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(ValueError, match=r"4 processes of srun .* --trainer.devices 4, got"):
        fit()
