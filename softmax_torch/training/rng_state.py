"""The state of every random number generator that a run may draw from, as plain data.

Checkpoints are read without running code, so tensors and numbers replace the tuples and arrays that
Python and numpy return.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

__all__ = ["get_rng_state", "set_rng_state"]


def get_rng_state() -> dict[str, Any]:
    """Return the states of the generators of Python, numpy, and torch on every device."""
    version, internal, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002 the generator that users draw from
    assert isinstance(legacy, dict)
    key = torch.from_numpy(legacy["state"]["key"].astype(np.int64))
    result: dict[str, Any] = {
        "python": {"version": version, "internal": torch.tensor(internal), "gauss": gauss},
        "numpy": legacy | {"state": {"key": key, "pos": int(legacy["state"]["pos"])}},
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        result["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        result["mps"] = torch.mps.get_rng_state()
    return result


def set_rng_state(state: dict[str, Any]) -> None:
    """Set all generators to these states, except for devices that this machine lacks."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["internal"].tolist()), python["gauss"]))
    legacy = state["numpy"]
    key = legacy["state"]["key"].numpy().astype(np.uint32)
    # The generator that users draw from, as above.
    np.random.set_state(legacy | {"state": {"key": key, "pos": legacy["state"]["pos"]}})  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state.get("cuda", [])) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if torch.backends.mps.is_available() and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
