"""What values reach on samples, by onnxruntime's calibrators."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from onnxprune.graph.inputs import Feeds
from onnxprune.quantize.asked import Asked
from onnxprune.quantize.prepare import quiet
from onnxprune.system.atomic_files import scratch

Ranges = Mapping[str, tuple[float, float]]


def calibrated(proto: onnx.ModelProto, op_types: Sequence[str], batches: Iterable[Feeds], asked: Asked) -> Ranges:
    """The range of each value that the operators of `op_types` read or write, over all `batches`."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    extra = {"percentile": asked["percentile"]} if asked["calibrate"] == "percentile" else {}
    with scratch() as folder, quiet():
        path = Path(folder, "float.onnx")
        onnx.save(proto, path)
        calibrator = create_calibrator(
            path,
            list(op_types),
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=methods[asked["calibrate"]],
            extra_options={**extra, "symmetric": asked["symmetric"]},
        )
        for batch in batches:  # one at a time: calibrators hold every value of all that they are given at once
            calibrator.collect_data(_reader(batch))
        found = calibrator.compute_data()
    return {name: _pair(data.range_value) for name, data in found.items()}


def tensors_data(ranges: Ranges):
    """`ranges` in the form that onnxruntime's quantizer takes."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    pairs = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    return TensorsData(CalibrationMethod.MinMax, dict(pairs))


def _pair(found) -> tuple[float, float]:
    low, high = (float(np.asarray(number).reshape(-1)[0]) for number in found)
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
