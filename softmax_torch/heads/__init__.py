"""Softmax regression as the head of a bigger net.

>>> import torch
>>> from torch import nn
>>> net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1000))
>>> find_head(net)
('2', Linear(in_features=4, out_features=1000, bias=True))
>>> head = replace_head(net, 3)
>>> x, y = torch.randn(8, 5), torch.randint(3, (8,))
>>> head.loss_of(net, x, y, label_smoothing=0.1).backward()
>>> net(x).shape
torch.Size([8, 3])
"""

from softmax_torch.heads.find_replace import find_head, replace_head
from softmax_torch.heads.head import SoftmaxHead

__all__ = ["SoftmaxHead", "find_head", "replace_head"]
