"""The forms in which a model is stored and computed: the arithmetic is onnxruntime's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxprune import graph
from onnxprune.errors import UsageError
from onnxprune.graph import bodies, extras, providers
from onnxprune.graph.body_shapes import bodies_of
from onnxprune.quantize import prepare
from onnxprune.quantize.asked import Asked
from onnxprune.quantize.prepare import proto_of, quiet, with_interface
from onnxprune.quantize.ranges import Ranges, tensors_data
from onnxprune.system.atomic_files import scratch

OPSET = {"int8": 13, "dynamic": 13, "int4": 13, "fp16": 7}  # 13: DequantizeLinear takes a scale per channel
STORED = {"fp16": (ir.DataType.FLOAT16,)}  # what weights are stored as, where not as integers of 8 bits
UNKNOWN = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # of values behind operators that onnx does not know
# Operators that onnxruntime computes in integers, or that only move values and so need not leave them.
INTEGER_OPS = (
    "Conv Gemm MatMul Add Mul AveragePool GlobalAveragePool Concat MaxPool Relu Clip LeakyRelu Sigmoid Softmax Reshape "
    "Flatten Squeeze Unsqueeze Transpose Pad Resize Split Slice Gather Where"
).split()
# TensorRT takes its own choice of everything between these.
TENSORRT_OPS = "Conv ConvTranspose Gemm MatMul Add".split()


def _is_tensorrt(provider: str) -> bool:
    return providers.short_name(provider) in ("tensorrt", "tensorrt-rtx")


def op_types(provider: str) -> list[str]:
    """The types of operators that int8 computes in integers for `provider`."""
    return list(TENSORRT_OPS if _is_tensorrt(provider) else INTEGER_OPS)


def int8(
    model: ir.Model, asked: Asked, ranges: Ranges, floats: Sequence[str], provider: str, reduce_range: bool
) -> ir.Model:
    """`model` with QuantizeLinear and DequantizeLinear around what is computed in integers; `floats` stay so."""
    from onnxruntime.quantization import QDQQuantizer, QuantType

    proto, extra = _inferred(model), {}
    symmetric = asked["symmetric"] or _is_tensorrt(provider)
    if _is_tensorrt(provider):  # takes symmetric values, biases in float, and a pair of its own for each reader
        extra = {"DedicatedQDQPair": True, "QuantizeBias": False, "OpTypesToExcludeOutputQuantization": TENSORRT_OPS}
    quantizer = QDQQuantizer(
        proto,
        asked["per_channel"],
        reduce_range,
        QuantType.QInt8,
        QuantType.QInt8 if symmetric else QuantType.QUInt8,
        tensors_data(ranges),
        [],
        list(floats),
        op_types(provider),
        {"ActivationSymmetric": symmetric, "TensorQuantOverrides": _of_one_scale(model), **UNKNOWN, **extra},
    )
    with quiet():
        quantizer.quantize_model()
    return _checked(quantizer.model.model, model, "int8", "Conv, Gemm or MatMul")


def _of_one_scale(model: ir.Model) -> dict[str, list[dict[str, Any]]]:
    """How weights are stored that have one scale, with signs, for which integer kernels are made: tables that are a
    matrix as well, transposed, and stacks of matrices, of which no integer kernel takes a scale per column."""
    from onnxruntime.quantization import QuantType

    names = [node.inputs[0].name or "" for node in model.graph if prepare.is_tied(node) and node.inputs[0]]
    names += [node.inputs[1].name or "" for node in model.graph if is_stack(node) and node.inputs[1]]
    return {name: [{"quant_type": QuantType.QInt8, "symmetric": True}] for name in sorted(set(names))}


def is_stack(node: ir.Node) -> bool:
    """Whether `node` multiplies by a stored stack of matrices, as a mixture of experts does."""
    w = graph.constant(node.inputs[1]) if node.op_type == "MatMul" else None
    return w is not None and w.ndim > 2


def dynamic(model: ir.Model, asked: Asked, floats: Sequence[str]) -> ir.Model:
    """`model` with the matrices of MatMul in 8 bits; what they are multiplied with is rounded when the model runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    stacks = [node.name or "" for node in model.graph if is_stack(node)]
    proto = proto_of(model)
    with scratch() as folder, quiet():
        out = Path(folder, "quantized.onnx")
        # Stacks of matrices apart from the others: no integer kernel takes a scale per column of theirs.
        for per_channel, others in [(asked["per_channel"], stacks)] + ([(False, [])] if stacks else []):
            quantize_dynamic(
                proto,
                out,
                op_types_to_quantize=["MatMul"],
                per_channel=per_channel,
                reduce_range=asked["reduce_range"],
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*floats, *others],
                extra_options={"MatMulConstBOnly": True, **UNKNOWN},
            )
            proto = onnx.load(out)
    return _checked(proto, model, "dynamic", "MatMul or Gemm")


def int4(model: ir.Model, asked: Asked, floats: Sequence[str]) -> ir.Model:
    """`model` with the matrices of MatMul in 4 bits."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        proto_of(model),
        bits=4,
        block_size=asked["block"],
        is_symmetric=asked["symmetric"],
        accuracy_level=asked["accuracy_level"] or None,
        nodes_to_exclude=[*floats, *_in_bodies(model)],
    )
    with quiet():
        quantizer.process()
    made = quantizer.model.model  # type: ignore[attr-defined]
    return _checked(made, model, "int4", "MatMul or Gemm")


def _in_bodies(model: ir.Model) -> list[str]:
    """Names of the nodes in bodies of If, Loop and Scan, into which the proof of integers does not look."""
    return [node.name or "" for outer in model.graph for node in bodies.nodes_inside(outer)]


def fp16(model: ir.Model, floats: Sequence[str]) -> ir.Model:
    """`model` in half precision behind the same interface."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    left = [*floats, *(node.name or "" for node in model.graph.all_nodes() if _takes_no_halves(node, model))]
    proto = proto_of(model)
    count = len(proto.graph.node)
    with quiet():
        made = convert_float_to_float16(proto, keep_io_types=True, node_block_list=left)
    _put_conversions(made.graph, count)
    return _without_way_back(_checked(made, model, "fp16", "node"))


def _put_conversions(outer: onnx.GraphProto, count: int) -> None:
    """Puts each conversion of the converter once, in place, into the graph that makes what it reads.

    The converter adds one for every node that stays in float, also where two of these read the same value, and all
    of them to `outer`, behind its own `count` nodes, also those of values inside of bodies.
    """
    added = sorted(outer.node[count:], key=lambda node: node.attribute[0].i != onnx.TensorProto.FLOAT16)
    types = {value.name: value for value in outer.value_info}
    del outer.node[count:], outer.value_info[:]
    for each in _graphs(outer):
        held = {value.name for value in (*each.input, *each.initializer)}
        held.update(name for node in each.node for name in node.output)
        for node in added:  # those to halves first: those to floats may read them
            if node.input[0] in held and node.output[0] not in held:
                each.node.append(node)
                held.add(node.output[0])
        known = {value.name for value in each.value_info}
        each.value_info.extend(value for name, value in types.items() if name in held - known)


def _graphs(outer: onnx.GraphProto) -> list[onnx.GraphProto]:
    """`outer`, and the bodies of its nodes."""
    inner = (body for node in outer.node for body in bodies_of(node))
    return [outer, *(found for body in inner for found in _graphs(body))]


def _without_way_back(model: ir.Model) -> ir.Model:
    """`model`, in place, without the halves that the converter puts between two nodes which both stay in float: what
    halves do not reach would be lost there."""
    for node in list(model.graph.all_nodes()):
        half = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
        if half is None or half.op_type != "Cast" or node.outputs[0].is_graph_output():
            continue
        source = half.inputs[0]
        if source is not None and _casts(half, ir.DataType.FLOAT16) and _casts(node, ir.DataType.FLOAT):
            node.outputs[0].replace_all_uses_with(source)
            _remove(node)
            if not half.outputs[0].uses() and not half.outputs[0].is_graph_output():
                _remove(half)
    return model


def _remove(node: ir.Node) -> None:
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _casts(node: ir.Node, dtype: ir.DataType) -> bool:
    return node.attributes.get_int("to", 0) == dtype


def _takes_no_halves(node: ir.Node, model: ir.Model) -> bool:
    """Whether the operator is not defined in half precision, though it is in single, as Celu."""
    try:
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:  # of another domain
        return False
    first = [*schema.inputs[:1], *schema.outputs[:1]]
    return any("tensor(float)" in each.types and "tensor(float16)" not in each.types for each in first)


def _checked(made: onnx.ModelProto, model: ir.Model, kind: str, what: str) -> ir.Model:
    types = STORED.get(kind, (ir.DataType.INT8, ir.DataType.UINT8))
    before = sum(value.dtype in types for value in model.graph.initializers.values())
    if sum(tensor.data_type in types for each in _graphs(made.graph) for tensor in each.initializer) <= before:
        inside = kind not in STORED and any(map(bodies.of, model.graph))
        raise UsageError(
            f"--quantize {kind}: nothing of this model can be stored so: it has no {what} with a constant weight that "
            f"is left to quantize{', outside of bodies of If, Loop and Scan' if inside else ''}; choose another kind, "
            "or exclude less"
        )
    return _made(made, model)


def _made(made: onnx.ModelProto, model: ir.Model) -> ir.Model:
    result = with_interface(made, proto_of(model))
    extras.put(result, extras.of(model))
    return result


def _inferred(model: ir.Model) -> onnx.ModelProto:
    """`model` with the types of all values, without which onnxruntime's quantizer leaves them alone."""
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    with scratch() as folder:
        path = Path(folder, "float.onnx")
        onnx.save(proto_of(model), path)
        return load_model_with_shape_infer(path)
