"""An .onnx file: a graph that takes arrays by name and is run by onnxruntime, without torch.

    columns of a table   ->   numbers, codes    where there is one
    inputs               ->   the program of torch.export, in ONNX's operators
    label                ->   class_name

Metadata are JSON under the key "softmax_torch".

>>> session = onnxruntime.InferenceSession("model.onnx")  # doctest: +SKIP
>>> session.run(["class_name", "probabilities"], {"image": images})  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, compose, helper
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoSuchOperator
from torch import Tensor

from softmax_torch import __version__
from softmax_torch.export.metadata import described, text
from softmax_torch.export.program import OUTPUTS, outputs, traced
from softmax_torch.export.raw import Front, Value
from softmax_torch.export.table import UNKNOWN, codes_of
from softmax_torch.predictor import Predictor
from softmax_torch.preprocessing.columns import Categories

__all__ = ["METADATA", "interface", "opened", "usage", "write"]

METADATA = "softmax_torch"
"""Key of the metadata."""

INNER = "net/"
"""Stands before all names within the graph; no input may begin with it."""

STRINGS = "ai.onnx.ml", 3
"""The domain of operators that know strings, and the version of it that is meant here."""

AXIS = f"{INNER}axis"
"""The axis that columns are joined along."""

CLASS_NAME = "class_name"
"""The output that torch has no type for."""

LIMIT = 2**31 - 2**24
"""Bytes of weights at most: a file of this kind ends at 2 GiB."""


def write(path: Path, predictor: Predictor, front: Front) -> None:
    """Write a new file.

    Raises:
        ValueError: the net is larger than the format allows, or a column has no name or one that
            the graph has itself.
    """
    size = sum(weights.nbytes for weights in predictor.network.state_dict().values())
    if size > LIMIT:
        raise ValueError(
            f"output: expected a net of at most {LIMIT} bytes for ONNX, got one of {size}; "
            ".pt2 and .safetensors have no limit"
        )
    takes, gives = interface(front, len(predictor.class_names))
    names = [value.name for value in gives]
    taken = [name for name, *_ in takes if name in (*names, "") or name.startswith(INNER)]
    if taken:
        raise ValueError(
            f"column {taken[0] or 'without a name'}: expected a name other than "
            f"{', '.join(names)} and {INNER}... for ONNX, in which outputs and what lies within "
            "are called so"
        )
    converted = torch.onnx.export(
        traced(predictor, front),
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=[value.name for value in front.inputs],
        output_names=list(OUTPUTS),
    )
    assert converted is not None, "as dynamo is given"
    model = completed(converted.model_proto, front, predictor.class_names)
    helper.set_model_props(model, {METADATA: text(described(predictor, takes))})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def completed(model: onnx.ModelProto, front: Front, class_names: Sequence[str]) -> onnx.ModelProto:
    """The graph that torch made, with inputs and outputs of our own around it."""
    model = compose.add_prefix(model, INNER)
    takes, gives = interface(front, len(class_names))
    given = [value.name for value in front.inputs if value.name not in front.columns]
    outer = {f"{INNER}{name}": name for name in (*given, *OUTPUTS)}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [outer.get(name, name) for name in names]
        del node.metadata_props[:]  # modules and operations that torch made it from
    named = helper.make_node(
        "LabelEncoder",
        ["label"],
        [CLASS_NAME],
        domain=STRINGS[0],
        keys_int64s=range(len(class_names)),
        values_strings=class_names,
    )
    axis = helper.make_tensor(AXIS, TensorProto.INT64, [1], [1])
    graph = helper.make_graph(
        [*joined(front), *model.graph.node, named],
        "softmax_torch",
        [value_info(value) for value in takes],
        [value_info(value) for value in gives],
        [*model.graph.initializer, *([axis] if front.columns else [])],
    )
    return helper.make_model(
        graph,
        functions=model.functions,
        producer_name="softmax_torch",
        producer_version=__version__,
        ir_version=model.ir_version,
        opset_imports=[*model.opset_import, helper.make_opsetid(*STRINGS)],
    )


def joined(front: Front) -> list[onnx.NodeProto]:
    """The operations that make one matrix of some columns of a table."""
    nodes = []
    for matrix, columns in front.columns.items():
        single = []
        for k, column in enumerate(columns):
            value = column.name
            if isinstance(column, Categories):
                value = f"{INNER}{matrix}_{k}_codes"
                codes = codes_of(column)
                nodes.append(
                    helper.make_node(
                        "LabelEncoder",
                        [column.name],
                        [value],
                        domain=STRINGS[0],
                        keys_strings=[*codes],
                        values_int64s=[*codes.values()],
                        default_int64=UNKNOWN,
                    )
                )
            single.append(f"{INNER}{matrix}_{k}")
            nodes.append(helper.make_node("Unsqueeze", [value, AXIS], single[-1:]))
        nodes.append(helper.make_node("Concat", single, [f"{INNER}{matrix}"], axis=1))
    return nodes


def value_info(value: Value) -> onnx.ValueInfoProto:
    """An input or output as ONNX describes it."""
    if value.type == "string":
        return helper.make_tensor_value_info(value.name, TensorProto.STRING, value.shape)
    type = helper.np_dtype_to_tensor_dtype(np.dtype(value.type))
    return helper.make_tensor_value_info(value.name, type, value.shape)


def opened(path: Path, front: Front) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """What the file predicts of samples, by onnxruntime: labels and probabilities.

    Raises:
        ValueError: onnxruntime lacks an operator for a type, as it does for bfloat16.
    """
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except NoSuchOperator as error:
        raise ValueError(
            "output: expected a net that onnxruntime has operators for on a CPU, got one in "
            f"bfloat16, or with others; .pt2 and .safetensors take it ({error})"
        ) from None

    def run(samples: Any) -> tuple[Tensor, Tensor]:
        label, p = session.run(list(OUTPUTS), front.arrays(samples))
        return torch.from_numpy(label), torch.from_numpy(p)

    return run


def interface(front: Front, C: int) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Inputs, by name, and outputs."""
    takes = []
    for value in front.inputs:
        for column in front.columns.get(value.name, []):
            type = "string" if isinstance(column, Categories) else "float64"
            takes.append(Value(column.name, type, ("n",)))
        if value.name not in front.columns:
            takes.append(value)
    return tuple(takes), (*outputs(C), Value(CLASS_NAME, "string", ("n",)))


def usage(path: Path, front: Front) -> str:
    """How to use it, in a line."""
    names = [value.name for value in interface(front, 2)[0]]
    given = ", ".join(f'"{name}": {name}' for name in names[:1])
    more = ", ..." if len(names) > 1 else ""
    return f'onnxruntime.InferenceSession("{path}").run(None, {{{given}{more}}})'
