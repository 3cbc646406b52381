"""Pixels are standardised by those of the training images, with the same bits everywhere."""

import doctest

import numpy as np
import pytest
import torch
from PIL import Image

from softmax_torch.data import Batches
from softmax_torch.preprocessing import ImagePreprocessing, from_state_dict, standardization
from softmax_torch.preprocessing.standardization import Standardization


def images(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(90, 256, shape, dtype=torch.uint8, generator=generator)


def test_the_example_of_the_module() -> None:
    assert doctest.testmod(standardization).failed == 0


@pytest.mark.parametrize("shape", [(50, 8, 6), (50, 3, 8, 6)])
def test_mean_and_deviation_are_those_of_each_channel(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = images(*shape)
    monkeypatch.setattr(standardization, "FITTED_TOGETHER", 48 * 7)  # in several parts
    mean, std = Standardization.fit(x, 1 / 255)
    channels = x.double().view(50, -1, 8, 6) / 255
    assert mean == pytest.approx(channels.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(channels.std((0, 2, 3), correction=0).tolist(), rel=1e-9)


def test_a_constant_channel_becomes_0() -> None:
    x = images(5, 3, 4, 4)
    x[:, 1] = 200
    found = Standardization.fit(x, 1 / 255)
    assert found.std[1] == 1.0
    assert found.apply_(x * (1 / 255))[:, 1].abs().max() < 1e-6


def test_training_and_prediction_see_the_same_bits() -> None:
    for x in (images(20, 8, 6), images(20, 3, 8, 6)):
        of_training = Standardization.fit(x, 1 / 255)
        color = x.dim() == 4
        preprocessing = ImagePreprocessing((8, 6), color, "ab", 1 / 255, of_training)
        expected = preprocessing.tensor(x)
        assert torch.allclose(expected.mean(), torch.tensor(0.0), atol=1e-5)
        y = torch.zeros(20, dtype=torch.int64)
        for size in (None, 7):  # all rows are x itself; some are gathered
            batches = Batches(x, y, size, scale=1 / 255, standardization=of_training)
            assert torch.equal(torch.cat([batch for batch, _ in batches]), expected)
        assert torch.equal(preprocessing.tensor(x * (1 / 255)), expected)  # floats in [0, 1]
        pictures = [Image.fromarray(i.permute(1, 2, 0).numpy() if color else i.numpy()) for i in x]
        assert torch.equal(preprocessing.tensor(pictures), expected)


def test_floats_of_the_caller_are_not_changed() -> None:
    v = torch.rand(2, 8, 6)
    before = v.clone()
    ImagePreprocessing((8, 6), False, "ab", 1, Standardization((0.5,), (0.1,))).tensor(v)
    assert torch.equal(v, before)
    Batches(v, torch.zeros(2), standardization=Standardization((0.5,), (0.1,)))._everything()
    assert torch.equal(v, before)


def test_a_state_holds_mean_and_deviation_and_older_states_have_none() -> None:
    of_training = Standardization((0.1, 0.2, 0.3), (0.5, 0.25, 0.125))
    made = ImagePreprocessing((8, 6), True, ("a", "b"), 1 / 255, of_training)
    again = from_state_dict(made.state_dict())
    assert again.standardization == of_training
    x = np.zeros((2, 3, 8, 6), np.uint8)
    assert torch.equal(again.tensor(x), made.tensor(x))
    before = ImagePreprocessing((8, 6), True, ("a", "b")).state_dict()
    assert before.keys() == {"kind", "size", "color", "class_names", "scale"}
    assert from_state_dict(before).standardization is None


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="a std for each of 3 channels, got 1 and 1"):
        ImagePreprocessing((8, 6), True, "ab", 1 / 255, Standardization((0.1,), (0.2,)))
