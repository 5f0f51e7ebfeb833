"""The networks of the zoo by name: torchvision, timm and a few written here, each with a small input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import stub
import torch
from timm_names import TIMM_SIZES
from torch import Tensor, nn
from weights import randomize, tensors

TV_SIZES = {"alexnet": 224, "inception_v3": 139, "maxvit_t": 224, "vgg": 224, "convnext": 96, "swin": 112}
DETECTORS = (
    "fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2 fasterrcnn_mobilenet_v3_large_fpn fcos_resnet50_fpn"
    " retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 ssd300_vgg16 ssdlite320_mobilenet_v3_large maskrcnn_resnet50_fpn"
    " keypointrcnn_resnet50_fpn"
).split()
VIDEOS = {"r3d_18": (8, 64), "mc3_18": (8, 64), "r2plus1d_18": (8, 64), "swin3d_t": (8, 64), "s3d": (16, 224)}


@dataclass(frozen=True)
class Network:
    """How one network is built and fed. `shape` has no batch axis; `words` makes the input integers below it."""

    name: str
    source: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    words: int | None = None

    def inputs(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """One random input (batch, *shape): noise over coarse blocks, or integers in [0, words)."""
        generator = torch.Generator().manual_seed(seed)
        size = (batch, *self.shape)
        if self.words:
            return (torch.randint(0, self.words, size, generator=generator),)
        x = torch.randn(size, generator=generator)
        # White noise alone looks the same to deep layers whatever the seed, and BN would blow up what little differs.
        coarse = torch.randn((*size[:2], *(-(-n // 16) for n in size[2:])), generator=generator)
        for axis, n in enumerate(size[2:], start=2):
            coarse = coarse.repeat_interleave(16, dim=axis).narrow(axis, 0, n)
        contrast = torch.rand((batch, *(1 for _ in self.shape)), generator=generator) + 0.5
        return (contrast * (0.3 * x + coarse),)

    def random(self, seed: int) -> nn.Module:
        """The network with random weights (see weights.py), in evaluation mode; the same for the same seed."""
        torch.backends.mha.set_fastpath_enabled(False)  # the fused fast path has no ONNX form
        torch.manual_seed(seed)
        return randomize(self.build(), self.inputs(8), seed)


class Flat(nn.Module):
    """A network whose dict, list or tuple of outputs comes as a plain tuple, as exporters want it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(self.network(x)))


def handmade() -> list[Network]:
    """The networks of handmade.py."""
    import handmade as own

    def text(name: str, build: Callable[[], nn.Module]) -> Network:
        return Network(name, "handmade", build, (16,), words=500)

    return [
        Network("unet", "handmade", own.UNet, (3, 32, 32)),
        text("text_encoder", own.TextEncoder),
        text("torch_encoder", own.TorchEncoder),
        *(text(f"{cell}_tagger", lambda cell=cell: own.Tagger(cell)) for cell in ("lstm", "gru", "rnn")),
    ]


def torchvision_networks() -> list[Network]:
    """torchvision's classifiers and segmentation networks, the backbones of its detectors, small video networks."""
    stub.install()
    from torchvision import models

    def size(name: str) -> int:
        return next((s for prefix, s in TV_SIZES.items() if name.startswith(prefix)), 96)

    def build(name: str) -> nn.Module:
        options: dict[str, object] = {"weights": None}
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # minutes of scipy otherwise
        if name.startswith("vit_"):
            options["image_size"] = size(name)
        return models.get_model(name, **options)

    def segmenter(name: str) -> nn.Module:
        return Flat(models.get_model(name, weights=None, weights_backbone=None, aux_loss=None))

    def backbone(name: str) -> nn.Module:
        detector: Any = models.get_model(name, weights=None, weights_backbone=None)
        return Flat(detector.backbone)

    def image(name: str, make: Callable[[str], nn.Module], pixels: int, suffix: str = "") -> Network:
        return Network(f"tv_{name}{suffix}", "torchvision", lambda: make(name), (3, pixels, pixels))

    return [
        *(image(name, build, size(name)) for name in models.list_models(module=models)),
        *(image(name, segmenter, 96) for name in models.list_models(module=models.segmentation)),
        *(image(name, backbone, 300 if name == "ssd300_vgg16" else 128, "_backbone") for name in DETECTORS),
        *(
            Network(f"tv_{name}", "torchvision", lambda name=name: build(name), (3, frames, pixels, pixels))
            for name, (frames, pixels) in VIDEOS.items()
        ),
    ]


def timm_networks() -> list[Network]:
    """One small member of each family of timm."""

    def build(name: str, size: int) -> nn.Module:
        stub.install()
        import timm

        native = timm.get_pretrained_cfg(name)
        assert native is not None
        assert native.input_size is not None
        resize = native.fixed_input_size and native.input_size[-1] != size
        options: dict[str, Any] = {"img_size": size} if resize else {}
        return timm.create_model(name, **options)

    return [
        Network(name, "timm", lambda name=name, size=size: build(name, size), (3, size, size))
        for size, names in TIMM_SIZES.items()
        for name in names.split()
    ]


def catalog() -> dict[str, Network]:
    """All networks by name, handmade ones first."""
    return {network.name: network for network in [*handmade(), *timm_networks(), *torchvision_networks()]}
