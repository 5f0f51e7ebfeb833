"""Fine-tuning steps on all images of CIFAR-10, by the packages of several checkouts in turn: images per CPU second.

    git worktree add ../before 48c0c59
    python tools/bench_steps.py PRUNED.onnx --teacher MODEL.onnx --roots ../before . --rounds 3

MODEL.onnx is a ResNet of $ONNXPRUNE_DATA, which must be set, PRUNED.onnx what is trained. Steps of 128 images, bf16,
channels last, SGD, half labels and half the original's answers, images flipped and shifted: the recipe of
tools/papers.py. CPU time of the process counts all that a step needs, the batch too, and neighbors disturb it less
than the clock on the wall. Each process trains with one checkout; they take turns, and the best median of each counts.
The first checkout is the measure of the ratios. `answers known` is the last checkout where the original is not asked,
for its answers are remembered (--finetune versions=K, from epoch K + 1 on).
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BATCH, STEPS, FIRST = 128, 20, 3  # the first steps are slower
JUDGED = 256


class DoneError(Exception):
    """Enough steps were taken."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="PRUNED.onnx", help="of a ResNet for CIFAR-10")
    parser.add_argument("--teacher", type=Path, metavar="MODEL.onnx", required=True, help="the original of PRUNED.onnx")
    parser.add_argument("--roots", type=Path, nargs="+", default=[ROOT], metavar="CHECKOUT", help="default: this one")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)  # the checkout of one of several processes
    parser.add_argument("--known", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(seconds(args.model, args.teacher, args.only, args.known))
        return
    ways = [(root.resolve(), False) for root in args.roots] + [(args.roots[-1].resolve(), True)]
    found: dict[tuple[Path, bool], list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for root, known in ways:
            words = [sys.executable, *sys.argv, "--only", str(root), *(["--known"] if known else [])]
            told = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            found[root, known].append(float(told.stdout.split()[-1]))
    least = {way: min(times) for way, times in found.items()}
    print("| checkout | ms per step | images per CPU second | ratio |\n|---|---:|---:|---:|")
    for (root, known), taken in least.items():
        told = f"{root.name}{', answers known' if known else ''}"
        print(f"| {told} | {1e3 * taken:.0f} | {BATCH / taken:.0f} | {least[ways[0]] / taken:.2f} |")


def seconds(path: Path, original: Path, root: Path, known: bool) -> float:
    """Median CPU seconds of a step with the package in `root`; known: the original's answers are at hand."""
    sys.path.insert(0, str(root))
    import numpy as np
    import torch

    from onnxprune import graph
    from onnxprune.data import input_infos, load_samples, split
    from onnxprune.recover import training
    from onnxprune.recover.finetune import finetune
    from onnxprune.recover.settings import Settings
    from onnxprune.recover.teacher import Teacher
    from tools import cifar

    torch.set_num_threads(1)
    model, teacher = (graph.normalize(graph.load(each)) for each in (path, original))
    samples = load_samples(cifar.load("resnet", "train"), input_infos(model))
    tune, held = split(samples, JUDGED / len(samples), 0)
    begun: list[float] = []
    step_on, says = training.step_on, Teacher.says
    told = {}

    def timed(*args):
        begun.append(time.process_time())
        if len(begun) > STEPS:
            raise DoneError
        return step_on(*args)

    def remembered(self, feeds):
        count = len(next(iter(feeds.values())))
        if count not in told:
            told[count] = says(self, feeds)
        return told[count]

    training.step_on = timed
    if known:
        Teacher.says = remembered  # type: ignore[method-assign]
    how = {"batch_size": BATCH, "optimizer": "sgd", "amp": "bf16", "channels_last": True, "device": "cpu"}
    with contextlib.suppress(DoneError):
        finetune(model, teacher, tune, held, Settings(epochs=3, labels=0.5, flip=True, crop=4, **how))
    return statistics.median(np.diff(begun)[FIRST:].tolist())


if __name__ == "__main__":
    main()
