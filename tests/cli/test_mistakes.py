"""A mistake in an argument or setting is refused in one line, with what would be right."""

from pathlib import Path

import pytest

from softmax_torch import cli
from softmax_torch.cli.given_settings import Given, Source
from softmax_torch.cli.jsonargparse_errors import in_one_line
from softmax_torch.cli.mistakes import nearest

FILES = {
    "syntax.yaml": "name: [\n",
    "empty.yaml": "",
    "list.yaml": "- a\n- b\n",
    "top.yaml": "nmae: x\n",
    "setting.yaml": "data: DigitsDataModule\nmodel:\n  nonsense: 3\n",
    "trainer.yaml": "trainer:\n  max_epoch: 3\n",
    "optimizer.yaml": "model: {optimizer: {class_path: torch.optim.SGD, init_args: {lrr: 1}}}\n",
    "bare.yaml": "data: {batch_size: 8}\n",
    "trainer_list.yaml": "trainer: [1, 2]\n",
    "callback.yaml": (
        "data: DigitsDataModule\ntrainer: {callbacks: [{class_path: EarlyStopping, "
        "init_args: {monitr: val/nll}}]}\n"
    ),
    "missing.yaml": "data: {class_path: nowhere.Data}\n",
    "layer.yaml": "data: {class_path: torch.nn.Linear}\n",
    "type.yaml": (
        "data: {class_path: softmax_torch.data.DigitsDataModule, init_args: {batch_size: many}}\n"
    ),
}

LIST = "digits, digits_gradient_descent, fashion_mnist, features, image_folder, linear_probe, "

EARLY = {
    "fits": "unknown command fits; nearest: fit",
    "info now": "info: expected no arguments, got now",
    "fit extra": "fit: unexpected argument extra; options begin with --",
    "fit --nam x": "fit: unknown option --nam; nearest: --name",
    "fit --max_epochs 3": "fit: unknown option --max_epochs; nearest: --trainer.max_epochs",
    "fit --lr 3": "fit: unknown option --lr; nearest: --model.optimizer.lr",
    "fit --trianer.devices 1": "fit: unknown option --trianer.devices; nearest: --trainer.devices",
    "test --resume": "test: unknown option --resume",
    "predict --topk 2": "predict: unknown option --topk; nearest: --top_k",
    "predict --top_k many": "top_k: expected a whole number, as in --top_k 10; got many",
    "predict --device cpu": "--device: expected --input beside it; else see --trainer.accelerator",
    "predict x --input y --data.seed 1": (
        "predict: expected no settings beside --input, got --data.seed 1"
    ),
    "calibrate --method magic": (
        "method: expected temperature, vector, conformal, threshold or laplace, as in --method "
        "temperature; got magic"
    ),
    "export x": "export: expected --output, got none",
    "fit --config": "--config: expected a file or a name after it, got none",
    "fit --config tabel": (
        f"--config: expected a file or one of {LIST}mnist, mnist_cnn, mnist_newton, table; got "
        "tabel, which does not exist; nearest: table"
    ),
    "fit --config=configs/table.yaml": (
        f"--config: expected a file or one of {LIST}mnist, mnist_cnn, mnist_newton, table; got "
        "configs/table.yaml, which does not exist; nearest: table"
    ),
    "fit --data.tarjet x --config table": (
        "unknown setting data.tarjet of TableDataModule; nearest: data.target"
    ),
    "fit --data.tarjet x": "unknown setting data.tarjet of DigitsDataModule; expected one of "
    "data.batch_size, data.seed, data.val_fraction",
    "fit --data.batch_size": "--data.batch_size: expected a value after it, got none",
    "fit --data.root x": "--data.root: expected --config beside it, such as --config image_folder "
    "or --config mnist",
    "fit --trainer.max_epoch 3": (
        "unknown setting trainer.max_epoch of Trainer; nearest: trainer.max_epochs"
    ),
    "fit --model.optimizer.lrr 3": (
        "unknown setting model.optimizer.lrr of SGD; nearest: model.optimizer.lr"
    ),
    "fit --model.solvr x": (
        "unknown setting model.solvr of LitSoftmaxRegression; nearest: model.solver"
    ),
    "fit --data TabelDataModule": "--data: unknown class TabelDataModule; nearest: TableDataModule",
    "fit --model LitClasifier": "--model: unknown class LitClasifier; nearest: LitClassifier",
    "fit --model.optimizer Adamm": "--model.optimizer: unknown class Adamm; nearest: Adam",
    "fit --model.lr_scheduler Cosine": (
        "--model.lr_scheduler: unknown class Cosine; nearest: CosineAnnealingLR"
    ),
    "fit --data torch.nn.Linear": (
        "--data: expected a data module, a subclass of TensorDataModule, got torch.nn.Linear"
    ),
    "fit --config syntax.yaml": (
        "--config: expected YAML in syntax.yaml, got in line 2, column 1: expected the node "
        "content, but found '<stream end>'"
    ),
    "fit --config empty.yaml": (
        "--config: expected settings in empty.yaml, as in 'name: digits', got an empty file"
    ),
    "fit --resume --config list.yaml": (
        "--config: expected settings in list.yaml, as in 'name: digits', got a list"
    ),
    "fit --config top.yaml": "top.yaml: unknown setting nmae; nearest: name",
    "fit --config setting.yaml": (
        "setting.yaml: unknown setting model.nonsense of LitSoftmaxRegression; expected one of "
        "model.C, model.bias, model.class_weight, model.label_smoothing, model.log_every_n_steps, "
        "model.lr_interval, model.lr_scheduler, model.metrics, model.optimizer, model.solver, "
        "model.steps_per_call, model.tol"
    ),
    "fit --config trainer.yaml": (
        "trainer.yaml: unknown setting trainer.max_epoch of Trainer; nearest: trainer.max_epochs"
    ),
    "fit --config optimizer.yaml": (
        "optimizer.yaml: unknown setting model.optimizer.lrr of SGD; nearest: model.optimizer.lr"
    ),
    "fit --config bare.yaml": (
        "fit: expected the kind of data, as in --data TableDataModule or in 'data: {class_path: "
        "softmax_torch.data.TableDataModule}', got none in bare.yaml"
    ),
    "fit --config trainer_list.yaml": (
        "trainer_list.yaml: trainer: expected settings by name, got [1, 2]"
    ),
    "fit --config missing.yaml": (
        "missing.yaml: data.class_path: expected a data module that can be imported, got "
        "nowhere.Data: No module named 'nowhere'"
    ),
    "fit --config layer.yaml": (
        "layer.yaml: data.class_path: expected a data module, a subclass of TensorDataModule, got "
        "torch.nn.Linear"
    ),
}
"""Mistakes that are found before Lightning is imported."""

LATE = {
    "fit --data.ignore date --config table": (
        "data.ignore: expected a list of texts or whole numbers or null, as in "
        "--data.ignore '[\"date\"]'; got date"
    ),
    "fit --config type.yaml": (
        "type.yaml: data.batch_size: expected a whole number or null, as in --data.batch_size 10; "
        "got many"
    ),
    "fit --model.C big": (
        "model.C: expected a number, a list of numbers or null, as in --model.C 0.1; got big"
    ),
    "fit --trainer.max_epochs many": (
        "trainer.max_epochs: expected a whole number or null, as in --trainer.max_epochs 10; got "
        "many"
    ),
    "fit --model.optimizer.lr high": "model.optimizer.lr: expected a number or a Tensor, as in "
    "--model.optimizer.lr 0.1; got high",
    "fit --seed_everything x": (
        "seed_everything: expected a whole number, true or false, as in --seed_everything 10; got x"
    ),
    "fit --model.solver newto": (
        "model.solver: expected auto, lbfgs, newton, gradient_descent or null, as in "
        "--model.solver auto; got newto"
    ),
    "fit --config callback.yaml": (
        "callback.yaml: unknown setting trainer.callbacks.monitr of EarlyStopping; nearest: "
        "trainer.callbacks.monitor"
    ),
    "fit --trainer.callbacks Nope": (
        "trainer.callbacks: expected a list[Callback], a Callback or null; got Nope"
    ),
    "fit --model.num_classes 7": ("model.num_classes: expected it to follow from the data, got 7"),
}
"""Mistakes in values, which the parser with the settings finds."""


@pytest.mark.parametrize("command", [*EARLY, *LATE])
def test_a_mistake_is_refused_in_one_line(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in FILES.items():
        (here / name).write_text(text)
    with pytest.raises(SystemExit) as stopped:
        cli.main(command.split())
    assert stopped.value.code == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: {EARLY.get(command) or LATE[command]}"
    assert hint.startswith("see: ")
    assert hint.endswith(" --help")
    assert not (here / "runs").exists()


def test_what_a_constructor_raises_arrives_unwrapped(here: Path) -> None:
    """jsonargparse wraps it into the reasons why a value fits no type of a union."""
    with pytest.raises(ValueError, match=r"^solver: expected neither an optimizer") as raised:
        cli.main(["fit", "--model.optimizer", "Adam", "--model.solver", "newton"])
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("max_epochs", "trainer.max_epochs"),
        ("data.batchsize", "data.batch_size"),
        ("BATCH_SIZE", "data.batch_size"),
        ("accel", "trainer.accelerator"),
        ("zzz", None),
    ],
)
def test_the_nearest_name(name: str, expected: str | None) -> None:
    names = ["trainer.max_epochs", "trainer.accelerator", "data.batch_size", "model.C"]
    assert nearest(name, names) == expected


def test_the_innermost_key_of_a_message_of_jsonargparse_counts() -> None:
    message = """Parser key "data":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'softmax_torch.data.TensorDataModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'softmax_torch.data.DigitsDataModule':
        Parser key "seed":
          Expected a <class 'int'>. Got value: x
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'class_path': 'softmax_torch.data.DigitsDataModule'}"""
    data = "softmax_torch.data.DigitsDataModule"
    given = Given([Source("my.yaml", {"data.seed": "x"}, {"data": data})], {"data": data})
    assert in_one_line(message, "fit", given) == (
        "my.yaml: data.seed: expected a whole number, as in --data.seed 10; got x"
    )


def test_an_unknown_message_of_jsonargparse_is_one_line() -> None:
    assert in_one_line("Some\n  other\n  message", "fit", Given([], {})) == "Some other message"
