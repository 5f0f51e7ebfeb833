"""BatchNormalization of few channels: torch's kernels beside onnxprune/bridge/narrow_norm.py.

    python tools/bench_norm.py
    python tools/bench_norm.py --channels 8 14 --size 32 --type float32 --threads 2

Milliseconds on the clock forward and backward, the least of several, by the statistics of the batch. `channels last`
and `channels first` are torch.nn.functional.batch_norm on one and the other layout.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from onnxprune.bridge.narrow_norm import narrow_batch_norm
from onnxprune.measure.timing import timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[4, 8, 14, 16, 20, 27, 31])
    parser.add_argument("--size", type=int, default=32, help="of the images, whose number is 128")
    parser.add_argument("--type", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| channels | channels first, ms | channels last, ms | as more channels, ms | ratio |\n|" + "---:|" * 5)
    for channels in args.channels:
        x = torch.randn(128, channels, args.size, args.size).to(getattr(torch, args.type))
        last = x.contiguous(memory_format=torch.channels_last)
        plain = torch.nn.functional.batch_norm
        first, theirs, ours = least(plain, x), least(plain, last), least(narrow_batch_norm, last)
        print(f"| {channels} | {first:.2f} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.1f} |")


def least(compute: Callable[..., Any], x: torch.Tensor, rounds: int = 15) -> float:
    """The least milliseconds of a step forward and backward."""
    c = x.shape[1]
    x, g = x.clone(memory_format=torch.preserve_format).requires_grad_(), torch.randn_like(x)
    scale, b = torch.ones(c, requires_grad=True), torch.zeros(c, requires_grad=True)
    mean, var = torch.zeros(c), torch.ones(c)

    def step() -> None:
        torch.autograd.grad(compute(x, mean, var, scale, b, True, 0.1, 1e-5), (x, scale, b), g)

    return min(timed(step) for _ in range(rounds))


if __name__ == "__main__":
    main()
