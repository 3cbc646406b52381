"""What a module predicts with what was fitted after its training."""

import torch
from rows import C, D, RowsDataModule
from trainers import trainer

from softmax_torch.calibration import Calibration
from softmax_torch.conformal import ConformalSets
from softmax_torch.post_hoc import PostHoc
from softmax_torch.training import LitSoftmaxRegression


def test_sets_are_those_of_logits_without_the_calibration_of_probabilities() -> None:
    torch.manual_seed(0)
    model, data = LitSoftmaxRegression(D, C), RowsDataModule(8)
    torch.nn.init.normal_(model.model.linear.weight)
    calibration = Calibration(*torch.tensor([5.0, 0.0], dtype=torch.float64))
    sets = ConformalSets("lac", 0.9, torch.tensor(0.3).double(), torch.tensor(10))
    model.post_hoc = PostHoc(calibration, sets)
    model.calibrated = model.predicts_sets = True
    [(p, members)] = trainer(1).predict(model, datamodule=data)
    with torch.no_grad():
        z = model.logits(data.splits["test"].x)
    torch.testing.assert_close(p, calibration(z).softmax(1))
    assert torch.equal(members, sets(z))
    assert not torch.equal(members, sets(calibration(z)))
