"""A small table of three classes, and files of it."""

import numpy as np
import pandas as pd


def flowers(n: int = 60, seed: int = 0) -> pd.DataFrame:
    """Return a frame of two columns, one with missing values, and three classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    size = (y + rng.normal(0, 0.3, n)).round(3)
    color = np.array(["red", "blue", "white"])[y].astype(object)
    color[rng.random(n) < 0.3] = np.nan
    return pd.DataFrame({"size": size, "color": color, "kind": np.array(["b", "c", "a"])[y]})


def written(frame: pd.DataFrame, name: str = "a.csv") -> str:
    frame.to_csv(name, index=False)
    return name
