"""Small fits, predictions, calibrations and intervals run on one thread, and restore the number."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from torch import nn

from softmax_torch import SoftmaxClassifier, SoftmaxRegression, calibration, solvers, threads
from softmax_torch.modules import Classifier
from softmax_torch.predictor import Predictor
from softmax_torch.preprocessing import FeaturesPreprocessing
from softmax_torch.report import bootstrap
from softmax_torch.solvers import run
from softmax_torch.solvers.inference import covariance

DIGITS = load_digits(return_X_y=True)
IRIS = load_iris(return_X_y=True)
OVERLAPPING = IRIS[0][50:, :2], IRIS[1][50:] - 1


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, as torch finds them on two cores, before and after each test."""
    for name in ("OMP_NUM_THREADS", "SOFTMAX_TORCH_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The numbers of threads in certificates, Hessians, logits and steps of calibrations."""
    numbers: set[int] = set()

    def record(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def recorded(*args: Any, **options: Any) -> Any:
            numbers.add(torch.get_num_threads())
            return function(*args, **options)

        monkeypatch.setattr(owner, name, recorded)

    record(run, "certify")
    record(run, "newton_bound")
    record(covariance, "information")
    record(SoftmaxRegression, "logits")
    record(calibration, "_derivatives")
    record(calibration, "_vector_objective")
    record(bootstrap, "_percentiles")
    return numbers


def predictor(**options: Any) -> Predictor:
    net = Classifier(nn.Identity(), SoftmaxRegression(4, 3))
    return Predictor(options.get("net", net), FeaturesPreprocessing(4, "abc"))


def scored(n: int) -> bootstrap.SampleScores:
    return bootstrap.score_samples(*logits(n))


def logits(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(n) % 3
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    return z + torch.eye(3)[y], y


SMALL: dict[str, Callable[[], Any]] = {
    "fit on digits": lambda: solvers.fit(*DIGITS),
    "fit without a penalty": lambda: solvers.fit(*OVERLAPPING, C=float("inf")),
    "path": lambda: solvers.path(*IRIS, [0.1, 1.0]),
    "cross_validate": lambda: solvers.cross_validate(*IRIS, [1.0], folds=2),
    "estimator": lambda: SoftmaxClassifier().fit(*IRIS),
    "inference": lambda: solvers.inference(*OVERLAPPING),
    "predict": lambda: predictor().predict(IRIS[0]),
    "temperature": lambda: calibration.fit(*logits(50)),
    "vector": lambda: calibration.fit(*logits(50), "vector"),
    "bootstrap": lambda: bootstrap.intervals(scored(50)),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_computation_has_one_thread(name: str, seen: set[int]) -> None:
    SMALL[name]()
    assert seen == {1}


LARGE: dict[str, Callable[[], Any]] = {
    "many features": lambda: solvers.fit(torch.eye(2, threads.WIDE + 1), [0, 1]),
    "many samples": lambda: predictor().predict(torch.ones(threads.SMALL // 12 + 1, 4)),
    "many logits": lambda: calibration.fit(*logits(threads.SMALL // 24 + 1)),
    "many resampled": lambda: bootstrap.intervals(scored(threads.SMALL // 1000 + 1)),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_computation_has_all_threads(name: str, seen: set[int]) -> None:
    LARGE[name]()
    assert seen == {2}


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_NUM_THREADS", "2"), ("SOFTMAX_TORCH_THREADS", "all")]
)
def test_the_environment_asks_for_all_threads(
    name: str, value: str, seen: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    solvers.fit(*IRIS)
    assert seen == {2}


def test_an_unknown_choice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTMAX_TORCH_THREADS", "4")
    with pytest.raises(ValueError, match="SOFTMAX_TORCH_THREADS: expected auto or all, got 4"):
        solvers.fit(*IRIS)


def test_a_callback_of_a_fit_has_all_threads(seen: set[int]) -> None:
    """Users evaluate on other data there."""
    numbers: set[int] = set()
    solvers.fit(*IRIS, callback=lambda _: numbers.add(torch.get_num_threads()))
    assert (numbers, seen) == ({2}, {1})


def test_the_number_is_restored_after_an_error() -> None:
    with pytest.raises(ValueError, match="NaN"):
        solvers.fit([[float("nan")], [1.0]], [0, 1])
    with pytest.raises(ValueError, match="separate"):
        solvers.fit([[0.0], [1.0]], [0, 1], C=float("inf"))
