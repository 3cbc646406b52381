"""Lightning data modules that hold a data set as tensors. Needs the ``train`` extra.

softmax_torch.readers  ->  softmax_torch.preprocessing  ->  softmax_torch.data
files                      fitted state                     splits and batches
"""

from softmax_torch.data.backbone_features import BackboneFeaturesDataModule
from softmax_torch.data.batches import Batches
from softmax_torch.data.description import ColumnCounts, DataDescription
from softmax_torch.data.digits import DigitsDataModule
from softmax_torch.data.features import FeaturesDataModule
from softmax_torch.data.image_folder import ImageFolderDataModule
from softmax_torch.data.mnist import MNISTDataModule
from softmax_torch.data.splits import Split
from softmax_torch.data.table import TableDataModule
from softmax_torch.data.tensor_data_module import TensorDataModule

__all__ = [
    "BackboneFeaturesDataModule",
    "Batches",
    "ColumnCounts",
    "DataDescription",
    "DigitsDataModule",
    "FeaturesDataModule",
    "ImageFolderDataModule",
    "MNISTDataModule",
    "Split",
    "TableDataModule",
    "TensorDataModule",
]
