"""An .onnx file: a graph that takes arrays by name and that onnxruntime runs, without torch.

    columns of a table   ->   numbers, codes    (tables only)
    inputs               ->   the program of torch.export, in ONNX operators
    label                ->   class_name

The metadata are JSON under the key "softmax_torch".

>>> session = onnxruntime.InferenceSession("model.onnx")  # doctest: +SKIP
>>> session.run(["class_name", "probabilities"], {"image": images})  # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from keyword import iskeyword
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
from softmax_torch.export.input_modules import InputModule, Interface, Runner, TensorSpec
from softmax_torch.export.metadata import metadata_of, to_json
from softmax_torch.export.program import output_specs, trace
from softmax_torch.export.table_input import UNKNOWN, category_codes
from softmax_torch.predictor import Predictor
from softmax_torch.preprocessing.table import CategoricalColumn

__all__ = ["METADATA_KEY", "interface", "open_runner", "usage", "write"]

METADATA_KEY = "softmax_torch"
"""Key of the metadata in the file."""

GRAPH_PREFIX = "net/"
"""Prefix of all names within the graph; no input may begin with it."""

STRINGS = "ai.onnx.ml", 3
"""Domain of ONNX's operators on strings, and the version that is used here."""

AXIS = f"{GRAPH_PREFIX}axis"
"""Name of the constant with the axis along which columns are joined."""

CLASS_NAME = "class_name"
"""Name of the output of strings, which a torch program cannot have."""

MAX_WEIGHT_BYTES = 2**31 - 2**24
"""Largest size of the weights in bytes: ONNX files are limited to 2 GiB."""


def write(path: Path, predictor: Predictor, input_module: InputModule) -> None:
    """Write a new file.

    Raises:
        ValueError: the net is too large for the format, a column has no name, or its name is one
            that the graph uses.
    """
    size = sum(weights.nbytes for weights in predictor.network.state_dict().values())
    if size > MAX_WEIGHT_BYTES:
        raise ValueError(
            f"output: expected a net of at most {MAX_WEIGHT_BYTES} bytes for ONNX, got one of "
            f"{size}; .pt2 and .safetensors have no limit"
        )
    inputs, outputs = interface(input_module, predictor)
    reserved = [spec.name for spec in outputs]
    taken = [spec.name for spec in inputs if spec.name in (*reserved, "")]
    taken += [spec.name for spec in inputs if spec.name.startswith(GRAPH_PREFIX)]
    if taken:
        raise ValueError(
            f"column {taken[0] or 'without a name'}: expected a name other than "
            f"{', '.join(reserved)} and {GRAPH_PREFIX}... for ONNX, whose graph uses these names"
        )
    converted = torch.onnx.export(
        trace(predictor, input_module),
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=[spec.name for spec in input_module.inputs],
        output_names=[spec.name for spec in output_specs(predictor)],
    )
    assert converted is not None, "torch.onnx.export returns a program if dynamo is set"
    model = add_interface(converted.model_proto, input_module, predictor)
    helper.set_model_props(model, {METADATA_KEY: to_json(metadata_of(predictor, inputs))})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def add_interface(
    model: onnx.ModelProto, input_module: InputModule, predictor: Predictor
) -> onnx.ModelProto:
    """Return torch's graph with inputs by column, and class names as an output."""
    model = compose.add_prefix(model, GRAPH_PREFIX)
    inputs, outputs = interface(input_module, predictor)
    direct = [spec.name for spec in input_module.inputs if spec.name not in input_module.columns]
    given = [spec.name for spec in output_specs(predictor)]
    outer = {f"{GRAPH_PREFIX}{name}": name for name in (*direct, *given)}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [outer.get(name, name) for name in names]
        del node.metadata_props[:]  # names of torch's modules and operations
    class_name = helper.make_node(
        "LabelEncoder",
        ["label"],
        [CLASS_NAME],
        domain=STRINGS[0],
        keys_int64s=range(len(predictor.class_names)),
        values_strings=predictor.class_names,
    )
    axis = helper.make_tensor(AXIS, TensorProto.INT64, [1], [1])
    graph = helper.make_graph(
        [*column_nodes(input_module), *model.graph.node, class_name],
        "softmax_torch",
        [value_info(spec) for spec in inputs],
        [value_info(spec) for spec in outputs],
        [*model.graph.initializer, *([axis] if input_module.columns else [])],
    )
    return helper.make_model(
        graph,
        functions=model.functions,
        producer_name="softmax_torch",
        producer_version=__version__,
        ir_version=model.ir_version,
        opset_imports=[*model.opset_import, helper.make_opsetid(*STRINGS)],
    )


def column_nodes(input_module: InputModule) -> list[onnx.NodeProto]:
    """Return the operations that join columns of a table to the matrices of the program."""
    nodes = []
    for matrix, columns in input_module.columns.items():
        parts = []
        for k, column in enumerate(columns):
            value = column.name
            if isinstance(column, CategoricalColumn):
                value = f"{GRAPH_PREFIX}{matrix}_{k}_codes"
                codes = category_codes(column, input_module.table_format)
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
            parts.append(f"{GRAPH_PREFIX}{matrix}_{k}")
            nodes.append(helper.make_node("Unsqueeze", [value, AXIS], parts[-1:]))
        nodes.append(helper.make_node("Concat", parts, [f"{GRAPH_PREFIX}{matrix}"], axis=1))
    return nodes


def value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    """Return an input or output as ONNX describes it."""
    if spec.dtype == "string":
        return helper.make_tensor_value_info(spec.name, TensorProto.STRING, spec.shape)
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, dtype, spec.shape)


def open_runner(path: Path, input_module: InputModule) -> Runner:
    """Open a file for predictions.

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

    names = [output.name for output in session.get_outputs() if output.name != CLASS_NAME]

    def run(samples: Any) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(names, input_module.arrays(samples))))

    return run


def interface(input_module: InputModule, predictor: Predictor) -> Interface:
    """Return inputs, by name, and outputs."""
    label, p, *sets = output_specs(predictor)
    return inputs_of(input_module), (label, p, TensorSpec(CLASS_NAME, "string", ("n",)), *sets)


def inputs_of(input_module: InputModule) -> tuple[TensorSpec, ...]:
    """Return the inputs, each column of a table for itself."""
    inputs = []
    for spec in input_module.inputs:
        for column in input_module.columns.get(spec.name, []):
            dtype = "string" if isinstance(column, CategoricalColumn) else "float64"
            inputs.append(TensorSpec(column.name, dtype, ("n",)))
        if spec.name not in input_module.columns:
            inputs.append(spec)
    return tuple(inputs)


def usage(path: Path, input_module: InputModule, outputs: Sequence[TensorSpec]) -> str:
    names = [spec.name for spec in inputs_of(input_module)]
    session = f"onnxruntime.InferenceSession({json.dumps(str(path), ensure_ascii=False)})"
    if len(names) > 1:
        columns = "{i.name: frame[i.name].to_numpy() for i in session.get_inputs()}"
        return f"session = {session}; session.run(None, {columns})"
    [name] = names
    variable = name if name.isidentifier() and not iskeyword(name) else "column"
    return f"{session}.run(None, {{{json.dumps(name, ensure_ascii=False)}: {variable}}})"
