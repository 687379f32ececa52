# SPDX-License-Identifier: Apache-2.0
"""The two image pipelines. The letterbox's numbers are pinned by the golden vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xvla_ros.model.inputs.pictures import (
    ACROSS_FIRST,
    DOWN_FIRST,
    _order_of_pil,
    bicubic,
    image_pipeline,
    letterbox,
    squash,
)
from xvla_ros.model.network.config import IMAGENET_MEAN, IMAGENET_STD

sides = st.integers(8, 120)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def denormalised(planes: torch.Tensor) -> np.ndarray:
    pixels = planes.permute(1, 2, 0).numpy() * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)
    return pixels * 255.0


@settings(max_examples=25, deadline=None)
@given(sides, sides)
def test_squash_is_pil_bicubic(height: int, width: int) -> None:
    image = picture(height, width)
    expected = np.asarray(Image.fromarray(image).resize((64, 48), Image.Resampling.BICUBIC), dtype=np.float64)
    np.testing.assert_allclose(denormalised(squash(image, (48, 64))), expected, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(sides, sides)
def test_letterbox_pads_left_and_top_with_zeros_and_keeps_the_aspect(height: int, width: int) -> None:
    size = (48, 64)
    planes = letterbox(picture(height, width), size)
    ratio = max(width / size[1], height / size[0])
    inner = (int(height / ratio), int(width / ratio)) if (height, width) != size else size
    assert planes.shape == (3, *size)
    assert not planes[:, : size[0] - inner[0]].any() and not planes[:, :, : size[1] - inner[1]].any()
    assert planes[:, size[0] - inner[0] :, size[1] - inner[1] :].std() > 0


@pytest.mark.parametrize("name", ["squash", "letterbox"])
def test_image_of_the_right_size_is_only_normalised(name: str) -> None:
    image = picture(48, 64)
    np.testing.assert_allclose(denormalised(image_pipeline(name)(image, (48, 64))), image, atol=1e-3)


@pytest.mark.parametrize("name", ["squash", "letterbox"])
def test_dark_image_is_scaled_like_any_other(name: str) -> None:
    """Pixels of 0 and 1 out of 255 are black, though LeRobot's step would take them for a picture already scaled."""
    image = np.ones((48, 64, 3), np.uint8)
    np.testing.assert_allclose(denormalised(image_pipeline(name)(image, (48, 64))), 1.0, atol=1e-3)


def test_unknown_pipeline_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'crop' is unknown; known: letterbox, squash"):
        image_pipeline("crop")


SIDES = st.integers(1, 90)


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))


def by_torch(pixels: np.ndarray, size: tuple[int, int], order: tuple[int, int]) -> np.ndarray:
    return bicubic(torch.from_numpy(pixels).permute(2, 0, 1), size, order).permute(1, 2, 0).numpy()


@settings(max_examples=60, deadline=None)
@given(found=st.tuples(SIDES, SIDES), wanted=st.tuples(SIDES, SIDES), seed=st.integers(0, 99), hard=st.booleans())
def test_bicubic_for_devices_is_that_of_pil_to_the_bit(
    found: tuple[int, int], wanted: tuple[int, int], seed: int, hard: bool
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*found, 3), dtype=np.uint8)
    if hard:  # black beside white goes beyond both
        pixels = np.where(pixels < 128, np.uint8(0), np.uint8(255))
    across, down = (found[0], wanted[1]), (wanted[0], found[1])
    np.testing.assert_array_equal(by_torch(pixels, across, ACROSS_FIRST), resized(pixels, across))
    expected = resized(resized(pixels, down), wanted)
    np.testing.assert_array_equal(by_torch(pixels, wanted, DOWN_FIRST), expected)


@pytest.mark.parametrize(("found", "wanted"), [((480, 640), (224, 224)), ((90, 40), (7, 90)), ((40, 90), (90, 7))])
def test_frames_are_resized_in_the_order_of_pil(found: tuple[int, int], wanted: tuple[int, int]) -> None:
    order = _order_of_pil(found, wanted)
    assert order is not None
    pixels = np.random.default_rng(1).integers(0, 256, (*found, 3), dtype=np.uint8)
    np.testing.assert_array_equal(by_torch(pixels, wanted, order), resized(pixels, wanted))
