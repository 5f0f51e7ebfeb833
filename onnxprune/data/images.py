"""How images become samples: preprocessing asked for by the user, the rest read from the shape of the model's input."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from onnxprune.data.fit import castable
from onnxprune.data.samples import Scaling
from onnxprune.errors import DataError
from onnxprune.graph.inputs import InputInfo, is_float

log = logging.getLogger("onnxprune")

LAYOUTS = ("nchw", "nhwc")


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing as the user asks for it; None is read from the model's input, or left out.

    `size` is the shorter side or (height, width), in pixels; `scale` multiplies 0..255 pixels; then (x - mean) / std.
    """

    size: int | tuple[int, int] | None = None
    mean: Sequence[float] | float | None = None
    std: Sequence[float] | float | None = None
    scale: float | None = None
    layout: str | None = None

    def scaling(self, info: InputInfo, where: str, *, layout: str, channels: int | None, scale: float) -> Scaling:
        """The arithmetic on pixels, checked. `channels` None: not known, so mean and std of any length go."""
        mean = _per_channel("mean", self.mean, 0.0, channels, where)
        std = _per_channel("std", self.std, 1.0, channels, where)
        if 0.0 in std:
            raise DataError(f"{where}: std {std} holds 0, by which nothing can be divided; give std per channel")
        if not is_float(info.dtype) and (self.mean, self.std, self.scale or 1) != (None, None, 1):
            raise DataError(
                f"{where}: the model's input '{info.name}' takes {info.dtype.name}, which cannot hold scaled pixels; "
                "leave --mean, --std and --scale out"
            )
        scale = scale if self.scale is None else self.scale
        return Scaling(scale, mean, std, 1 if layout == "nchw" else -1)


def _per_channel(what: str, given, default: float, channels: int | None, where: str) -> tuple[float, ...]:
    if given is None:
        return (default,)
    values = tuple(float(v) for v in np.atleast_1d(given))
    if len(values) == 1 or channels is None or len(values) == channels:
        return values
    raise DataError(
        f"{where}: {what} has {len(values)} numbers but the model's input has {channels} channels; give 1 or {channels}"
    )


@dataclass(frozen=True)
class ImageFormat:
    """How one image becomes one sample: cover `resize` (height, width), then cut `crop` from the center."""

    resize: tuple[int, int]
    crop: tuple[int, int]
    channels: int
    layout: str
    scaling: Scaling
    info: InputInfo

    def array(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Pixels of N images (H, W, C) uint8 -> a batch in the model's layout and dtype."""
        batch = np.stack(images)
        if self.layout == "nchw":
            batch = batch.transpose(0, 3, 1, 2)
        if is_float(self.info.dtype):
            batch = self.scaling(batch)
        return np.ascontiguousarray(batch, self.info.dtype)


def image_format(inputs: Sequence[InputInfo], options: Preprocess, where: str) -> ImageFormat:
    """The format that the model's only input asks for.

    Raises DataError where the shape does not say enough, or says something else than the options.
    """
    if len(inputs) != 1:
        raise DataError(
            f"{where}: images feed one input, but the model has {len(inputs)}: {', '.join(map(str, inputs))}; "
            "use an .npz or module:function"
        )
    info = inputs[0]
    shape = info.shape
    if shape is None or len(shape) != 4:
        raise DataError(
            f"{where}: images need an input of 4 axes, but the model's input is {info}; use an .npz or module:function"
        )
    if not castable(np.dtype(np.uint8), info.dtype):
        raise DataError(
            f"{where}: the model's input '{info.name}' takes {info.dtype.name}, which cannot hold pixels 0..255"
        )
    layout = find_layout(info, options.layout, where)
    c, h, w = (shape[1], *shape[2:]) if layout == "nchw" else (shape[3], *shape[1:3])
    if isinstance(c, int) and c not in (1, 3):
        raise DataError(
            f"{where}: images have 1 or 3 channels, but the model's input {info} has {c} as {layout}; try --layout"
        )
    channels = c if isinstance(c, int) else 3
    resize, crop = _sizes(h, w, options.size, info, where)
    scaling = options.scaling(
        info, where, layout=layout, channels=channels, scale=1 / 255 if is_float(info.dtype) else 1
    )
    _warn_units(scaling, where)
    return ImageFormat(resize, crop, channels, layout, scaling, info)


def find_layout(info: InputInfo, asked: str | None, where: str) -> str:
    """`nchw` or `nhwc`: what was asked for, else where 1 or 3 channels stand in the shape (axis 1 first)."""
    if asked is not None:
        if asked.lower() not in LAYOUTS:
            raise DataError(f"{where}: layout '{asked}' is neither nchw nor nhwc; give one of them")
        return asked.lower()
    shape = info.shape or ()
    for layout, axis in zip(LAYOUTS, (1, -1), strict=True):
        if len(shape) >= 2 and shape[axis] in (1, 3):
            return layout
    raise DataError(
        f"{where}: the model's input {info} does not show where its 1 or 3 channels are; give --layout nchw or nhwc"
    )


def _sizes(h, w, asked, info: InputInfo, where: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """(resize, crop), each (height, width); the crop is the model's own size where that is fixed."""
    size = _asked_size(asked, where)
    own = [given if isinstance(given, int) else None for given in (h, w)]
    if size is None and None in own:
        raise DataError(f"{where}: the model's input {info} takes any height and width; give --size")
    crop_h, crop_w = (k or s for k, s in zip(own, size or (0, 0), strict=True))
    resize_h, resize_w = size or (crop_h, crop_w)
    if resize_h < crop_h or resize_w < crop_w:
        raise DataError(
            f"{where}: size {resize_h} x {resize_w} is smaller than the {crop_h} x {crop_w} of the model's input "
            f"'{info.name}'; give at least that, or leave --size out"
        )
    return (resize_h, resize_w), (crop_h, crop_w)


def _asked_size(asked, where: str) -> tuple[int, int] | None:
    if asked is None:
        return None
    sizes = (asked, asked) if isinstance(asked, int) else tuple(asked)
    sizes = sizes * 2 if len(sizes) == 1 else sizes
    if len(sizes) != 2 or min(sizes) < 1:
        raise DataError(f"{where}: size {asked} is no image size; give pixels, as 224 or 224,320")
    return int(sizes[0]), int(sizes[1])


def _warn_units(scaling: Scaling, where: str) -> None:
    top = 255 * scaling.scale
    if max(scaling.mean) > top:
        log.warning(
            "%s: mean %g is beyond the pixels' 0 to %g; give --scale 1 for a mean of 0..255",
            where,
            max(scaling.mean),
            top,
        )


def pixels(image: Image.Image, form: ImageFormat) -> np.ndarray:
    """(H, W, C) uint8: the shorter side resized so that `form.resize` is covered, the center cut out."""
    image = _as_mode(ImageOps.exif_transpose(image), "L" if form.channels == 1 else "RGB")
    (rh, rw), (ch, cw) = form.resize, form.crop
    ratio = max(rh / image.height, rw / image.width)
    size = max(rw, round(image.width * ratio)), max(rh, round(image.height * ratio))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - cw) // 2, (image.height - ch) // 2
    return np.asarray(image.crop((left, top, left + cw, top + ch))).reshape(ch, cw, form.channels)


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        # PIL would clip 16-bit greys at 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode == "F":
        # Floats are 0..1 by convention; PIL would take them for 0..255, and all would be black.
        grey = np.nan_to_num(np.asarray(image))
        grey = grey * 255 if grey.max() <= 1 else grey
        image = Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)
