"""A checkpoint alone predicts raw files, in another folder and process."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mnist_files import write_mnist
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file
from support import Finished, in_forks

import softmax_torch
from softmax_torch import cli
from softmax_torch.cli import predictions, table_files
from softmax_torch.data import Split, TensorDataModule
from softmax_torch.predictor import PredictedRows
from softmax_torch.storage.atomic_files import PARTIAL_SUFFIX
from softmax_torch.storage.checkpoints import read_checkpoint

ROOT = Path(softmax_torch.__file__).parents[1]
MNIST = ["--data", "softmax_torch.data.MNISTDataModule", "--data.root", "data"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on generated images with the names and sizes of MNIST, and its test set as files."""
    top = tmp_path_factory.mktemp("run")
    write_mnist(top / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        cli.main(["fit", *MNIST, "--name", "mnist", "--trainer.max_epochs", "2"])
    from softmax_torch.data import MNISTDataModule

    data = MNISTDataModule(root=str(top / "data"), download=False)
    data.setup()
    images = data.splits["test"].x
    (top / "images").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.numpy()).save(top / "images" / f"{i:03d}.png")
    np.save(top / "images.npy", images.numpy())
    return top


@pytest.fixture(scope="module")
def elsewhere(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished, str]:
    """Predictions of the images by other processes, with a copy of the checkpoint alone.

    Their folder, what the program printed, and the packages that ``load`` imported.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(run / "runs" / "mnist" / "version_0" / "best.ckpt", folder / "copy.ckpt")
    args = ["predict", "--ckpt_path", "copy.ckpt", "--probabilities"]
    args += ["--input", str(run / "images"), "--output", "images.csv"]
    # A matrix product may have other last digits with another number of threads.
    there = f"""
import os, sys, torch
os.chdir({str(folder)!r})
torch.set_num_threads({torch.get_num_threads()})
"""
    program = f"""{there}
sys.argv[1:] = {args}
from softmax_torch.cli import main
main()
"""
    load = f"""{there}
import softmax_torch
softmax_torch.load("copy.ckpt").predict_file({str(run / "images.npy")!r}).__next__()
print(*[m for m in ("lightning", "torchmetrics", "jsonargparse") if m in sys.modules])
"""
    finished = in_forks({"program": (program, {}), "load": (load, {})})
    assert finished["load"].code == 0, finished["load"].stderr
    return folder, finished["program"], finished["load"].stdout


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run's checkpoint, alone in the current directory."""
    monkeypatch.chdir(tmp_path)
    best = run / "runs" / "mnist" / "version_0" / "best.ckpt"
    return Path(shutil.copy(best, tmp_path / "copy.ckpt"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_copied_checkpoint_predicts_raw_files_as_its_run_does(
    run: Path, elsewhere: tuple[Path, Finished, str]
) -> None:
    of_run = run / "runs" / "mnist" / "version_0" / "best.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run)
        cli.main(["predict", "--ckpt_path", str(of_run), "--probabilities"])
    expected = rows_of(of_run.with_name("predictions.csv"))
    folder, done, _ = elsewhere
    assert done.code == 0, done.stderr
    assert done.stdout == "predictions images.csv (100 samples, 10 classes)\n"
    found = rows_of(folder / "images.csv")
    assert [row.pop("id") for row in found] == [f"{i:03d}.png" for i in range(100)]
    assert [row.pop("id") for row in expected] == [str(i) for i in range(100)]
    assert found == expected


def test_load_returns_a_predictor_of_raw_inputs(run: Path, checkpoint: Path) -> None:
    found = softmax_torch.load(checkpoint)
    files = sorted((run / "images").iterdir())
    p = found.predict_proba(files)
    assert p.shape == (100, 10)
    assert not p.requires_grad  # no graph is kept
    torch.testing.assert_close(p.sum(1), torch.ones(100))
    assert torch.equal(p, found.predict_proba(np.load(run / "images.npy")))
    assert found.predict(files) == [found.class_names[c] for c in p.argmax(1)]
    assert found.class_names == tuple("0123456789")
    labels = torch.arange(100) % 10
    assert (p.argmax(1) == labels).double().mean() > 0.9
    pieces = list(found.predict_file(run / "images"))
    assert torch.equal(torch.cat([piece.probabilities for piece in pieces]), p)
    pieces[0].probabilities.clamp_(min=0.1)  # may be changed, unlike a tensor of inference mode


def test_prediction_needs_no_lightning(elsewhere: tuple[Path, Finished, str]) -> None:
    assert elsewhere[2].split() == []


def test_files_are_read_in_pieces(
    run: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = softmax_torch.load(checkpoint)
    whole = found.predict_proba(np.load(run / "images.npy"))
    monkeypatch.setattr("softmax_torch.predictor.PREDICTED_TOGETHER", 30)
    for name in ("images", "images.npy"):
        pieces = list(found.predict_file(run / name))
        assert [len(piece.ids) for piece in pieces] == [30, 30, 30, 10]
        torch.testing.assert_close(torch.cat([piece.probabilities for piece in pieces]), whole)


def test_predictions_are_written_as_they_come(tmp_path: Path) -> None:
    """Under another name until the file is complete; predictions are not kept in memory."""

    def pieces() -> Iterator[PredictedRows]:
        for i in range(3):
            yield PredictedRows([f"{'x' * 20000}{i}"], torch.tensor([[0.25, 0.75]]))
            [partial] = tmp_path.iterdir()
            assert partial.match(f".out.csv.*{PARTIAL_SUFFIX}")
            assert partial.stat().st_size > 10000 * (i + 1)

    file = predictions.PredictionFile(tmp_path / "out.csv", 1, False)
    file.write(pieces(), ["a", "b"])
    assert len(rows_of(file.path)) == 3
    assert list(tmp_path.iterdir()) == [file.path]


def test_a_file_that_another_process_wrote_is_kept(tmp_path: Path) -> None:
    file = predictions.PredictionFile(tmp_path / "out.csv", 1, False)

    def pieces() -> Iterator[PredictedRows]:
        yield PredictedRows(["0"], torch.tensor([[0.25, 0.75]]))
        file.path.write_text("theirs")

    with pytest.raises(FileExistsError, match=r"out\.csv has been written by another process"):
        file.write(pieces(), ["a", "b"])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs"]


def test_large_samples_are_read_in_smaller_pieces(
    run: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = softmax_torch.load(checkpoint)
    monkeypatch.setattr("softmax_torch.predictor.PIXELS", 40 * 28 * 28)
    pieces = list(found.predict_file(run / "images.npy"))
    assert [len(piece.ids) for piece in pieces] == [40, 40, 20]
    monkeypatch.setattr("softmax_torch.predictor.PIXELS", 1)
    assert len(next(found.predict_file(run / "images.npy")).ids) == 1


def test_a_calibration_is_used_when_asked(run: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"copy.ckpt: expected a checkpoint with a calibration"):
        softmax_torch.load(checkpoint, calibrated=True)
    content = read_checkpoint(checkpoint)
    content["calibration"] = {"scale": torch.tensor(0.5), "shift": torch.tensor(0.0)}
    torch.save(content, checkpoint)
    images = np.load(run / "images.npy")
    plain = softmax_torch.load(checkpoint).predict_proba(images)
    calibrated = softmax_torch.load(checkpoint, calibrated=True).predict_proba(images)
    torch.testing.assert_close(calibrated, (plain.log() / 2).softmax(1))


def test_formats(run: Path, checkpoint: Path) -> None:
    """The same rows in all of them, top classes first, and all digits."""
    flags = ["--input", str(run / "images.npy"), "--top_k", "3"]
    tables: list[list[dict[str, Any]]] = []
    for suffix in ("csv", "jsonl", "parquet"):
        output = f"out.{suffix}"
        cli.main(["predict", "--ckpt_path", "copy.ckpt", *flags, "--output", output])
        if suffix == "csv":
            tables.append(
                [
                    {k: float(v) if k.startswith("prob") else v for k, v in row.items()}
                    for row in rows_of(Path(output))
                ]
            )
        elif suffix == "jsonl":
            tables.append([json.loads(line) for line in Path(output).read_text().splitlines()])
        else:
            tables.append(parquet.read_table(output).to_pylist())
    assert tables[0] == tables[1] == tables[2]
    p = softmax_torch.load("copy.ckpt").predict_proba(np.load(run / "images.npy"))
    values, classes = p.topk(3)
    for row, v, c in zip(tables[0], values, classes, strict=True):
        assert [row[f"predicted{n}"] for n in ("", "_2", "_3")] == [str(int(x)) for x in c]
        given = torch.tensor([row[f"probability{n}"] for n in ("", "_2", "_3")])
        assert torch.equal(given, v)
    assert list(tables[0][0])[:3] == ["id", "predicted", "probability"]


@pytest.mark.parametrize(
    ("flags", "kind", "message"),
    [
        (["--output", "out.xlsx"], ValueError, r"ends in .csv, .jsonl, .parquet, got out.xlsx"),
        (["--output", "copy.csv"], FileExistsError, "expected a new name, got copy.csv"),
        (["--output", "no/out.csv"], FileNotFoundError, "expected a folder no, got none"),
        (["--top_k", "0"], ValueError, "top_k: expected a number of at least 1, got 0"),
        (["--input", "none"], FileNotFoundError, "got no such folder"),
        (["--input", "wrong.npy"], ValueError, r"expected shape \(n, 28, 28\), got \(2, 3\)"),
        (["--input", "objects.npy"], ValueError, "objects.npy: expected a .npy file of numbers"),
        (
            ["--ckpt_path", "none.ckpt"],
            FileNotFoundError,
            "none.ckpt: expected a checkpoint of a run, got no such file",
        ),
        (["--calibrated"], ValueError, "expected a checkpoint with a calibration"),
        (["--device", "gpu"], ValueError, "device: expected one that is here, got gpu: "),
    ],
)
def test_refused_predictions_leave_no_file(
    run: Path, checkpoint: Path, flags: list[str], kind: type[Exception], message: str
) -> None:
    Path("copy.csv").touch()
    np.save("wrong.npy", np.zeros((2, 3), np.uint8))
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    before = sorted(path.name for path in Path().iterdir())
    args = ["--ckpt_path", "copy.ckpt", "--input", str(run / "images.npy")]
    with pytest.raises(kind, match=message):
        cli.main(["predict", *args, *flags])
    assert sorted(path.name for path in Path().iterdir()) == before


def test_an_unreadable_image_leaves_no_file(
    run: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softmax_torch.predictor.PREDICTED_TOGETHER", 3)
    images = Path("images")
    images.mkdir()
    for i in range(7):
        shutil.copy(run / "images" / "000.png", images / f"{i}.png")
    (images / "5.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"got 1 that cannot(.|\n)*images/5.png"):
        cli.main(["predict", "--ckpt_path", "copy.ckpt", "--input", "images"])
    assert sorted(path.name for path in Path().iterdir()) == ["copy.ckpt", "images"]


def test_a_checkpoint_without_preprocessing_is_refused(run: Path, checkpoint: Path) -> None:
    content = read_checkpoint(checkpoint)
    del content["preprocessing"]
    torch.save(content, "old.ckpt")
    with pytest.raises(ValueError, match=r"old.ckpt: expected a checkpoint with the preprocessing"):
        softmax_torch.load("old.ckpt")


def test_changed_preprocessing_is_refused(run: Path, checkpoint: Path) -> None:
    content = read_checkpoint(checkpoint)
    content["preprocessing"]["class_names"][0] = "zero"
    torch.save(content, checkpoint)
    config = run / "runs" / "mnist" / "version_0" / "config.yaml"
    given = ["--config", str(config), "--data.root", str(run / "data")]
    with pytest.raises(ValueError, match=r"data: expected .* class names 0 in place of zero"):
        cli.main(["test", *given, "--ckpt_path", str(checkpoint)])


def test_a_net_is_rebuilt_by_the_name_of_its_backbone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model", "softmax_torch.training.LitClassifier", "--trainer.max_epochs", "1"]
    data = [*MNIST[:3], str(run / "data")]
    cli.main(["fit", *data, *model, "--name", "net"])
    best = Path("runs", "net", "version_0", "best.ckpt")
    cli.main(["predict", "--ckpt_path", str(best), "--probabilities"])
    expected = [float(row["probability"]) for row in rows_of(best.with_name("predictions.csv"))]
    p = softmax_torch.load(best).predict_proba(np.load(run / "images.npy"))
    torch.testing.assert_close(p.amax(1), torch.tensor(expected))
    content = read_checkpoint(best)
    del content["hyper_parameters"]["backbone"]
    torch.save(content, "nameless.ckpt")
    with pytest.raises(ValueError, match="expected a named backbone"):
        softmax_torch.load("nameless.ckpt")


class Vectors(TensorDataModule):
    def __init__(self) -> None:
        super().__init__(3, 2, 8, 0.25, 0, scale=0.5)

    def read(self) -> tuple[Split, Split]:
        y = torch.arange(40) % 2
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + 4 * y[:, None]
        return Split(x, y), Split(x, y)


def test_vectors_are_the_default_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a ``preprocessing`` of the data module: the numbers times its scale."""
    from lightning import Trainer

    from softmax_torch.training import LitSoftmaxRegression

    monkeypatch.chdir(tmp_path)
    trainer = Trainer(
        max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    model, data = LitSoftmaxRegression(3, 2), Vectors()
    trainer.fit(model, data)
    trainer.save_checkpoint("vectors.ckpt")
    found = softmax_torch.load("vectors.ckpt")
    x, _ = data.splits["test"]
    expected = model.model.predict_proba(x * 0.5)
    torch.testing.assert_close(found.predict_proba(x), expected)
    content = read_checkpoint(Path("vectors.ckpt"))
    content["state_dict"] = {name: of.double() for name, of in content["state_dict"].items()}
    torch.save(content, "double.ckpt")  # of a run in float64
    torch.testing.assert_close(softmax_torch.load("double.ckpt").predict_proba(x), expected)
    np.save("x.npy", x.numpy())
    torch.save({"x": x, "labels": torch.zeros(40)}, "x.pt")
    save_file({"x": x}, "x.safetensors")
    for name in ("x.npy", "x.pt", "x.safetensors"):
        [(ids, p)] = found.predict_file(name)
        torch.testing.assert_close(p, expected)
        assert ids == [str(i) for i in range(40)]
    torch.save({"features": x}, "other.pt")
    with pytest.raises(ValueError, match=r"other.pt: expected a tensor x, got features"):
        list(found.predict_file("other.pt"))
    assert set(found.predict(x)) == {"0", "1"}
    bad = x.clone()
    bad[7, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in row 7"):
        found.predict(bad)
    with pytest.raises(ValueError, match=r"expected shape \(n, 3\).*got \(40, 2\)"):
        found.predict(x[:, :2])


@pytest.mark.parametrize("suffix", table_files.WRITERS)
def test_files_whose_names_are_not_utf_8_are_named(suffix: str, tmp_path: Path) -> None:
    """The names are escaped, and remain different."""
    ids = [os.fsdecode(name) for name in (b"caf\xe9.png", b"caf\xe8.png")]
    file = predictions.PredictionFile(tmp_path / f"out{suffix}", 1, False)
    file.write([PredictedRows(ids, torch.tensor([[0.25, 0.75]] * 2))], ["a", "b"])
    content = file.path.read_bytes()
    assert [content.count(code) > 0 for code in (b"udce9.png", b"udce8.png")] == [True] * 2


def test_json_and_csv_take_names_of_any_kind(tmp_path: Path) -> None:
    p = torch.tensor([[0.25, 0.75]])
    names = ('comma, "quote"', "ñandú\n二")
    for suffix in (".csv", ".jsonl"):
        # top_k beyond the number of classes names them all.
        file = predictions.PredictionFile(tmp_path / f"out{suffix}", 9, True)
        file.write([PredictedRows(["a,b"], p)], names)
    [row] = rows_of(tmp_path / "out.csv")
    [line] = (tmp_path / "out.jsonl").read_text().splitlines()
    given = {"id": "a,b", "predicted": names[1], "probability": 0.75}
    given |= {"predicted_2": names[0], "probability_2": 0.25}
    given |= {f"p_{names[0]}": 0.25, f"p_{names[1]}": 0.75}
    assert json.loads(line) == given
    assert "二" in line
    assert row == {name: str(value) for name, value in given.items()}
