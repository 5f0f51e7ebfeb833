"""Widths by the method against widths measured on the whole model: accuracy on test images that nothing was chosen on.

    python tools/allocation_study.py --model cifar10-resnet20-bn --methods l1 taylor snacs --macs 0.5

Least squares only, no labels, kept sizes in multiples of one. The models and images are those of $ONNXPRUNE_DATA, see
cifar.py.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import cifar

from onnxprune import surgery
from onnxprune.data import Samples, input_infos, load_samples
from onnxprune.graph import sessions
from onnxprune.methods.base import Outcome
from onnxprune.options import Options
from onnxprune.outputs import metrics
from onnxprune.plan import cost
from onnxprune.recover import levels
from onnxprune.run import allocation, schedule, search
from onnxprune.run.settings import resolved
from onnxprune.run.subject import Subject, prepare
from onnxprune.system.clock import Clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10-resnet20-bn")
    parser.add_argument("--methods", nargs="+", default=["l1", "taylor", "snacs"])
    parser.add_argument("--allocate", nargs="+", default=["method", "default", "measured"])
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5])
    parser.add_argument("--samples", type=int, default=5000, help="training images, without labels")
    parser.add_argument("--test", type=int, default=4000)
    parser.add_argument("--time", type=float, help="seconds of a run, of which the allocation takes its part")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| method | widths | seed | MACs | parameters | top-1 | 95 % interval | seconds | what was tried |")
    print("|---|---|---:|---:|---:|---:|---|---:|---|")
    for method in args.methods:
        for seed in range(args.seeds):
            for row in rows(args, method, seed):
                print(row, flush=True)


def rows(args: argparse.Namespace, method: str, seed: int) -> Iterator[str]:
    """A line of the table for each target and kind of widths, from one scoring per target."""
    kind = "vgg" if "vgg" in args.model else "resnet"
    images, _ = cifar.load(kind, "train", 0, args.samples)
    for macs in args.macs:
        given = {"data": images, "target": {"macs": macs}, "align": 1, "latency": False, "recover": "reconstruct"}
        options = Options(method=method, seed=seed, time=args.time, **given)
        subject = prepare(cifar.DATA / "models" / f"{args.model}.onnx", options, Clock())
        subject, outcome = schedule.scored(subject, resolved(options), Clock())
        test = load_samples(cifar.load(kind, "test", 0, args.test), input_infos(subject.model))
        for name in args.allocate:
            yield row(
                subject,
                outcome,
                Options(
                    method=method, seed=seed, time=args.time, allocate=None if name == "default" else name, **given
                ),
                test,
            )


def row(subject: Subject, outcome: Outcome, options: Options, test: Samples) -> str:
    """One line: what the widths cost, and what the recovered model does on test images."""
    start = time.monotonic()
    settings = resolved(options)
    chosen = allocation.allocated(subject, outcome, settings, Clock())
    spent = time.monotonic() - start
    choice = next(search.selections(subject, chosen, settings))
    model = surgery.cut(subject.coupling, choice.keep)
    levels.recover(subject.given, choice, model, settings.recovery, Clock())
    found = metrics.evaluate(sessions.open_session(model), test)
    assert found is not None
    assert found.interval95 is not None
    sizes = cost.keep_sizes(choice.keep)
    shares = (subject.cost.total(kind, sizes) / subject.cost.total(kind) for kind in ("macs", "params"))
    low, high = found.interval95
    tried = next((note for note in chosen.notes if note.startswith("widths: ")), "")
    numbers = (*(f"{share:.3f}" for share in shares), f"{100 * found.value:.2f} %")
    cells = (
        options.method,
        options.allocate or "default",
        options.seed,
        *numbers,
        f"{100 * low:.2f} to {100 * high:.2f} %",
    )
    return "| " + " | ".join(map(str, (*cells, f"{spent:.0f}", tried.removeprefix("widths: ")))) + " |"


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
