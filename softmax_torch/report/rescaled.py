"""The test set before and after the calibration that there is, or could be.

A checkpoint's own calibration is what its users have; where it has none, the temperature that
``calibrate`` would put there is fitted to the validation set, on which it has seen none of the
samples that it is judged by. Some models have no best temperature, and then that is the finding.
"""

from __future__ import annotations

from typing import NamedTuple

from softmax_torch.calibration import fit_temperature
from softmax_torch.report.findings import Evaluated, Findings

__all__ = ["Rescaled", "rescaled"]


class Rescaled(NamedTuple):
    """The test set after calibration, None where there is none, and a sentence on it."""

    test: Evaluated | None
    words: str


def rescaled(findings: Findings) -> Rescaled:
    """Calibrate the logits of the test set."""
    calibration, source = findings.calibration, "the checkpoint's own"
    if calibration is None:
        source = (
            f"fitted for this report on the {len(findings.val.y)} validation samples; the "
            "checkpoint has none"
        )
        try:
            calibration = fit_temperature(*findings.val)
        except ValueError as error:
            reason = str(error).removeprefix("temperature: ")
            return Rescaled(None, f"There is no best temperature on the validation set: {reason}.")
    logits, y = findings.test
    calibrated = Evaluated(calibration(logits.double()), y)
    return Rescaled(calibrated, f"Calibration by {calibration}, {source}.")
