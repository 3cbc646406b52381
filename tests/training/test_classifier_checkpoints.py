"""Checkpoints of a net with a backbone: resumed, calibrated, and refused."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from nets import Own, classifier, data
from trainers import trainer

from softmax_torch import predictor
from softmax_torch.modules import Classifier
from softmax_torch.storage.checkpoints import newest_checkpoint
from softmax_torch.training import LitClassifier
from softmax_torch.training.calibrating_trainer import CalibratingTrainer
from softmax_torch.training.run_checkpoint import RunCheckpoint, Stopped
from softmax_torch.training.run_logger import RunLogger


class At(Callback):
    def __init__(self, call: int) -> None:
        self.call = call

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.call:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("call", [1, 2, 3, 5])  # of two an epoch: in the first, at ends, unfrozen
def test_a_run_with_random_layers_resumes_bit_for_bit(call: int, tmp_path: Path) -> None:
    """Dropout, Mixup and CutMix, BatchNorm, two rates, and a backbone that thaws."""

    def fit(root: Path, *callbacks: Callback) -> tuple[Any, ...]:
        lit = classifier(
            backbone=Own(),
            optimizer=partial(torch.optim.Adam, lr=0.01),
            freeze_backbone=True,
            unfreeze_at_epoch=1,
            backbone_lr=1e-3,
            mixup=0.4,
            cutmix=1.0,
            steps_per_call=2,
        )
        folder = root / "a" / "version_0"
        found, _ = newest_checkpoint(folder)
        logger = RunLogger(root, "a", folder if folder.exists() else None)
        run = trainer(
            3, *callbacks, RunCheckpoint(seconds=1e9), logger=logger, enable_checkpointing=True
        )
        try:
            run.fit(lit, data(), ckpt_path=found and found.path, weights_only=True)
        finally:
            logger.close()
        return [v.tolist() for v in lit.state_dict().values()], logger.path.read_text()

    expected = fit(tmp_path / "alone")
    with pytest.raises(Stopped):
        fit(tmp_path, At(call))
    assert fit(tmp_path) == expected


def test_a_checkpoint_is_calibrated_and_predicts(tmp_path: Path) -> None:
    """The logits that a calibration is fitted to are those of evaluation."""
    lit = classifier(optimizer=partial(torch.optim.Adam, lr=0.01))
    batches = data()
    run = trainer(3, kind=CalibratingTrainer)
    run.fit(lit, batches)
    path = tmp_path / "a.ckpt"
    run.save_checkpoint(path)
    lit.train()
    [before, after] = run.calibrate(lit, batches, str(path))
    x, y = batches.splits["val"]
    lit.eval()
    z = lit.logits(x / 16).detach()
    assert before["val/nll"] == pytest.approx(float(F.cross_entropy(z, y)), rel=1e-5)
    assert lit.calibration is not None
    expected = float(F.cross_entropy(lit.calibration(z), y))
    assert after["val/nll"] == pytest.approx(expected, rel=1e-5)
    assert after["val/nll"] < before["val/nll"]
    # the checkpoint alone predicts, with the same net
    found = predictor.load(path).network
    assert type(found) is Classifier
    assert list(found.state_dict()) == list(lit.state_dict())
    torch.testing.assert_close(found(x / 16).softmax(1), z.softmax(1))


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path) -> None:
    run = trainer(1, limit_train_batches=0)
    run.fit(classifier(), data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"backbone: .* has resnet18, the checkpoint small_cnn"):
        trainer(1).test(classifier(backbone="resnet18"), data(), ckpt_path=tmp_path / "a.ckpt")


def test_a_checkpoint_has_the_numbers_of_a_users_backbone_only(tmp_path: Path) -> None:
    lit = classifier(backbone=Own())
    run = trainer(1)
    run.fit(lit, data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = LitClassifier.load_from_checkpoint(
        tmp_path / "a.ckpt", backbone=Own(), weights_only=True
    )
    x = torch.rand(2, 8, 8)
    assert torch.equal(lit.eval()(x), again.eval()(x))
    with pytest.raises(ValueError, match="expected a named backbone, got one that was a mod"):
        predictor.load(tmp_path / "a.ckpt")
