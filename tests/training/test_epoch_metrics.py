"""Metrics of an epoch, in one process and in several."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from softmax_torch.functional import cross_entropy
from softmax_torch.training import LitSoftmaxRegression
from softmax_torch.training.epoch_metrics import EvaluationMetrics, TrainingMetrics


class Group:
    """Threads that add tensors up as processes do."""

    def __init__(self, size: int) -> None:
        self.barrier, self.parts = threading.Barrier(size), [torch.empty(0)] * size

    def reduce(self, rank: int, x: Tensor) -> Tensor:
        self.parts[rank] = x
        self.barrier.wait(10)
        total = torch.stack(self.parts).sum(0)
        self.barrier.wait(10)
        return total


def samples(n: int, C: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(n, C, generator=generator)
    return z, torch.randint(C, (n,), generator=generator)


def collect(z: Tensor, y: Tensor, batch: int = 64) -> EvaluationMetrics:
    evaluation = EvaluationMetrics()
    for part in zip(z.split(batch), y.split(batch), strict=True):
        evaluation.add(*part)
    return evaluation


def one_process(metrics: EvaluationMetrics | TrainingMetrics) -> dict[str, float]:
    return {name: float(x) for name, x in metrics.result(reduce=lambda x: x).items()}


def test_accuracy_and_nll_of_an_evaluation_are_torchmetrics_to_the_bit() -> None:
    z, y = samples(1001)
    y[:200] = 0  # the classes are of different sizes
    accuracy, nll = MulticlassAccuracy(4, average="micro"), MeanMetric()
    accuracy.update(z, y)
    nll.update(cross_entropy(z, y, reduction="none"))
    evaluation = collect(z, y)
    assert [len(tensor) for tensor in evaluation.samples()] == [1001, 1001]
    got = one_process(evaluation)
    assert got["accuracy"] == float(accuracy.compute())
    assert got["nll"] == float(nll.compute())
    for average in ("macro", "weighted"):
        f1 = f1_score(y, z.argmax(1), average=average)
        assert got[f"{average}_f1"] == pytest.approx(f1, rel=1e-6)
    assert evaluation.logits == evaluation.targets == []  # ready for the next epoch


@pytest.mark.parametrize("sizes", [(600, 401), (1001, 0), (3, 500, 498)])
def test_processes_with_parts_of_the_samples_agree_with_one(sizes: tuple[int, ...]) -> None:
    z, y = samples(1001)
    expected, group = one_process(collect(z, y)), Group(len(sizes))
    parts = zip(z.split(sizes), y.split(sizes), strict=True)
    with ThreadPoolExecutor(len(sizes)) as pool:
        jobs = [
            pool.submit(collect(*part).result, partial(group.reduce, rank))
            for rank, part in enumerate(parts)
        ]
        results = [job.result() for job in jobs]
    for got in results:
        assert float(got["accuracy"]) == expected["accuracy"]
        for name in ("balanced_accuracy", "macro_f1", "weighted_f1"):
            assert float(got[name]) == expected[name]
        assert float(got["ece"]) == expected["ece"]
        assert float(got["nll"]) == pytest.approx(expected["nll"], rel=1e-6)


def test_training_sums_are_the_same_bits_in_any_order() -> None:
    z, y = samples(1001)
    objectives = torch.rand(40, generator=torch.Generator().manual_seed(1))
    blocks = list(zip(z.split(77), y.split(77), strict=True))
    one, other = TrainingMetrics(), TrainingMetrics()
    one.add_steps(objectives)
    for block in blocks:
        one.add_rows(*block)
    for block in reversed(blocks):
        other.add_rows(*block)
    for part in objectives.flip(0).split(7):
        other.add_steps(part)
    assert one.sums is not None
    assert other.sums is not None
    assert torch.equal(one.sums, other.sums)
    got = one_process(one)
    assert got["loss"] == pytest.approx(float(objectives.mean()), abs=1e-6)
    assert got["nll"] == pytest.approx(float(cross_entropy(z, y)), abs=1e-6)
    assert got["accuracy"] == pytest.approx(float((z.argmax(1) == y).float().mean()))
    assert one.sums is None


def test_mixed_images_have_an_objective_alone() -> None:
    metrics = TrainingMetrics()
    metrics.add_steps(torch.tensor([1.0, 2.0]))
    assert one_process(metrics) == {"loss": 1.5}


def test_a_model_names_the_metrics_that_it_logs() -> None:
    # Callbacks that watch another name are refused.
    evaluation = EvaluationMetrics()
    evaluation.add(torch.eye(3), torch.tensor([0, 1, 1]))
    logged = evaluation.result(reduce=lambda total: total)
    assert LitSoftmaxRegression(2, 3).evaluation_metric_names() == [*logged]
