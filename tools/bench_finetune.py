"""How long a fine-tuning step takes: each precision and memory layout, and several runs at once on one device.

    python tools/bench_finetune.py MODEL.onnx [--device cuda] [--batch 256] [--steps 32] [--processes 8]

The model is its own teacher and the images are random, flipped and shifted; a step is one of the second epoch. With
--processes so many runs share the device, each in the fastest way; they take about as long as the slowest.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnxprune import graph
from onnxprune.data import Samples, input_infos, load_samples
from onnxprune.recover.finetune import finetune
from onnxprune.recover.settings import Settings

CLASSES = 10


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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", help=argparse.SUPPRESS)  # a Way as JSON: of one of several processes
    args = parser.parse_args()
    if args.only:
        print(milliseconds(args, Way(**json.loads(args.only))))
        return
    found = {Way(amp, layout): 0.0 for amp in ("off", "bf16") for layout in (False, True)}
    print("| precision and layout | ms per step |\n|---|---:|")
    for way in found:
        found[way] = milliseconds(args, way)
        print(f"| {way} | {found[way]:.1f} |", flush=True)
    if args.processes > 1:
        best = min(found, key=lambda way: found[way])
        taken = together(args, best)
        print(f"| {best}, {args.processes} runs at once | {statistics.median(taken):.1f}, at most {max(taken):.1f} |")


def milliseconds(args: argparse.Namespace, way: Way) -> float:
    """Of one step of the second epoch."""
    model = graph.normalize(graph.load(args.model))
    settings = Settings(epochs=2, batch_size=args.batch, device=args.device, flip=True, crop=4, **asdict(way))
    tune, held = (random_samples(model, count) for count in (args.batch * args.steps, 2))
    history = finetune(model.clone(), model, tune, held, settings)
    return history.epochs[-1].seconds / args.steps * 1e3


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
