"""Data sets of scikit-learn that all tests of the estimator share."""

import numpy as np
import pytest
from comparison import standardised
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine


@pytest.fixture(scope="module")
def data() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    X, y = load_digits(return_X_y=True)
    return {
        "iris": load_iris(return_X_y=True),
        "wine": standardised(load_wine),
        "digits": (X / 16, y),
        "breast cancer": standardised(load_breast_cancer),
    }
