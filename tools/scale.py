"""Time and memory of inspecting and pruning against model size and number of samples: a table and a plot.

    python tools/scale.py --folder /tmp/scale --markdown docs/results/scale.md --plot docs/images/scale.png

Every point is the command line in a process of its own: CPU seconds (user and system, which a busy machine disturbs
less than the clock) and peak memory. Models are synthetic, with random weights; pruning is to half of the MACs by l1
with constants pushed, proven as always, latency not measured. Samples are scored (taylor) and fitted (reconstruct).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log, log10
from pathlib import Path

import numpy as np
import onnx
from big import write_transformer
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw, ImageFont

CLASSES, SIDE, TOKENS = 10, 32, 32
INKS = ("#0b7a75", "#b7791f", "#5c7391", "#b3261e", "#6a4fb3", "#17202b")


@dataclass(frozen=True)
class Point:
    """One run: what was asked of what, `size` (parameters, or samples), CPU seconds and peak bytes.

    file_bytes: what the weights take that lie in a file beside the model.
    """

    series: str
    size: int
    seconds: float
    peak_bytes: int
    file_bytes: int = 0


# Models -----------------------------------------------------------------------------------------------------------


class Builder:
    """Nodes and weights of a synthetic model; values are named by number."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.rng = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        fan = int(np.prod(shape[1:])) if len(shape) > 2 else int(np.prod(shape[:1]))
        array = (self.rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
        return self.constant(array if len(shape) > 1 else np.ones(shape, np.float32))

    def constant(self, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def op(self, op_type: str, *inputs: str, **attributes) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def model(self, x: Sequence, y: str) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]
        outputs = [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", CLASSES])]
        graph = helper.make_graph(self.nodes, "synthetic", inputs, outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def conv_net(width: int, blocks: int) -> onnx.ModelProto:
    """A residual network of `blocks` pairs of 3x3 convolutions."""
    b = Builder()
    y = b.op("Conv", "x", b.weight(width, 3, 3, 3), pads=[1] * 4, strides=[2, 2])
    for _ in range(blocks):
        z = b.op("Relu", b.op("Conv", y, b.weight(width, width, 3, 3), b.weight(width), pads=[1] * 4))
        y = b.op("Relu", b.op("Add", y, b.op("Conv", z, b.weight(width, width, 3, 3), b.weight(width), pads=[1] * 4)))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    return b.model(["N", 3, SIDE, SIDE], b.op("Gemm", y, b.weight(CLASSES, width), transB=1))


def transformer(width: int, layers: int, heads: int = 8) -> onnx.ModelProto:
    """Encoder layers with separate q, k, v; the mean of the tokens is classified."""
    b = Builder()
    split = b.constant(np.array([0, TOKENS, heads, width // heads]))
    join = b.constant(np.array([0, TOKENS, width]))
    scale = b.constant(np.array((width // heads) ** -0.5, np.float32))
    y = b.op("MatMul", "x", b.weight(16, width))
    for _ in range(layers):
        z = b.op("LayerNormalization", y, b.weight(width), b.weight(width))
        q, k, v = (b.op("Reshape", b.op("MatMul", z, b.weight(width, width)), split) for _ in range(3))
        q, v = (b.op("Transpose", value, perm=[0, 2, 1, 3]) for value in (q, v))
        k = b.op("Transpose", k, perm=[0, 2, 3, 1])
        attended = b.op("MatMul", b.op("Softmax", b.op("MatMul", b.op("Mul", q, scale), k), axis=-1), v)
        flat = b.op("Reshape", b.op("Transpose", attended, perm=[0, 2, 1, 3]), join)
        y = b.op("Add", y, b.op("MatMul", flat, b.weight(width, width)))
        z = b.op("LayerNormalization", y, b.weight(width), b.weight(width))
        hidden = b.op("Relu", b.op("MatMul", z, b.weight(width, 4 * width)))
        y = b.op("Add", y, b.op("MatMul", hidden, b.weight(4 * width, width)))
    y = b.op("ReduceMean", y, axes=[1], keepdims=0)
    return b.model(["N", TOKENS, 16], b.op("MatMul", y, b.weight(width, CLASSES)))


def parameters(model: onnx.ModelProto) -> int:
    return sum(int(np.prod(w.dims)) for w in model.graph.initializer if w.data_type == TensorProto.FLOAT)


# Runs -------------------------------------------------------------------------------------------------------------


# The peak is asked of the process itself: what wait4 gives also counts this one, from which it was forked.
CHILD = """
import sys
from onnxprune.cli import main
code = main(sys.argv[1:])
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak)
sys.exit(code)
"""


def run(*arguments: str | Path) -> tuple[float, int]:
    """(CPU seconds, peak bytes) of one command. Raises: RuntimeError when it fails."""
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=one_thread)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        err.seek(0)
        if status:
            raise RuntimeError(f"{arguments} failed: {err.read()}")
        return usage.ru_utime + usage.ru_stime, 1024 * int(out.read().splitlines()[-1])


def by_size(folder: Path, largest: int) -> Iterator[Point]:
    """Models of growing width, then of growing depth."""
    models = {
        "conv net, wider": [(lambda w=w: conv_net(w, 8)) for w in (64, 128, 256, 512)],
        "conv net, deeper": [(lambda d=d: conv_net(64, d)) for d in (4, 16, 64, 128)],
        "transformer, wider": [(lambda w=w: transformer(w, 4)) for w in (128, 256, 512, 1024)],
        "transformer, deeper": [(lambda d=d: transformer(128, d)) for d in (2, 8, 32)],
    }
    for name, builders in models.items():
        for build in builders:
            model = build()
            if parameters(model) > largest:
                continue
            path = folder / "model.onnx"
            onnx.save(model, path)
            prune = ("--method", "l1", "--target", "macs=0.5", "--recover", "constants", "--no-latency")
            for what, arguments in (("inspect", ("inspect", path)), ("prune", (path, folder / "out.onnx", *prune))):
                yield told(Point(f"{what} {name}", parameters(model), *run(*arguments)))


def by_decoder(folder: Path, billions: Sequence[float]) -> Iterator[Point]:
    """Decoders with their weights in a file beside them, see big.py."""
    path = folder / "decoder.onnx"
    for count in billions:
        width = 2048 if count >= 0.5 else 1024
        layers = max(1, round((count * 1e9 - 32000 * width) / (12 * width**2)))
        size = write_transformer(path, width, layers, 32000, "sequence")
        tokens = np.random.default_rng(0).integers(0, 32000, (4, 8))
        yield from beside("decoder", path, size, {"ids": tokens})


def by_large_conv_net(folder: Path, millions: Sequence[float]) -> Iterator[Point]:
    """Convolutional networks with their weights in a file beside them."""
    path, width = folder / "conv.onnx", 1024
    for count in millions:
        model = conv_net(width, max(1, round(count * 1e6 / (18 * width**2))))
        data = path.with_suffix(".onnx.data")
        data.unlink(missing_ok=True)
        onnx.save(model, path, save_as_external_data=True, location=data.name)
        images = np.random.default_rng(0).standard_normal((4, 3, SIDE, SIDE)).astype(np.float32)
        yield from beside("conv net", path, data.stat().st_size, {"x": images})


def beside(name: str, path: Path, file_bytes: int, samples: dict[str, np.ndarray]) -> Iterator[Point]:
    """Each command on a model of which the weights lie in a file of so many bytes; the peak is told against that."""
    out, plan, data = path.with_name("out.onnx"), path.with_name("plan.json"), path.with_name("samples.npz")
    np.savez(data, **samples)
    fixed = (path, out, "--target", "macs=0.7", "--no-latency", "--plan", plan)
    commands = {
        "inspect": ("inspect", path),
        "prune (l1, constants)": (*fixed, "--method", "l1", "--recover", "constants"),
        "prune (l2)": (*fixed, "--method", "l2", "--recover", "none"),
        "verify": ("verify", path, out, "--plan", plan),
        "prune (l1, reconstruct)": (*fixed, "--method", "l1", "--recover", "reconstruct", "--data", data),
    }
    for what, arguments in commands.items():
        seconds, peak = run(*arguments)
        yield told(Point(f"{what} {name}", file_bytes // 4, seconds, peak, file_bytes))


def by_samples(folder: Path, counts: Sequence[int]) -> Iterator[Point]:
    """One model, more samples."""
    path, data = folder / "model.onnx", folder / "samples.npz"
    onnx.save(conv_net(32, 4), path)
    rng = np.random.default_rng(0)
    fixed = ("--target", "macs=0.5", "--no-latency", "--data", data)
    for count in counts:
        x = rng.standard_normal((count, 3, SIDE, SIDE)).astype(np.float32)
        np.savez(data, x=x, y=rng.integers(0, CLASSES, count))
        for method, level in (("l1", "reconstruct"), ("taylor", "constants")):
            arguments = (path, folder / "out.onnx", "--method", method, "--recover", level, *fixed)
            yield told(Point(f"{method}, {level}", count, *run(*arguments)))


def told(point: Point) -> Point:
    print(f"{point.series}: {point.size}: {point.seconds:.1f} s, {point.peak_bytes / 2**20:.0f} MiB", file=sys.stderr)
    return point


# Output -----------------------------------------------------------------------------------------------------------


def growth(points: Sequence[Point], value: str) -> float:
    """The exponent of the last step: 1 where twice the size costs twice as much on top of what the smallest costs."""
    first, last = points[-2], points[-1]
    base = 0.8 * getattr(points[0], value)  # starting the program, mostly
    rise = (getattr(last, value) - base) / max(1e-9, getattr(first, value) - base)
    return log(max(rise, 1e-9)) / log(last.size / first.size)


def series(points: Sequence[Point]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.series, []).append(point)
    return found


def markdown(points: Sequence[Point], unit: str) -> str:
    beside = any(p.file_bytes for p in points)
    head, rule = (" of the file |", "---:|") if beside else ("", "")
    lines = [f"| what | {unit} | CPU seconds | peak memory, MiB |{head}", f"|---|---:|---:|---:|{rule}"]
    for name, own in series(points).items():
        sizes = "<br>".join(f"{p.size:,}" for p in own)
        seconds = "<br>".join(f"{p.seconds:.1f}" for p in own)
        peaks = "<br>".join(f"{p.peak_bytes / 2**20:,.0f}" for p in own)
        shares = "<br>".join(f"{p.peak_bytes / p.file_bytes:.2f}" for p in own if p.file_bytes)
        lines.append(f"| {name} | {sizes} | {seconds} | {peaks} |" + (f" {shares} |" if beside else ""))
    return "\n".join(lines) + "\n"


def plot(groups: Sequence[tuple[str, Sequence[Point]]], path: Path) -> None:
    """Four panels: seconds and memory, against parameters and against samples, all logarithmic."""
    width, height = 520, 330
    image = Image.new("RGB", (2 * width, height * len(groups)), "#ffffff")
    draw = ImageDraw.Draw(image)
    for row, (unit, points) in enumerate(groups):
        for column, (value, factor, title) in enumerate(
            (("seconds", 1.0, "CPU seconds"), ("peak_bytes", 2.0**-20, "peak memory, MiB"))
        ):
            found = {n: [(p.size, getattr(p, value) * factor) for p in own] for n, own in series(points).items()}
            _panel(
                draw, (column * width, row * height, width, height), f"{title}, by {unit}", found, legend=column == 0
            )
    image.save(path, optimize=True)


def _panel(draw, place: tuple[int, int, int, int], title: str, found: dict[str, list], *, legend: bool) -> None:
    left, top, width, height = place
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    x0, y0, x1, y1 = left + 55, top + 34, left + width - 16, top + height - 34
    xs, ys = ([p[k] for own in found.values() for p in own] for k in (0, 1))
    (xa, xb), (ya, yb) = (log10(min(xs)), log10(max(xs))), (log10(min(ys) * 0.8), log10(max(ys) * 1.25))
    draw.text((x0, top + 8), title, fill="#17202b", font=font)

    def at(x: float, y: float) -> tuple[float, float]:
        return x0 + (x1 - x0) * (log10(x) - xa) / (xb - xa or 1), y1 - (y1 - y0) * (log10(y) - ya) / (yb - ya or 1)

    for y in _marks(ya, yb):
        draw.line((at(10**xa, y), at(10**xb, y)), fill="#dfe3e9")
        draw.text((left + 48, at(1, y)[1] - 7), f"{y:g}", fill="#5a6675", font=small, anchor="ra")
    for x in _marks(xa, xb):
        draw.text((at(x, 10**ya)[0], y1 + 6), f"{x:,.0f}", fill="#5a6675", font=small, anchor="ma")
    for number, (name, own) in enumerate(found.items()):
        ink = INKS[number // 2 % len(INKS)] if len(found) > 4 else INKS[number]
        spots = [at(x, y) for x, y in own]
        thick = 3 if name.startswith("prune") or len(found) <= 4 else 1
        draw.line(spots, fill=ink, width=thick)
        for x, y in spots:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=ink)
        if legend:
            draw.line((x0 + 8, y0 + 9 + 15 * number, x0 + 26, y0 + 9 + 15 * number), fill=ink, width=thick)
            draw.text((x0 + 32, y0 + 2 + 15 * number), name, fill="#17202b", font=small)


def _marks(low: float, high: float) -> list[float]:
    found = [m * 10**e for e in range(int(low) - 1, int(high) + 2) for m in (1, 2, 5)]
    inside = [value for value in found if low <= log10(value) <= high]
    return inside if len(inside) < 8 else [value for value in inside if str(value).lstrip("0.")[0] == "1"]


def main() -> int:
    """Runs everything and writes the table and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for models and samples; the largest take its space")
    parser.add_argument("--largest", type=int, default=60_000_000, help="parameters at most")
    parser.add_argument("--samples", type=int, nargs="*", default=(100, 400, 1600, 6400))
    parser.add_argument("--decoder", type=float, nargs="*", help="only decoders, of so many billion parameters")
    parser.add_argument("--conv-net", type=float, nargs="*", help="only conv nets, of so many million parameters")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.decoder or arguments.conv_net:
        decoders = by_decoder(arguments.folder, arguments.decoder or ())
        conv_nets = by_large_conv_net(arguments.folder, arguments.conv_net or ())
        print(markdown([*decoders, *conv_nets], "parameters"))
        return 0
    sizes = list(by_size(arguments.folder, arguments.largest))
    samples = list(by_samples(arguments.folder, arguments.samples))
    text = markdown(sizes, "parameters") + "\n" + markdown(samples, "samples")
    text += "\n| what | time grows as size to the | memory |\n|---|---:|---:|\n"
    for name, own in series([*sizes, *samples]).items():
        text += f"| {name} | {growth(own, 'seconds'):.2f} | {growth(own, 'peak_bytes'):.2f} |\n" if len(own) > 1 else ""
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text)
    if arguments.plot:
        plot((("parameters", sizes), ("samples", samples)), arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
