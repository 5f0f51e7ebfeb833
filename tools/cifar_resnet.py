"""The CIFAR ResNets of the data folder as torch modules, with the weights of their ONNX files.

Parameters are named as the initializers of the `-bn` exports, so a state dict is the file's initializers. The padded
shortcut (every second pixel, zero channels around) is a convolution with a constant kernel of zeros and ones: the
same function, in a form that tools which follow modules can cut.
"""

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

WIDTHS, CLASSES = (16, 32, 64), 10


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A convolution of 3 x 3 without bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def padded_shortcut(inputs: int, outputs: int) -> nn.Conv2d:
    """Every second pixel, in the middle of `outputs` channels of which the others are zero."""
    shortcut = nn.Conv2d(inputs, outputs, 1, 2, bias=False)
    kernel = torch.zeros_like(shortcut.weight)
    first = (outputs - inputs) // 2
    kernel[first : first + inputs, :, 0, 0] = torch.eye(inputs)
    shortcut.weight.data.copy_(kernel)
    return shortcut


class Block(nn.Module):
    """Two convolutions and the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut = padded_shortcut(inputs, outputs) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet of `depth` = 6 n + 2 layers for x (N, 3, 32, 32)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(3, WIDTHS[0]), nn.BatchNorm2d(WIDTHS[0])
        inputs = WIDTHS[0]
        for number, width in enumerate(WIDTHS, 1):
            strides = [1 if number == 1 else 2] + [1] * ((depth - 2) // 6 - 1)
            blocks = [Block(inputs if k == 0 else width, width, stride) for k, stride in enumerate(strides)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
            inputs = width
        self.linear = nn.Linear(inputs, CLASSES)

    def last(self) -> nn.Module:
        """The layer that gives the answers."""
        return self.linear

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def load(path: Path) -> ResNet:
    """The network of an ONNX file with BatchNormalization nodes. Raises ValueError for another kind of file."""
    arrays = {value.name: numpy_helper.to_array(value) for value in onnx.load(path).graph.initializer}
    convolutions = sum(name.endswith("weight") and array.ndim == 4 for name, array in arrays.items())
    network = ResNet(convolutions + 1)
    known = network.state_dict()
    weights = {name: torch.from_numpy(arrays[name].copy()) for name in known if name in arrays}
    missing = [
        name for name in known if name not in weights and not name.endswith(("batches_tracked", "shortcut.weight"))
    ]
    if missing:
        raise ValueError(f"{path}: no initializer {missing[0]}; give an export that keeps BatchNorm (-bn.onnx)")
    network.load_state_dict(weights, strict=False)
    return network.eval()
