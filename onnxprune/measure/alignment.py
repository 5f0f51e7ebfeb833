"""The multiple of channels that a provider likes: small models at widths around multiples, timed in turns.

onnxruntime and the libraries below it compute channels in blocks; what does not fill its block costs as if it did,
and some kernels fall back to slower ones. The time of a width is compared with the line through the two widths that
fill every block, 64 and 128:

    efficiency(w) = (t(64) + (t(128) - t(64)) (macs(w) - macs(64)) / (macs(128) - macs(64))) / t(w)

The multiple to keep to is the least at which no kind of model loses more than TOLERANCE on average.
Legend: C channels, S side of the image, T tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ProviderError
from onnxprune.graph.sessions import provider_name
from onnxprune.measure.latency import measure_latency
from onnxprune.measure.sessions import Model
from onnxprune.measure.timing import Rounds
from onnxprune.system.isolation import CrashedError, isolated

FULL = (64, 128)
WIDTHS = {1: (113, 127), 2: (114, 126), 4: (116, 124), 8: (120, 104), 16: (112, 80), 32: (96,)}
TOLERANCE = 0.08
DEPTH = 4  # layers of a probe model: conversions at its ends must not count for much
ROUNDS = Rounds(runs=60, min_seconds=1.0, max_seconds=6.0)


Quantize = Callable[[onnx.ModelProto], Model]


@dataclass(frozen=True)
class Kind:
    """A kind of model: how it is built at a width, and its MACs up to a factor as width ** power."""

    name: str
    build: Callable[[int], onnx.ModelProto]
    power: int


@dataclass(frozen=True)
class Alignment:
    """The result: the multiple, and the mean efficiency by kind and multiple (1: as good as full blocks)."""

    multiple: int
    efficiency: Mapping[str, Mapping[int, float]]


def calibrate(
    provider: str = "cpu",
    threads: int = 1,
    *,
    quantize: Quantize | None = None,
    rounds: Rounds = ROUNDS,
    say: Callable[[str], None] = lambda _: None,
) -> Alignment:
    """Measures on `provider`, about half a minute; quantize: what models are turned to before they are timed.

    Raises: ProviderError when the provider did not load, or its libraries ended the other process that measures.
    """
    found: dict[str, dict[int, float]] = {}
    for kind in KINDS:
        say(f"{kind.name} ...")
        try:
            spent = isolated(partial(times, kind, provider, threads, rounds, quantize))
        except CrashedError as crash:
            raise ProviderError(
                f"--provider {provider}: onnxruntime ends with {crash} on small models ({kind.name}), so nothing was "
                "calibrated; use another version of it, or give --align a number"
            ) from crash
        found[kind.name] = efficiencies(spent, kind.power)
    return Alignment(choose(found), found)


def times(
    kind: Kind, provider: str, threads: int, rounds: Rounds, quantize: Quantize | None = None
) -> dict[int, float]:
    """Time by width, in units of that of the widest, from ratios of neighbors in interleaved rounds."""
    widths = sorted({*FULL, *(w for row in WIDTHS.values() for w in row)}, reverse=True)
    built = {str(width): kind.build(width) for width in widths}
    models = built if quantize is None else {width: quantize(model) for width, model in built.items()}
    setting = {"provider": provider_name(provider), "threads": threads, "rounds": rounds}
    table = measure_latency(models, lambda session, batch: _feeds(session), **setting, sessions=1, memory=False)
    return {widths[0]: 1.0, **{int(ratio.model): ratio.median for ratio in table.ratios}}


def efficiencies(spent: Mapping[int, float], power: int) -> dict[int, float]:
    """Mean efficiency of the widths of each multiple, from times by width."""
    low, high = FULL

    def ideal(width: int) -> float:
        part = (width**power - low**power) / (high**power - low**power)
        return spent[low] + (spent[high] - spent[low]) * part

    return {m: float(np.mean([ideal(w) / spent[w] for w in widths])) for m, widths in WIDTHS.items()}


def choose(found: Mapping[str, Mapping[int, float]], tolerance: float = TOLERANCE) -> int:
    """The least multiple at which no kind loses more than `tolerance`, or the one whose worst kind loses least."""
    worst = {m: min(row[m] for row in found.values()) for m in WIDTHS}
    return next((m for m, value in worst.items() if value >= 1 - tolerance), max(worst, key=lambda m: worst[m]))


# The probe models -------------------------------------------------------------------------------------------------


def _conv(width: int, *, kernel: int, conv_group: int, side: int) -> onnx.ModelProto:
    """DEPTH times Conv and Relu: x (1, C, S, S) -> (1, C, S, S)."""
    shape = (width, width // conv_group, kernel, kernel)
    pads = [kernel // 2] * 4
    nodes, weights = [], []
    for k in range(DEPTH):
        weights.append(_weight(f"w{k}", shape, k))
        names = ["x" if k == 0 else f"y{k}", f"w{k}"]
        nodes.append(helper.make_node("Conv", names, [f"c{k}"], pads=pads, group=conv_group))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"y{k + 1}"]))
    return _model(nodes, weights, [1, width, side, side], f"y{DEPTH}")


def _matmul(width: int, tokens: int = 64) -> onnx.ModelProto:
    """DEPTH times MatMul and Relu: x (1, T, C) -> (1, T, C)."""
    nodes, weights = [], []
    for k in range(DEPTH):
        weights.append(_weight(f"w{k}", (width, width), k))
        nodes.append(helper.make_node("MatMul", ["x" if k == 0 else f"y{k}", f"w{k}"], [f"c{k}"]))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"y{k + 1}"]))
    return _model(nodes, weights, [1, tokens, width], f"y{DEPTH}")


def _weight(name: str, shape: Sequence[int], seed: int) -> TensorProto:
    # Scaled so that values neither grow nor fade: denormal numbers would cost time of their own.
    scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 2 else np.sqrt(2 / shape[0])
    values = np.random.default_rng(seed).normal(size=tuple(shape)) * scale
    return numpy_helper.from_array(values.astype(np.float32), name)


def _model(nodes: list, weights: list, shape: list[int], output: str) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", output))
    graph = helper.make_graph(nodes, "probe", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _feeds(session) -> dict[str, np.ndarray]:
    info = session.get_inputs()[0]
    return {info.name: np.random.default_rng(0).normal(size=info.shape).astype(np.float32)}


KINDS = (
    Kind("dense 3x3", lambda c: _conv(c, kernel=3, conv_group=1, side=14), 2),
    Kind("dense 1x1", lambda c: _conv(c, kernel=1, conv_group=1, side=14), 2),
    Kind("depthwise 3x3", lambda c: _conv(c, kernel=3, conv_group=c, side=28), 1),
    Kind("matmul", _matmul, 2),
)
