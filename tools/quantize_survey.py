"""Every form of --quantize on every small network that this repository can make: what comes of it, and what is said.

    PYTHONPATH=. python tools/quantize_survey.py --out survey.json
    PYTHONPATH=. python tools/quantize_survey.py --out survey.json --from nets exports --forms int8 int8:float=auto
    PYTHONPATH=. python tools/quantize_survey.py --out survey.json --files zoo/*.onnx

records   one network per operator and variant (tests/records.py)
nets      the networks of tools/mutant_networks.py: detectors, encoders, decoders, recurrent, mixtures, also quantized
exports   handmade families as torch exports them (tools/zoo/families_handmade.py)
opsets    a perceptron and two convolutional networks at opsets 9 to 24

Every network is finished as a run would, quantized on random samples, proven, and then verified from its file as
'onnxprune verify' does. One that is refused in one line is "refused"; anything else that is raised is "failed". Rows
that are there are not made again.
"""

import argparse
import json
import os
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools" / "zoo")]

from onnxprune import graph, quantize  # noqa: E402
from onnxprune.data.samples import ArraySamples  # noqa: E402
from onnxprune.errors import OnnxPruneError, VerificationError  # noqa: E402
from onnxprune.graph.inputs import batch_axes, input_infos, random_feeds  # noqa: E402
from onnxprune.quantize import rounding  # noqa: E402
from onnxprune.run.finish import finish  # noqa: E402
from onnxprune.system.isolation import CrashedError, isolated  # noqa: E402

SAMPLES = 16  # where the batch is open; another number is given by --samples
SOURCES = ("records", "nets", "exports", "opsets")
Build = Callable[[], onnx.ModelProto]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the rows")
    parser.add_argument("--from", nargs="*", choices=SOURCES, default=list(SOURCES), dest="sources")
    parser.add_argument("--files", nargs="*", type=Path, default=[], help="files of others")
    parser.add_argument("--forms", nargs="+", default=list(quantize.KINDS))
    parser.add_argument("--samples", type=int, default=SAMPLES, help="where the batch is open (default: %(default)s)")
    parser.add_argument("--only", default="", help="networks whose name holds this")
    parser.add_argument("--again", nargs="*", default=[], help="outcomes that are tried again")
    args = parser.parse_args()
    rows = json.loads(args.out.read_text()) if args.out.exists() else {}
    rows = {key: row for key, row in rows.items() if row["outcome"] not in args.again}
    for name, build in networks(args.sources, args.files):
        for form in args.forms:
            key = f"{name} | {form}"
            if key not in rows and args.only in name:
                rows[key] = row(build, form, args.samples)
                args.out.write_text(json.dumps(rows, indent=1))
                print(key, rows[key]["outcome"], rows[key].get("told", ""), flush=True)
    print(table(rows))


def networks(sources: list[str], files: list[Path]) -> Iterator[tuple[str, Build]]:
    """(name, what builds it) of each network."""
    if "records" in sources:
        import onnx_text
        from records import RECORDS

        for record in RECORDS:
            if not record.random:
                yield f"record {record.name}", lambda r=record: onnx_text.proto(r.text, r.constants, r.opset)
    if "nets" in sources or "exports" in sources:
        from tools.mutant_networks import networks as made

        plain, all_of_them = made(torch=False), made(torch="exports" in sources)
        for name, net in all_of_them.items():
            if ("nets" if name in plain else "exports") in sources:
                yield f"net {name}", net.build
    if "opsets" in sources:
        from networks import CNN, CONCAT, MLP, filled

        for title, text in {"cnn": CNN, "mlp": MLP, "concat": CONCAT}.items():
            for opset in range(9, 25):
                changed = text.replace('"" : 17', f'"" : {opset}')
                yield f"opset {title} {opset}", lambda changed=changed: filled(changed)
    for path in files:
        yield f"file {path.name}", lambda path=path: onnx.load(path)


def row(build: Build, form: str, count: int) -> dict[str, Any]:
    """What comes of one network in one form."""
    try:
        stored = isolated(
            lambda: build().SerializeToString()
        )  # torch stays there: beside it nothing is isolated so fast
        return isolated(lambda: tried(onnx.load_from_string(stored), form, count))
    except CrashedError as crash:
        return {"outcome": "crashed", "told": str(crash)}


def tried(proto: onnx.ModelProto, form: str, count: int) -> dict[str, Any]:
    """What comes of one network, or what is raised."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _tried(proto, form, count, Path(folder))
    except VerificationError as error:
        return {"outcome": "not proven", "told": str(error)}
    except OnnxPruneError as error:
        return {"outcome": "refused" if "\n" not in str(error) else "failed", "told": str(error)}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {str(error)[:300]} ({os.path.basename(where.filename)}:{where.lineno})"
        return {"outcome": "failed", "told": told}


def _tried(proto: onnx.ModelProto, form: str, count: int, folder: Path) -> dict[str, Any]:
    onnx.save(proto, folder / "in.onnx")
    floats = finish(graph.normalize(graph.load(folder / "in.onnx")))
    asked = quantize.parse(form)
    assert asked is not None
    samples = samples_of(floats, count)
    feeds = [samples.batch(np.arange(len(samples)))]
    made = quantize.quantize(floats, quantize.Context(asked, samples, feeds))
    graph.save(made.model, folder / "out.onnx")
    graph.save(floats, folder / "floats.onnx")
    own = graph.load(folder / "out.onnx")
    again = quantize.as_floats(own, floats, asked.kind)
    # Biases may have been corrected: weights are read from the file, as 'verify' does.
    quantize.verify(own, made.float_model, made.record, feeds, "the file")
    graph.save(again, folder / "again.onnx")
    before, after = (weight_bytes(graph.load(folder / name)) for name in ("floats.onnx", "out.onnx"))
    return {
        "outcome": "made",
        "weights": round(after / max(before, 1), 3),
        "bytes": round((folder / "out.onnx").stat().st_size / (folder / "floats.onnx").stat().st_size, 3),
        "off": round(rounding.error(own, floats, feeds), 4),
        "float": list(made.record["float"]),
        "told": "; ".join(made.notes),
    }


def samples_of(model: ir.Model, count: int) -> ArraySamples:
    """Random samples: as many as the batch is fixed to, or `count`."""
    infos = input_infos(model)
    arrays, axes = random_feeds(infos, count), batch_axes(infos)
    counts = [array.shape[axis] for name, array in arrays.items() if (axis := axes[name]) is not None and array.ndim]
    dtypes = {info.name: info.dtype for info in infos}
    return ArraySamples(arrays, axes, dtypes, counts[0] if counts else 1)


def weight_bytes(model: ir.Model) -> int:
    return graph.size_bytes(model)


def table(rows: dict[str, dict]) -> str:
    """How many of each form came to what, and every message that is not a common one."""
    lines = ["| form | outcome | networks |", "|---|---|---:|"]
    counts = Counter((key.rsplit(" | ", 1)[1], row["outcome"]) for key, row in rows.items())
    lines += [f"| {form} | {outcome} | {count} |" for (form, outcome), count in sorted(counts.items())]
    larger = [key for key, row in rows.items() if row.get("weights", 0) > 1]
    ruined = [key for key, row in rows.items() if row.get("off", 0) > 0.3]
    return "\n".join([*lines, f"weights grew: {larger}", f"off by more than 0.3: {ruined}"])


if __name__ == "__main__":
    main()
