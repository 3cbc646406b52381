"""The diagram of softmax: logits z become probabilities p, and a temperature T sharpens them.

    p_c = exp(z_c / T) / sum_k exp(z_k / T)

Left: five logits and their probabilities at three temperatures. With T -> 0 the largest logit takes
all; with T -> infinity every class gets 1 / C. Right: one logit of three moves, and all
probabilities with it, since they sum to 1.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from softmax_torch.modules import SoftmaxRegression
from softmax_torch.report.style import BLUE, GREEN, ORANGE, VERMILION, panels

__all__ = ["draw", "softmax"]

Z = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0], dtype=torch.float64)
"""The logits of the left panel."""

TEMPERATURES = ((0.5, BLUE, ""), (1.0, ORANGE, "///"), (4.0, GREEN, "..."))
"""T, its colour and its hatch."""

OTHERS = (1.0, -1.0)
"""The logits of the right panel that do not move."""


def softmax(z: Tensor, T: float = 1.0) -> Tensor:
    """Probabilities (..., C) of logits z at a temperature: of the module with the weight I / T."""
    C = z.shape[-1]
    model = SoftmaxRegression(C, C, bias=False, dtype=z.dtype)
    with torch.no_grad():
        model.linear.weight.copy_(torch.eye(C) / T)
        return model.predict_proba(z)


def draw() -> Figure:
    """The diagram."""
    figure, (left, right) = panels(
        "Logits become probabilities", "One logit moves, all probabilities follow"
    )
    C, width = len(Z), 0.27
    for i, (T, color, hatch) in enumerate(TEMPERATURES):
        left.bar(
            [c + (i - 1) * width for c in range(C)],
            softmax(Z, T).tolist(),
            width,
            color=color,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.5,
            label=f"$T = {T:g}$",
        )
    left.set_xticks(range(C), [f"$z_{c} = {z:g}$" for c, z in enumerate(Z.tolist())])
    left.grid(visible=False, axis="x")
    left.set_ylabel(r"$p_c = \exp(z_c/T)\ /\ \sum_k \exp(z_k/T)$")
    left.set_ylim(0, 1)
    left.legend(title="temperature", frameon=False)

    moving = torch.linspace(-5, 7, 121, dtype=torch.float64)
    z = torch.stack([moving, *(torch.full_like(moving, other) for other in OTHERS)], 1)
    names = [
        "$p_0$, of $z_0$",
        *(f"$p_{c + 1}$, of $z_{c + 1} = {o:g}$" for c, o in enumerate(OTHERS)),
    ]
    looks = ((BLUE, "-"), (VERMILION, "--"), (GREEN, ":"))
    for p_c, name, (color, dashes) in zip(softmax(z).T, names, looks, strict=True):
        right.plot(moving.tolist(), p_c.tolist(), dashes, color=color, linewidth=2, label=name)
    right.set_xlabel("logit $z_0$")
    right.set_ylabel("probability $p_c$")
    right.set_ylim(0, 1)
    right.legend(frameon=False, loc="center right")
    return figure
