"""A report as a run of the tool would make it, with every section filled and names that try to break out."""

import numpy as np
import pytest

from onnxprune.measure.records import (
    Frozen,
    Latency,
    LatencyRatio,
    Layer,
    Measurement,
    NodeTime,
    Profile,
    Report,
    SensitivityCurve,
    Step,
    TuningPoint,
)
from onnxprune.outputs.metrics import Accuracy, wilson_interval
from onnxprune.proof.comparison import Verification

CPU = "CPUExecutionProvider"


def top1(correct: int, n: int) -> Accuracy:
    return Accuracy("top1", correct / n, n, wilson_interval(correct, n))


def times(median_ms: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return median_ms * (0.97 + 0.05 * rng.gamma(1.5, 0.7, 200))


def latency(median_ms: float, batch: int, seed: int) -> Latency:
    own = times(median_ms, seed)
    q1, q2, q3, p90, p99 = np.quantile(own, (0.25, 0.5, 0.75, 0.9, 0.99)).tolist()
    tails = {"p90_ms": p90, "p99_ms": p99, "min_ms": float(own.min()), "interval95_ms": (0.998 * q2, 1.003 * q2)}
    rest = {"throughput": 1e3 * batch / q2, "load_ms": 13.4 * seed, "peak_memory_bytes": 21_000_000 // seed}
    fate = {"warmup_runs": 60, "stable": True, "samples_ms": tuple(own.tolist())}
    return Latency(CPU, 2, batch, 300, q2, q1, q3, **tails, **rest, **fate)


def layers(blocks: int = 27) -> tuple[Layer, ...]:
    rng = np.random.default_rng(3)
    found, width, kept = [], 3, 3
    for k in range(blocks * 2 + 1):
        out = 16 * 2 ** (3 * k // (blocks * 2 + 2))
        keep = int(out * rng.choice([0.25, 0.5, 0.75, 1.0])) if k % 2 else out
        macs = 1024 * 9 * 16**2 // out * 16
        node = f"/layer{3 * k // (blocks * 2 + 2) + 1}/layer.{k}/conv{k % 2 + 1}/Conv"
        found.append(
            Layer(
                node,
                "Conv",
                (f"layer.{k}",),
                (out, width, 3, 3),
                (keep, kept, 3, 3),
                macs,
                macs * keep * kept // out // width,
            )
        )
        width, kept = out, keep
    return tuple(found)


@pytest.fixture
def report() -> Report:
    original = Measurement(
        "original",
        "in.onnx",
        "ab" * 32,
        125_485_696,
        850_986,
        3_439_046,
        top1(4669, 5000),
        (latency(1.44, 1, 1), latency(81.2, 64, 2)),
    )
    pruned = Measurement(
        "pruned",
        "out.onnx",
        "cd" * 32,
        61_700_096,
        402_114,
        1_633_210,
        top1(4629, 5000),
        (latency(0.92, 1, 3), latency(46.8, 64, 4)),
    )
    ratios = (
        LatencyRatio("pruned", CPU, 2, 1, 0.641, 0.622, 0.665, (0.636, 0.647), 300),
        LatencyRatio("pruned", CPU, 2, 64, 0.577, 0.569, 0.588, (0.574, 0.581), 300),
    )
    nodes = tuple(NodeTime(f"/layer{k}/Conv", "Conv" if k % 3 else "Gemm", 90.0 / (k + 1), CPU) for k in range(22))
    removed = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
    return Report(
        command="onnxprune in.onnx out.onnx --method l1 --target macs=0.5 --data train.npz --epochs 2 --report r.html",
        models=(original, pruned),
        latency_ratios=ratios,
        verify=Verification(3.8e-6, 21.4, 64, True),
        layers=layers(),
        frozen=(
            *(
                Frozen(f"layer{k}.out", "meets Add '/add' whose other side is the model's input", 16 * k)
                for k in (1, 2, 3)
            ),
            Frozen("logits", "leaves through the graph output 'logits'", 10),
            *(
                Frozen(f"pad.{k}", "Pad on a removable axis: the padded zeros have no channels of their own")
                for k in range(6)
            ),
        ),
        steps=(
            Step("read and analyze", 0.41),
            Step("score", 12.3),
            Step("search", 0.8),
            Step("finetune", 412.0),
            Step("measure", 21.7),
        ),
        finetune=tuple(TuningPoint(k / 4, 1.9 * 0.7**k + 0.08, 0.93 - 0.35 * 0.6**k, 0.01) for k in range(9)),
        sensitivity=tuple(
            SensitivityCurve(f"layer{k}.conv1", removed, tuple(1 / (1 + (x * (1.2 + 0.5 * k)) ** 4) for x in removed))
            for k in range(6)
        ),
        profile=(Profile("original", CPU, 1, nodes), Profile("pruned", CPU, 1, nodes[3:])),
        method="l1",
        seed=0,
        data="train.npz",
        notes=("accuracy is measured on a held-out tenth of --data",),
        tool={"name": "onnxprune", "version": "0.1.0"},
        machine={
            "cpu": "AMD EPYC 9654",
            "cores": 2,
            "logical_cpus": 2,
            "cpu_clock_mhz": 2596.1,
            "memory_bytes": 25_276_502_016,
            "gpus": [{"name": "NVIDIA H200", "driver": "570.1", "sm_clock_mhz": 1980, "max_sm_clock_mhz": 1980}],
            "os": "Linux-6.18",
            "python": "3.11.7",
            "versions": {"onnx": "1.23.2", "onnxruntime-gpu": "1.31.1", "numpy": "2.4.6"},
        },
    )
