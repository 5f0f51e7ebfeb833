"""How long a fine-tuning step takes: each precision and memory layout, and several runs at once on one device.

    python tools/bench_finetune.py MODEL.onnx [--device cuda] [--batch 256] [--steps 32] [--processes 8]
    python tools/bench_finetune.py MODEL.onnx --parts [--batch 128]
    python tools/bench_finetune.py PRUNED.onnx --teacher MODEL.onnx

The model is its own teacher where no other is given, and the images are random, flipped and shifted. A step is one of
the second epoch, in which the original is asked anew, or its answers are known (--finetune versions=K, from epoch
K + 1 on). With --processes so many runs share the device, each in the fastest way; they take about as long as the
slowest.

--parts measures what a step consists of, in CPU seconds of this process, which busy neighbors disturb less than the
clock on the wall: the teacher's answers, and forward and backward of what is trained, node by node and with the chains
of nodes that the bridge computes as one.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnxprune import graph
from onnxprune.bridge import Network
from onnxprune.data import Samples, input_infos, load_samples
from onnxprune.recover.finetune import finetune
from onnxprune.recover.settings import Settings
from onnxprune.recover.teacher import precision

CLASSES = 10
MANY = 50_000  # images of CIFAR-10
ROUNDS = 3  # of each part, in turn; the least of them counts


@dataclass(frozen=True)
class Way:
    """How the network is trained."""

    amp: str
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.amp if self.amp != 'off' else 'float32'}{', channels last' if self.channels_last else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="of one image input")
    parser.add_argument("--teacher", type=Path, metavar="ORIGINAL.onnx", help="of MODEL; default: itself")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", help=argparse.SUPPRESS)  # a Way as JSON: of one of several processes
    parser.add_argument("--parts", action="store_true", help="measure what a step consists of, on the CPU")
    args = parser.parse_args()
    if args.parts:
        print_parts(args)
        return
    if args.only:
        print(milliseconds(args, Way(**json.loads(args.only))))
        return
    found = {Way(amp, layout): 0.0 for amp in ("off", "bf16") for layout in (False, True)}
    print("| precision and layout | ms per step | answers known | ratio |\n|---|---:|---:|---:|")
    for way in found:
        found[way], known = milliseconds(args, way), milliseconds(args, way, versions=1)
        print(f"| {way} | {found[way]:.1f} | {known:.1f} | {found[way] / known:.2f} |", flush=True)
    if args.processes > 1:
        best = min(found, key=lambda way: found[way])
        taken = together(args, best)
        print(
            f"| {best}, {args.processes} runs at once | {statistics.median(taken):.1f}, at most {max(taken):.1f} | | |"
        )


def milliseconds(args: argparse.Namespace, way: Way, versions: int = 0) -> float:
    """Of one step of the second epoch; versions: of each image, 1 where the second epoch shows the first one's."""
    model = graph.normalize(graph.load(args.model))
    how = {"epochs": 2, "batch_size": args.batch, "device": args.device, "versions": versions}
    settings = Settings(flip=True, crop=4, **how, **asdict(way))
    tune, held = (random_samples(model, count) for count in (args.batch * args.steps, 2))
    teacher = graph.normalize(graph.load(args.teacher)) if args.teacher else model
    history = finetune(model.clone(), teacher, tune, held, settings)
    return history.epochs[-1].seconds / args.steps * 1e3


def print_parts(args: argparse.Namespace) -> None:
    """A line for each part of a step, in both precisions, channels last."""
    model = graph.normalize(graph.load(args.model))
    (info,) = input_infos(model)
    x = torch.randn(args.batch, *info.shape[1:], generator=torch.Generator().manual_seed(0))
    feeds = {info.name: x.contiguous(memory_format=torch.channels_last)}
    print("| part | precision | node by node, CPU ms | as one, CPU ms | ratio |\n|---|---|---:|---:|---:|")
    for part in ("teacher's answers", "training, frozen statistics", "training, statistics of the batch"):
        for amp in ("off", "bf16"):
            one = [part_of(model, feeds, part, Settings(amp=amp), fused) for fused in (False, True)]
            plain, fused = (
                min(times) for times in zip(*[[cpu_ms(f) for f in one] for _ in range(ROUNDS)], strict=True)
            )
            print(f"| {part} | {amp} | {plain:.0f} | {fused:.0f} | {plain / fused:.2f} |", flush=True)
    print(f"\na batch of {args.batch} of {MANY} images, transposed from (N, H, W, C): {batch_told(info, args.batch)}")


def part_of(model, feeds: dict[str, torch.Tensor], part: str, settings: Settings, fused: bool) -> Callable[[], None]:
    """A function that does the part once; it has been done once already."""
    network = Network(model, freeze_norm="frozen" in part).to(memory_format=torch.channels_last)
    network.train("training" in part)
    if not fused:
        network.program = network.plain_program

    def once() -> None:
        with torch.set_grad_enabled(network.training), precision(settings, torch.device("cpu")):
            loss = torch.stack([y.float().square().mean() for y in network(feeds).values()]).sum()
        if network.training:
            loss.backward()

    once()
    return once


def batch_told(info, count: int) -> str:
    """What a batch costs by np.take, which copies all of an array that is not contiguous, and as Samples give it."""
    channels, *sides = info.shape[1:]
    x = np.ones((MANY, *sides, channels), np.float32).transpose(0, 3, 1, 2)
    samples, rows = load_samples((x, np.arange(MANY) % CLASSES), [info]), np.arange(0, MANY, MANY // count)[:count]
    taken = min(cpu_ms(lambda: np.ascontiguousarray(np.take(x, rows, 0))) for _ in range(ROUNDS))
    given = min(cpu_ms(lambda: samples.batch(rows)) for _ in range(ROUNDS))
    return f"{taken:.1f} ms by np.take, {given:.1f} ms as it is"


def cpu_ms(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start)


def random_samples(model, count: int) -> Samples:
    """Images of the size that the model takes, labels of ten classes."""
    (info,) = input_infos(model)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(count, *info.shape[1:])).astype(np.float32)
    return load_samples((x, generator.integers(0, CLASSES, count)), [info])


def together(args: argparse.Namespace, way: Way) -> list[float]:
    """Milliseconds of a step in each of the processes that run at once."""
    words = [sys.executable, *sys.argv, "--only", json.dumps(asdict(way))]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(args.processes)]
    return [float(process.communicate()[0]) for process in running]


if __name__ == "__main__":
    main()
