"""Commands on new tables: unknown categories are reported, and labelled files are scored."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from softmax_torch import cli

CONFIG = Path(__file__).parents[2] / "configs" / "table.yaml"
CHECKPOINT = "runs/table/version_0/last.ckpt"


def prices(n: int, seed: int) -> pd.DataFrame:
    """Return rows with prices and zip codes as text, which pandas would read as numbers."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    shown = np.where(rng.random(n) < 0.8, y, rng.integers(0, 3, n))
    price = np.array(["1.50", "2.25", "3.10"])[shown]
    code = np.array(["01234", "20500", "00501"])[rng.integers(0, 3, n)]
    return pd.DataFrame({"price": price, "zip": code, "kind": np.array(["b", "c", "a"])[y]})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on such a table."""
    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prices(150, 0).to_csv("a.csv", index=False)
        categorical = '["price", "zip"]'
        flags = ["--data.file", "a.csv", "--data.target", "kind", "--data.categorical", categorical]
        cli.main(["fit", "--config", str(CONFIG), *flags])
    return folder


@pytest.fixture
def here(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder with a link to the run."""
    (tmp_path / "runs").symlink_to(run / "runs")
    (tmp_path / "a.csv").symlink_to(run / "a.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predicted(name: str, *flags: str) -> bytes:
    output = Path(f"{name}.out.csv")
    args = ["--ckpt_path", CHECKPOINT, "--input", name, "--output", str(output), *flags]
    cli.main(["predict", *args])
    return output.read_bytes()


def test_a_frame_of_pandas_predicts_what_its_file_does(here: Path) -> None:
    new = prices(30, 1).drop(columns="kind")
    new.to_csv("b.csv", index=False)
    frame = pd.read_csv("b.csv")
    assert frame.dtypes.astype(str).tolist() == ["float64", "int64"]
    frame.to_parquet("b.parquet")
    frame.to_csv("b.csv.gz", index=False)
    frame.to_json("b.jsonl", orient="records", lines=True)
    results = {predicted(name) for name in ("b.csv", "b.parquet", "b.csv.gz", "b.jsonl")}
    assert len(results) == 1


def test_unknown_categories_are_reported_or_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = prices(30, 1).drop(columns="kind")
    new.loc[3:5, "zip"] = "9999"
    new.to_csv("b.csv", index=False)
    predicted("b.csv")
    line = "unknown     column zip: 3 of 30 values, such as '9999', treated as no category\n"
    assert capsys.readouterr().err == line
    with pytest.raises(ValueError, match=r"b.csv, line 5, column zip: expected .* got 9999$"):
        predicted("b.csv", "--unknown", "refuse", "--output", "no.csv")
    assert not Path("no.csv").exists()
    with pytest.raises(SystemExit):
        cli.main(["predict", "--ckpt_path", CHECKPOINT, "--unknown", "refuse"])
    assert "--unknown: expected --input beside it; else see --data.unk" in capsys.readouterr().err


def test_a_labelled_file_is_scored_as_the_test_set_is(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = prices(150, 0)
    cli.main(["predict", "--ckpt_path", CHECKPOINT, "--output", "test.csv"])
    rows = pd.read_csv("test.csv")["id"]
    typed = frame.loc[rows].astype({"price": float, "zip": int}).rename(columns={"kind": "sort"})
    typed.to_parquet("labelled.parquet")
    capsys.readouterr()
    cli.main(["test", "--ckpt_path", CHECKPOINT])
    expected = capsys.readouterr().out
    args = ["test", "--ckpt_path", CHECKPOINT, "--input", "labelled.parquet"]
    cli.main([*args, "--target", "sort"])
    evaluated, figures = capsys.readouterr().out.splitlines()
    assert evaluated == "evaluated   labelled.parquet (30 samples, 3 classes)"
    assert [figures] == [line for line in expected.splitlines() if line.startswith("test")]
    with pytest.raises(ValueError, match=r"labelled.parquet: expected column kind, got columns"):
        cli.main(args)
    frame.loc[2, "kind"] = None
    frame.to_csv("b.csv", index=False)
    args = ["test", "--ckpt_path", CHECKPOINT, "--input", "b.csv"]
    with pytest.raises(ValueError, match=r"b.csv, line 4, column kind: expected a class, got a"):
        cli.main(args)
    cli.main([*args, "--drop_unlabelled"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "unlabelled  1 of 150 rows of b.csv have no class and are left out"
    assert lines[1] == "evaluated   b.csv (149 samples, 3 classes)"
    with pytest.raises(SystemExit):
        cli.main(["test", "--ckpt_path", CHECKPOINT, "--target", "kind"])
    assert "--target: expected --input beside it" in capsys.readouterr().err


def test_only_tables_are_scored(digits: tuple[Path, str], here: Path) -> None:
    with pytest.raises(ValueError, match=r"test: expected the checkpoint of a table beside --inp"):
        cli.main(["test", "--ckpt_path", str(digits[0]), "--input", "a.csv"])
    with pytest.raises(ValueError, match="test: expected a run or a checkpoint after it"):
        cli.main(["test", "--input", "a.csv"])
