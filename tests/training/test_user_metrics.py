"""Metrics of torchmetrics that a configuration names are logged for validation and test."""

import csv
import doctest
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import BootStrapper, MeanMetric
from torchmetrics.classification import (
    BinaryAccuracy,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecisionRecallCurve,
)
from torchmetrics.functional.classification import multiclass_auroc, multiclass_f1_score
from trainers import trainer

from softmax_torch import cli
from softmax_torch.data import DigitsDataModule
from softmax_torch.training import LitClassifier, LitSoftmaxRegression, user_metrics
from softmax_torch.training.user_metrics import UserMetrics

F1 = {
    "class_path": "torchmetrics.classification.MulticlassF1Score",
    "init_args": {"num_classes": 10, "average": "macro"},
}


def model(**options: Any) -> LitSoftmaxRegression:
    torch.manual_seed(0)
    adam = partial(torch.optim.Adam, lr=0.01)
    return LitSoftmaxRegression(64, 10, optimizer=adam, **options)


class Each(Callback):
    """Figures of each validation, and what they should be."""

    def __init__(self) -> None:
        self.got: list[float] = []
        self.expected: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        x, y = trainer.datamodule.splits["val"]  # type: ignore[attr-defined]
        p = pl_module.logits(x / 16).softmax(1)
        self.got.append(float(trainer.callback_metrics["val/f1"]))
        self.expected.append(float(multiclass_f1_score(p, y, 10, average="macro")))


def test_each_epoch_has_its_own_value() -> None:
    """The value is of the whole set and its class probabilities, as AUROC needs."""
    each, data = Each(), DigitsDataModule()
    metrics = {"f1": MulticlassF1Score(10), "auroc": MulticlassAUROC(10)}
    run, lit = trainer(3, each), model(metrics=metrics)
    run.fit(lit, data)
    assert each.got == pytest.approx(each.expected, rel=1e-6)
    assert len(set(each.got)) == 3
    [test] = run.test(lit, data, verbose=False)
    x, y = data.splits["test"]
    p = lit.logits(x / 16).softmax(1)
    assert test["test/auroc"] == pytest.approx(float(multiclass_auroc(p, y, 10)), rel=1e-6)
    assert {"test/accuracy", "test/nll", "test/ece", "test/f1"} <= test.keys()


def test_examples_of_the_module() -> None:
    text = user_metrics.__doc__
    assert text is not None
    example = yaml.safe_load(text.split("configuration:\n")[1].split("logs ")[0])
    made = UserMetrics(example["model"]["metrics"], 10)
    assert made.metrics["macro_f1"].average == "macro"
    assert doctest.testmod(user_metrics) == (0, 3)


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        (MulticlassF1Score(10), {"MulticlassF1Score"}),
        ([MulticlassF1Score(10), MulticlassAUROC(10)], {"MulticlassF1Score", "MulticlassAUROC"}),
        ({"a": MulticlassF1Score(10), "b": F1}, {"a", "b"}),
        (F1, {"MulticlassF1Score"}),
        ([F1, MulticlassAUROC(10)], {"MulticlassF1Score", "MulticlassAUROC"}),
        (
            {
                "class_path": "torchmetrics.F1Score",
                "init_args": {"task": "multiclass", "num_classes": 10},
            },
            {"MulticlassF1Score"},
        ),
        (None, set()),
        ([], set()),
    ],
)
def test_ways_to_name_metrics(metrics: Any, names: set[str]) -> None:
    result = UserMetrics(metrics, 10).result(torch.eye(10), torch.arange(10))
    assert result.keys() == names
    assert [float(value) for value in result.values()] == pytest.approx([1.0] * len(names))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"f1": MulticlassF1Score(3)}, "expected f1 for the 10 classes .*, got num_classes=3"),
        (MulticlassAccuracy(11), "expected MulticlassAccuracy for the 10 .*num_classes=11"),
        ({"f1": F1 | {"init_args": {"num_classes": 3}}}, "expected f1 for the 10 classes"),
        ({"b": BinaryAccuracy()}, r"expected b to take class probabilities \(n, 10\)"),
        ({"mean": MeanMetric()}, "expected mean to take class probabilities"),
        ({"c": MulticlassConfusionMatrix(10)}, r"c to return one number, got shape \(10, 10\)"),
        ({"c": MulticlassPrecisionRecallCurve(10)}, "c to return one number, got tuple"),
        ({"c": BootStrapper(MulticlassAUROC(10))}, "c to return one number, got dict"),
        ({"nll": MulticlassAccuracy(10)}, "other than accuracy, nll, ece, got nll"),
        ([MulticlassAccuracy(10), MulticlassAccuracy(10)], "different names, .*, got MulticlassAc"),
        ({"f1": 3}, "expected metrics of torchmetrics, or class_path .* got 3 for f1"),
        ("f1", "expected metrics of torchmetrics, or class_path .* got 'f1'"),
        ({"f1": F1 | {"options": 1}}, "class_path and init_args of each, got"),
        ({"f1": {"class_path": "torchmetrics.nothing.F1"}}, "nothing.F1 cannot be made for f1: No"),
        ({"f1": {"class_path": "torchmetrics.F2"}}, "torchmetrics.F2 cannot be made for f1"),
        (
            {"f1": {"class_path": "torch.nn.Linear"}},
            "Linear cannot be made for f1: it is not a class",
        ),
        ({"f1": {"class_path": F1["class_path"]}}, "cannot be made for f1: .* 'num_classes'"),
        ({"f1": {"class_path": "f1"}}, "f1 cannot be made for f1"),
    ],
)
def test_metrics_that_do_not_fit_are_named_at_once(metrics: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"metrics: .*{message}"):
        model(metrics=metrics)


def test_random_numbers_of_a_run_are_untouched() -> None:
    states = []
    for metrics in (None, {"f1": MulticlassF1Score(10)}):
        model(metrics=metrics)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("kind", [LitClassifier, LitSoftmaxRegression])
def test_checkpoints_do_not_hold_metrics(kind: Any, tmp_path: Path) -> None:
    """A run may therefore be resumed and evaluated with other metrics."""
    data = DigitsDataModule(batch_size=256)
    metrics = {"f1": MulticlassF1Score(10), "auroc": MulticlassAUROC(10, thresholds=5)}
    lits = [kind(64, 10, metrics=of) for of in (metrics, None)]
    assert list(lits[0].state_dict()) == list(lits[1].state_dict())
    assert lits[0].hparams == lits[1].hparams
    run = trainer(1)
    run.fit(lits[0], data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    path = tmp_path / "a.ckpt"
    again = kind.load_from_checkpoint(path, weights_only=True)
    assert again.user_metrics.metrics == {}
    more = trainer(2)
    more.fit(lits[1], data, ckpt_path=path, weights_only=True)
    assert "val/f1" not in more.callback_metrics
    [test] = trainer(1).test(kind(64, 10, metrics=F1), data, path, False, weights_only=True)
    assert "test/MulticlassF1Score" in test


def test_a_configuration_names_them(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("metrics.yaml").write_text(
        yaml.safe_dump(
            {
                "data": {"class_path": "softmax_torch.data.DigitsDataModule"},
                "model": {"metrics": {"macro_f1": F1}},
                "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
            }
        )
    )
    cli.main(["fit", "--config", "metrics.yaml"])
    folder = Path("runs/softmax_regression/version_0")
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["val/macro_f1"]) for row in rows) == 1
    out = capsys.readouterr().out
    assert "macro f1 0." in out
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"][
        "metrics"
    ] == {"macro_f1": F1}
    # the run goes on, and its checkpoint is evaluated, with the same metric
    cli.main(["fit", "--resume", str(folder), "--trainer.max_epochs", "2"])
    cli.main(["test", "--ckpt_path", str(folder / "best.ckpt")])
    assert capsys.readouterr().out.count("macro f1 0.") == 3
    with pytest.raises(ValueError, match="metrics: expected MulticlassF1Score for the 10 classes"):
        cli.main(
            ["fit", "--config", "metrics.yaml", "--name", "b"]
            + ["--model.metrics", str(F1 | {"init_args": {"num_classes": 4}})]
        )
    assert not Path("runs/b").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_metrics_move_to_the_device() -> None:
    def on(device: str) -> Tensor:
        p, y = torch.eye(3, device=device), torch.tensor([0, 1, 1], device=device)
        return metrics.result(p, y)["f1"]

    metrics = UserMetrics({"f1": MulticlassF1Score(3)}, 3)
    assert on("cuda").device.type == "cuda"
    assert float(on("cuda")) == float(on("cpu"))
