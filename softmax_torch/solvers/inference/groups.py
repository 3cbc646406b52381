"""Groups (clusters) of samples that depend on each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers.inference.names import classes_of
from softmax_torch.solvers.objective import Objective

__all__ = ["Groups", "groups_of"]


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of each sample (n,), int64 in [0, count)."""

    index: Tensor
    count: int


def groups_of(groups: Any, objective: Objective) -> Groups:
    """Return the groups of samples (n,), given as numbers or strings; processes share theirs.

    Samples of weight 0 do not count.

    Raises:
        TypeError, ValueError: groups have another length than X, are missing or are fractions, or
            all samples are of one group.
    """
    distinct = classes_of(groups, objective.processes.distributed, "groups", "group")
    if len(distinct.target) != objective.samples.n:
        raise ValueError(
            f"groups: expected shape ({objective.samples.n},), a group for each row of X, got "
            f"({len(distinct.target)},)"
        )
    index, count = distinct.target.to(objective.samples.device), len(distinct.labels)
    if objective.weight is not None:
        used = torch.bincount(index[objective.weight > 0], minlength=count)
        number = (objective.summed(used) > 0).cumsum(0) - 1
        index, count = number[index].clamp_min(0), int(number[-1]) + 1
    if count < 2:
        raise ValueError("groups: expected at least 2 groups, got all samples in one")
    return Groups(index, count)
