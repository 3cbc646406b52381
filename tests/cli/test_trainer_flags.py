"""Every argument of Lightning's Trainer does what Lightning says, or is refused by name.

``docs/training.md`` has a table of them. Most are tested with a trainer and 32 rows, on each kind
of model; those that the command line changes or refuses, with the command line.
"""

import csv
import inspect
import logging
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from program import ROOT, metrics
from torch import nn

from softmax_torch import cli
from softmax_torch.cli import commands as cli_commands
from softmax_torch.cli.trainer_arguments import share_processes
from softmax_torch.training import LitClassifier, LitSoftmaxRegression
from softmax_torch.training.lit_base import LitBase
from softmax_torch.training.trainer_checks import check_processes

sys.path.append(str(ROOT / "tests" / "training"))
from rows import C, D, RowsDataModule
from trainers import trainer as quiet_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:You requested to overfit",
    "ignore:.*maximum number of iterations|.*max_epochs",
    "ignore:Found 1 module",
)

STEPS = 8  # batches of 4 among 32 training rows
KINDS = ("softmax", "classifier", "solver")
MINI_BATCH = KINDS[:2]


def model(kind: str, **options: Any) -> LitBase:
    torch.manual_seed(0)
    if kind == "solver":
        return LitSoftmaxRegression(D, C, C=1.0, solver="gradient_descent", tol=1e-12, **options)
    optimizer = partial(torch.optim.SGD, lr=0.1)
    if kind == "classifier":
        return LitClassifier(D, C, backbone=None, optimizer=optimizer, **options)
    return LitSoftmaxRegression(D, C, optimizer=optimizer, **options)


class Watch(Callback):
    """Steps at each validation, samples of each validation, and rows of each epoch's first step."""

    def __init__(self) -> None:
        self.validated: list[int] = []
        self.sanity = self.loaders = 0
        self.samples: list[int] = []
        self.inference: list[bool] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            self.sanity += 1
        else:
            self.validated.append(trainer.global_step)
            self.samples.append(0)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.sanity_checking:
            self.samples[-1] += len(args[2][1])
        self.inference.append(torch.is_inference_mode_enabled())


def fit(kind: str = "softmax", *callbacks: Callback, max_epochs: int = 2, **options: Any) -> Any:
    """Return a trainer that has fitted a model, with the model as ``lit`` and a ``watch``."""
    data = RowsDataModule(None if kind == "solver" else 4)
    lit, watch = model(kind), Watch()
    run = quiet_trainer(max_epochs, watch, *callbacks, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*expected|.*gap")  # a solver ends early
        run.fit(lit, data)
    run.lit, run.watch, run.data = lit, watch, data
    return run


def weight(run: Any) -> torch.Tensor:
    found: torch.Tensor = run.lit.model.linear.weight.detach()
    return found


def program(*flags: str, command: str = "fit") -> None:
    cli.main([command, "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", *flags])


def refusal(*flags: str) -> str:
    """Return the message that the command line refuses flags with, before it writes anything."""
    with pytest.raises(ValueError, match=r"^trainer[.:]") as refused:
        program(*flags)
    assert not Path("runs").exists()
    message = str(refused.value)
    assert "\n" not in message
    return message


SUPPORTED: dict[str, Callable[[], None]] = {}
REFUSED: dict[str, Callable[[], None]] = {}


def supported(check: Callable[[], None]) -> Callable[[], None]:
    SUPPORTED[check.__name__.removesuffix("_")] = check
    return check


def refused(check: Callable[[], None]) -> Callable[[], None]:
    REFUSED[check.__name__] = check
    return check


# Where


@supported
def accelerator() -> None:
    assert fit(accelerator="cpu").strategy.root_device.type == "cpu"
    message = refusal("--trainer.accelerator", "tpu")
    assert re.match(r"trainer\.accelerator: expected one of auto, cpu.*, got tpu", message)


@supported
def strategy() -> None:
    with pytest.raises(ValueError, match="expected one device or ddp, got ModelParallelStrategy"):
        check_processes(quiet_trainer(1, strategy=ModelParallelStrategy()))
    message = refusal("--trainer.strategy", "ddp_spawn")
    assert "trainer.strategy: expected ddp" in message
    assert "`strategy='nope'`" in refusal("--trainer.strategy", "nope")


@supported
def devices() -> None:
    """tests/training/test_processes.py trains on two."""
    assert quiet_trainer(1, devices=3, strategy="ddp").world_size == 3
    assert "`Trainer(devices='0')`" in refusal("--trainer.devices", "0")


@supported
def num_nodes() -> None:
    assert quiet_trainer(1, devices=2, num_nodes=2, strategy="ddp").world_size == 4


@supported
def precision() -> None:
    full = fit("softmax")
    for name, dtype, bits in (
        ("64-true", torch.float64, 20),
        ("bf16-mixed", torch.float32, 7),
        ("bf16-true", torch.bfloat16, 7),
        ("16-true", torch.float16, 10),
    ):
        for kind in MINI_BATCH:
            run = fit(kind, precision=name)
            assert weight(run).dtype == dtype
            torch.testing.assert_close(weight(run).float(), weight(full), rtol=0, atol=2.0**-bits)
    assert weight(fit("solver", precision="64-true")).dtype == torch.float64
    with pytest.raises(ValueError, match=r"precision: expected 32-true or 64-true .* got bf16-m"):
        fit("solver", precision="bf16-mixed")


@refused
def plugins() -> None:
    """Others than a CheckpointIO are passed on."""
    assert fit(plugins=[LightningEnvironment()]).global_step == 2 * STEPS
    plugin = "lightning.pytorch.plugins.io.AsyncCheckpointIO"
    message = refusal("--trainer.plugins", plugin)
    assert message.startswith("trainer.plugins: expected no CheckpointIO")
    assert message.endswith("got AsyncCheckpointIO")


@supported
def sync_batchnorm() -> None:
    assert fit(sync_batchnorm=True).global_step == 2 * STEPS  # one process: nothing to do
    with pytest.raises(ValueError, match=r"sync_batchnorm: expected GPUs, got processes on a CPU"):
        check_processes(quiet_trainer(1, devices=2, strategy="ddp", sync_batchnorm=True))


@refused
def use_distributed_sampler() -> None:
    assert refusal("--trainer.use_distributed_sampler", "false").endswith("got false")


# How long


@supported
def max_epochs() -> None:
    for kind in KINDS:
        assert fit(kind, max_epochs=3).current_epoch == 3
    assert fit(max_epochs=0).global_step == 0


class Stop(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True


@supported
def min_epochs() -> None:
    for kind in KINDS:
        assert fit(kind, Stop(), max_epochs=9).current_epoch == 1
        assert fit(kind, Stop(), max_epochs=9, min_epochs=3).current_epoch == 3


@supported
def max_steps() -> None:
    for kind in MINI_BATCH:
        assert fit(kind, max_steps=5).global_step == 5
    assert fit("solver", max_steps=3, max_epochs=-1).global_step == 3


@supported
def min_steps() -> None:
    for kind in MINI_BATCH:
        assert fit(kind, Stop(), max_epochs=9, min_steps=STEPS + 3).global_step == STEPS + 3
    assert fit("solver", Stop(), max_epochs=9, min_steps=4).global_step == 4


@supported
def max_time() -> None:
    for kind in KINDS:
        assert fit(kind, max_time={"seconds": 0}).global_step == 0
    program("--trainer.max_time", "00:00:00:00", "--runs", "timed")
    assert not list(Path("timed").rglob("*.ckpt"))  # nothing was trained
    assert "DD:HH:MM:SS" in refusal("--trainer.max_time", "1h")
    assert "expected one limit of time" in refusal(
        "--trainer.max_time", "00:00:01:00", "--trainer.callbacks", "Timer"
    )


@supported
def fast_dev_run() -> None:
    for kind, steps in (("softmax", 3), ("classifier", 3), ("solver", 1)):
        run = fit(kind, fast_dev_run=3, max_epochs=9)
        assert (run.global_step, run.current_epoch) == (steps, 1)


@supported
def overfit_batches() -> None:
    """The same batches in each epoch: as an epoch of one batch."""

    class Seen(Callback):
        def __init__(self) -> None:
            self.rows: list[list[float]] = []

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            [one] = args[1]
            self.rows.append(one.x.flatten().tolist())

    for kind in MINI_BATCH:
        seen = Seen()
        assert fit(kind, seen, overfit_batches=1, max_epochs=3).global_step == 3
        assert seen.rows[0] == seen.rows[1] == seen.rows[2]
    run = fit(overfit_batches=0.5)
    assert (run.global_step, set(run.watch.samples)) == (STEPS, {4})


@supported
def limit_train_batches() -> None:
    for kind in MINI_BATCH:
        for limit, steps in ((1, 1), (3, 3), (0.5, 4), (1.0, STEPS), (0, 0)):
            assert fit(kind, limit_train_batches=limit).global_step == 2 * steps, limit
    assert fit("solver", limit_train_batches=1).global_step == 2
    program("--trainer.limit_train_batches", "1")
    assert '"1",' not in metrics(Path())[0]
    assert {row["step"] for row in csv.DictReader(metrics(Path()))} == {"1"}


# Validation


@supported
def limit_val_batches() -> None:
    for kind in KINDS:
        assert fit(kind, limit_val_batches=0.5).watch.samples == [4, 4]
        assert fit(kind, limit_val_batches=0).watch.samples == []
    program("--trainer.limit_val_batches", "0")
    run = Path("runs", "digits", "version_0")
    assert {path.name for path in run.glob("*.ckpt")} == {"last.ckpt"}
    with pytest.raises(ValueError, match=r"limit_val_batches: .* above 0 for validate, got 0"):
        cli.main(["validate", "--ckpt_path", str(run / "last.ckpt")])


@supported
def limit_test_batches() -> None:
    run = fit(limit_test_batches=0.5)
    run.test(run.lit, run.data, verbose=False)
    assert run.num_test_batches == [4]  # of one sample each
    program("--trainer.limit_test_batches", "0")


@supported
def limit_predict_batches() -> None:
    run = fit(limit_predict_batches=0.25)
    assert sum(map(len, run.predict(run.lit, run.data))) == 2


@supported
def val_check_interval() -> None:
    for kind in MINI_BATCH:
        for interval, steps in ((1, range(1, 17)), (3, [3, 6, 11, 14]), (0.5, range(4, 17, 4))):
            assert fit(kind, val_check_interval=interval).watch.validated == list(steps)
        assert fit(kind, val_check_interval={"hours": 1}).watch.validated == []
        assert fit(kind, val_check_interval="00:00:00:00").watch.validated[-1] == 2 * STEPS
    assert fit("solver", val_check_interval=1).watch.validated == [1, 2]
    message = refusal_of_a_fit("--trainer.val_check_interval", "50")
    assert "must be less than or equal to the number of the training batches (41)" in message


def refusal_of_a_fit(*flags: str) -> str:
    """Return the message of a fit that Lightning refuses when it has read the data."""
    with pytest.raises(ValueError, match=r"^trainer: expected settings that Lightning") as refused:
        program(*flags)
    return str(refused.value)


@supported
def check_val_every_n_epoch() -> None:
    for kind in KINDS:
        last = fit(kind, max_epochs=4, check_val_every_n_epoch=2)
        assert len(last.watch.validated) == 2
    every = fit(check_val_every_n_epoch=None, val_check_interval=5, max_epochs=2)
    assert every.watch.validated == [5, 10, 15]


@supported
def num_sanity_val_steps() -> None:
    for kind in KINDS:
        assert fit(kind).watch.sanity == 0
        assert fit(kind, num_sanity_val_steps=-1).watch.sanity == 1
    assert weight(fit(num_sanity_val_steps=2)).equal(weight(fit()))
    # A schedule that watches validations takes no sanity check for one.
    lit = model("softmax", lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    options = {"num_sanity_val_steps": 1, "check_val_every_n_epoch": 2}
    quiet_trainer(2, **options).fit(lit, RowsDataModule())


@supported
def inference_mode() -> None:
    for mode in (True, False):
        run = fit(inference_mode=mode)
        run.watch.inference = []
        run.validate(run.lit, run.data, verbose=False)
        assert run.watch.inference == [mode]


# Steps


@supported
def accumulate_grad_batches() -> None:
    """tests/training/test_accumulation.py compares the steps with a plain loop."""
    for kind in MINI_BATCH:
        assert fit(kind, accumulate_grad_batches=3).global_step == 2 * 3
    with pytest.raises(ValueError, match=r"accumulate_grad_batches: expected 1 with a solver"):
        fit("solver", accumulate_grad_batches=3)


def clipped_loop(clip: Callable[[list[nn.Parameter]], object]) -> torch.Tensor:
    """The weight after an epoch of a plain loop."""
    lit, data = model("softmax"), RowsDataModule()
    data.setup()
    parameters = list(lit.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for x, y in data._batches("train", 4, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(lit.model.linear(x), y).backward()
        clip(parameters)
        optimizer.step()
    return lit.model.linear.weight.detach()


@supported
def gradient_clip_val() -> None:
    expected = clipped_loop(partial(nn.utils.clip_grad_norm_, max_norm=0.01))
    for kind in MINI_BATCH:
        run = fit(kind, max_epochs=1, gradient_clip_val=0.01)
        torch.testing.assert_close(weight(run), expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match=r"gradient_clip_val: expected None with a solver, got"):
        fit("solver", gradient_clip_val=0.1)


@supported
def gradient_clip_algorithm() -> None:
    expected = clipped_loop(partial(nn.utils.clip_grad_value_, clip_value=0.01))
    for kind in MINI_BATCH:
        clipped = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
        run = fit(kind, max_epochs=1, **clipped)
        torch.testing.assert_close(weight(run), expected, rtol=1e-6, atol=1e-7)
    assert "['value', 'norm']" in refusal("--trainer.gradient_clip_algorithm", "median")


@supported
def deterministic() -> None:
    try:
        for kind in KINDS:
            fit(kind, deterministic=True)
            assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@supported
def benchmark() -> None:
    before = torch.backends.cudnn.benchmark
    try:
        fit(benchmark=not before)
        assert torch.backends.cudnn.benchmark is not before
    finally:
        torch.backends.cudnn.benchmark = before


@supported
def detect_anomaly() -> None:
    """The gradient comes from autograd then, which names the operation that makes a NaN."""

    class Root(nn.Module):
        out_features = D

        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sqrt(self.factor * 0)  # its derivative is 0 / 0

    lit = LitClassifier(D, C, backbone=Root())
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(RuntimeError, match="Backward0' returned nan"),
    ):
        quiet_trainer(1, detect_anomaly=True).fit(lit, RowsDataModule())
    with pytest.raises(FloatingPointError, match="in step 2: the optimization diverged"):
        quiet_trainer(1).fit(lit, RowsDataModule())
    torch.testing.assert_close(weight(fit(detect_anomaly=True)), weight(fit()))


@supported
def reload_dataloaders_every_n_epochs() -> None:
    class Counting(RowsDataModule):
        loaded = 0

        def train_dataloader(self) -> Any:
            self.loaded += 1
            return super().train_dataloader()

    data, lit = Counting(), model("softmax")
    quiet_trainer(4, reload_dataloaders_every_n_epochs=2).fit(lit, data)
    assert data.loaded == 2
    assert lit.model.linear.weight.equal(weight(fit(max_epochs=4)))


# Files, figures and output


@supported
def logger() -> None:
    """Loggers beside the run's own: tests/cli/test_loggers.py."""
    program("--trainer.logger", "false")
    names = {path.name for path in Path("runs", "digits", "version_0").iterdir()}
    assert names >= {"config.yaml", "metrics.csv", "best.ckpt"}


@supported
def callbacks() -> None:
    flags = ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.save_top_k", "2"]
    flags += ["--trainer.callbacks.monitor", "val/accuracy", "--trainer.callbacks.mode", "max"]
    program(*flags, "--trainer.max_epochs", "3")
    run = Path("runs", "digits", "version_0")
    kept = list((run / "checkpoints").iterdir())
    assert len(kept) == 2
    assert (run / "best.ckpt").exists()
    cli.main(["test", "--ckpt_path", str(kept[0])])  # with the config.yaml of the run
    cli.main(["fit", "--resume", "--trainer.max_epochs", "4", "--trainer.accelerator", "cpu"])
    assert len(list((run / "checkpoints").iterdir())) == 2
    flags = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "loss"]
    with pytest.raises(ValueError, match=r"EarlyStopping\.monitor: expected one of train/loss"):
        program(*flags, "--name", "refused")
    assert not Path("runs", "refused").exists()
    for kind in KINDS:
        expected = r"train/gap, val/accuracy" if kind == "solver" else r"train/nll, val/accuracy"
        data = RowsDataModule(None if kind == "solver" else 4)
        with pytest.raises(ValueError, match=rf"EarlyStopping\.monitor: .*{expected}.*, got loss"):
            quiet_trainer(1, EarlyStopping("loss")).fit(model(kind), data)
        fit(kind, EarlyStopping("val/nll"))
    with pytest.raises(ValueError, match=r"expected one of train/loss.*nll, got val/nll"):
        quiet_trainer(1, EarlyStopping("val/nll"), limit_val_batches=0).fit(model("softmax"), data)


@supported
def enable_checkpointing() -> None:
    program("--trainer.enable_checkpointing", "false")
    assert not list(Path("runs").rglob("*.ckpt"))
    flags = ["--trainer.enable_checkpointing", "false", "--trainer.callbacks", "ModelCheckpoint"]
    with pytest.raises(ValueError, match=r"^trainer: .*found `ModelCheckpoint` in callbacks"):
        program(*flags)


@supported
def enable_progress_bar() -> None:
    """tests/training/test_progress_bar.py has the bar."""
    for flags, bars in (
        (["--trainer.enable_progress_bar", "false"], []),
        (["--trainer.callbacks", "TQDMProgressBar"], ["TQDMProgressBar"]),
        ([], ["EpochBar"]),
    ):
        found = [type(c).__name__ for c in callbacks_of_the_program(*flags)]
        assert [name for name in found if name.endswith("Bar")] == bars


def callbacks_of_the_program(*flags: str) -> list[Any]:
    """Return the callbacks of the trainer that the command line makes."""
    made: list[Any] = []
    original = cli_commands.fit
    cli_commands.FUNCTIONS["fit"] = lambda session: made.extend(session.trainer.callbacks)
    try:
        program(*flags)
    finally:
        cli_commands.FUNCTIONS["fit"] = original
    return made


@supported
def enable_model_summary() -> None:
    kinds = [
        {type(c).__name__ for c in callbacks_of_the_program(*flags)}
        for flags in ([], ["--trainer.enable_model_summary", "true"])
    ]
    assert kinds[1] - kinds[0] == {"RichModelSummary"}


@supported
def log_every_n_steps() -> None:
    program("--trainer.log_every_n_steps", "20")
    rows = [row for row in csv.DictReader(metrics(Path())) if row["train/loss_step"]]
    assert [row["step"] for row in rows] == ["20", "40"]


@supported
def profiler() -> None:
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    handler = Keep()
    logging.getLogger("lightning.pytorch.profilers").addHandler(handler)
    try:
        program("--trainer.profiler", "simple")
    finally:
        logging.getLogger("lightning.pytorch.profilers").removeHandler(handler)
    assert any("FIT Profiler Report" in text and "optimizer_step" in text for text in records)
    assert "['simple', 'advanced', 'pytorch', 'xla']" in refusal_again("--trainer.profiler", "x")


def refusal_again(*flags: str) -> str:
    """Return the message of a refusal where there are runs already."""
    with pytest.raises(ValueError, match=r"^trainer[.:]") as refused:
        program(*flags)
    return str(refused.value)


@supported
def enable_autolog_hparams() -> None:
    """tests/cli/test_loggers.py has the hyper-parameters."""
    flags = ["--trainer.logger", "CSVLogger", "--trainer.enable_autolog_hparams", "false"]
    program(*flags)
    assert not list(Path("runs").rglob("hparams.yaml"))


@refused
def barebones() -> None:
    assert refusal("--trainer.barebones", "true").endswith("log and its checkpoints, got True")


@refused
def default_root_dir() -> None:
    assert "--runs names the folder" in refusal("--trainer.default_root_dir", "elsewhere")


@refused
def model_registry() -> None:
    assert refusal("--trainer.model_registry", "mine").endswith("own directory, got mine")


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
