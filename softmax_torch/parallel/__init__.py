"""Softmax regression whose classes are split over the ranks of a process group.

A group of one rank computes the same as ``functional.linear_cross_entropy``:

>>> import os, tempfile, torch
>>> import torch.distributed as dist
>>> meet = os.path.join(tempfile.mkdtemp(), "meet")
>>> dist.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
>>> model = ShardedSoftmaxRegression(in_features=4, num_classes=3)
>>> model.loss(torch.zeros(2, 4), torch.tensor([0, 2]), z_loss=0.1).backward()
>>> model.weight.grad.placements, tuple(model.weight.grad.to_local().shape)
((Shard(dim=0),), (3, 4))
>>> dist.destroy_process_group()
"""

from softmax_torch.parallel.functional import linear_cross_entropy
from softmax_torch.parallel.modules import ShardedSoftmaxRegression
from softmax_torch.parallel.shards import ClassShard, from_shards, to_shards

__all__ = [
    "ClassShard",
    "ShardedSoftmaxRegression",
    "from_shards",
    "linear_cross_entropy",
    "to_shards",
]
