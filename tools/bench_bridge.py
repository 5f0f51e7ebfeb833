"""A training step through the bridge beside the same network in plain torch, interleaved: the ratio of the times.

python tools/bench_bridge.py [--device cuda] [--models resnet50,vit_tiny] [--steps 20] [--batch 8]
    [--size 128] [--threads 1] [--cpu-time] [--autocast] [--channels-last] [--compile] [--dynamo]
"""

import argparse
import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable

import onnx
import onnx_ir as ir
import torch
from bench_models import resnet50, vit_tiny
from torch import Tensor, nn

from onnxprune import graph
from onnxprune.bridge import Network

Step = Callable[[], float]
MODELS: dict[str, Callable[[int], nn.Module]] = {"resnet50": lambda size: resnet50(), "vit_tiny": vit_tiny}


class Fed(nn.Module):
    """A Network called as a torch module is: one tensor in, one out."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network({self.network.input_names[0]: x})[self.network.output_names[0]]


def bridged(module: nn.Module, x: Tensor, *, dynamo: bool) -> Fed:
    """The module exported with its BatchNormalization kept, and run through the bridge."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if dynamo:
            program = torch.onnx.export(module.eval(), (x,), dynamo=True, optimize=False)
            assert program is not None
            proto = program.model_proto
        else:
            keep = torch.onnx.TrainingMode.PRESERVE
            torch.onnx.export(module.eval(), (x,), buffer, dynamo=False, training=keep, do_constant_folding=False)
            proto = onnx.load_from_string(buffer.getvalue())
    return Fed(Network(graph.normalize(ir.from_proto(proto))))


def make_step(module: nn.Module, x: Tensor, y: Tensor, arguments: argparse.Namespace) -> Step:
    """One optimizer step; gives the loss."""
    module = module.to(x.device).train()
    if arguments.channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    called = torch.compile(module) if arguments.compile else module

    def step() -> float:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=arguments.autocast):
            loss = nn.functional.cross_entropy(called(x).float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def interleaved(
    first: Step, second: Step, steps: int, clock: Callable[[], float]
) -> tuple[list[float], list[float], float]:
    """Seconds of each step of both, in turn, and the difference of their first losses.

    clock: wall time, or the process's own time, which other programs on the machine disturb less.
    """
    times: tuple[list[float], list[float]] = ([], [])
    difference = abs(first() - second())
    for _ in range(2):
        first()
        second()
    for number in range(steps):
        order = (0, 1) if number % 2 else (1, 0)  # neither always profits from the other's warm caches
        for which in order:
            start = clock()
            (first, second)[which]()
            times[which].append(clock() - start)
    return *times, difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet50,vit_tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    for flag in ("cpu-time", "autocast", "channels-last", "compile", "dynamo"):
        parser.add_argument(f"--{flag}", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| network | torch ms | bridge ms | ratio | quartiles | loss difference |\n|---|---|---|---|---|---|")
    for name in arguments.models.split(","):
        torch.manual_seed(0)
        module = MODELS[name](arguments.size)
        x = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
        y = torch.randint(100, (arguments.batch,)).to(arguments.device)
        copy = bridged(module, x, dynamo=arguments.dynamo)
        x = x.to(arguments.device)
        plain, bridge = make_step(module, x, y, arguments), make_step(copy, x, y, arguments)
        first, second, difference = interleaved(
            plain, bridge, arguments.steps, time.process_time if arguments.cpu_time else time.perf_counter
        )
        ratios = [b / a for a, b in zip(first, second, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {name} | {statistics.median(first) * 1e3:.1f} | {statistics.median(second) * 1e3:.1f} "
            f"| {middle:.3f} | {low:.3f} to {high:.3f} | {difference:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
