"""From camera pixels to the network's input: the two pipelines checkpoints were trained with.

``squash`` is the original authors': bicubic straight to the size, the aspect ratio lost. ``letterbox`` is LeRobot's:
bilinear without antialiasing, the aspect kept, padding left and top with zeros in normalised space.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .config import IMAGENET_MEAN, IMAGENET_STD

Rgb = NDArray[np.uint8]
Pipeline = Callable[[Rgb, tuple[int, int]], Tensor]


def squash(image: Rgb, size: tuple[int, int]) -> Tensor:
    """Resize uint8 [H, W, 3] RGB to (height, width) by PIL's bicubic and normalise: float32 [3, height, width]."""
    from PIL import Image

    height, width = size
    picture = Image.fromarray(image)
    if image.shape[:2] != size:
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return normalise(_planes(np.asarray(picture)))


def letterbox(image: Rgb, size: tuple[int, int]) -> Tensor:
    """Normalise uint8 [H, W, 3] RGB, fit it into (height, width) and pad: float32 [3, height, width]."""
    return resize_with_pad(normalise(_planes(image))[None], size)[0]


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
    mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels.to(torch.float32) / 255.0 - mean) / std


def resize_with_pad(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Fit normalised images [N, 3, H, W] into (height, width), zeros to the left and above.

    The sizes are cut, not rounded, as in LeRobot's port: a rounded one would shift every pixel.
    """
    height, width = size
    found_height, found_width = images.shape[-2:]
    if (found_height, found_width) == size:
        return images
    ratio = max(found_width / width, found_height / height)
    inner = (int(found_height / ratio), int(found_width / ratio))
    resized = functional.interpolate(images, size=inner, mode="bilinear", align_corners=False)
    return functional.pad(resized, (width - inner[1], 0, height - inner[0], 0))


def _planes(image: Rgb) -> Tensor:
    # np.array, because frames from a decoder may be read-only, which torch warns about.
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
