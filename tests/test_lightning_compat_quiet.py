"""The warnings of Lightning that are silenced: it still gives them, and quiet() hides them."""

import inspect
import logging
import warnings

import pytest
from lightning.pytorch.callbacks import model_checkpoint
from lightning.pytorch.loops import fit_loop
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors import data_connector
from lightning.pytorch.trainer.connectors.logger_connector import result
from lightning.pytorch.utilities import _pytree

from softmax_torch.lightning_compat import quiet


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (call, "Be aware that when using `ckpt_path`"),
        (result, "It is recommended to use `self.log("),
        (result, "sync_dist=True"),
        (_pytree, "LeafSpec()"),
        (data_connector, "You requested to overfit but enabled"),
        (model_checkpoint, "Using ModelCheckpoint with manual optimization"),
        (model_checkpoint, "Checkpoint directory {dirpath} exists and is not empty"),
        (fit_loop, "is smaller than the logging interval"),
    ],
)
def test_lightning_still_has_the_warning(module: object, text: str) -> None:
    assert text in inspect.getsource(module)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "message",
    [
        "`isinstance(treespec, LeafSpec)` is deprecated",
        "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint ...",
        "It is recommended to use `self.log('val/nll', ..., sync_dist=True)` when logging on epoch",
        "You requested to overfit but enabled train dataloader shuffling. We are turning off ...",
        "Using ModelCheckpoint with manual optimization and every_n_train_steps, but no ...",
        "Checkpoint directory runs/digits/version_0/checkpoints exists and is not empty.",
        "The number of training batches (1) is smaller than the logging interval Trainer(...)",
    ],
)
def test_quiet_hides_it_and_nothing_else(message: str) -> None:
    with warnings.catch_warnings(record=True) as caught, quiet():
        warnings.filterwarnings("always", message="another")
        warnings.warn(message, UserWarning, stacklevel=1)
        warnings.warn("another", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["another"]


def test_quiet_hides_notes() -> None:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with quiet():
        assert not logger.isEnabledFor(logging.INFO)
        assert logger.isEnabledFor(logging.WARNING)
    assert logger.level == level


def test_quiet_keeps_the_table_of_a_profiler() -> None:
    with quiet():
        assert logging.getLogger("lightning.pytorch.profilers.profiler").isEnabledFor(logging.INFO)
