"""Contexts for methods: small models with samples that the model itself has labelled, and planted dead units."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnx_text
from networks import DIGITS, NETWORKS, filled

from onnxprune import graph
from onnxprune.coupling import Coupling, Dim, analyze, unit_positions
from onnxprune.data import input_infos, load_samples
from onnxprune.graph import sessions
from onnxprune.methods import units
from onnxprune.methods.base import Context
from onnxprune.plan import cost

# Two heads of width 4: q, k and v from one matrix, as exporters write it.
ATTENTION = """(float[2,5,8] x, float[8,24] wqkv, float[24] bqkv, float[8,8] wo, float[8,3] wh, int64[4] split,
    int64[3] join, float[1] scale, int64[1] last) => (float[2,5,3] y) {
    qkv0 = MatMul(x, wqkv)
    qkv = Add(qkv0, bqkv)
    q0, k0, v0 = Split<axis=2, num_outputs=3>(qkv)
    q1 = Reshape(q0, split)
    k1 = Reshape(k0, split)
    v1 = Reshape(v0, split)
    q = Transpose<perm=[0,2,1,3]>(q1)
    k = Transpose<perm=[0,2,3,1]>(k1)
    v = Transpose<perm=[0,2,1,3]>(v1)
    s0 = MatMul(q, k)
    s1 = Mul(s0, scale)
    s = Softmax<axis=-1>(s1)
    o0 = MatMul(s, v)
    o1 = Transpose<perm=[0,2,1,3]>(o0)
    o = Reshape(o1, join)
    a = MatMul(o, wo)
    r = Add(a, x)
    h = Relu(r)
    y = MatMul(h, wh)
}"""
ATTENTION_NUMBERS = {"split": [2, 5, 2, 4], "join": [2, 5, 8], "scale": [0.5], "last": [-1]}


def toy(name: str, seed: int = 0) -> ir.Model:
    """cnn, mlp, concat or attention, normalized."""
    if name == "attention":
        proto: onnx.ModelProto = onnx_text.proto(ATTENTION, ATTENTION_NUMBERS, seed=seed)
    else:
        proto = filled(NETWORKS[name], seed)
    return graph.normalize(ir.from_proto(proto))


def context_of(
    model: ir.Model, samples: int = 64, *, seed: int = 0, labelled: bool = True, **options: object
) -> Context:
    """All free Dims of `model`, with random samples; labels are the model's own answers where it classifies."""
    coupling = analyze(model)
    target = options.pop("target", None)
    rng = np.random.default_rng(7)
    infos = input_infos(model)
    x = rng.normal(size=(samples, *(d if isinstance(d, int) else 4 for d in infos[0].shape[1:]))).astype(np.float32)
    first = sessions.run(
        sessions.open_session(model, threads=1),
        {infos[0].name: x[: len(x) if isinstance(infos[0].shape[0], str) else infos[0].shape[0]]},
    )
    y = next(iter(first.values()))
    data = (x, y.argmax(1)) if labelled and y.ndim == 2 and len(y) == samples else x
    return Context(coupling, cost.of(coupling), coupling.free, load_samples(data, infos), seed, "cpu", target, options)


def digits_context(path=DIGITS, part: str = "digits", seed: int = 0, **options: object) -> Context:
    model = graph.normalize(graph.load(path))
    coupling = analyze(model)
    target = options.pop("target", None)
    samples = load_samples(part, input_infos(model))
    return Context(coupling, cost.of(coupling), coupling.free, samples, seed, "cpu", target, options)


def with_model(context: Context, model: ir.Model) -> Context:
    return replace(context, coupling=replace(context.coupling, model=model))


def scaled(
    coupling: Coupling, dim: Dim, unit: int, factor: float = 0.0, roles=("produces", "scales", "follows", "consumes")
) -> ir.Model:
    """A copy of the model in which everything that stands on `unit` of `dim` in `roles` is multiplied by `factor`."""
    model = coupling.model.clone()
    for member in coupling.members[dim]:
        if member.role in roles:
            value = model.graph.initializers[member.initializer]
            array = graph.array_of(value).copy()
            chosen = unit_positions(coupling.axes[member.initializer][member.axis], dim) == unit
            index: list = [slice(None)] * array.ndim
            index[member.axis] = chosen
            array[tuple(index)] *= factor
            graph.set_constant(value, array)
    return model


def outputs(model: ir.Model, x: np.ndarray) -> np.ndarray:
    name = input_infos(model)[0].name
    return next(iter(sessions.run(sessions.open_session(model, threads=1), {name: x}).values()))


def last_affine(context: Context, dim: Dim) -> set[tuple[str, int]]:
    """(node, input) of the initializers that, multiplied by a factor per unit, multiply the sources of `dim` by it."""
    found: set[tuple[str, int]] = set()
    values = {value.name: value for node in context.model.graph for value in node.outputs}
    for source in units.sources(context.coupling, dim):
        node = values[source.value].producer()
        while node is not None:
            scaled = {"BatchNormalization": (1, 2), "Div": (0,)}.get(node.op_type, range(len(node.inputs)))
            held = [k for k in scaled if k < len(node.inputs) and _is_held(node.inputs[k])]
            found |= {(node.name or "", k) for k in held}
            # A sum scales both sides; everything else is done with its own factor.
            computed = [value for value in node.inputs if value is not None and not value.is_initializer()]
            node = computed[0].producer() if node.op_type in ("Add", "Sub", "BiasAdd") and computed else None
    return found


def _is_held(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()
