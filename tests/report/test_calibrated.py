"""The test set of a report is calibrated by the checkpoint, or by the validation set."""

import torch
from sample_results import make_results, make_set

from softmax_torch.calibration import Calibration
from softmax_torch.report import calibrated
from softmax_torch.report.run_results import EvaluatedSet


def test_the_checkpoints_own_calibration_is_used() -> None:
    own = Calibration(torch.tensor(0.5), torch.tensor(0.0))
    results = make_results(calibration=own)
    test, description = calibrated.calibrate_test(results)
    assert test is not None
    torch.testing.assert_close(test.logits, results.test.logits.double() / 2)
    assert description == "Calibrated by temperature 2.0000, from the checkpoint."


def test_without_one_a_temperature_is_fitted_to_the_validation_set() -> None:
    results = make_results(val=make_set(2000, 3, 0, scale=4.0))
    test, description = calibrated.calibrate_test(results)
    assert test is not None
    torch.testing.assert_close(test.logits, results.test.logits.double() / 4, rtol=0.1, atol=0.1)
    assert "fitted for this report to the 2000 validation samples" in description


def test_a_missing_temperature_is_explained() -> None:
    z, _ = make_set(50, 3, 0)
    test, description = calibrated.calibrate_test(make_results(val=EvaluatedSet(z, z.argmax(1))))
    assert test is None
    assert description.startswith(
        "There is no best temperature on the validation set: expected some"
    )
