"""Pictures brought to the size they are kept at, so that the network's image pipeline has nothing left to resize."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rgb = NDArray[np.uint8]
Size = tuple[int, int]


class Resizer:
    """Resizes uint8 [H, W, 3] RGB as an image pipeline does.

    ``squash`` gives the very bytes that the pipeline makes of the picture; ``letterbox`` fits it into the size without
    its padding, rounded to 8 bits.

    Args:
        size: (height, width) of the network's input; None leaves pictures as they are.
        pipeline: as in the profile.
    """

    def __init__(self, size: Size | None, pipeline: str) -> None:
        self.size, self._pipeline = size, pipeline

    def __call__(self, image: Rgb) -> Rgb:
        """Return the picture as it is kept."""
        if self.size is None or image.shape[:2] == self.size:
            return image
        return _squashed(image, self.size) if self._pipeline == "squash" else _fitted(image, self.size)


def _squashed(image: Rgb, size: Size) -> Rgb:
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))


def _fitted(image: Rgb, size: Size) -> Rgb:
    import torch
    from torch.nn import functional

    ratio = max(image.shape[1] / size[1], image.shape[0] / size[0])
    inner = (int(image.shape[0] / ratio), int(image.shape[1] / ratio))
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(torch.float32)
    resized = functional.interpolate(planes, size=inner, mode="bilinear", align_corners=False)
    return resized[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
