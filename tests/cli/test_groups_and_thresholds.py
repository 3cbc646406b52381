"""From a CSV file to figures by group and to decisions by a threshold, and the page with both."""

import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    recall_score,
    roc_auc_score,
)

import softmax_torch
from softmax_torch import cli
from softmax_torch.data import TableDataModule
from softmax_torch.decision_threshold import DecisionThreshold
from softmax_torch.report import evaluation, group_metrics, page, trainer
from softmax_torch.report.run_results import Groups
from softmax_torch.storage.checkpoints import read_checkpoint

CHECKPOINT = "runs/patients/version_0/last.ckpt"
TABLE = ["--config", "table", "--data.file", "patients.csv", "--data.target", "state"]


def patients(n: int = 600, seed: int = 0) -> pd.DataFrame:
    """Return patients of three sites, few of them sick; one site measures a column badly."""
    rng = np.random.default_rng(seed)
    site = rng.choice(["north", "south", "east"], n, p=[0.6, 0.35, 0.05])
    sick = rng.random(n) < 0.2
    a, b = rng.normal(size=(2, n)) + 1.5 * sick
    a += (site == "south") * rng.normal(size=n) * 2
    state = np.where(sick, "sick", "healthy")
    return pd.DataFrame({"a": a, "b": b, "site": site, "state": state})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on such a table, with groups."""
    folder = tmp_path_factory.mktemp("patients")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patients().to_csv("patients.csv", index=False)
        flags = ["--data.group_column", "site", "--name", "patients"]
        cli.main(["fit", *TABLE, *flags, "--data.test_fraction", "0.5"])
    return folder


@pytest.fixture
def here(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as working directory."""
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Run a command; return what it printed, by label. A line without one has that of its place."""
    capsys.readouterr()
    cli.main(args)
    lines = capsys.readouterr().out.splitlines()
    return {line[:12].strip() or "more": line[12:] for line in lines}


def test_the_group_is_no_feature_and_prediction_does_not_need_it(here: Path) -> None:
    state = read_checkpoint(Path(CHECKPOINT))["preprocessing"]
    assert [column["name"] for column in state["columns"]] == ["a", "b"]
    assert state["group_column"] == "site"
    patients()[["a", "b"]].to_csv("new.csv", index=False)
    cli.main(["predict", "--ckpt_path", CHECKPOINT, "--input", "new.csv", "--output", "p.csv"])
    assert len(pd.read_csv("p.csv")) == 600


def test_figures_of_the_test_set_and_its_groups(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rank, by_group = Mock(wraps=evaluation.rank), Mock(wraps=group_metrics.by_group)
    monkeypatch.setattr(evaluation, "rank", rank)
    monkeypatch.setattr(group_metrics, "by_group", by_group)
    found = printed(["test", CHECKPOINT, "--output", "figures.csv"], capsys)
    assert rank.call_count == by_group.call_count == 1  # for the lines and the file
    args = ["predict", CHECKPOINT, "--probabilities", "--output", "p.csv"]
    cli.main(args)
    predicted = pd.read_csv("p.csv")
    rows = patients().loc[predicted["id"]].reset_index(drop=True)
    y, decided = rows["state"] == "sick", predicted["predicted"] == "sick"
    p = predicted["p_sick"]
    ap = [average_precision_score(y, p), average_precision_score(~y, 1 - p)]
    assert found["more"].split("  ") == [
        f"macro f1 {f1_score(y, decided, average='macro'):.4f}",
        f"weighted f1 {f1_score(y, decided, average='weighted'):.4f}",
        f"macro auc {roc_auc_score(y, p):.4f}",
        f"macro ap {np.mean(ap):.4f}",
    ]
    table = pd.read_csv("figures.csv").fillna({"group": "", "class": ""})
    table = table.set_index(["group", "class", "figure"])
    assert table.loc[("", "sick", "ap"), "value"] == pytest.approx(ap[0], abs=1e-6)
    accuracy = {}
    for site, of in rows.groupby("site"):
        at = of.index
        accuracy[site] = (y[at] == decided[at]).mean()
        assert table.loc[(site, "", "accuracy"), "value"] == pytest.approx(accuracy[site])
        expected = balanced_accuracy_score(y[at], decided[at])
        assert table.loc[(site, "", "balanced_accuracy"), "value"] == pytest.approx(expected)
        recall = recall_score(y[at], decided[at])
        assert table.loc[(site, "sick", "recall"), "value"] == pytest.approx(recall)
        assert table.loc[(site, "", "nll"), "samples"] == len(at)
    gap = abs(accuracy["north"] - accuracy["south"])  # of east there are too few
    assert found["groups"].startswith(f"3 of site: largest gap in accuracy {gap:.4f} (")
    assert found["groups"].endswith(", north above south")
    assert "figures.csv" in found["figures"]
    with pytest.raises(FileExistsError, match=r"figures.csv"):
        cli.main(["test", CHECKPOINT, "--output", "figures.csv"])


def test_a_labelled_file_has_groups_if_it_has_the_column(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = patients(400, 1)
    frame.to_csv("new.csv", index=False)
    frame.rename(columns={"site": "place"}).to_csv("other.csv", index=False)
    args = ["test", CHECKPOINT, "--input"]
    with_groups = printed([*args, "new.csv", "--output", "new_figures.csv"], capsys)
    north = pd.read_csv("new_figures.csv").set_index(["group", "figure"]).loc["north"]
    assert north.loc["nll", "samples"] == (frame["site"] == "north").sum()
    assert with_groups["groups"].startswith("3 of site: largest gap in accuracy ")
    without = printed([*args, "other.csv"], capsys)
    assert without["groups"] == "other.csv has no column site: no groups"
    assert without["test"] == with_groups["test"]
    named = printed([*args, "other.csv", "--group_column", "place"], capsys)
    assert named["groups"] == with_groups["groups"].replace("site", "place")
    with pytest.raises(ValueError, match=r"other.csv: expected column site, got columns a, b, pla"):
        cli.main([*args, "other.csv", "--group_column", "site"])
    frame[frame["site"] == "north"].to_csv("north.csv", index=False)
    alone = printed([*args, "north.csv"], capsys)
    assert alone["groups"] == "1 of site: fewer than two have 30 samples, no gap is given"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.group_column", "region"], r"patients.csv: expected column region, got columns a"),
        (["--data.group_column", "state"], r"column state: expected one use of it, got two"),
        (
            ["--data.group_column", "one"],
            r"column one: expected several groups in the test samples, got x alone",
        ),
    ],
)
def test_a_column_that_gives_no_groups_is_refused(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    patients(60).assign(one="x").to_csv("patients.csv", index=False)
    with pytest.raises(ValueError, match=message):
        cli.main(["fit", *TABLE, *flags])
    assert not Path("runs").exists()


def test_rows_without_a_group_are_one(tmp_path: Path) -> None:
    frame = patients(100)
    frame.loc[frame["site"] == "south", "site"] = None
    frame.to_csv(tmp_path / "a.csv", index=False)
    data = TableDataModule(str(tmp_path / "a.csv"), "state", group_column="site", id_column=None)
    data.setup()
    expected = frame["site"].fillna("(missing)").loc[[int(row) for row in data.test_ids]]
    assert data.test_groups == expected.tolist()
    assert "(missing)" in data.test_groups
    assert trainer.test_groups(data, 5) == Groups("site", data.test_groups[:5])  # of a limited set


def test_any_number_of_groups_is_one_of_clusters(tmp_path: Path) -> None:
    """Patients, of whom ``inference --covariance cluster`` needs many."""
    frame = patients(3000).assign(patient=np.arange(3000) // 2)
    frame.to_csv(tmp_path / "a.csv", index=False)
    settings = {"group_column": "patient", "ignore": ["site"], "test_fraction": 0.5}
    data = TableDataModule(str(tmp_path / "a.csv"), "state", **settings)
    data.setup()
    assert len(set(data.test_groups)) > 1000


@pytest.mark.slow
def test_a_group_column_may_be_named_after_the_training(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that ignored the column is tested by it."""
    cli.main(["fit", *TABLE, "--data.ignore", '["site"]', "--name", "late"])
    assert "groups" not in printed(["test", "runs/late"], capsys)
    found = printed(["test", "runs/late", "--data.group_column", "site"], capsys)
    assert found["groups"].startswith("3 of site: ")


def test_a_threshold_is_chosen_stored_and_used_on_request(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.main(["calibrate", CHECKPOINT])
    found = printed(["calibrate", CHECKPOINT, "--method", "threshold", "--calibrated"], capsys)
    content = read_checkpoint(Path(CHECKPOINT))
    rule = DecisionThreshold.from_state_dict(content["threshold"])
    assert (rule.positive, rule.criterion) == ("sick", "balanced_accuracy")
    assert rule.calibration is not None
    assert found["threshold"] == f"{CHECKPOINT}, {rule}"
    assert found["next"].endswith(" predict --threshold stored runs/patients/version_0")
    before, after = (found[f"at {t:.4g}"] for t in (0.5, rule.value))
    assert re.findall(r"[a-z1 ]*[a-z1](?= \d)", before) == re.findall(
        r"[a-z1 ]*[a-z1](?= \d)", after
    )
    assert float(after.split()[2]) > float(before.split()[2])  # the balanced accuracy
    # Another calibration leaves the threshold as it was chosen.
    cli.main(["calibrate", CHECKPOINT, "--method", "vector"])
    patients(300, 1).to_csv("new.csv", index=False)
    classifier = softmax_torch.load(CHECKPOINT)
    z = classifier.logits(classifier.preprocessing.tensor("new.csv"))
    p = torch.softmax(rule.calibration(z), 1)[:, 1]
    expected = ["sick" if x >= rule.value else "healthy" for x in p.tolist()]
    assert classifier.predict("new.csv") != expected
    assert softmax_torch.load(CHECKPOINT, threshold="stored").predict("new.csv") == expected
    args = ["predict", CHECKPOINT, "--input", "new.csv", "--top_k", "2", "--output"]
    cli.main([*args, "plain.csv"])
    cli.main([*args, "stored.csv", "--threshold", "stored"])
    plain, stored = pd.read_csv("plain.csv"), pd.read_csv("stored.csv")
    assert stored["predicted"].tolist() == expected
    assert plain["predicted"].tolist() == classifier.predict("new.csv")
    changed = stored["predicted"] != plain["predicted"]
    assert changed.any()
    assert (stored["probability"][changed] == plain["probability_2"][changed]).all()
    assert (stored["predicted_2"][changed] == plain["predicted"][changed]).all()


@pytest.mark.slow
def test_a_number_is_a_threshold_of_the_probabilities_that_are_written(here: Path) -> None:
    """Of the test set and of a file, with and without a calibration."""
    cli.main(["calibrate", CHECKPOINT])
    patients(200, 1).to_csv("new.csv", index=False)
    new = ["--input", "new.csv"]
    for k, flags in enumerate(([], ["--calibrated"], new, [*new, "--calibrated"])):
        args = ["predict", CHECKPOINT, *flags, "--probabilities", "--output", f"{k}.csv"]
        cli.main([*args, "--threshold", "0.3"])
        found = pd.read_csv(f"{k}.csv")
        assert ((found["p_sick"] >= 0.3) == (found["predicted"] == "sick")).all()
        assert ((found["p_sick"] > 0.3) & (found["p_sick"] < 0.5)).any()
    classifier = softmax_torch.load(CHECKPOINT, calibrated=True, threshold=0.3)
    sick = classifier.predict_proba("new.csv")[:, 1] >= 0.3
    assert [name == "sick" for name in classifier.predict("new.csv")] == sick.tolist()


@pytest.mark.slow
def test_costs_move_the_threshold(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for costs in ("[20, 1]", "[1, 20]"):
        args = ["calibrate", CHECKPOINT, "--method", "threshold", "--criterion", "cost"]
        text = printed([*args, "--costs", costs], capsys)
        rule = DecisionThreshold.from_state_dict(read_checkpoint(Path(CHECKPOINT))["threshold"])
        found.append(rule.value)
        shown = [text[f"at {value:.4g}"].split() for value in (rule.value, 0.5)]
        assert [words[0] for words in shown] == ["cost", "cost"]
        assert float(shown[0][1]) < float(shown[1][1])
    assert found[0] > 0.5 > found[1]


@pytest.mark.slow
def test_the_page_has_groups_and_the_threshold(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "render", lambda figure, kind: b"<svg/>")
    cli.main(["calibrate", CHECKPOINT, "--method", "threshold"])
    cli.main(["report", CHECKPOINT])
    folder = Path("runs/patients/version_0/report")
    text = re.sub(r"<[^>]+>", " ", (folder / "index.html").read_text())
    cli.main(["test", CHECKPOINT, "--output", "figures.csv"])
    assert (folder / "test_metrics.csv").read_bytes() == Path("figures.csv").read_bytes()
    table = pd.read_csv("figures.csv").set_index("group")
    for site in ("north", "south", "east"):
        for value in table.loc[site, "value"]:
            assert f" {value:.3f} " in text
    assert "The largest gap in accuracy is " in text
    assert "between north and south" in text
    rule = DecisionThreshold.from_state_dict(read_checkpoint(Path(CHECKPOINT))["threshold"])
    assert str(rule) in text
    cli.main(["predict", CHECKPOINT, "--threshold", "stored", "--output", "p.csv"])
    decided = pd.read_csv("p.csv")
    y = patients().loc[decided["id"], "state"].to_numpy() == "sick"
    expected = balanced_accuracy_score(y, decided["predicted"] == "sick")
    section = text[text.index("Decision threshold") :]
    [row] = re.findall(
        rf"{rule.value:.4g}((?: +\d\.\d{{3}} +\d\.\d{{3}} to \d\.\d{{3}}){{5}})", section
    )
    assert re.findall(r"\d\.\d{3}", row)[3] == f"{expected:.3f}"


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (
            ["predict", "--threshold", "stored"],
            ValueError,
            "with a decision threshold, got one witho",
        ),
        (["predict", "--threshold", "kept"], SystemExit, "--threshold"),
        (
            ["calibrate", "--method", "threshold", "--calibrated"],
            ValueError,
            "expected a checkpoint with a calibration, got one without",
        ),
        (["test", "--group_column", "site"], SystemExit, "--group_column: expected --input beside"),
        (
            ["test", "--output", "figures.txt"],
            ValueError,
            "output: expected a name that ends in .csv",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    args: list[str],
    error: type[BaseException],
    message: str,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = Path(CHECKPOINT).read_bytes()
    with pytest.raises(error) as raised:
        cli.main([args[0], CHECKPOINT, *args[1:]])
    assert re.search(message, f"{raised.value} {capsys.readouterr().err}")
    assert Path(CHECKPOINT).read_bytes() == before


def test_more_than_two_classes_have_no_threshold(digits: tuple[Path, str], here: Path) -> None:
    path = str(digits[0])
    message = "threshold: expected a model of two classes, got 10"
    for args in (["--threshold", "0.3"], ["--threshold", "0.3", "--input", "patients.csv"]):
        with pytest.raises(ValueError, match=message):
            cli.main(["predict", "--ckpt_path", path, "--output", "p.csv", *args])
    with pytest.raises(ValueError, match=message):
        cli.main(["calibrate", "--ckpt_path", path, "--method", "threshold"])
