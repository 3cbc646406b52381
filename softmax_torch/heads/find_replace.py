"""Find and replace a network's head.

The rule: the head is the last module with parameters of its own in the order of
``named_modules()``, and an ``nn.Linear``. The author of the net wrote the modules in that order, so
auxiliary classifiers and attention projections come first. The rule knows no family of nets. It
holds for every classifier of torchvision except SqueezeNet, which ends in a convolution.
"""

from __future__ import annotations

from torch import nn

from softmax_torch.heads.head import SoftmaxHead

__all__ = ["find_head", "replace_head"]


def find_head(model: nn.Module, name: str | None = None) -> tuple[str, nn.Linear]:
    """Return the linear layer that computes a classifier's logits, and its dotted name.

    Args:
        model: the net.
        name: the layer's name in ``model.named_modules()``; None for the last module with
            parameters of its own.

    Returns:
        The name and the layer itself.

    Raises:
        TypeError: model is not an ``nn.Module``.
        ValueError: the model has no module of this name, or that module is not an ``nn.Linear``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    # A layer that is used in two places has two names; the last one counts.
    modules = dict(model.named_modules(remove_duplicate=False))
    if name is not None:
        layer = modules.get(name)
        if isinstance(layer, nn.Linear):
            return name, layer
        linear = [n for n, module in modules.items() if isinstance(module, nn.Linear)]
        kind = f"no module of {_kind(model)}" if layer is None else _kind(layer)
        raise ValueError(
            "name: expected the name of an nn.Linear"
            f"{f', such as {linear[-1]!r}' if linear else ''}, got {name!r}, {kind}"
        )
    owners = [n for n, module in modules.items() if any(True for _ in module.parameters(False))]
    if not owners:
        raise ValueError(
            f"model: expected an nn.Linear at its end, got {_kind(model)}, no parameters"
        )
    layer = modules[owners[-1]]
    if isinstance(layer, nn.Linear):
        return owners[-1], layer
    raise ValueError(
        "model: expected an nn.Linear as the last module with parameters, "
        f"got {owners[-1]!r}, {_kind(layer)}. If the head is another layer, give its name; if it "
        "is not an nn.Linear, end the model in one: replace a convolution over positions, for "
        "example, by their mean, nn.Flatten and nn.Linear"
    )


def replace_head(
    model: nn.Module, num_classes: int | None = None, *, name: str | None = None
) -> SoftmaxHead:
    """Replace the net's final linear layer by a ``SoftmaxHead`` and return the head.

    Args:
        model: the net, not yet wrapped in DDP or sharded. It is changed in place.
        num_classes: C of a new layer, initialized like ``nn.Linear``. None keeps the parameters of
            the old layer (not copies): the net's results are the same, bit for bit.
        name: the layer, as in ``find_head``.

    Returns:
        The head, with the old layer's device, dtype, mode (training or not), and an intercept if
        that has one. The old layer is unchanged and keeps its hooks. Make the optimizer of a net
        with new parameters after this call.

    Raises:
        TypeError, ValueError: as ``find_head``.
        ValueError: there are no classes; or the layer is more than an ``nn.Linear`` with its
            parameters (parametrized, sharded, lazy, with a forward of its own), or is the whole
            model.
    """
    name, layer = find_head(model, name)
    if layer is model:
        raise ValueError("model: expected a net around its head, got the nn.Linear itself")
    parameters = [p for p in (layer.weight, layer.bias) if p is not None]
    plain = type(layer) in (nn.Linear, SoftmaxHead)
    if not plain or any(type(p) is not nn.Parameter for p in parameters) or _wrapped(model):
        raise ValueError(
            f"model: expected {name!r} to be a plain nn.Linear of a net not wrapped, got "
            f"{_kind(layer)} with a weight of type {type(layer.weight).__name__} in "
            f"{_kind(model)}; replace the head first, then wrap, shard or parametrize"
        )
    head = SoftmaxHead(
        layer.in_features,
        layer.out_features if num_classes is None else num_classes,
        layer.bias is not None,
        device="meta" if num_classes is None else layer.weight.device,
        dtype=layer.weight.dtype,
    ).train(layer.training)
    if num_classes is None:
        head.weight, head.bias = layer.weight, layer.bias
    for place, module in list(model.named_modules(remove_duplicate=False)):
        if module is layer:
            model.set_submodule(place, head)
    return head


def _wrapped(model: nn.Module) -> bool:
    """Return whether DDP or FSDP2 wraps a module: their lists of parameters would miss new ones."""
    return any(
        isinstance(m, nn.parallel.DistributedDataParallel)
        # identifies an FSDPModule without importing it, which takes 0.7 s
        or hasattr(m, "set_requires_gradient_sync")
        for m in model.modules()
    )


def _kind(module: nn.Module) -> str:
    return f"a {type(module).__name__}"
