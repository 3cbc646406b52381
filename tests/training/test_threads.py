"""Small steps run on one thread, by their sizes alone, unless the environment sets a number."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainers import trainer

from softmax_torch import cli, threads
from softmax_torch.data import DigitsDataModule
from softmax_torch.training import LitClassifier, LitSoftmaxRegression, closed_form


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, as torch finds them on two cores."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("SOFTMAX_TORCH_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Watched(nn.Module):
    """Records the number of threads, in training and in evaluation."""

    out_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[bool, int]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add((self.training, torch.get_num_threads()))
        return x.flatten(1)


def threads_of_fit(monkeypatch: pytest.MonkeyPatch, **options: Any) -> set[tuple[str, int]]:
    """Return the numbers of threads in the gradients and evaluations of a fit on digits."""
    seen = set()

    def recorded(name: str, function: Any) -> Any:
        def record(*args: Any) -> Any:
            seen.add((name, torch.get_num_threads()))
            return function(*args)

        return record

    gradient = recorded("gradient", closed_form.set_gradient)
    monkeypatch.setattr(closed_form, "set_gradient", gradient)
    lit = LitSoftmaxRegression(64, 10)
    lit.evaluated_logits = recorded("logits", lit.evaluated_logits)  # type: ignore[method-assign]
    metrics = recorded("metrics", lit.val_evaluation.result)
    lit.val_evaluation.result = metrics  # type: ignore[method-assign]
    trainer(2).fit(lit, DigitsDataModule(**options))
    assert torch.get_num_threads() == 2
    return seen


def all_on(threads: int) -> set[tuple[str, int]]:
    return {(name, threads) for name in ("gradient", "logits", "metrics")}


def test_a_small_fit_runs_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_of_fit(monkeypatch) == all_on(1)


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_NUM_THREADS", "2"), ("SOFTMAX_TORCH_THREADS", "all")]
)
def test_the_environment_decides(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert threads_of_fit(monkeypatch) == all_on(2)


def test_the_limit_counts_samples_of_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole training set as a batch is larger than the validation set."""
    monkeypatch.setattr(threads, "SMALL", 640 * 1000)
    large = threads_of_fit(monkeypatch, batch_size=None)
    assert large == {("gradient", 2), ("logits", 1), ("metrics", 1)}
    # The last batch of 617 is as large as the others for the rule: a resumed run may begin with it.
    assert ("gradient", 1) not in threads_of_fit(monkeypatch, batch_size=1001)


def test_a_backbone_has_all_threads() -> None:
    backbone = Watched()
    trainer(1).fit(LitClassifier(64, 10, backbone=backbone), DigitsDataModule())
    assert backbone.seen == {(True, 2), (False, 2)}


def test_threads_are_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise KeyError(torch.get_num_threads())

    monkeypatch.setattr(closed_form, "set_gradient", fails)
    with pytest.raises(KeyError, match="1"):
        trainer(1).fit(LitSoftmaxRegression(64, 10), DigitsDataModule())
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("flags", "device"),
    [
        ([], "cpu, 1 of 2 threads: a step is too small for more"),
        (
            [
                "--model.solver",
                "newton",
                "--model.C",
                "1",
                "--model.tol",
                "9",
                "--data.batch_size",
                "null",
            ],
            "cpu, 1 of 2 threads: an iteration is too small for more",
        ),
    ],
)
def test_fit_prints_the_number_of_threads(
    flags: list[str],
    device: str,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "small.yaml"
    config.write_text("data: {class_path: softmax_torch.data.DigitsDataModule}\n")
    cli.main(["fit", "--config", str(config), "--trainer.max_epochs", "1", *flags])
    assert f"device      {device}\n" in capsys.readouterr().out
