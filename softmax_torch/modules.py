"""Modules: softmax regression (``nn.Linear``, log-softmax, fused loss) and ``CrossEntropyLoss``.

    z = x W^T + b                    logits
    log p(c | x) = z_c - log sum_k exp(z_k)

>>> import torch
>>> _ = torch.manual_seed(0)
>>> model = SoftmaxRegression(in_features=4, num_classes=3)
>>> x, y = torch.randn(8, 4), torch.randint(3, (8,))
>>> model(x).exp().sum(-1).allclose(torch.ones(8))
True
>>> model.loss(x, y).backward()
>>> model.linear.weight.grad.shape
torch.Size([3, 4])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softmax_torch.functional import (
    cross_entropy,
    linear_cross_entropy,
    linear_cross_entropy_outputs,
)
from softmax_torch.loss.checks import check_sizes
from softmax_torch.loss.outputs import CrossEntropyOutputs

__all__ = ["Classifier", "CrossEntropyLoss", "SoftmaxRegression"]


class SoftmaxOfLinear(nn.Module):
    """The methods of softmax regression, for any module with a linear layer.

    Attributes:
        linear: the ``nn.Linear``; weight (C, D), bias (C,).
    """

    linear: nn.Linear

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return self.linear.out_features

    def _features(self, x: Tensor) -> Tensor:
        """Return x as (..., D)."""
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits z = x W^T + b, of shape (..., C)."""
        z: Tensor = self.linear(self._features(x))
        return z

    @torch.no_grad()
    def predict_proba(self, x: Tensor) -> Tensor:
        """Return the class probabilities (..., C), without a gradient; each row sums to 1."""
        return self.logits(x).softmax(-1)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Return the most probable class of each sample, int64, of shape (...)."""
        return self.logits(x).argmax(-1)

    def loss(self, x: Tensor, target: Tensor, **options: Any) -> Tensor:
        """Return the cross-entropy of the model's predictions, fused with the linear layer.

        Args:
            x: inputs, as for ``logits``.
            target: class indices (...), or class probabilities (..., C).
            **options: the options of ``functional.linear_cross_entropy``. ``softcap`` and
                ``logit_scale`` belong to the loss alone: ``logits`` and predictions are without.

        Returns:
            A scalar, or one number per sample with ``reduction="none"``.
        """
        return linear_cross_entropy(
            self._features(x), self.linear.weight, target, linear_bias=self.linear.bias, **options
        )

    def loss_outputs(
        self,
        x: Tensor,
        target: Tensor,
        *,
        outputs: Sequence[str],
        top_k: int = 5,
        detach: bool = False,
        **options: Any,
    ) -> CrossEntropyOutputs:
        """Return ``loss`` and further numbers of each sample, without a second product.

        Args:
            x, target, **options: as in ``loss``.
            outputs, top_k, detach: as in ``functional.linear_cross_entropy_outputs``.
        """
        return linear_cross_entropy_outputs(
            self._features(x),
            self.linear.weight,
            target,
            linear_bias=self.linear.bias,
            outputs=outputs,
            top_k=top_k,
            detach=detach,
            **options,
        )


class SoftmaxRegression(SoftmaxOfLinear):
    """Multinomial logistic regression: a linear map to logits and a softmax over classes.

    Args:
        in_features: D, the number of features of a sample.
        num_classes: C, the number of classes.
        bias: whether the logits have an intercept per class.
        device: device of the parameters.
        dtype: floating-point type of the parameters.

    Inputs are (..., D). Inputs whose trailing dimensions flatten to D are accepted too: with
    ``in_features=784``, images in shape (N, 28, 28) or (N, 1, 28, 28) are N samples.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features, num_classes)
        self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)

    @property
    def in_features(self) -> int:
        """D, the number of features of a sample."""
        return self.linear.in_features

    def _features(self, x: Tensor) -> Tensor:
        D = self.in_features
        if x.dim() >= 1 and x.shape[-1] == D:
            return x
        if x.dim() > 2 and math.prod(x.shape[1:]) == D:
            return x.flatten(1)
        raise ValueError(
            f"input: expected shape (..., {D}), or (N, ...) whose trailing dimensions flatten to "
            f"in_features={D}; got {tuple(x.shape)}"
        )

    def forward(self, x: Tensor, target: Tensor | None = None, **options: Any) -> Tensor:
        """Return the log-probabilities log p(c | x), of shape (..., C); with a target the loss.

        DDP and FSDP2 only see calls of the module itself. There ``model(x, y)`` takes the place of
        ``model.loss(x, y)``, whose gradients DDP would not average, and for which FSDP2 would not
        gather the weights.

        Args:
            x: inputs, as for ``logits``.
            target: class indices (...), or class probabilities (..., C); None for predictions.
            **options: the options of ``loss``.

        Raises:
            TypeError: options without a target.
        """
        if target is not None:
            return self.loss(x, target, **options)
        if options:
            raise TypeError(f"target: expected a Tensor with {', '.join(options)}, got None")
        return self.logits(x).log_softmax(-1)


class Classifier(nn.Module):
    """A net that ends in softmax regression: a backbone, and a head on its features.

    Args:
        backbone: from inputs (N, ...) to features (N, D); ``nn.Identity()`` for the inputs
            themselves.
        model: the head, from features to C classes. The ``state_dict`` has the keys
            ``backbone.*``, ``model.linear.weight`` and ``model.linear.bias``.
    """

    backbone: nn.Module
    model: SoftmaxRegression

    def __init__(self, backbone: nn.Module, model: SoftmaxRegression) -> None:
        super().__init__()
        self.backbone, self.model = backbone, model

    def features(self, x: Tensor) -> Tensor:
        """Return features (N, D) of inputs (N, ...)."""
        features: Tensor = self.backbone(x)
        return features

    def logits(self, x: Tensor) -> Tensor:
        """Return logits (N, C) of inputs (N, ...)."""
        return self.model.logits(self.features(x))

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (N, D) that the head sees, and logits (N, C), of inputs (N, ...)."""
        features = self.features(x).flatten(1)
        return features, self.model.logits(features)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, C) of inputs (N, ...), as classifiers of torchvision do."""
        return self.logits(x)


class CrossEntropyLoss(nn.Module):
    """``nn.CrossEntropyLoss`` on the fused operator: the same constructor, the same results.

    Args:
        weight: class weights (C,), kept as a buffer.
        size_average: deprecated in torch; refused here in favour of ``reduction``.
        ignore_index: rows with this class index are left out.
        reduce: deprecated in torch; refused here in favour of ``reduction``.
        reduction: "none", "mean" or "sum".
        label_smoothing: share of the target that is spread over all classes, in [0, 1].
        z_loss, softcap, logit_scale: as in ``functional.cross_entropy``.

    As in torch, a call checks the options, not the constructor.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: None = None,
        ignore_index: int = -100,
        reduce: None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        softcap: float | None = None,
        logit_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if size_average is not None or reduce is not None:
            raise ValueError(
                'size_average and reduce: expected None, use reduction="none", "mean" or "sum"; '
                f"got {size_average!r} and {reduce!r}"
            )
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.z_loss, self.softcap, self.logit_scale = z_loss, softcap, logit_scale

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (C,) or (N, C, ...); see ``functional.cross_entropy``."""
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            logit_scale=self.logit_scale,
        )
