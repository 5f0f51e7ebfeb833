"""Detectors of ultralytics, segmenters of segmentation_models_pytorch, diffusion networks of diffusers; all small."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from families_base import Family, Input, image
from torch import nn

YOLO = (
    "yolov3-tiny yolov5n yolov6n yolov8n yolov8n-seg yolov8n-pose yolov8n-cls yolov8n-obb yolov8n-ghost yolov8n-p2"
    " yolov8-rtdetr yolov9t yolov10n yolo11n yolo11n-seg yolo11n-pose yolo11n-cls yolo11n-obb yolo12n yolo12n-seg"
    " yolo26n yolo26n-seg yolo26n-pose"
).split()
SEGMENTERS = ("Unet UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus UPerNet Segformer").split()
ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0", "mit_b0", "densenet121")
NOISY = {"sample": image(16, 4), "timestep": Input(("batch",), words=900)}
CROSS = {**NOISY, "encoder_hidden_states": Input(("batch", "time", 20))}
BLOCKS: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "sample_size": 16, "norm_num_groups": 4}
DIFFUSERS: dict[str, tuple[str, dict[str, Any], dict[str, Input]]] = {
    "unet2d": ("UNet2DModel", {**BLOCKS, "block_out_channels": (20, 28), "layers_per_block": 1, "attention_head_dim": 4,
               "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
               "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
               NOISY),
    "unet2d_condition": ("UNet2DConditionModel", {
        **BLOCKS, "block_out_channels": (20, 28), "layers_per_block": 1, "attention_head_dim": 4,
        "cross_attention_dim": 20, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}, CROSS),
    "autoencoder_kl_encoder": ("AutoencoderKL.encoder", {
        "block_out_channels": (12, 20), "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2}, {"sample": image(32)}),
    "autoencoder_kl_decoder": ("AutoencoderKL.decoder", {
        "block_out_channels": (12, 20), "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2}, {"sample": image(8, 4)}),
    "vq_encoder": ("VQModel.encoder", {"block_out_channels": (12, 20), "norm_num_groups": 4, "down_block_types":
                   ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}, {"sample": image(32)}),
    "tiny_decoder": ("AutoencoderTiny.decoder", {"encoder_block_out_channels": (12, 12), "decoder_block_out_channels":
                     (12, 12), "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}, {"x": image(8, 4)}),
    "dit": ("DiTTransformer2DModel", {"num_attention_heads": 3, "attention_head_dim": 8, "in_channels": 4,
            "num_layers": 2, "sample_size": 16, "num_embeds_ada_norm": 1000, "norm_num_groups": 4},
            {"hidden_states": image(16, 4), "timestep": Input(("batch",), words=900),
             "class_labels": Input(("batch",), words=900)}),
    "pixart": ("PixArtTransformer2DModel", {"num_attention_heads": 3, "attention_head_dim": 8, "in_channels": 4,
               "out_channels": 8, "num_layers": 2, "sample_size": 16, "cross_attention_dim": 24, "caption_channels": 20,
               "norm_num_groups": 4, "use_additional_conditions": False},
               {"hidden_states": image(16, 4), "encoder_hidden_states": Input(("batch", "time", 20)),
                "timestep": Input(("batch",), words=900)}),
    "sd3": ("SD3Transformer2DModel", {"sample_size": 16, "patch_size": 2, "in_channels": 4, "num_layers": 2,
            "attention_head_dim": 8, "num_attention_heads": 3, "joint_attention_dim": 20, "caption_projection_dim": 24,
            "pooled_projection_dim": 18, "out_channels": 4, "pos_embed_max_size": 16},
            {"hidden_states": image(16, 4), "encoder_hidden_states": Input(("batch", "time", 20)),
             "pooled_projections": Input(("batch", 18)), "timestep": Input(("batch",), words=900)}),
    "unet1d": ("UNet1DModel", {"sample_size": 32, "in_channels": 6, "out_channels": 6, "block_out_channels": (16, 24),
               "down_block_types": ("DownResnetBlock1D", "DownResnetBlock1D"),
               "mid_block_type": "MidResTemporalBlock1D", "up_block_types": ("UpResnetBlock1D",),
               "out_block_type": "OutConv1DBlock", "act_fn": "mish",
               "use_timestep_embedding": True, "time_embedding_type": "positional", "layers_per_block": 1},
               {"sample": Input(("batch", 6, 32)), "timestep": Input(("batch",), words=900)}),
    "controlnet": ("ControlNetModel", {"block_out_channels": (20, 28), "in_channels": 4, "layers_per_block": 1,
                   "attention_head_dim": 4, "cross_attention_dim": 20, "norm_num_groups": 4,
                   "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                   "conditioning_embedding_out_channels": (8, 12)},
                   {**CROSS, "controlnet_cond": image(32)}),
}  # fmt: skip


def yolo(name: str) -> nn.Module:
    """A detector from its configuration, with the head that its exporter uses."""
    from ultralytics.nn import tasks

    kinds = {"seg": "SegmentationModel", "pose": "PoseModel", "cls": "ClassificationModel", "obb": "OBBModel"}
    kind = "RTDETRDetectionModel" if "rtdetr" in name else kinds.get(name.rpartition("-")[2], "DetectionModel")
    network = getattr(tasks, kind)(f"{name}.yaml", verbose=False).eval()
    for module in network.modules():
        if hasattr(module, "export"):
            module.export, module.format, module.dynamic = True, "onnx", True
    return network


def diffuser(class_name: str, options: dict[str, Any]) -> nn.Module:
    """A network of diffusers, or one part of it."""
    class_name, _, part = class_name.partition(".")
    network = getattr(importlib.import_module("diffusers"), class_name)(**options)
    return getattr(network, part) if part else network


def segmenter(kind: str, encoder: str) -> nn.Module:
    """A segmenter with random weights."""
    smp = importlib.import_module("segmentation_models_pytorch")
    return getattr(smp, kind)(encoder, encoder_weights=None, classes=3)


def families() -> Iterator[Family]:
    """Every configuration of YOLO, every segmenter with a cheap encoder, Unet with all encoders, diffusers."""
    for name in YOLO:
        pixels = image(64) if "cls" in name or "rtdetr" in name else Input(("batch", 3, "height", "width"))
        yield Family(name.replace("-", "_"), "ultralytics", lambda n=name, **_: yolo(n), {"_images": pixels})
    for kind in SEGMENTERS:
        yield Family(f"smp_{kind.lower()}", "segmentation_models_pytorch",
                     lambda k=kind, **_: segmenter(k, "resnet18"), {"_x": image(128)})  # fmt: skip
    for encoder in ENCODERS[1:]:
        yield Family(f"smp_unet_{encoder.replace('-', '_')}", "segmentation_models_pytorch",
                     lambda e=encoder, **_: segmenter("Unet", e), {"_x": image(64)})  # fmt: skip
    for name, (cls, options, inputs) in DIFFUSERS.items():
        given = inputs if "." not in cls else {f"_{k}": v for k, v in inputs.items()}
        yield Family(f"diff_{name}", "diffusers", lambda c=cls, o=options, **_: diffuser(c, o), given)
