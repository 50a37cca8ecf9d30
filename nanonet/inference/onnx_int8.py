"""The 8-bit form of an ONNX file: embeddings in int8 with a scale for each row, matrices with one for each output,
activations at run time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nanonet.inference.onnx_graph import without_warnings


def write_quantized(graph_file: Path, path: Path) -> None:
    """Write to `path` the 8-bit form of a file that `write_graph` wrote."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(graph_file)
    # the quantiser transposes weights; without the exporter's shapes it infers the new ones
    del model.graph.value_info[:]
    _quantise_embeddings(model.graph)
    # onnxruntime's 8-bit convolution is several times slower than float32
    left = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gather")]
    with without_warnings():
        quantize_dynamic(model, path, weight_type=QuantType.QInt8, per_channel=True, nodes_to_exclude=left)


def _quantise_embeddings(graph: Any) -> None:
    """Gather(table, ids) becomes Gather(int8, ids) * Gather(scales, ids): onnxruntime's own quantiser has one scale for
    a whole table, whose longest row decides it."""
    from onnx import TensorProto, helper, numpy_helper

    tables = {one.name: one for one in graph.initializer if len(one.dims) == 2 and one.data_type == TensorProto.FLOAT}
    nodes, found = [], set[str]()
    for node in graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or any(a.name == "axis" and a.i for a in node.attribute):
            nodes.append(node)
            continue
        name, ids, (out,) = table.name, node.input[1], node.output
        if name not in found:
            found.add(name)
            rows, scale = _int8_rows(numpy_helper.to_array(table))
            graph.initializer.append(numpy_helper.from_array(rows, f"{name}_int8"))
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        nodes += [
            helper.make_node("Gather", [f"{name}_int8", ids], [f"{out}_int8"], f"{node.name}_int8"),
            helper.make_node("Cast", [f"{out}_int8"], [f"{out}_float"], f"{node.name}_float", to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}_scale", ids], [f"{out}_scale"], f"{node.name}_scale"),
            helper.make_node("Mul", [f"{out}_float", f"{out}_scale"], [out], node.name),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for name in found - used:
        graph.initializer.remove(tables[name])


def _int8_rows(table: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The rows of a table (V,W) in int8, and their scales (V,1) in float32."""
    scale = np.maximum(np.abs(table).max(-1, keepdims=True) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(table / scale).astype(np.int8), scale
