"""Models on disk and in memory: load, normalize, save. The only file that knows files.

A model in memory is an `onnx_ir.Model`. The normalized model is what analysis, plans and surgery refer to:
functions are inlined, constants are initializers, shapes computed from constants are folded away, every node has
a name, no initializer is a graph input, equal initializers that an exporter merged are separate again, and states in
the interface have gates (see states.py).
It computes the same numbers behind the same interface.
"""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx import external_data_helper

from onnxprune.errors import GraphError, UsageError, first_line
from onnxprune.graph import bodies, branches, defaults, extras, integrity, qoperator, quantized, sparse, states, zipmaps
from onnxprune.graph.folding import fold_sizes
from onnxprune.graph.simplify import PLAIN, infer_shapes, is_plain, simplify, skeleton, static_sizes
from onnxprune.graph.stored import Stored
from onnxprune.graph.tensors import array_of, held, read_external, size_bytes, tie
from onnxprune.system import atomic_files
from onnxprune.system.memory import LARGE_MODEL_BYTES

PROTOBUF_LIMIT_BYTES = 1_900_000_000  # a protobuf message ends at 2 GiB; beyond this the weights go beside the file

# Rewrites of onnxsim that would merge what pruning has to tell apart, or bake BatchNormalization into weights.
# fuse_attention writes operators of com.microsoft that no other runtime knows. eliminate_nop_with_unit takes a constant
# without elements for nothing beside others in a Concat, along whichever axis; `finish` calls it, when none are left.
# A product of more than two axes and what is added become a Gemm only with Reshapes around it, whose sizes are computed
# in every run: more nodes, and slower.
SLOWER = "fuse_matmul_add_bias_into_gemm_batched"
KEPT_APART = [
    SLOWER,
    "eliminate_duplicate_initializer",
    "eliminate_common_subexpression",
    "fuse_qkv",
    "fuse_bn_into_conv",
    "fuse_attention",
    "eliminate_nop_with_unit",
]


def load(path: str | Path) -> ir.Model:
    """The model in file `path`; external data stays on disk until it is read.

    Raises: GraphError when the file is missing, is not ONNX, or its external data is absent or outside its folder.
    """
    path = Path(path)
    if not path.is_file():
        raise GraphError(f"{path}: no such file; give the path of an .onnx model")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise GraphError(
            f"{path}: not an ONNX file, or truncated ({first_line(error)}); export or copy it again"
        ) from error
    if not proto.graph.node or not proto.opset_import:
        raise GraphError(f"{path}: holds no ONNX graph ({len(proto.graph.node)} nodes); export or copy it again")
    integrity.check_texts(proto, path)
    _check_opsets(proto, path)
    _check_external(proto, path)
    try:
        sparse.densify(proto, path.parent)
    except Exception as error:
        raise GraphError(
            f"{path}: a sparse tensor is damaged ({first_line(error)}); export or copy it again"
        ) from error
    integrity.check(proto, path)
    aside = zipmaps.detach(proto)
    _check_types(proto, path)
    try:
        model = held(ir.from_proto(proto))
    except Exception as error:
        raise GraphError(f"{path}: the graph is broken ({first_line(error)}); check it with onnx.checker") from error
    carried = extras.Extras(
        maps=aside,
        defaults=defaults.detach(model),
        described=frozenset(value.name for value in proto.graph.value_info),
        external=_locate(model, path.parent.resolve()),
    )
    extras.put(model, carried)
    _check_order(model, path)
    _check_functions(model, path)
    return model


def external_names(path: Path) -> list[str]:
    """Names, relative to its folder, of the files that hold weights of the model in `path`; of no model none."""
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception:  # `load` says what is wrong with it
        return []
    tensors = [t for t in external_data_helper._get_all_tensors(proto) if t.data_location == onnx.TensorProto.EXTERNAL]
    found = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return sorted(name for name in found if isinstance(name, str) and "\0" not in name)


def normalize(model: ir.Model, *, rewrite: bool = True) -> ir.Model:
    """The normalized form of `model`, a new model that shares the tensors; normalizing again changes nothing.

    rewrite: onnxsim may fold constants and rewrite nodes.
    """
    model = extras.copy(model)
    states.drop_gates(model)
    read_external(model, LARGE_MODEL_BYTES)
    outputs = _declared(model)
    if model.functions:
        passes.InlinePass()(model)
    passes.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, 4)  # before, every initializer had to be an input
    lift_constants(model)
    written_out = qoperator.write_out(model) if rewrite else 0
    if rewrite:
        _pass_by_identities(model)
        if fold_sizes(model, PLAIN, partial(static_sizes, model)):
            _drop_unused_initializers(model)
    simplified = model
    if rewrite and is_plain(model):
        infer_shapes(model)
    elif rewrite:
        simplified = _simplified(model)
    assert _declared(simplified) == outputs, outputs
    if _computes_unused(simplified):
        passes.RemoveUnusedNodesPass()(simplified)
    bodies.lift(simplified)
    _drop_unused_initializers(simplified)
    name_nodes(simplified)
    _untie(simplified)
    extras.put(simplified, replace(extras.of(simplified), written_out=written_out))
    states.put_gates(simplified)
    return simplified


def _declared(model: ir.Model) -> list[tuple[str, str, str]]:
    return [(value.name or "", str(value.type), str(value.shape)) for value in model.graph.outputs]


def finish(model: ir.Model, *, rewrite: bool = True, join: bool = True) -> ir.Model:
    """A copy of `model` ready to be written; the interface is unchanged.

    rewrite: apply all of onnxsim's fusions. join: equal initializers become one.
    """
    skipped = [SLOWER, "fuse_qkv", "fuse_attention", *([] if join else ["eliminate_duplicate_initializer"])]
    finished = extras.copy(model)
    states.drop_gates(finished)
    if rewrite:
        finished = simplify(finished, skipped=skipped, bake=True)
    _drop_unused_initializers(finished)
    if join:
        tie(finished)
    _forget_descriptions(finished, extras.of(model).described)
    return finished


def _forget_descriptions(model: ir.Model, described: frozenset[str] | None) -> None:
    """Types and shapes of inner values are written only where the file came with them: they make small files grow."""
    if described is None:
        return
    outputs = set(model.graph.outputs)
    plain = (node for node in model.graph if node.domain in ("", "ai.onnx"))  # nothing else says what others give
    for value in (*(v for node in plain for v in node.outputs), *model.graph.initializers.values()):
        if value.name not in described and value not in outputs:
            value.type = value.shape = None  # tensors that are stored have their own


def save(model: ir.Model, path: str | Path) -> None:
    """Writes `model` beside `path` and renames it: `path` holds the old file or the whole new one, never a part.

    Weights go to `<name>.data` beside the file when the model is too large for one protobuf message or came so.
    Raises: UsageError when the folder does not exist or cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; create it or choose another output")
    apart = extras.of(model).external or size_bytes(model) > PROTOBUF_LIMIT_BYTES
    if apart and not integrity.is_text(path):
        raise UsageError(f"{path}: weights beside a file are found by text (UTF-8) only; choose another output")
    try:
        with atomic_files.staged(path) as places:
            with defaults.attached(model):
                ir.save(model, places[path], external_data=atomic_files.beside(path, ".data").name if apart else None)
            if maps := extras.of(model).maps:
                _attach_maps(places[path], maps)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed") from error


def _attach_maps(file: Path, aside: tuple[zipmaps.Map, ...]) -> None:
    proto = onnx.load(file, load_external_data=False)
    zipmaps.attach(proto, aside)
    file.write_bytes(proto.SerializeToString())


def digest(model: ir.Model) -> str:
    """SHA-256 of the file that `save` writes for `model`, the weights included wherever they are stored."""
    hasher = hashlib.sha256()
    if size_bytes(model) <= PROTOBUF_LIMIT_BYTES and not extras.of(model).external:
        with defaults.attached(model):
            hasher.update(ir.to_proto(model).SerializeToString(deterministic=True))
        return hasher.hexdigest()
    proto, hidden = skeleton(model, 0)
    hasher.update(proto.SerializeToString(deterministic=True))
    for name in sorted(hidden):
        hasher.update(name.encode())
        hasher.update(array_of(hidden[name]).tobytes())
    return hasher.hexdigest()


# Loading --------------------------------------------------------------------------------------------------------


def _check_opsets(proto: onnx.ModelProto, path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and not 1 <= opset.version <= newest:
            raise GraphError(
                f"{path}: opset {opset.version} is unknown (newest known: {newest}); export at {newest} or lower"
            )


def _check_types(proto: onnx.ModelProto, path: Path) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        kind = value.type
        while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
            kind = getattr(kind, kind.WhichOneof("value")).elem_type
        if kind.WhichOneof("value") == "map_type":
            raise GraphError(
                f"{path}: '{value.name}' is a map, not a tensor: not supported; export without ZipMap (zipmap=False)"
            )


def _check_external(proto: onnx.ModelProto, path: Path) -> None:
    folder = path.parent.resolve()
    for tensor in external_data_helper._get_all_tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "").replace("\0", "\\0")  # no path can hold that
        file = (folder / location).resolve()
        if not location or not file.is_relative_to(folder):
            raise GraphError(
                f"{path}: external data of '{tensor.name}' is at '{location}', outside the folder; move it there"
            )
        if not file.is_file():
            raise GraphError(
                f"{path}: external data file '{location}' of '{tensor.name}' is missing; copy it beside the model"
            )
        end = sum(integrity.entry_bytes(tensor, key, path) for key in ("offset", "length"))
        if file.stat().st_size < end:
            raise GraphError(
                f"{path}: external data file '{location}' is {file.stat().st_size} bytes, '{tensor.name}' ends at {end}"
            )


def _locate(model: ir.Model, folder: Path) -> bool:
    """Whether some weights are external; theirs are whole paths then.

    Given a base folder, onnx_ir refuses files with several hard links, as package installers make. What it guards
    against, a path that leads out of the folder, was refused by `_check_external`.
    """
    found = [v for graph in model.graphs() for v in graph.initializers.values() if _is_external(v)]
    for value in found:
        old = value.const_value
        assert isinstance(old, ir.ExternalTensor)
        value.const_value = Stored(
            str(folder / old.location), old.offset, old.length, old.dtype, shape=old.shape, name=old.name
        )
    return bool(found)


def _check_order(model: ir.Model, path: Path) -> None:
    """Sorts the nodes. Raises: GraphError when they form a cycle, or a value comes from nowhere."""
    graph = model.graph
    known = set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        for value in node.inputs:
            if value is not None and value.producer() is None and value not in known:
                raise GraphError(
                    f"{path}: node '{node.name or node.op_type}' reads '{value.name}', which nothing produces"
                )
    for value in graph.outputs:
        if value.producer() is None and value not in known:
            raise GraphError(f"{path}: nothing produces the output '{value.name}'; name one that a node computes")
    try:
        graph.sort()
    except ValueError as error:
        raise GraphError(f"{path}: the graph has a cycle ({first_line(error)})") from error


def _check_functions(model: ir.Model, path: Path) -> None:
    """Checks that the functions of `model` can be inlined, as they will be. Raises: GraphError otherwise."""
    if not model.functions:
        return
    try:
        passes.InlinePass()(model.clone())
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise GraphError(
            f"{path}: the functions in it cannot be written out ({first_line(cause)}); "
            "export it again without functions"
        ) from error


def _is_external(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor)


# Normal form ----------------------------------------------------------------------------------------------------


def _simplified(model: ir.Model) -> ir.Model:
    """`model` through onnxsim, again where that decided an If."""
    simplified = simplify(model, skipped=KEPT_APART)
    lift_constants(simplified)
    if not branches.inline_decided(simplified):
        return simplified
    extras.put(simplified, replace(extras.of(simplified), notes=extras.of(model).notes))  # of what is now done again
    return _simplified(simplified)


def _pass_by_identities(model: ir.Model) -> None:
    """Takes Identity nodes out, in place, but for those that give the model's outputs."""
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Identity" and node.domain in ("", "ai.onnx") else None
        if source is not None and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)


def _computes_unused(model: ir.Model) -> bool:
    """Whether some node gives what nothing reads."""
    computed = (value for node in bodies.all_nodes(model.graph) for value in node.outputs)
    return any(not value.uses() and not value.is_graph_output() for value in computed)


def lift_constants(model: ir.Model) -> None:
    """Makes initializers of all Constant nodes."""
    for node in list(model.graph):
        given = node.attributes.get("value") if node.op_type == "Constant" else None
        y = node.outputs[0]
        if given is not None and not node.domain and not given.is_ref() and not y.is_graph_output() and y.name:
            tensor = given.as_tensor()
            kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
            made = ir.Value(name=y.name, shape=shape, type=kind, const_value=tensor)
            y.replace_all_uses_with(made)
            model.graph.remove(node, safe=True)
            model.graph.register_initializer(made)
    if any(node.op_type == "Constant" for node in bodies.all_nodes(model.graph)):  # other kinds, and those in bodies
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _drop_unused_initializers(model: ir.Model) -> None:
    outputs = set(model.graph.outputs)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del model.graph.initializers[name]


def name_nodes(model: ir.Model) -> None:
    """Gives every node a name of its own; given names stay."""
    taken: set[str] = set()
    for index, node in enumerate(bodies.all_nodes(model.graph)):
        name = node.name or f"{node.op_type}_{index}"
        unique, count = name, 0
        while unique in taken:
            count += 1
            unique = f"{name}.{count}"
        taken.add(unique)
        node.name = unique


def _untie(model: ir.Model) -> None:
    """One initializer per use, except for weights that the author of the network shares between nodes.

    Exporters merge equal initializers: one zero vector in thirty places would couple half of a network.
    A matrix with contents of its own that several nodes use is shared by design and stays shared.
    """
    for value in list(model.graph.initializers.values()):
        uses = list(value.uses())
        if len(uses) < 2 or value in model.graph.outputs or _shared_by_design(value):
            continue
        for node, index in uses[1:]:
            tensor = value.const_value
            name = f"{value.name}@{node.name}.{index}"
            copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=tensor)
            model.graph.register_initializer(copy)
            node.replace_input_with(index, copy)


def _is_gathered(value: ir.Value) -> bool:
    """Whether a table is looked up in: integers that a head reads as well are one weight."""
    return any(node.op_type == "Gather" for node, _ in value.uses())


def _shared_by_design(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or len(tensor.shape) < 2 or tensor.size <= quantized.SETTING_SIZE:
        return False
    if not tensor.dtype.is_floating_point() and not (quantized.numbers_of(value) and _is_gathered(value)):
        return False
    array = tensor.numpy()
    return bool((array != array.flat[0]).any()) if array.size > 1 else False
