"""What each level of recovery brings back: accuracy of a trained CIFAR-10 network after the cut and after each level.

    python tools/recovery.py --model cifar10-resnet56-folded --method l1 --macs 0.5 --samples 5000 --epochs 1 2 4

Units are chosen as the command line does with that method. Tuning sees training images only; accuracy is measured on
test images. The models and images are those of $ONNXPRUNE_DATA, see cifar.py.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

sys.path.insert(0, str(Path(__file__).parent))
import cifar

from onnxprune import graph, surgery
from onnxprune.coupling import Coupling, Dim, analyze
from onnxprune.data import Samples, input_infos, load_samples, split
from onnxprune.graph import sessions
from onnxprune.methods import base
from onnxprune.outputs import metrics
from onnxprune.plan import cost
from onnxprune.plan.select import Budget, Selection, select
from onnxprune.recover import constants
from onnxprune.recover.finetune import Settings, finetune
from onnxprune.recover.refit import reconstruct

Keep = dict[Dim, np.ndarray]
Row = tuple[str, float, float]  # step, seconds, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10-resnet56-folded", help="name of a model of the data folder")
    parser.add_argument("--method", default="l1", help="one that scores by weights only, or by the samples")
    parser.add_argument("--macs", type=float, default=0.5, help="share of the MACs that remains")
    parser.add_argument("--samples", type=int, default=5000, help="training images to tune on")
    parser.add_argument("--limit", type=int, default=512, help="of them for least squares")
    parser.add_argument("--test", type=int, default=10_000, help="test images to measure on")
    parser.add_argument("--epochs", type=int, nargs="*", default=[1], help="lengths of the fine-tunings to try")
    parser.add_argument("--labels", choices=("with", "without"), nargs="*", default=["with", "without"])
    parser.add_argument("--batchnorm", choices=("on", "off"), nargs="*", default=["on", "off"])
    parser.add_argument("--lr", type=float)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = graph.normalize(graph.load(cifar.DATA / "models" / f"{args.model}.onnx"))
    coupling = analyze(model)
    tune = _samples(model, "train", args.samples)
    selection = chosen(coupling, args.method, args.macs, args.seed, tune)
    print(f"{args.model}, {args.method}, MACs x {macs_left(selection):.3f}\n")
    print("| step | seconds | accuracy, % |\n|---|---|---|")
    for step, seconds, accuracy in table(model, selection, tune, args):
        print(f"| {step} | {seconds:.0f} | {100 * accuracy:.2f} |", flush=True)


def table(model: ir.Model, selection: Selection, tune: Samples, args: argparse.Namespace) -> Iterator[Row]:
    """The accuracy after each step, in order."""
    test = _samples(model, "test", args.test)
    yield "original", 0.0, accuracy_of(model, test)
    cut_model = surgery.cut(selection)
    yield "cut", 0.0, accuracy_of(cut_model, test)
    start = time.monotonic()
    constants.push(selection, cut_model, tune)
    yield "constants", time.monotonic() - start, accuracy_of(cut_model, test)
    start = time.monotonic()
    reconstruct.refit(selection, cut_model, tune, limit=args.limit, bar=True)
    yield "reconstruct", time.monotonic() - start, accuracy_of(cut_model, test)
    tune, held = split(tune, 0.1, args.seed)
    for batchnorm, labels, epochs in itertools.product(args.batchnorm, args.labels, args.epochs):
        tuned = surgery.cut(selection)
        for name, value in cut_model.graph.initializers.items():
            graph.set_constant(tuned.graph.initializers[name], graph.array_of(value))
        settings = Settings(
            epochs=epochs,
            lr=args.lr,
            labels=0.5 if labels == "with" else 0.0,
            batchnorm=batchnorm,
            seed=args.seed,
            progress=True,
        )
        history = finetune(tuned, model, tune, held, settings)
        print(history.settings.described(), file=sys.stderr)
        yield (
            f"finetune {labels} labels, BatchNorm {batchnorm}, {epochs} epochs",
            history.seconds,
            accuracy_of(tuned, test),
        )


def _samples(model: ir.Model, part: str, count: int) -> Samples:
    kind = "vgg" if model.graph.inputs[0].name == "x" else "resnet"
    return load_samples(cifar.load(kind, part, 0, count), input_infos(model))


def accuracy_of(model: ir.Model, test: Samples) -> float:
    found = metrics.evaluate(sessions.open_session(model), test)
    assert found is not None
    return found.value


def chosen(coupling: Coupling, method: str, target: float, seed: int, tune: Samples | None = None) -> Selection:
    """The units that `method` and the selection of the command line keep, to `target` of the MACs."""
    found = cost.of(coupling)
    context = base.Context(coupling, found, coupling.free, tune, seed)
    outcome = base.run(base.get(method), context)
    if outcome.model is not None or outcome.zeros:
        raise SystemExit(f"{method} trains or zeroes weights; choose a method that only scores")
    keep = select(outcome.ranking, found, Budget({"macs": target}), comparable=outcome.comparable)
    return Selection(coupling, keep, method)


def macs_left(selection: Selection) -> float:
    """MACs that remain, as a share."""
    found = cost.of(selection.coupling)
    return found.totals(cost.keep_sizes(selection.keep))["macs"] / found.totals()["macs"]


if __name__ == "__main__":
    main()
