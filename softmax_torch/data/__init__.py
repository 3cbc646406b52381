"""Data sets, held in memory as tensors and cut into batches. Needs the ``train`` extra."""

from softmax_torch.data.backbone_features import BackboneFeaturesDataModule
from softmax_torch.data.batches import Batches
from softmax_torch.data.digits import DigitsDataModule
from softmax_torch.data.features import FeaturesDataModule
from softmax_torch.data.images import ImageFolderDataModule
from softmax_torch.data.mnist import MNISTDataModule
from softmax_torch.data.module import Split, TensorDataModule
from softmax_torch.data.table import TableDataModule

__all__ = [
    "BackboneFeaturesDataModule",
    "Batches",
    "DigitsDataModule",
    "FeaturesDataModule",
    "ImageFolderDataModule",
    "MNISTDataModule",
    "Split",
    "TableDataModule",
    "TensorDataModule",
]
