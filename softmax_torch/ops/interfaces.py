"""The functions that a backend has. ``ops.backends`` chooses one for a device."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from softmax_torch.maths import RowStatistics, RowValues, RowWeights, Target
from softmax_torch.ops.index_loss import IndexLoss
from softmax_torch.ops.sample_rows import CsrRows, SampleRows

__all__ = ["CPUKernels", "GPUKernels", "Kernels", "LayerKernels", "Passes"]


class Kernels(Protocol):
    """The functions of a backend; the functions of the same names in ``maths`` define them.

    A backend is a module: ``ops.native``, ``ops.cpu``, ``ops.gpu``, or ``maths`` itself.
    """

    __name__: str

    def row_values(self, z: Tensor, target: Target, lse: bool = False) -> RowValues: ...

    def row_vjp(
        self, z: Tensor, target: Target, g: RowValues, dz: Tensor | None = None
    ) -> Tensor: ...

    def weighted_total(
        self, z: Tensor, target: Target, weights: RowWeights, dz: Tensor | None = None
    ) -> Tensor: ...

    def row_statistics(self, z: Tensor, y: Tensor | None = None) -> RowStatistics: ...


class CPUKernels(Kernels, Protocol):
    """The functions of the CPU backends, besides those of ``Kernels``; ``ops.cpu`` says more."""

    def mean_nll(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]: ...

    def gather_bytes(self, x: Tensor, rows: Tensor, scale: float) -> Tensor: ...


class Passes(Protocol):
    """The functions of ``ops.native.passes``, which documents them."""

    def logits(self, x: SampleRows, theta: Tensor, bias: bool, squared: bool = False) -> Tensor: ...

    def transposed(self, x: SampleRows, r: Tensor, bias: bool, squared: bool = False) -> Tensor: ...

    def loss_and_gradient(
        self,
        x: SampleRows,
        theta: Tensor,
        y: Tensor,
        weight: Tensor | None,
        classes: int,
        bias: bool,
    ) -> tuple[Tensor, Tensor]: ...

    def hessian_product(
        self, x: SampleRows, v: Tensor, p: Tensor, weight: Tensor | None, bias: bool
    ) -> Tensor: ...

    def csr_of_dense(self, x: Tensor) -> CsrRows: ...


class GPUKernels(Kernels, Protocol):
    """The functions of the GPU backend, besides those of ``Kernels``; ``ops.gpu`` says more."""

    def check(self) -> None: ...

    def index_loss(
        self, z: Tensor, y: Tensor, loss: IndexLoss, dz: Tensor | None = None
    ) -> Tensor: ...

    def scale_(self, x: Tensor, factor: Tensor) -> Tensor: ...


class LayerKernels(Protocol):
    """The functions that compute a linear layer and its loss in one pass: ``ops.native.linear``."""

    def applies(self, x: Tensor, weight: Tensor) -> bool: ...

    def mean_nll(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor,
        dweight: Tensor | None = None,
        dbias: Tensor | None = None,
        dx: Tensor | None = None,
        z: Tensor | None = None,
    ) -> Tensor: ...

    def total_and_gradients(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Target,
        weights: RowWeights,
        needed: tuple[bool, ...],
        z: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]: ...
