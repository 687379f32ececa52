# SPDX-License-Identifier: Apache-2.0
"""From camera pixels to the network's input: the two pipelines checkpoints were trained with.

``squash`` is the original authors': bicubic straight to the size, the aspect ratio lost. ``letterbox`` is LeRobot's:
bilinear without antialiasing, the aspect kept, padding left and top with zeros in normalised space.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..network.config import IMAGENET_MEAN, IMAGENET_STD

Rgb = NDArray[np.uint8]
Pipeline = Callable[[Rgb, tuple[int, int], torch.device], Tensor]
CPU = torch.device("cpu")


def squash(image: Rgb, size: tuple[int, int], device: torch.device = CPU) -> Tensor:
    """Resize uint8 [H, W, 3] RGB to (height, width) by PIL's bicubic and normalise: float32 [3, height, width]."""
    if device.type != "cpu":
        order = _order_of_pil(image.shape[:2], size)
        if order is not None:
            return normalise(bicubic(_planes(image).to(device), size, order))
    return normalise(_planes(_by_pil(image, size)).to(device))


def _by_pil(image: Rgb, size: tuple[int, int]) -> Rgb:
    from PIL import Image

    if image.shape[:2] == size:
        return image
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def letterbox(image: Rgb, size: tuple[int, int], device: torch.device = CPU) -> Tensor:
    """Normalise uint8 [H, W, 3] RGB, fit it into (height, width) and pad: float32 [3, height, width]."""
    return resize_with_pad(normalise(_planes(image).to(device))[None], size)[0]


_FIXED_POINT = 22  # bits after the point in PIL's weights for 8-bit images
_BICUBIC_REACH = 2.0
ACROSS_FIRST, DOWN_FIRST = (2, 1), (1, 2)

PIPELINES: dict[str, Pipeline] = {"squash": squash, "letterbox": letterbox}


def image_pipeline(name: str) -> Pipeline:
    """Return the pipeline called ``name``.

    Raises:
        ValueError: naming the ones that exist.
    """
    if name not in PIPELINES:
        raise ValueError(f"image_pipeline {name!r} is unknown; known: {', '.join(sorted(PIPELINES))}")
    return PIPELINES[name]


def normalise(pixels: Tensor) -> Tensor:
    """Scale uint8 pixels [..., 3, H, W] to 0..1 and take off ImageNet's mean and deviation."""
    mean, std = _imagenet(pixels.device)
    return (pixels.to(torch.float32) / 255.0 - mean) / std


@functools.lru_cache
def _imagenet(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std


@functools.lru_cache(maxsize=64)
def _order_of_pil(found: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int] | None:
    """Find the order in which this PIL resizes, across or down first (releases differ); None if neither fits."""
    image = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (*found, 3))
    expected = torch.from_numpy(np.array(_by_pil(image, wanted))).permute(2, 0, 1)
    orders = (ACROSS_FIRST, DOWN_FIRST)
    return next((order for order in orders if torch.equal(bicubic(_planes(image), wanted, order), expected)), None)


def bicubic(pixels: Tensor, size: tuple[int, int], order: tuple[int, int]) -> Tensor:
    """Resize uint8 [3, H, W] to (height, width) as PIL does on the CPU, to the bit; ``order`` of the axes' indices."""
    for axis in order:
        if pixels.shape[axis] != size[axis - 1]:
            pixels = _resampled(pixels, axis, size[axis - 1])
    return pixels


def _resampled(pixels: Tensor, axis: int, length: int) -> Tensor:
    index, weights = _taps(pixels.shape[axis], length, pixels.device)
    near = pixels.to(torch.int32).movedim(axis, -1)[..., index]
    summed = (near * weights).sum(-1, dtype=torch.int32)
    rounded = (summed + (1 << (_FIXED_POINT - 1))) >> _FIXED_POINT
    return rounded.clamp(0, 255).to(torch.uint8).movedim(-1, axis)


@functools.lru_cache(maxsize=64)
def _taps(found: int, wanted: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which pixels make a new one, and their shares in units of 2⁻²²: int64 and int32 [wanted, taps].

    Catmull-Rom's cubic, widened where the image shrinks, cut off at the borders and normalised, all as in PIL.
    """
    scale = found / wanted
    widened = max(scale, 1.0)
    reach = _BICUBIC_REACH * widened
    centres = (np.arange(wanted) + 0.5) * scale
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    end = np.minimum((centres + reach + 0.5).astype(np.int64), found)
    index = first[:, None] + np.arange(int((end - first).max()))
    weights = _cubic((index - centres[:, None] + 0.5) / widened)
    weights[index >= end[:, None]] = 0.0
    shares = weights / weights.sum(axis=1, keepdims=True) * (1 << _FIXED_POINT)
    rounded = np.trunc(shares + np.copysign(0.5, shares)).astype(np.int32)
    return torch.from_numpy(np.minimum(index, found - 1)).to(device), torch.from_numpy(rounded).to(device)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1.0
    outer = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


def fitted(found: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) that an image of (height, width) has when it is fitted into a size.

    They are cut, not rounded, as in LeRobot's port: a rounded one would shift every pixel. Of a long image nothing may
    be left, 0; LeRobot's port fails there.
    """
    ratio = max(found[1] / size[1], found[0] / size[0])
    return int(found[0] / ratio), int(found[1] / ratio)


def resize_with_pad(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Fit normalised images [N, 3, H, W] into (height, width), zeros to the left and above; see ``fitted``."""
    height, width = size
    found = (images.shape[-2], images.shape[-1])
    if found == size:
        return images
    inner = fitted(found, size)
    resized = functional.interpolate(images, size=inner, mode="bilinear", align_corners=False)
    return functional.pad(resized, (width - inner[1], 0, height - inner[0], 0))


def _planes(image: Rgb) -> Tensor:
    # np.array, because frames from a decoder may be read-only, which torch warns about.
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
