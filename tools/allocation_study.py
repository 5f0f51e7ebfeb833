"""Widths by the method against widths measured on the whole model: accuracy on test images that nothing was chosen on.

    python tools/allocation_study.py --model cifar10-resnet20-bn --methods l1 taylor snacs --macs 0.5

Least squares only, no labels, kept sizes in multiples of one. The models and images are those of $ONNXPRUNE_DATA, see
cifar.py and, for a model whose name begins with imagenet, imagenet.py. A method 'auto' is what the command takes where
nobody asks for one: with 'default' that is the plain command. --original adds a row of the original. --cache FOLDER
keeps the widths that were chosen, so that a run that was ended goes on with them. --start leaves the first test images
out, so that what is chosen on some is reported on others. --each gives, instead of the one that is chosen, a row of
each result that the plain command compares, with what it lost in the trial: does that rank them rightly? --mirror off
leaves mirror images out of least squares. Seconds are those of the processor.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

sys.path.insert(0, str(Path(__file__).parent))
import cifar
import imagenet

from onnxprune import surgery
from onnxprune.data import Samples, input_infos, load_samples
from onnxprune.graph import sessions
from onnxprune.methods.base import Outcome
from onnxprune.options import Options
from onnxprune.outputs import metrics
from onnxprune.plan import cost
from onnxprune.plan.select import Selection
from onnxprune.recover import levels
from onnxprune.run import allocation, schedule, search
from onnxprune.run.settings import resolved
from onnxprune.run.subject import Subject, prepare
from onnxprune.system.clock import Clock

HEAD = """\
| method | widths | seed | MACs | parameters | top-1 | 95 % interval | scores | widths | recovery | what was tried |
|---|---|---:|---:|---:|---:|---|---:|---:|---:|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10-resnet20-bn")
    parser.add_argument("--methods", nargs="+", default=["l1", "taylor", "snacs"])
    parser.add_argument("--allocate", nargs="+", default=["method", "default", "measured"])
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5])
    parser.add_argument("--samples", type=int, default=5000, help="training images, without labels")
    parser.add_argument("--test", type=int, default=4000)
    parser.add_argument("--start", type=int, default=0, help="the first of the test images")
    parser.add_argument("--time", type=float, help="seconds of a run, of which the allocation takes its part")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--original", action="store_true")
    parser.add_argument("--each", action="store_true", help="a row for each result that the plain command compares")
    parser.add_argument("--mirror", choices=("on", "off"), default="on", help="mirror images in least squares")
    parser.add_argument("--cache", type=Path, help="folder for the widths that were chosen")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(HEAD)
    for method in args.methods:
        for seed in range(args.seeds):
            for row in rows(args, method, seed):
                print(row, flush=True)


def images(model: str, count: int, test: int, start: int = 0) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """`count` training images, and `test` others from `start` on with their labels, as `model` wants them."""
    if not model.startswith("imagenet"):
        kind = "vgg" if "vgg" in model else "resnet"
        return cifar.load(kind, "train", 0, count)[0], cifar.load(kind, "test", start, test)
    learned, held = imagenet.Images("train1000"), imagenet.Images("val900")
    x = np.stack([learned[k][0] for k in _spread(len(learned), count)])
    y = np.stack([held[k][0] for k in range(start, min(start + test, len(held)))])
    return x, (y, held.targets[start : start + len(y)])


def labels(model: str, count: int) -> np.ndarray:
    """Of the training images that `images` gives."""
    if not model.startswith("imagenet"):
        return cifar.load("vgg" if "vgg" in model else "resnet", "train", 0, count)[1]
    targets = imagenet.Images("train1000").targets
    return targets[_spread(len(targets), count)]


def _spread(number: int, count: int) -> list[int]:
    """Which `count` of so many images are taken: some of all kinds of classes."""
    return list(range(0, number, max(1, number // count)))[:count]


def rows(args: argparse.Namespace, method: str, seed: int) -> Iterator[str]:
    """A line of the table for each target and kind of widths, from one scoring per target."""
    x, tested = images(args.model, args.samples, args.test, args.start)
    for macs in args.macs:
        given = {"data": x, "target": {"macs": macs}, "align": 1, "latency": False, "recover": "reconstruct"}
        given |= {"method": method, "seed": seed, "time": args.time, "val": tested}  # all of x to tune on
        given["finetune"] = {} if args.mirror == "on" else {"flip": False}
        options = Options(**given)
        subject = prepare(cifar.DATA / "models" / f"{args.model}.onnx", options, Clock())
        began = time.process_time()
        subject, outcome = schedule.scored(subject, resolved(options), Clock())
        scoring = time.process_time() - began
        test = load_samples(tested, input_infos(subject.model))
        if args.original:
            yield "| " + " | ".join(("original", "", "", "1", "1", *shown(subject.model, test), "", "", "", "")) + " |"
        if args.each:
            yield from (finished(subject, each, options, test, scoring) for each in choices(subject, outcome, options))
            continue
        for name in args.allocate:
            widths = None if name == "default" else name
            yield row(subject, outcome, Options(**given, allocate=widths), test, args, scoring)


def shown(model: ir.Model, test: Samples) -> tuple[str, str]:
    """Accuracy on `test` and its interval."""
    found = metrics.evaluate(sessions.open_session(model), test)
    assert found is not None
    assert found.interval95 is not None
    low, high = found.interval95
    return f"{100 * found.value:.2f} %", f"{100 * low:.2f} to {100 * high:.2f} %"


@dataclass(frozen=True)
class Choice:
    """What is removed, what it is called, the seconds that its widths took, and what was tried for them."""

    selection: Selection
    name: str
    seconds: float
    tried: str


def choices(subject: Subject, outcome: Outcome, options: Options) -> list[Choice]:
    """Each result that the plain command compares."""
    start = time.process_time()
    found = allocation.contenders(subject, outcome, resolved(options))
    spent = time.process_time() - start
    return [Choice(c.selection, c.short, spent, f"lost {c.loss:.4f}") for c in found]


def row(
    subject: Subject, outcome: Outcome, options: Options, test: Samples, args: argparse.Namespace, scoring: float
) -> str:
    """One line: what the widths cost, and what the recovered model does on test images."""
    return finished(subject, known(subject, outcome, options, args), options, test, scoring)


def finished(subject: Subject, choice: Choice, options: Options, test: Samples, scoring: float) -> str:
    """The line of a choice, recovered."""
    selection = choice.selection
    model = surgery.cut(selection)
    began = time.process_time()
    levels.recover(subject.given, selection, model, resolved(options).recovery, Clock())
    recovery = time.process_time() - began
    numbers = (*(f"{share:.3f}" for share in shares(subject, selection)), *shown(model, test))
    method = "auto" if options.method_found else options.method
    seconds = (f"{each:.0f}" for each in (scoring, choice.seconds, recovery))
    return "| " + " | ".join(map(str, (method, choice.name, options.seed, *numbers, *seconds, choice.tried))) + " |"


def shares(subject: Subject, selection: Selection) -> tuple[float, float]:
    """The parts of the MACs and of the parameters that are left."""
    sizes = cost.keep_sizes(selection.keep)
    macs, params = (subject.cost.total(kind, sizes) / subject.cost.total(kind) for kind in ("macs", "params"))
    return macs, params


def known(subject: Subject, outcome: Outcome, options: Options, args: argparse.Namespace) -> Choice:
    """What is chosen, from --cache where it is there."""
    share = next(iter(options.target.values()))
    method = "auto" if options.method_found else options.method
    name = options.allocate or "default"
    told = (args.model, args.samples, method, name, f"{share:g}", options.seed)
    file = args.cache / f"{'_'.join(map(str, told))}.npz" if args.cache else None
    dims = {dim.name: dim for dim in subject.coupling.dims}
    if file is not None and file.exists():
        with np.load(file) as stored:
            keep = {dims[name]: stored[name] for name in stored.files if name in dims}
            selection = Selection(subject.coupling, keep, options.method)
            return Choice(selection, name, float(stored["seconds"]), str(stored["tried"]))
    start = time.process_time()
    settings = resolved(options)
    chosen = allocation.allocated(subject, outcome, settings, Clock())
    spent = time.process_time() - start
    told = ("widths: ", *allocation.SHORT)
    tried = next((note for note in chosen.notes if note.startswith(told)), "").removeprefix("widths: ")
    choice = next(search.selections(subject, chosen, settings))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {dim.name: mask for dim, mask in choice.keep.items()}
        np.savez(file, seconds=spent, tried=tried, **arrays)
    return Choice(choice, name, spent, tried)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
