"""The test set after calibration.

A calibration in the checkpoint is applied as its users would. Without one, the temperature that the
command ``calibrate`` would find is fitted to the validation set, without any test sample. Some
models have no best temperature; the report says why.
"""

from __future__ import annotations

from typing import NamedTuple

from softmax_torch.calibration import fit_temperature
from softmax_torch.report.run_results import EvaluatedSet, RunResults

__all__ = ["CalibratedTest", "calibrate_test"]


class CalibratedTest(NamedTuple):
    """The test set with calibrated logits, None without a calibration; a sentence about it."""

    test: EvaluatedSet | None
    description: str


def calibrate_test(results: RunResults) -> CalibratedTest:
    """Calibrate the logits of the test set."""
    calibration, source = results.calibration, "from the checkpoint"
    if calibration is None:
        source = (
            f"fitted for this report to the {len(results.val.y)} validation samples, because the "
            "checkpoint has no calibration"
        )
        try:
            calibration = fit_temperature(*results.val)
        except ValueError as error:
            reason = str(error).removeprefix("temperature: ")
            return CalibratedTest(
                None, f"There is no best temperature on the validation set: {reason}."
            )
    logits, y = results.test
    calibrated = EvaluatedSet(calibration(logits.double()), y)
    return CalibratedTest(calibrated, f"Calibrated by {calibration}, {source}.")
