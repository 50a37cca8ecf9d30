"""The 8-bit form of a graph: what each row of an embedding loses follows from that row alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from nanonet.inference.onnx_int8 import write_quantized  # noqa: E402


def test_a_long_row_costs_the_others_nothing(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    table[7] *= 1000
    table[9] = 0
    helper, kind = onnx.helper, onnx.TensorProto
    nodes = [helper.make_node("Gather", ["table", name], [out], out) for name, out in (("a", "x"), ("b", "y"))]
    graph = helper.make_graph(
        nodes,
        "two readers of one table",
        [helper.make_tensor_value_info(name, kind.INT64, ["B", "L"]) for name in "ab"],
        [helper.make_tensor_value_info(name, kind.FLOAT, ["B", "L", 16]) for name in "xy"],
        [onnx.numpy_helper.from_array(table, "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "a.onnx")
    write_quantized(tmp_path / "a.onnx", tmp_path / "b.onnx")
    ids = np.arange(50)[None]
    x, y = onnxruntime.InferenceSession(tmp_path / "b.onnx").run(None, {"a": ids, "b": ids[:, ::-1]})
    largest = np.abs(table).max(-1, keepdims=True)
    assert (np.abs(x[0] - table) <= largest / 254 * 1.001).all() and np.array_equal(x[0], y[0, ::-1])
    stored = {one.name: one for one in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert {one.data_type for name, one in stored.items() if name.startswith("table")} == {kind.INT8, kind.FLOAT}
    assert "table" not in stored
