"""onnxsim on a model of which the weights that it must not touch, or hold twice, are hidden from it."""

import importlib
import sys
from types import ModuleType

import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.errors import GraphError
from onnxprune.tensors import size_bytes, tensor_of

SKELETON_BYTES = 256_000_000  # larger models are simplified without their weights, which are then never held twice
HIDDEN_BYTES = 4096  # in these, larger initializers are hidden


def simplify(model: ir.Model, skipped: list[str]) -> ir.Model:
    """`model` through onnxsim; weights that it must not bake or hold twice are hidden from it as inputs."""
    onnxsim = _import_onnxsim()
    threshold = HIDDEN_BYTES if size_bytes(model) > SKELETON_BYTES else None
    proto, hidden = skeleton(model, threshold)
    try:
        simplified, _ = onnxsim.simplify(proto, skipped_optimizers=skipped, check_n=0, certify=False)
    except Exception:  # it raises bare RuntimeErrors; a model that it cannot simplify is pruned as it is
        simplified = proto
    if not _loads(simplified):  # it has been seen to write nodes that no runtime accepts
        simplified = proto
    result = ir.from_proto(simplified)
    _unhide(result, hidden)
    _restore_interface(result, model)
    return result


def _loads(proto: onnx.ModelProto) -> bool:
    """Whether onnxruntime accepts the model."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime raises a dozen pybind types without a common base
        return False
    return True


def _import_onnxsim() -> ModuleType:
    """onnxsim without torch, which it would import (two seconds) for parts that are not used here."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]  # makes 'import torch' fail, which onnxsim expects
    try:
        return importlib.import_module("onnxsim")
    finally:
        if hide:
            del sys.modules["torch"]


def skeleton(model: ir.Model, threshold: int | None) -> tuple[onnx.ModelProto, dict[str, ir.Value]]:
    """`model` as a protobuf message without the hidden initializers, which become inputs, and those by name.

    Hidden are weights stored small behind Cast or DequantizeLinear (folding would store them large), and, with a
    threshold, all initializers of more bytes and all that are still on disk.
    """
    hidden = {
        name: value
        for name, value in model.graph.initializers.items()
        if _arrives_through_node(value) or (threshold is not None and _is_large(tensor_of(value), threshold))
    }
    if not hidden:
        return ir.to_proto(model), {}
    tensors = {name: tensor_of(value) for name, value in hidden.items()}
    inputs = list(model.graph.inputs)
    try:
        for name, value in hidden.items():
            value.shape = ir.Shape(tensors[name].shape.numpy())
            value.type = ir.TensorType(tensors[name].dtype)
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)
        return ir.to_proto(model), {name: _detached(name, tensors[name]) for name in hidden}
    finally:
        for name, value in hidden.items():
            model.graph.inputs.remove(value)
            value.const_value = tensors[name]
            model.graph.register_initializer(value)
        assert list(model.graph.inputs) == inputs


def _is_large(tensor: ir.TensorProtocol, threshold: int) -> bool:
    return tensor.nbytes > threshold or isinstance(tensor, ir.ExternalTensor)


def _detached(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )


def _unhide(model: ir.Model, hidden: dict[str, ir.Value]) -> None:
    for value in [value for value in model.graph.inputs if value.name in hidden]:
        model.graph.inputs.remove(value)
        value.const_value = hidden[value.name or ""].const_value
        model.graph.register_initializer(value)


def _arrives_through_node(value: ir.Value) -> bool:
    if value.const_value is None or value.const_value.nbytes < 64:
        return False
    users = {node.op_type for node, _ in value.uses()}
    if "DequantizeLinear" in users:
        return True
    return users == {"Cast"} and value.const_value.dtype.bitwidth <= 16 and len(value.const_value.shape) > 1


def _restore_interface(result: ir.Model, original: ir.Model) -> None:
    """Signatures, names and metadata as they were; onnxsim may have specialised shapes or dropped properties."""
    for new, old in zip(result.graph.outputs, original.graph.outputs, strict=True):
        new.shape, new.type = old.shape, old.type
    by_name = {value.name: value for value in result.graph.inputs}
    for old in original.graph.inputs:
        if old.name not in by_name:
            raise GraphError(f"graph input '{old.name}' was lost in simplification; please report this model")
        by_name[old.name].shape, by_name[old.name].type = old.shape, old.type
    result.graph.inputs[:] = [by_name[value.name] for value in original.graph.inputs]
    result.graph.name, result.graph.doc_string = original.graph.name, original.graph.doc_string
    result.metadata_props.clear()
    result.metadata_props.update(original.metadata_props)
    result.producer_name, result.producer_version = original.producer_name, original.producer_version
    result.model_version, result.domain, result.doc_string = (
        original.model_version,
        original.domain,
        original.doc_string,
    )


# Normal form ----------------------------------------------------------------------------------------------------
