"""Small models for the bridge's tests: ONNX text plus initializers with values that are never constant."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper

from onnxprune.bridge import Network


def random(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def parse(text: str, initializers: Mapping[str, np.ndarray] | None = None, opset: int = 18) -> ir.Model:
    """A model from its graph in ONNX text; domain com.microsoft is imported too, nodes get names."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    for name in initializers or {}:  # the parser knows no dots in names
        text = text.replace(name, name.replace(".", "__dot__"))
    proto = onnx.parser.parse_model(header + text)
    for name, array in (initializers or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
        node.input[:] = [name.replace("__dot__", ".") for name in node.input]
    return ir.from_proto(proto)


def node_model(
    op_type: str,
    inputs: Mapping[str, np.ndarray | None],
    outputs: int = 1,
    *,
    opset: int = 18,
    domain: str = "",
    constants: tuple[str, ...] = (),
    **attributes: object,
) -> ir.Model:
    """A model of one node; an input of None is left out, those in `constants` are initializers."""
    given = {name: array for name, array in inputs.items() if array is not None}
    node = helper.make_node(
        op_type,
        [name if array is not None else "" for name, array in inputs.items()],
        [f"y{k}" for k in range(outputs)],
        name="node",
        domain=domain,
        **attributes,
    )
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
        if name not in constants
    ]
    made = [onnx.ValueInfoProto(name=name) for name in node.output]
    arrays = [numpy_helper.from_array(given[name], name) for name in constants if name in given]
    graph = helper.make_graph([node], "g", infos, made, arrays)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def run_bridge(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        results = Network(model).eval()({name: torch.from_numpy(array.copy()) for name, array in feeds.items()})
    return {name: tensor.numpy() for name, tensor in results.items()}


def run_onnxruntime(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    settings = ort.SessionOptions()
    settings.log_severity_level, settings.intra_op_num_threads = 4, 1
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_same(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """Same names, types and shapes, and values within `tolerance` of the largest."""
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].shape == array.shape, name
        if array.dtype.kind == "f":
            scale = max(1e-6, float(np.max(np.abs(array), initial=0, where=np.isfinite(array))))
            np.testing.assert_allclose(got[name] / scale, array / scale, rtol=1e-4, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(got[name], array, err_msg=name)


def compare(model: ir.Model, feeds: Mapping[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """The bridge and onnxruntime give the same."""
    assert_same(run_bridge(model, feeds), run_onnxruntime(model, feeds), tolerance)
