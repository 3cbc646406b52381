"""The clock of a fit counts steps, not validation, and continues in a resumed run."""

from typing import Any

import pytest
from trainers import trainer

from softmax_torch.data import DigitsDataModule
from softmax_torch.training import LitSoftmaxRegression, training_clock
from softmax_torch.training.training_clock import TrainingClock


class Slow(LitSoftmaxRegression):
    """Training steps take 1 s, and validations 100, of a time that the test makes."""

    def __init__(self, now: list[float]) -> None:
        super().__init__(64, 10, steps_per_call=1000)
        self.now = now

    def training_step(self, batch: Any) -> None:
        super().training_step(batch)
        self.now[0] += 1

    def validation_step(self, batch: Any) -> None:
        super().validation_step(batch)
        self.now[0] += 100


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [5.0]
    monkeypatch.setattr(training_clock.time, "monotonic", lambda: time[0])
    return time


def test_validation_is_not_counted(now: list[float]) -> None:
    clock = TrainingClock()
    trainer(3, clock, num_sanity_val_steps=1).fit(Slow(now), DigitsDataModule())
    assert clock.seconds == 3
    assert now[0] == 5 + 100 + 3 * 101
    trainer(3, clock).validate(Slow(now), DigitsDataModule(), verbose=False)
    assert clock.seconds == 3


def test_a_resumed_run_continues_the_count(now: list[float]) -> None:
    first, second = TrainingClock(), TrainingClock()
    trainer(2, first).fit(Slow(now), DigitsDataModule())
    second.load_state_dict(first.state_dict())
    trainer(3, second).fit(Slow(now), DigitsDataModule())
    assert second.seconds == 2 + 3


def test_a_run_of_an_earlier_version_has_lightnings_timer() -> None:
    clock, run = TrainingClock(), trainer(1)
    clock.on_load_checkpoint(
        run, Slow([0.0]), {"callbacks": {"Timer": {"time_elapsed": {"train": 7.0}}}}
    )
    assert clock.seconds == 7
    clock.on_load_checkpoint(run, Slow([0.0]), {"callbacks": {"TrainingClock": {"seconds": 9.0}}})
    assert clock.seconds == 7  # Lightning loads that state next
