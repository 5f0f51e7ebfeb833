"""Ranges of values on samples, by onnxruntime's calibrators, and the choice of these samples."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.data import Samples, batches, fixed_batch
from onnxprune.graph.inputs import Feeds
from onnxprune.quantize.asked import Asked
from onnxprune.quantize.prepare import quiet
from onnxprune.system.atomic_files import scratch
from onnxprune.system.words import counted

Ranges = Mapping[str, tuple[float, float]]
BATCH = 32  # samples that are calibrated on at a time
FEW = 16  # samples, below which a note says so


def calibrated(proto: onnx.ModelProto, op_types: Sequence[str], feeds: Iterable[Feeds], asked: Asked) -> Ranges:
    """The range of each value that the operators of `op_types` read or write, over all `feeds`.

    The ends of a value that was infinite, or no number, on some sample are not finite either.
    """
    if asked["calibrate"] == "minmax":
        return reached(proto, op_types, feeds, {"symmetric": asked["symmetric"]})
    feeds = list(feeds)
    ends = reached(proto, op_types, feeds, {"symmetric": asked["symmetric"]})
    endless = {name for name, pair in ends.items() if not np.isfinite(pair).all()}
    # Histograms have no place for infinities.
    options = {"symmetric": asked["symmetric"]}
    options |= {"percentile": asked["percentile"]} if asked["calibrate"] == "percentile" else {}
    return {**ends, **reached(proto, op_types, feeds, options, asked["calibrate"], endless)}


def reached(
    proto: onnx.ModelProto,
    op_types: Sequence[str],
    feeds: Iterable[Feeds],
    options: Mapping[str, Any],
    method: str = "minmax",
    without: Collection[str] = (),
) -> dict[str, tuple[float, float]]:
    """What the values reach by one of onnxruntime's methods; no `op_types`: all values. without: names left out."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    with scratch() as folder, quiet():
        path = Path(folder, "float.onnx")
        onnx.save(proto, path)
        calibrator = create_calibrator(
            path,
            list(op_types),
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=methods[method],
            extra_options=dict(options),
        )
        if without:
            calibrator.tensors_to_calibrate = set(calibrator.tensors_to_calibrate) - set(without)  # type: ignore[attr-defined]
        for batch in feeds:  # one at a time: calibrators hold every value of all that they are given at once
            calibrator.collect_data(_reader(batch))
        found = calibrator.compute_data()
    return {name: _pair(data.range_value) for name, data in found.items()}


def tensors_data(ranges: Ranges):
    """`ranges` in the form that onnxruntime's quantizer takes."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    pairs = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    return TensorsData(CalibrationMethod.MinMax, dict(pairs))


def _pair(found) -> tuple[float, float]:
    low, high = (float(np.append(np.asarray(number).reshape(-1), np.nan)[0]) for number in found)  # nan of an empty one
    return low, high


def _reader(batch: Feeds):
    """One batch as what onnxruntime calls a CalibrationDataReader."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [dict(batch)]

        def get_next(self) -> dict:
            return self.left.pop() if self.left else None  # type: ignore[return-value]

    return Reader()


def doubts(samples: Samples) -> Iterator[str]:
    """Why ranges that were measured on `samples` may be too narrow."""
    labels = samples.labels
    if labels is not None and len(samples) > 1 and (labels == labels.flat[0]).all():
        yield (
            f"calibrated on {len(samples)} samples that are all of class {labels.flat[0]}: others may reach further "
            "and be cut off; give samples of every class"
        )
    if len(samples) < FEW:
        few = counted(len(samples), "sample")
        yield f"calibrated on {few} only: others may reach further and be cut off; give some hundred"


def drawn(samples: Samples, count: int, seed: int) -> Samples:
    """`count` of the samples, or all where there are no more."""
    if len(samples) <= count:
        return samples
    return samples.subset(np.sort(np.random.default_rng(seed).choice(len(samples), count, replace=False)))


def in_batches(model: ir.Model, samples: Samples, size: int = BATCH) -> Iterator[Feeds]:
    """The samples in batches that the model takes, of `size` where it takes any."""
    fixed = fixed_batch(model)
    for block in batches(samples, fixed or size, fixed=fixed):
        yield samples.batch(block)
