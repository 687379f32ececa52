"""Random changes of a sample's pictures: light, colour, noise, place and size. numpy and OpenCV on uint8 [H, W, 3].

The views of one sample show one scene, so light and colour change alike in all of them but for a brightness of each
camera's own. The geometry of a view says where things are: keep shift and zoom small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from xvla_ros.training.dataset_settings import Augmentation

Rgb = NDArray[np.uint8]

# RGB to luma and two chroma axes of equal weight (YIQ), in which a turn of the chroma plane is a change of hue
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


class Augmenter:
    """Changes pictures as the settings say; what it draws comes from the generator it is given."""

    def __init__(self, settings: Augmentation) -> None:
        self._settings = settings
        self._colours = any((settings.brightness, settings.contrast, settings.saturation, settings.hue))

    @property
    def idle(self) -> bool:
        """Whether it changes nothing."""
        return self._settings == Augmentation(probability=self._settings.probability)

    def __call__(self, images: Mapping[str, Rgb], random: np.random.Generator, first: str) -> dict[str, Rgb]:
        """Return the changed pictures; views that are dropped have no entry.

        Args:
            images: slot → picture; not written to.
            random: what all that is drawn comes from, always as many numbers.
            first: slot 0, which is never dropped.
        """
        settings = self._settings
        shared = random.uniform(-1.0, 1.0, 3)
        own = random.uniform(-1.0, 1.0, (len(images), 4))
        dropped = random.random(len(images)) < settings.drop_view
        changed = random.random() < settings.probability
        result: dict[str, Rgb] = {}
        for number, (slot, image) in enumerate(images.items()):
            if dropped[number] and slot != first:
                continue
            result[slot] = self._change(image, shared, own[number], random) if changed else image
        return result

    def _change(
        self, image: Rgb, shared: NDArray[np.float64], own: NDArray[np.float64], random: np.random.Generator
    ) -> Rgb:
        settings = self._settings
        if settings.shift or settings.zoom:
            image = _moved(image, own[1] * settings.shift, own[2] * settings.shift, 1.0 + own[3] * settings.zoom)
        if self._colours:
            image = _recoloured(
                image, 1.0 + own[0] * settings.brightness, 1.0 + shared[0] * settings.contrast,
                1.0 + shared[1] * settings.saturation, shared[2] * settings.hue,
            )
        if settings.noise:
            image = _noisy(image, settings.noise, random)
        return image


def _recoloured(image: Rgb, brightness: float, contrast: float, saturation: float, hue: float) -> Rgb:
    """One affine map of the colours: hue and saturation as a matrix, then brightness, then contrast about the mean."""
    import cv2

    cosine, sine = math.cos(2 * math.pi * hue) * saturation, math.sin(2 * math.pi * hue) * saturation
    turn = np.array([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
    matrix = _FROM_YIQ @ turn @ _TO_YIQ * (brightness * contrast)
    mean = float(image.mean()) * brightness
    offset = np.full((3, 1), mean * (1.0 - contrast))
    return np.asarray(cv2.transform(image, np.hstack([matrix, offset])), dtype=np.uint8)


def _moved(image: Rgb, right: float, down: float, scale: float) -> Rgb:
    """Shift by a share of the size and scale about the middle; what comes in from outside repeats the edge."""
    import cv2

    height, width = image.shape[:2]
    middle = np.array([width / 2, height / 2])
    place = middle + np.array([right * width, down * height]) - scale * middle
    matrix = np.array([[scale, 0.0, place[0]], [0.0, scale, place[1]]])
    moved = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, dtype=np.uint8)


def _noisy(image: Rgb, deviation: float, random: np.random.Generator) -> Rgb:
    noise = random.standard_normal(image.shape, dtype=np.float32) * np.float32(deviation * 255.0)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
