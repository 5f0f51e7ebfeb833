"""Trains the embedded classifier on scikit-learn's digits and writes models/digits.onnx and models/digits-bn.onnx.

    python tools/train_digits.py [--out models] [--epochs 60] [--seed 0]

The split is that of `--data digits`: 1,258 images to train on, 539 that training never sees. One thread and a fixed
seed, so the same versions on the same kind of machine give the same files. About half a minute on one core.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxprune.data import InputInfo, load_samples

INPUT = InputInfo("image", ("batch", 1, 8, 8), np.dtype(np.float32))


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, conv_group: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=conv_group, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    """relu(x + f(x)) with two 3 x 3 convolutions."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(*conv_bn(width, width, 3), nn.ReLU(), *conv_bn(width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Digits(nn.Module):
    """x (N, 1, 8, 8) in 0..1 -> logits (N, 10); two residual stages joined by a depthwise-separable convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(1, 32, 3), nn.ReLU())
        self.stage1 = Residual(32)
        self.down = nn.Sequential(
            *conv_bn(32, 32, 3, stride=2, conv_group=32), nn.ReLU(), *conv_bn(32, 64, 1), nn.ReLU()
        )
        self.stage2 = Residual(64)
        self.last = nn.Sequential(*conv_bn(64, 96, 1), nn.ReLU())
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.stage2(self.down(self.stage1(self.stem(x)))))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def augment(x: Tensor) -> Tensor:
    """x (N, 1, 8, 8), each image turned by up to 10 degrees, scaled by up to 10 % and shifted by up to 1 pixel."""
    n = len(x)
    angle = (torch.rand(n) * 2 - 1) * np.pi / 18
    size = 1 + (torch.rand(n) * 2 - 1) * 0.1
    shift = (torch.rand(n, 2) * 2 - 1) * 2 / 8
    cos, sin = angle.cos() * size, angle.sin() * size
    turn = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    return F.grid_sample(x, F.affine_grid(turn, list(x.shape), align_corners=False), align_corners=False)


def train(x: Tensor, y: Tensor, epochs: int, batch: int = 64) -> Digits:
    model = Digits().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        for block in torch.randperm(len(x))[: len(x) // batch * batch].split(batch):
            loss = F.cross_entropy(model(augment(x[block])), y[block], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * batch / len(x)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3d}  loss {total:.4f}")
    return model.eval()


def export(model: nn.Module, path: Path, *, keep_bn: bool) -> None:
    """The TorchScript exporter folds BatchNorm into convolutions unless it is told to preserve the mode."""
    mode = torch.onnx.TrainingMode.PRESERVE if keep_bn else torch.onnx.TrainingMode.EVAL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, 8, 8),),
            str(path),
            input_names=[INPUT.name],
            output_names=["logits"],
            dynamic_axes={INPUT.name: {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            training=mode,
            do_constant_folding=not keep_bn,
            dynamo=False,
        )


def accuracy(path: Path, spec: str) -> float:
    """Top-1 in percent, measured in onnxruntime."""
    samples = load_samples(spec, [INPUT])
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    logits = np.asarray(session.run(None, samples.batch(slice(None)))[0])
    return 100 * float((logits.argmax(1) == samples.labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "models")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    samples = load_samples("digits", [INPUT])
    x, y = torch.from_numpy(samples.batch(slice(None))["image"]), torch.from_numpy(samples.labels)
    model = train(x, y, args.epochs)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, keep_bn in (("digits-bn.onnx", True), ("digits.onnx", False)):
        path = args.out / name
        export(model, path, keep_bn=keep_bn)
        train_top1, test_top1 = accuracy(path, "digits"), accuracy(path, "digits:test")
        print(f"{name}: {path.stat().st_size:,} bytes, train {train_top1:.2f} %, test {test_top1:.2f} %")


if __name__ == "__main__":
    main()
