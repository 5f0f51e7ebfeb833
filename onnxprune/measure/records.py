"""Records of a report: frozen, no numbers computed but the ratios. None means unknown, never 0.

A ratio is after divided by before; the first model of a report is what the others are compared with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnxprune.outputs.metrics import Accuracy
from onnxprune.proof.evidence import Verification
from onnxprune.system.clock import Step

Interval = tuple[float, float]
ORIGINAL, PRUNED, QUANTIZED = "original", "pruned", "quantized"
NORMALIZED = "normalized"  # what the original is without anything pruned
FEW_ZEROS = 0.99  # a larger share of parameters that are not zero is not worth a word


@dataclass(frozen=True)
class Latency:
    """Time of one run of one model in one setting; times in milliseconds, `throughput` in samples per second."""

    provider: str
    threads: int | None
    batch: int
    runs: int
    median_ms: float
    q1_ms: float
    q3_ms: float
    p90_ms: float | None = None
    p99_ms: float | None = None
    min_ms: float | None = None
    interval95_ms: Interval | None = None
    throughput: float | None = None
    load_ms: float | None = None
    peak_memory_bytes: int | None = None
    precision: str = "as stored"
    cuda_graph: bool = False
    prefer_nhwc: bool = False
    warmup_runs: int | None = None
    stable: bool | None = None
    samples_ms: tuple[float, ...] = ()

    @property
    def setting(self) -> tuple:
        """The key that two latencies must share to be comparable."""
        return (self.provider, self.threads, self.batch, self.precision, self.cuda_graph, self.prefer_nhwc)


@dataclass(frozen=True)
class LatencyRatio:
    """`model`'s time divided by the first model's, pair by pair; interval95 is of the median."""

    model: str
    provider: str
    threads: int | None
    batch: int
    median: float
    q1: float
    q3: float
    interval95: Interval | None = None
    pairs: int | None = None
    precision: str = "as stored"
    cuda_graph: bool = False
    prefer_nhwc: bool = False

    @property
    def setting(self) -> tuple:
        """The key that two ratios must share to be comparable."""
        return (self.provider, self.threads, self.batch, self.precision, self.cuda_graph, self.prefer_nhwc)


@dataclass(frozen=True)
class LatencyTable:
    """Latencies by model in one setting, and the ratios of all models but the first."""

    latencies: Mapping[str, Latency]
    ratios: tuple[LatencyRatio, ...]


@dataclass(frozen=True)
class Measurement:
    """Cost and accuracy of one model.

    nonzeros, nonzero_macs: parameters without zeros among weights, and MACs without products with them.
    """

    name: str
    path: str | None = None
    sha256: str | None = None
    macs: int | None = None
    params: int | None = None
    bytes: int | None = None
    accuracy: Accuracy | None = None
    latency: tuple[Latency, ...] = ()
    nonzeros: int | None = None
    nonzero_macs: int | None = None

    @property
    def has_zeros(self) -> bool:
        """Whether so many parameters are zero that it is worth a word."""
        return bool(self.nonzeros is not None and self.params and self.nonzeros < FEW_ZEROS * self.params)


@dataclass(frozen=True)
class Layer:
    """One node with a weight before and after; `before` and `after` are the weight's shapes.

    `axis` is the weight's axis of output channels, None for the op's usual one.
    """

    node: str
    op: str
    dims: tuple[str, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    macs_before: int | None = None
    macs_after: int | None = None
    axis: int | None = None

    @property
    def widths(self) -> tuple[int, int]:
        """Output channels before and after."""
        if not self.before or not self.after:
            return 1, 1
        usual = {"ConvTranspose": 1, "MatMul": -1}.get(self.op, 0) if len(self.before) > 1 else 0
        axis = usual if self.axis is None else self.axis
        return self.before[axis], self.after[axis]


@dataclass(frozen=True)
class Frozen:
    """A dimension that had to stay, and why."""

    dim: str
    reason: str
    size: int | None = None


@dataclass(frozen=True)
class TuningPoint:
    """Fine-tuning as seen at the end of an epoch."""

    epoch: float
    loss: float | None = None
    accuracy: float | None = None
    lr: float | None = None


@dataclass(frozen=True)
class SensitivityCurve:
    """Accuracy or agreement of the model with a fraction of one dimension removed, others whole."""

    dim: str
    removed: tuple[float, ...]
    value: tuple[float, ...]
    metric: str = "agreement"
    interval95: tuple[Interval, ...] = ()


@dataclass(frozen=True)
class FrontPoint:
    """One size of a front; costs and latency as shares of the original's.

    quick: the metric after a quick recovery. value, lost: the metric and the points lost after the full one, measured
    or predicted. quantized: the metric of the quantized file, of which `bytes` is the size. plan: its file.
    chosen: whether it became the result.
    """

    macs: float
    params: float
    metric: str
    quick: float
    value: float
    lost: float
    measured: bool
    latency: float | None = None
    quantized: float | None = None
    bytes: float | None = None
    plan: str | None = None
    chosen: bool = False


@dataclass(frozen=True)
class NodeTime:
    """Median microseconds of one node of a model as onnxruntime runs it."""

    node: str
    op: str
    microseconds: float
    provider: str | None = None


@dataclass(frozen=True)
class Profile:
    """Where the time of one model went, node by node, slowest first."""

    model: str
    provider: str
    batch: int
    nodes: tuple[NodeTime, ...]


@dataclass(frozen=True)
class Packing:
    """The result with and without zeros stored small: bytes of the file, and the time to load it in onnxruntime."""

    bytes_dense: int
    bytes: int
    load_ms_dense: float
    load_ms: float


@dataclass(frozen=True)
class Report:
    """One run of the tool; everything that a reader needs to judge and to repeat it."""

    command: str
    models: tuple[Measurement, ...]
    latency_ratios: tuple[LatencyRatio, ...] = ()
    verify: Verification | None = None
    layers: tuple[Layer, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    steps: tuple[Step, ...] = ()
    finetune: tuple[TuningPoint, ...] = ()
    sensitivity: tuple[SensitivityCurve, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    profile: tuple[Profile, ...] = ()
    plan: Mapping[str, Any] | None = None
    pack: Packing | None = None
    outputs: tuple[Mapping[str, Any], ...] = ()  # what each output of the model is, see outputs/kinds.py
    quantize: Mapping[str, Any] | None = None
    method: str | None = None
    seed: int | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # every choice: its value, where it is from
    data: str | None = None
    notes: tuple[str, ...] = ()
    tool: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)


def final(models: Sequence[Measurement]) -> Measurement | None:
    """The model that a run wrote: the quantized one, else the second; None where there is one only."""
    if len(models) < 2:
        return None
    return next((model for model in models if model.name == QUANTIZED), models[1])


def ratio(before: float | None, after: float | None) -> float | None:
    """after / before, or None where either is unknown or before is 0."""
    return None if before is None or after is None or before == 0 else after / before


def with_latencies(models: Sequence[Measurement], tables: Sequence[LatencyTable]) -> tuple[Measurement, ...]:
    """`models` with the latencies that `tables` hold for their names added."""
    return tuple(
        replace(m, latency=(*m.latency, *(t.latencies[m.name] for t in tables if m.name in t.latencies)))
        for m in models
    )
