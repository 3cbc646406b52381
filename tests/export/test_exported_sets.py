"""Exported files have the conformal sets of the classifier, and are compared with it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from export_cases import N, linear
from torch import Tensor

from softmax_torch import conformal
from softmax_torch.calibration import Calibration
from softmax_torch.conformal import SCORES, ConformalSets, Score
from softmax_torch.export import export, torch_program
from softmax_torch.export.comparison import check_sets, conformity_bounds
from softmax_torch.predictor import Predictor, load
from softmax_torch.preprocessing import FeaturesPreprocessing

C = 6


def with_sets(score: Score, per_class: bool = False, calibrated: bool = False) -> Predictor:
    """Return a softmax regression on 5 numbers with conformal sets of several sizes."""
    predictor = linear(FeaturesPreprocessing(5, [f"c{c}" for c in range(C)]))
    predictor.calibration = Calibration(*torch.tensor([3.0, 0.0], dtype=torch.float64))
    z = 2 * torch.randn(300, C, generator=torch.Generator().manual_seed(0))
    y = torch.multinomial(z.softmax(1), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    predictor.conformal = conformal.fit(
        *(z, y, 0.8, score),
        per_class=per_class,
        calibration=predictor.calibration if calibrated else None,
    )
    return predictor


def features(seed: int = 2) -> Tensor:
    return 3 * torch.randn(N, 5, generator=torch.Generator().manual_seed(seed))


def expected_sets(predictor: Predictor, x: Tensor) -> Tensor:
    assert predictor.conformal is not None
    sets = predictor.conformal(predictor.uncalibrated_logits(x))
    assert len(set(sets.sum(1).tolist())) > 2  # a constant would not pass
    return sets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("score", "per_class", "calibrated"),
    [
        ("lac", False, True),
        ("aps", False, False),
        ("raps", True, True),
    ],
)
def test_programs_have_the_sets_of_the_classifier(
    score: Score, per_class: bool, calibrated: bool, tmp_path: Path
) -> None:
    predictor, x = with_sets(score, per_class, calibrated), features(3)
    expected = expected_sets(predictor, x)
    written = export(predictor, tmp_path / "model.onnx", features())
    assert "sets bool (n, 6)" in map(str, written.outputs)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    gives = [output.name for output in session.get_outputs()]
    assert gives == ["label", "probabilities", "class_name", "sets"]
    for n in (1, N):
        [sets] = session.run(["sets"], {"features": x[:n].numpy()})
        assert sets.dtype == np.bool_
        assert sets.tolist() == expected[:n].tolist()
    written = export(predictor, tmp_path / "model.pt2", features())
    assert written.usage.startswith("label, probabilities, sets = torch.export.load(")
    label, p, sets = torch.export.load(tmp_path / "model.pt2").module()(x)
    assert torch.equal(sets, expected)
    assert torch.equal(label, predictor.predict_proba(x).argmax(1))
    torch.testing.assert_close(p, predictor.predict_proba(x), rtol=0, atol=1e-5)


def test_weights_carry_the_sets(tmp_path: Path) -> None:
    predictor, x = with_sets("raps", per_class=True, calibrated=True), features(3)
    export(predictor, tmp_path / "model", features())
    again = load(tmp_path / "model")
    assert str(again.conformal) == str(predictor.conformal)
    assert again.predict_set(x) == predictor.predict_set(x)


@pytest.mark.parametrize("first_alone", [False, True])
def test_a_file_with_other_sets_is_not_written(
    first_alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_runner = torch_program.open_runner

    def opened(path: Path, input_module: Any) -> Any:
        run = open_runner(path, input_module)

        def changed(x: Any) -> tuple[Tensor, ...]:
            label, p, sets = run(x)
            if (len(sets) == 1) == first_alone:
                sets = sets.clone()
                sets[0, p[0].argmin()] ^= True
            return label, p, sets

        return changed

    monkeypatch.setattr(torch_program, "open_runner", opened)
    message = r"sets of the classifier, got others for 1 of .*, the first of them sample 0: with c"
    with pytest.raises(ArithmeticError, match=message):
        export(with_sets("lac", calibrated=True), tmp_path / "model.pt2", features())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("score", SCORES)
def test_rounding_decides_about_no_more_than_its_bounds_say(score: Score) -> None:
    """Conformities of logits with errors lie between the bounds, which are not wide."""
    generator, tolerance = torch.Generator().manual_seed(0), 1e-4
    z = torch.rand(50, 8, generator=generator, dtype=torch.float64).mul(6)
    z[:25] = z[:25].round()  # with many ties, exact ones and near ones
    z[:12] += 0.1 * tolerance * torch.randn(12, 8, generator=generator)
    p = z.softmax(1)
    of = torch.zeros(())
    penalty = 0.05 if score == "raps" else 0.0
    sets = ConformalSets(score, 0.9, of, of, k_reg=2, penalty=penalty)
    low, high = conformity_bounds(sets, p, tolerance)
    for _ in range(50):
        error = 1.9 * tolerance * torch.randn(p.shape, generator=generator).sign()
        near = sets.conformity(z + error)
        assert (near >= low).all()
        assert (near <= high).all()
    apart = p.sort(1).values.diff().amin(1) > 4 * tolerance
    assert (high - low)[apart].le(2.1 * tolerance).all()


def test_sets_may_differ_where_rounding_decides() -> None:
    z = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    sets = ConformalSets("aps", 0.9, torch.tensor(0.2 + 1e-6), torch.tensor(10))
    for members in ([True, True, False], [True, True, True]):
        check_sets(Path("a.onnx"), torch.tensor([members]), sets, z)
    for members, message in (
        ([True, False, True], "without class 1"),
        ([False, True, True], "without class 0"),
    ):
        with pytest.raises(ArithmeticError, match=message):
            check_sets(Path("a.onnx"), torch.tensor([members]), sets, z)
    sharp = sets._replace(threshold=torch.tensor(1.0))  # rounding never leaves out the first
    with pytest.raises(ArithmeticError, match="without class 0"):
        check_sets(Path("a.onnx"), torch.tensor([[False] * 3]), sharp, z)
    with pytest.raises(ArithmeticError, match="sample 0: with class 2"):
        check_sets(Path("a.onnx"), torch.tensor([[True] * 3]), sets, z, tolerance=1e-8)
