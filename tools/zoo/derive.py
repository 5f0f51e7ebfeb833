"""Makes the forms in which deployed files come from plain ones: optimized by onnxruntime, quantized, half precision.

    python derive.py FOLDER OUT_DIR [--names GLOB ...] [--forms ort all bert qdq qlinear dynamic fp16]

Each FILE.onnx of FOLDER whose name matches gives OUT_DIR/FILE.FORM.onnx. `ort` and `all` are onnxruntime's extended
and full graph optimizations, `bert` its transformer fusions, `qdq` and `qlinear` static quantization in either format,
`dynamic` dynamic quantization, `fp16` half precision inside. A form that cannot be made, or that
onnxruntime does not run, is said and left out.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from functools import partial
from pathlib import Path

import feeds
from jobs import note, run_forked

FORMS = ("ort", "all", "bert", "qdq", "qlinear", "dynamic", "fp16")


class Samples:
    """Two sets of random inputs, as onnxruntime's calibration reads them."""

    def __init__(self, path: Path) -> None:
        self.left = [given] * 2 if (given := feeds.accepted(feeds.session(str(path)))) else []

    def get_next(self) -> feeds.Feeds | None:
        return self.left.pop() if self.left else None


def derive(source: Path, path: Path, form: str) -> int:
    """Writes one form of a file and runs it once. Raises what the tool that makes it raises."""
    import onnx
    import onnxruntime as ort

    if form in ("ort", "all"):
        options = ort.SessionOptions()
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if form == "ort" else levels.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    elif form == "bert":
        from onnxruntime.transformers import optimizer

        optimizer.optimize_model(str(source), "bert", 0, 0, opt_level=0).save_model_to_file(str(path))
    elif form == "fp16":
        from onnxruntime.transformers import float16

        onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True), path)
    else:
        from onnxruntime import quantization as q

        if form == "dynamic":
            q.quantize_dynamic(source, path)
        else:
            kind = q.QuantFormat.QDQ if form == "qdq" else q.QuantFormat.QOperator
            q.quantize_static(source, path, Samples(source), quant_format=kind, per_channel=form == "qdq")
    if feeds.accepted(feeds.session(str(path))) is None:
        raise ValueError("onnxruntime does not run it")
    return 0


def main(argv: list[str] | None = None) -> int:
    """0; what could not be made is said on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--names", nargs="+", default=["*"], metavar="GLOB", help="names of files (default: all)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, help="default: all")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    made = 0
    for source in sorted(args.folder.glob("*.onnx")):
        for form in args.forms if any(fnmatch.fnmatch(source.stem, glob) for glob in args.names) else ():
            path = args.out / f"{source.stem}.{form}.onnx"
            if path.exists():
                continue
            job = run_forked(partial(derive, source, path, form), 120)
            made += job.code == 0
            if job.code:
                path.unlink(missing_ok=True)
                note(f"{path.name}: {job.message}")
    print(f"{made} files made")
    return 0


if __name__ == "__main__":
    sys.exit(main())
