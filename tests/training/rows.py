"""A data module of a few random rows, for tests of what surrounds training."""

import torch
from torch import Tensor

from softmax_torch.data import TensorDataModule
from softmax_torch.data.splits import Split

D, C = 3, 4


class RowsDataModule(TensorDataModule):
    """40 training rows, of which 8 are set aside for validation, and 8 test rows."""

    def __init__(self, batch_size: int | None = 4, rows: int = 40) -> None:
        super().__init__(D, C, batch_size, val_fraction=0.2, seed=0)
        self.rows = rows

    def read(self) -> tuple[Split, Split]:
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(C, D, generator=generator)

        def draw(n: int) -> tuple[Tensor, Tensor]:
            y = torch.arange(n) % C
            return torch.randn(n, D, generator=generator) + centres[y], y

        return Split(*draw(self.rows)), Split(*draw(8))
