"""Which pictures are taken, and what they become: uint8 [H, W, 3] RGB, the same bytes by whichever library.

cv_bridge (live) and rosbags-image (bags) convert. Here is what both leave to their caller: row padding and the byte
order flag, which not every version heeds; encodings they fold to 8 bits without a word; data that ends too early, of
which they make a picture that is half grey.
"""

from __future__ import annotations

import zlib
from array import array
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Data: TypeAlias = "bytes | bytearray | memoryview | array[int] | Bytes"

RAW, COMPRESSED = "raw", "compressed"

CHANNELS = {
    "rgb8": 3,
    "bgr8": 3,
    "rgba8": 4,
    "bgra8": 4,
    "mono8": 1,
    "bayer_rggb8": 1,
    "bayer_bggr8": 1,
    "bayer_gbrg8": 1,
    "bayer_grbg8": 1,
}

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH_AT = 24


class ImageError(ValueError):
    """A picture that cannot be used; the text says what was found, what is expected and what to do."""


def plain_rows(encoding: str, height: int, width: int, step: int, data: Data) -> Bytes:
    """Return uint8 [height · width · channels], the pixels of a ``sensor_msgs/Image`` without row padding.

    Args:
        step: bytes from one row to the next.

    Raises:
        ImageError: an encoding that is not taken, sizes that contradict each other, data that end too early.
    """
    channels = channels_of(encoding)
    row = width * channels
    if height < 1 or width < 1:
        raise ImageError(f"{width}x{height} pixels; expected at least one")
    if step < row:
        raise ImageError(f"step is {step} bytes; expected at least {row} for {width} pixels of {encoding}")
    pixels = np.frombuffer(data, np.uint8)
    needed = (height - 1) * step + row  # the last row needs no padding
    if pixels.size < needed:
        raise ImageError(f"{pixels.size} bytes of data; expected {height * step} for {width}x{height} {encoding} with "
                         f"step {step}: the message was cut")
    if step == row:
        return pixels[:needed]
    rows = np.lib.stride_tricks.as_strided(pixels, (height, row), (step, 1), writeable=False)
    return np.ascontiguousarray(rows).reshape(-1)


def channels_of(encoding: str) -> int:
    """Return the bytes per pixel of an encoding.

    Raises:
        ImageError: naming the encodings that are taken.
    """
    if encoding in CHANNELS:
        return CHANNELS[encoding]
    advice = "publish one of those"
    if any(depth in encoding for depth in ("16", "32", "64")):
        advice = "its values have more than 8 bits and would be folded; convert it to 8 bits where the camera publishes"
    raise ImageError(f"encoding {encoding!r}; expected one of {', '.join(CHANNELS)}: {advice}")


def check_compressed(data: Data, format_name: str = "") -> None:
    """Check that the data of a ``sensor_msgs/CompressedImage`` are one whole JPEG or 8-bit PNG.

    A JPEG carries no checksum: damage within its pixels goes unnoticed. A PNG's checksums are verified.

    Raises:
        ImageError: another format, more than 8 bits, data that end too early, a checksum that does not match.
    """
    content = bytes(data)
    if content.startswith(JPEG_START):
        # within the pixels neither marker can occur, and thumbnails come before the last scan begins
        if content.rfind(JPEG_END) < content.rfind(JPEG_SCAN):
            raise ImageError(f"a JPEG of {len(content)} bytes without end: the message was cut")
    elif content.startswith(PNG_START):
        _check_png(content)
    else:
        named = f" (format {format_name!r})" if format_name else ""
        raise ImageError(f"compressed data beginning with {content[:8].hex(' ') or 'nothing'}{named}; expected JPEG or "
                         "PNG: set the image transport to one of these")


def _check_png(content: bytes) -> None:
    position, name = len(PNG_START), b""
    while name != b"IEND":
        length = int.from_bytes(content[position : position + 4], "big")
        name = content[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(content):
            raise ImageError(f"a PNG of {len(content)} bytes without end: the message was cut")
        if zlib.crc32(content[position + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
            raise ImageError(f"a PNG whose checksum of {name!r} does not match: the data are damaged")
        position = end
    if content[PNG_DEPTH_AT] > 8:
        raise ImageError(f"a PNG of {content[PNG_DEPTH_AT]} bits per channel; expected 8: more would be folded; "
                         "convert it to 8 bits where the camera publishes")


def rgb_of_decompressed(picture: NDArray[np.uint8] | None) -> Bytes:
    """Return uint8 [H, W, 3] RGB from what OpenCV decodes a JPEG or PNG to: BGR, or grey [H, W].

    Raises:
        ImageError: OpenCV decoded nothing.
    """
    if picture is None:
        raise ImageError("the compressed data cannot be decoded: they are damaged")
    if picture.ndim == 2:
        return np.repeat(picture[:, :, None], 3, axis=2)
    import cv2

    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)
