"""calibrate --method laplace stores a posterior of the weights; --laplace averages over it."""

from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest
import torch
from sklearn.datasets import load_digits

import softmax_torch
from softmax_torch import cli
from softmax_torch.storage.checkpoints import read_checkpoint


@pytest.mark.slow
def test_a_posterior_is_stored_and_applied_on_request(
    to_calibrate: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results: list[dict[str, float]] = []
    for module in ("calibrating", "commands"):
        printed = f"softmax_torch.cli.{module}.format_metrics"
        monkeypatch.setattr(printed, lambda result: results.append(dict(result)) or "")
    path = ["--ckpt_path", str(to_calibrate)]
    cli.main(["calibrate", *path, "--method", "laplace", "--prior_precision", "0.5"])
    out = capsys.readouterr().out
    assert "prior       precision 0.5, as asked for\n" in out
    assert "Laplace approximation (kronecker, prior precision 0.5)\n" in out
    assert "test --laplace probit run\n" in out
    for flags in ([], ["--laplace", "probit"], ["--laplace", "sampling"]):
        cli.main(["validate", *path, *flags])
    before, after, plain, probit, sampling = results
    assert (plain, probit) == (before, after)
    assert len({result["val/nll"] for result in (plain, probit, sampling)}) == 3
    assert sampling["val/nll"] == pytest.approx(probit["val/nll"], rel=0.05)
    assert set(read_checkpoint(to_calibrate)) - {"laplace"} == set(
        read_checkpoint(to_calibrate.parent / "last.ckpt")
    )


def test_commands_and_load_predict_the_same(to_calibrate: Path) -> None:
    path = ["--ckpt_path", str(to_calibrate)]
    cli.main(["calibrate", *path, "--method", "laplace"])
    images = load_digits().images.astype("uint8")[:50]
    np.save("images.npy", images)
    found = {}
    for method in ("none", "probit", "sampling"):
        flags = [] if method == "none" else ["--laplace", method]
        file = f"{method}.csv"
        cli.main(
            ["predict", *path, *flags, "--probabilities", "--input", "images.npy", "--output", file]
        )
        columns = pyarrow.csv.read_csv(file).drop(["id", "predicted", "probability"])
        found[method] = torch.tensor([c.to_pylist() for c in columns.columns]).T
        loaded = softmax_torch.load(to_calibrate, laplace=None if method == "none" else method)
        torch.testing.assert_close(loaded.predict_proba(images), found[method])
    assert (found["probit"].amax(1) < found["none"].amax(1)).all()
    torch.testing.assert_close(found["probit"], found["sampling"], rtol=0, atol=0.1)


def test_what_is_missing_is_refused(to_calibrate: Path) -> None:
    path = ["--ckpt_path", str(to_calibrate)]
    with pytest.raises(ValueError, match="laplace: expected a checkpoint with a Laplace approxi"):
        cli.main(["test", *path, "--laplace", "probit"])
    with pytest.raises(ValueError, match=r"best.ckpt: expected a checkpoint with a Laplace"):
        softmax_torch.load(to_calibrate, laplace="probit")
    with pytest.raises(ValueError, match="laplace: expected probit, sampling or None, got 'mean'"):
        softmax_torch.load(to_calibrate, laplace="mean")  # type: ignore[arg-type]
