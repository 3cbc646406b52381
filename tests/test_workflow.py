"""From a table to answers: by the commands of docs/tables.md, and from a checkpoint alone."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pages import blocks, write_iris, write_passengers

import softmax_torch
from softmax_torch import cli
from softmax_torch.preprocessing.unknown_categories import UnknownCategoryWarning
from softmax_torch.storage.checkpoints import read_checkpoint

ROOT = Path(__file__).parents[1]
TABLES, INFERENCE = ROOT / "docs" / "tables.md", ROOT / "docs" / "inference.md"
CONFIG = str(ROOT / "configs" / "table.yaml")
CHECKPOINT = Path("runs", "table", "version_0", "last.ckpt")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_page_about_tables_goes_from_a_table_to_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    frame = write_iris(tmp_path)
    said = {}
    page = blocks(TABLES)[1:]
    assert [b.language for b in page] == ["sh", "text", "text", "sh", "python", "python"]
    for program, script, *args in page[0].commands():
        assert (program, script) == ("python", "train.py")
        cli.main(args)
        said[args[0]] = capsys.readouterr().out.splitlines()
    assert list(said) == ["fit", "calibrate", "test", "predict", "report", "export"]
    shown = page[1].code.splitlines()
    for command, starts in {
        "fit": ("val", "test"),
        "calibrate": ("calibrated",),
        "test": ("test",),
        "predict": ("predictions",),
        "report": ("evaluated",),
        "export": ("gives",),
    }.items():
        for line in said[command]:
            if line.startswith(starts):
                assert line in shown
    rows = rows_of(Path("species.csv"))
    assert [row["id"] for row in rows] == [str(row) for row in range(15)]
    right = [
        row["predicted"] == kind for row, kind in zip(rows, frame["species"][::-10], strict=True)
    ]
    assert np.mean(right) > 0.9
    assert all(float(row["probability"]) > 1 / 3 for row in rows)
    report = Path("runs", "table", "version_0", "report", "index.html").read_text()
    assert "petal length (cm)" in report
    [(_, _, *args)] = page[3].commands()
    cli.main(args)
    assert "evaluated   iris.csv (150 samples, 3 classes)" in capsys.readouterr().out
    # The Python blocks predict the same rows: from the checkpoint, then from the exported file.
    names: dict[str, Any] = {}
    for block in page[4:]:
        exec(compile(block.code, str(TABLES), "exec"), names)
        assert list(names["names"]) == [row["predicted"] for row in rows]
        p = np.asarray(names["probabilities"])
        assert np.abs(p.max(1) - [float(row["probability"]) for row in rows]).max() <= 1e-5


@pytest.mark.slow
def test_the_page_about_inference_goes_from_a_table_to_sets_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    frame = write_passengers(tmp_path)
    first, shown, whole_way, *code = blocks(INFERENCE)[1:]
    [(_, _, *args)] = first.commands()
    cli.main(args)
    assert capsys.readouterr().out.endswith(shown.code)
    for _, _, *args in whole_way.commands():
        cli.main(args)
    out = capsys.readouterr().out
    assert "odds ratio" in out
    assert " report runs/table/version_0\n" in out  # what to do after the command inference
    rows = rows_of(Path("answers.csv"))
    sets = [json.loads(row["set"]) for row in rows]
    covered = [kind in members for kind, members in zip(frame.survived, sets, strict=True)]
    assert 0.85 < np.mean(covered) < 0.97
    coefficients = rows_of(Path("runs", "table", "version_0", "coefficients.csv"))
    page = Path("runs", "table", "version_0", "report", "index.html").read_text()
    for row in coefficients:
        assert f"<td>{float(row['coefficient']):.4g}</td>" in page
    assert 'id="sets"' in page
    names: dict[str, Any] = {}
    for block in code:
        assert block.language == "python"
        exec(compile(block.code, str(INFERENCE), "exec"), names)


def customers(n: int, seed: int) -> pd.DataFrame:
    """Return a table of numbers, categories and booleans, some missing, with a name a row."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    frame = pd.DataFrame(
        {
            "who": [f"{seed}-{k}" for k in range(n)],
            "age": (30 + 10 * y + rng.normal(0, 5, n)).round(2),
            "city": np.array(["Oslo, N", "Århus", '"Rome"'])[(y + (rng.random(n) < 0.2)) % 3],
            "zone": 1 + (y + (rng.random(n) < 0.3)) % 3,
            "member": rng.random(n) < 0.3 + 0.2 * y,
            "bought": np.array(["boat", "bike", "nothing"])[y],
        }
    ).astype(object)
    for name in ("age", "city", "zone", "member"):
        frame.loc[rng.random(n) < 0.1, name] = None
    return frame


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on such a table, and its predictions for the test set."""
    top = tmp_path_factory.mktemp("customers")
    customers(200, 0).to_csv(top / "train.csv", index=False)
    test = customers(90, 1)
    test.loc[3, "city"] = "Bergen"  # a category that no training sample has
    test.to_csv(top / "test.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        cli.main(
            ["fit", "--config", CONFIG, "--data.file", "train.csv", "--data.target", "bought"]
            + ["--data.test_file", "test.csv", "--data.id_column", "who"]
            + ["--data.categorical", '["zone"]']
        )
        cli.main(["predict", "--ckpt_path", str(CHECKPOINT), "--probabilities"])
    return top


@pytest.mark.slow
def test_a_checkpoint_alone_predicts_as_its_run_does(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another process and folder, to the last bit, with a column of classes or without."""
    shutil.copy(trained / CHECKPOINT, tmp_path / "copy.ckpt")
    shutil.copy(trained / "test.csv", tmp_path)
    pd.read_csv(trained / "test.csv").drop(columns="bought").to_parquet(tmp_path / "test.parquet")
    expected = rows_of((trained / CHECKPOINT).with_name("predictions.csv"))
    assert [row["id"] for row in expected] == [f"1-{k}" for k in range(90)]
    truth = customers(90, 1)["bought"]
    assert np.mean([row["predicted"] == t for row, t in zip(expected, truth, strict=True)]) > 0.8
    code = """if True:
        import json, softmax_torch
        [(ids, p)] = softmax_torch.load("copy.ckpt").predict_file("test.csv")
        print(json.dumps([ids, p.tolist()]))
    """
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stderr
    ids, p = json.loads(done.stdout)
    assert ids == [row["id"] for row in expected]
    # Nine digits are written, which tell any two float32 apart.
    written = [
        [float(row[f"p_{name}"]) for name in ("bike", "boat", "nothing")] for row in expected
    ]
    assert torch.equal(torch.tensor(p), torch.tensor(written))
    monkeypatch.chdir(tmp_path)
    for name in ("test.csv", "test.parquet"):
        args = ["--ckpt_path", "copy.ckpt", "--probabilities", "--input", name]
        cli.main(["predict", *args, "--output", f"{name}.csv"])
        assert rows_of(tmp_path / f"{name}.csv") == expected


def test_rows_in_memory_get_the_predictions_of_the_file(trained: Path) -> None:
    found = softmax_torch.load(trained / CHECKPOINT)
    unknown = pytest.warns(UnknownCategoryWarning, match="column city: 1 of .* 'Bergen', treated")
    with unknown:
        p = found.predict_proba(str(trained / "test.csv"))
    with unknown:
        [(ids, of_file)] = found.predict_file(trained / "test.csv")
    assert torch.equal(of_file, p)
    assert ids == [f"1-{k}" for k in range(90)]
    frame = pd.read_csv(trained / "test.csv")  # in which zones are 1.0, 2.0 and NaN
    with unknown:
        assert torch.equal(found.predict_proba(frame), p)
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    with unknown:
        assert torch.equal(found.predict_proba(rows), p)
    assert found.predict(rows[:3]) == [found.class_names[c] for c in p[:3].argmax(1)]
    assert found.class_names == ("bike", "boat", "nothing")


class Evil:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("run"),)


def test_code_in_a_checkpoint_is_not_run(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy((trained / CHECKPOINT).with_name("config.yaml"), tmp_path)
    shutil.copy(trained / "test.csv", tmp_path)
    shutil.copy(trained / "train.csv", tmp_path)
    content = read_checkpoint(trained / CHECKPOINT)
    content["preprocessing"]["columns"].append(Evil())
    torch.save(content, "evil.ckpt")
    before = sorted(path.name for path in Path().iterdir())
    message = r"evil.ckpt: expected a checkpoint of a run, got a file that is damaged or of another"
    with pytest.raises(ValueError, match=message):
        softmax_torch.load("evil.ckpt")
    for args in (["test"], ["predict", "--input", "test.csv"], ["predict"], ["calibrate"]):
        with pytest.raises(ValueError, match=message):
            cli.main([*args, "--ckpt_path", "evil.ckpt"])
    assert sorted(path.name for path in Path().iterdir()) == before
    torch.load("evil.ckpt", weights_only=False)
    assert Path("run").exists()  # an unrestricted load runs the code
