"""Prune, quantize, and both: size, latency and accuracy of trained networks, side by side in each run.

    PYTHONPATH=. python tools/quantize_study.py --out study --models digits
    python tools/quantize_study.py --out study --models resnet56 vgg16 mobilenetv2
    python tools/quantize_study.py --out study --models recognizer detector files encoder --wild WILD
    python tools/quantize_study.py --out study --table

The digits are embedded; the other networks and their images are those of the shared data folder ($ONNXPRUNE_DATA, see
tools/cifar.py). Every run is one call
of onnxprune.prune with `quantize="int8"`: its report has the original, the pruned and the quantized file, with latency
measured in interleaved turns. Budget 1 prunes nothing: that is quantization alone.
WILD is the folder that tools/zoo/wild.py filled, with BERT's vocab.txt and, as minilm.onnx, the encoder that
tools/attention_study.py exports; samples are those of tools/metric_tasks.py, without
labels, and their accuracy is what is kept of the original's answers.
A run that is finished is not made again, also where it was asked for otherwise: give such runs another --name.
--table writes the table of those that there are.
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import onnxprune
from tools.cifar import DATA
from tools.panels import Dot, Look, picture

MODELS = Path(__file__).parents[1] / "models"
BUDGETS = (1.0, 0.85, 0.7, 0.5)
LOOK = Look({"floats": "#5c7391", "int8": "#b3261e"}, ("size", "latency"), (0, 1, 4, 8, 12))


class Network(NamedTuple):
    """A trained network with samples to score, tune and calibrate on, and others to measure on."""

    file: str
    data: str
    val: str


NETWORKS = {
    "digits": Network("digits.onnx", "digits", "digits:test"),
    "resnet20": Network("cifar10-resnet20-folded.onnx", "tools.cifar:train300", "tools.cifar:test600"),
    "resnet56": Network("cifar10-resnet56-folded.onnx", "tools.cifar:train300", "tools.cifar:test600"),
    "vgg16": Network("cifar10-vgg16-fp16weights.onnx", "tools.cifar:vgg_train100", "tools.cifar:vgg_test300"),
    "mobilenetv2": Network("imagenet-mobilenetv2-fp16weights.onnx", "tools.imagenet:train200", "tools.imagenet:val200"),
}

# Networks of packages: the task of tools/metric_study.py that each solves, and its file where that is another.
WILD = {
    "recognizer": ("text recognition", None),
    "detector": ("text places", None),
    "files": ("file types", None),
    "encoder": ("sentences", "minilm.onnx"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--models", nargs="+", choices=sorted({**NETWORKS, **WILD}), default=list(NETWORKS))
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS), help="shares of the MACs")
    parser.add_argument("--method", default="taylor", help="auto: as the command chooses; default: taylor")
    parser.add_argument("--recover", default="reconstruct", help="none, reconstruct or finetune")
    parser.add_argument("--quantize", default="int8")
    parser.add_argument("--data", help="MODULE:FUNCTION of other samples for a network that is no package's")
    parser.add_argument("--val", help="MODULE:FUNCTION of other samples to measure on")
    parser.add_argument("--time", help="of each run, such as 20m; it chooses the epochs of fine-tuning")
    parser.add_argument("--name", help="what the runs of one network are stored and shown as (default: its own)")
    parser.add_argument("--show", nargs="+", help="names of runs for the table and the picture (default: those run)")
    parser.add_argument("--allocate", help="where widths come from; default: as the command chooses")
    parser.add_argument("--picture", type=Path, help="draw the finished runs into this .svg")
    parser.add_argument("--wild", type=Path, help="folder of the networks of packages")
    parser.add_argument("--table", action="store_true", help="write the table of finished runs only")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in () if args.table else args.models:
        for budget in args.budgets:
            run(name, budget, args)
    shown = args.show or ([args.name] if args.name else args.models)
    print(table(args.out, shown))
    if args.picture:
        args.picture.write_text(picture(dots(args.out, shown), LOOK))


def run(name: str, budget: float, args: argparse.Namespace) -> None:
    """One run into the folder, unless its report is there."""
    stem = f"{args.name or name}-{budget:g}"
    report = args.out / f"{stem}.json"
    if report.exists():
        return
    path, data, val = source(name, args)
    prune = onnxprune.prune if args.method == "auto" else partial(onnxprune.prune, method=args.method)
    prune(
        path,
        args.out / f"{stem}.onnx",
        target={"macs": budget},
        data=data,
        val=val,
        recover=args.recover,
        quantize=args.quantize,
        allocate=args.allocate,
        threads=1,
        time=args.time,
        report=report,
    )


def source(name: str, args: argparse.Namespace) -> tuple[Path, Any, Any]:
    """(the file, samples to score and tune and calibrate on, others to measure on) of a network."""
    if name in NETWORKS:
        network = NETWORKS[name]
        path = (MODELS if name == "digits" else DATA / "models") / network.file
        return path, args.data or network.data, args.val or network.val
    if args.wild is None:
        raise SystemExit(f"{name} comes from a package: fill a folder with tools/zoo/wild.py and give --wild")
    from tools.metric_study import TASKS

    solved, file = WILD[name]
    path = args.wild / (file or TASKS[solved].file)
    return path, *TASKS[solved].samples(path)


def table(folder: Path, names: list[str]) -> str:
    """The finished runs as Markdown: ratios to the original, and points of accuracy lost."""
    lines = [
        "| network | MACs | file | size | latency | accuracy | points lost |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    return "\n".join([*lines, *(row for name, found in finished(folder, names) for row in rows(name, found))])


def finished(folder: Path, names: list[str]) -> Iterator[tuple[str, dict]]:
    """(network, report) of the finished runs, the largest of each network first."""
    for name in names:
        for path in sorted(folder.glob(f"{name}-*.json"), key=lambda path: -float(path.stem.rsplit("-", 1)[1])):
            yield name, json.loads(path.read_text())


def dots(folder: Path, names: list[str]) -> list[Dot]:
    """The finished runs as the picture shows them."""
    return [dot for name, found in finished(folder, names) for dot in dots_of(name, found)]


def dots_of(name: str, found: dict) -> Iterator[Dot]:
    """The float and the quantized file of one run."""
    models = {model["name"]: model for model in found["models"]}
    for kind, form in (("pruned", "floats"), ("quantized", "int8")):
        ratios = models[kind]["ratios"]
        latency = ratios["latency"][0]["median"] if ratios["latency"] else None
        yield Dot(name, form, {"size": ratios["bytes"], "latency": latency}, accuracies(models, kind)[1])


def rows(name: str, found: dict) -> list[str]:
    models = {model["name"]: model for model in found["models"]}
    lines = []
    for kind, told in (("pruned", "pruned"), ("quantized", "pruned and int8")):
        ratios, (kept, lost) = models[kind]["ratios"], accuracies(models, kind)
        if ratios["macs"] == 1:
            told = {"pruned": "original in floats", "quantized": "int8 alone"}[kind]
        latency = ratios["latency"][0]["median"] if ratios["latency"] else None
        cells = [name, f"{ratios['macs']:.2f}", told, f"{ratios['bytes']:.3f}"]
        cells += [f"{latency:.3f}" if latency else "–", f"{kept:.2f} %", f"{lost:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def accuracies(models: dict, kind: str) -> tuple[float, float]:
    """(accuracy, points lost) in percent; without labels, of what lies between a model that answers all alike and the
    original."""
    first, own = models["original"]["accuracy"], models[kind]["accuracy"]
    if first is not None:
        return 100 * own["value"], 100 * (first["value"] - own["value"])
    return 100 * own["share"], 100 * (1 - own["share"])


if __name__ == "__main__":
    main()
