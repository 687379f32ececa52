# SPDX-License-Identifier: Apache-2.0
"""Which pictures are taken, and what they become: uint8 [H, W, 3] RGB, the same bytes live and from a bag.

OpenCV converts. Here is what it leaves to its caller: row padding; encodings that leave their colours open; more than 8
bits, which would be folded without a word; data that end too early, of which it would make a picture that is half grey.
The byte order flag means nothing for values of one byte, and is not heeded. ``view_of`` then makes of a camera's
picture what a policy sees of it.
"""

from __future__ import annotations

import re
import struct
import zlib
from array import array
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import MessageError
from xvla_ros.limits import PIXELS, SCANS
from xvla_ros.robots.profile.schema import Camera

Bytes = NDArray[np.uint8]
Data: TypeAlias = "bytes | bytearray | memoryview | array[int] | Bytes"

RAW, COMPRESSED = "raw", "compressed"
IMAGE_TYPES = {RAW: "sensor_msgs/msg/Image", COMPRESSED: "sensor_msgs/msg/CompressedImage"}  # by transport


@dataclass(frozen=True)
class Encoding:
    """How the bytes of an encoding lie.

    Attributes:
        pixel: bytes per pixel of a row; of brightness alone, where the colours have rows of their own.
        code: OpenCV's name of the conversion to RGB; empty where it is RGB.
        even: whether width, and height, must be even, since two pixels share a colour.
    """

    pixel: int
    code: str
    even: tuple[bool, bool] = (False, False)

    @property
    def colours_apart(self) -> bool:
        """Whether half as many rows of colours follow those of brightness, with the same step."""
        return self.even[1]


_UYVY = Encoding(2, "YUV2RGB_UYVY", (True, False))
_YUYV = Encoding(2, "YUV2RGB_YUY2", (True, False))

ENCODINGS = {
    "rgb8": Encoding(3, ""),
    "bgr8": Encoding(3, "BGR2RGB"),
    "rgba8": Encoding(4, "RGBA2RGB"),
    "bgra8": Encoding(4, "BGRA2RGB"),
    "mono8": Encoding(1, "GRAY2RGB"),
    # OpenCV names a pattern by its second row, ROS by its first
    "bayer_rggb8": Encoding(1, "BayerBG2RGB"),
    "bayer_bggr8": Encoding(1, "BayerRG2RGB"),
    "bayer_gbrg8": Encoding(1, "BayerGR2RGB"),
    "bayer_grbg8": Encoding(1, "BayerGB2RGB"),
    "uyvy": _UYVY,
    "yuv422": _UYVY,
    "yuyv": _YUYV,
    "yuv422_yuy2": _YUYV,
    "nv12": Encoding(1, "YUV2RGB_NV12", (True, True)),
    "nv21": Encoding(1, "YUV2RGB_NV21", (True, True)),
}

MANY_BITS = re.compile(r"16|32|64")  # in the name of an encoding: the bits of each value
OPEN = re.compile(r"8UC([1-4])")  # OpenCV's name for so many bytes per pixel, whatever they mean

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH_AT = 24


def rgb_of_message(message: Any, camera: Camera) -> Bytes:
    """Return uint8 [H, W, 3] RGB of a ``sensor_msgs/Image`` or ``CompressedImage``, by the camera's transport.

    Args:
        message: as rclpy or rosbags deserialises it.
        camera: that sent it.

    Raises:
        MessageError: naming what was found and what is expected.
    """
    if camera.transport == COMPRESSED:
        return rgb_of_compressed(message.data, message.format, camera.encoding)
    name = resolved(message.encoding, camera.encoding)
    rows = plain_rows(name, message.height, message.width, message.step, message.data)
    encoding = ENCODINGS[name]
    if not encoding.code:
        return rows.reshape(message.height, message.width, 3)
    return _converted(rows.reshape(-1, message.width, encoding.pixel), encoding.code)


def resolved(said: str, answer: str) -> str:
    """Return the encoding of a picture: what its message says or, where that leaves it open, what the profile says.

    Raises:
        MessageError: the encoding is not supported; or it is open, and the profile does not settle it.
    """
    if said in ENCODINGS:
        return said
    found = OPEN.fullmatch(said)
    if found is None:
        advice = "publish one of these encodings"
        if MANY_BITS.search(said):
            advice = (
                "its values have more than 8 bits and would wrap around; convert the image to 8 bits in the "
                "camera's node"
            )
        raise MessageError(f"encoding {said!r}; expected one of {', '.join(ENCODINGS)}: {advice}")
    options = answers(int(found[1]))
    if answer in options:
        return answer
    asked = f"is it {' or '.join(options)}? Set cameras.<slot>.encoding in the profile to the right one"
    if answer:
        raise MessageError(f"encoding {said!r} cannot be {answer}, as the profile says; {asked}")
    raise MessageError(f"encoding {said!r} does not say what its bytes mean: {asked}")


def answers(pixel: int) -> list[str]:
    """Return the encodings that pixels of ``pixel`` bytes may have, each by one name."""
    names: dict[Encoding, str] = {}
    for name, each in ENCODINGS.items():
        if each.pixel == pixel and not each.colours_apart:
            names.setdefault(each, name)
    return list(names.values())


def plain_rows(name: str, height: int, width: int, step: int, data: Data) -> Bytes:
    """Return uint8 [rows · bytes], the pixels of a ``sensor_msgs/Image`` without row padding.

    Drivers of nv12 and nv21 give the height of the picture and the step of its rows of brightness; half as many rows of
    colours follow with the same step. Data after the last row, such as the rest of a buffer, is ignored.

    Args:
        name: of the encoding, one of ``ENCODINGS``.
        step: bytes from one row to the next.

    Raises:
        MessageError: sizes that contradict each other, data that end too early.
    """
    encoding = ENCODINGS[name]
    row = width * encoding.pixel
    if height < 1 or width < 1:
        raise MessageError(f"{width}x{height} pixels; expected at least one")
    for what, size, even in zip(("width", "height"), (width, height), encoding.even, strict=True):
        if even and size % 2:
            raise MessageError(
                f"{what} is {size} pixels; expected an even number, because {name} stores one colour for "
                "two pixels: set another size in the camera's node"
            )
    if height * width > PIXELS:
        raise MessageError(f"{width}x{height} pixels; expected at most {PIXELS}: publish a smaller image")
    if step < row:
        raise MessageError(f"step is {step} bytes; expected at least {row} for {width} pixels of {name}")
    rows = height * 3 // 2 if encoding.colours_apart else height
    pixels = np.frombuffer(data, np.uint8)
    needed = (rows - 1) * step + row  # the last row needs no padding
    if pixels.size < needed:
        raise MessageError(
            f"{pixels.size} bytes of data; expected {rows * step} for {width}x{height} {name} with "
            f"step {step}: the message is truncated"
        )
    if step == row:
        return pixels[:needed]
    padded = np.lib.stride_tricks.as_strided(pixels, (rows, row), (step, 1), writeable=False)
    return np.ascontiguousarray(padded).reshape(-1)


def view_of(picture: Bytes, camera: Camera) -> Bytes:
    """Return what a policy sees of a camera's picture [H, W, 3]: turned by its ``rotate``, then cut to its ``crop``.

    Raises:
        MessageError: the crop does not fit the turned picture.
    """
    import cv2

    codes = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
    if camera.rotate:
        picture = np.asarray(cv2.rotate(picture, codes[camera.rotate]), dtype=np.uint8)
    if not camera.crop:
        return picture
    x, y, width, height = camera.crop
    rows, columns = picture.shape[:2]
    if x + width > columns or y + height > rows:
        turned = f", turned by {camera.rotate} degrees" if camera.rotate else ""
        raise MessageError(
            f"crop {list(camera.crop)} reaches to {x + width}x{y + height}; expected within the "
            f"image's {columns}x{rows} pixels{turned}: change cameras.<slot>.crop in the profile"
        )
    return np.ascontiguousarray(picture[y : y + height, x : x + width])


def points_in_view(points: NDArray[np.float64], size: tuple[int, int], camera: Camera) -> NDArray[np.float64]:
    """Return where points [..., 2] of a camera's picture are in the view that ``view_of`` makes of it.

    Both go from −1 to 1 from left to right and from top to bottom; a point outside has more.

    Args:
        size: width and height of the picture.
    """
    across, down = points[..., 0], points[..., 1]
    turned = {0: (across, down), 90: (-down, across), 180: (-across, -down), 270: (down, -across)}[camera.rotate]
    found = np.stack(turned, axis=-1)
    if not camera.crop:
        return found
    whole = np.array(size if camera.rotate in (0, 180) else size[::-1])
    corner, part = np.array(camera.crop[:2]), np.array(camera.crop[2:])
    cut: NDArray[np.float64] = ((found + 1.0) / 2.0 * whole - corner) / part * 2.0 - 1.0
    return cut


def check_compressed(data: Data, format_name: str = "") -> None:
    """Check that the data of a ``sensor_msgs/CompressedImage`` are one whole JPEG or 8-bit PNG.

    A JPEG carries no checksum: damage within its pixels goes unnoticed. A PNG's checksums are verified. Its size is
    read before anything is decoded.

    Raises:
        MessageError: another format, more than 8 bits, data that end too early, a checksum that does not match, more
            than ``limits.PIXELS``.
    """
    content = bytes(data)
    if content.startswith(JPEG_START):
        # neither marker can occur within the pixels, and thumbnails come before the last scan
        if content.rfind(JPEG_END) < content.rfind(JPEG_SCAN):
            raise MessageError(f"a JPEG of {len(content)} bytes without an end: the message is truncated")
        _check_jpeg(content)
    elif content.startswith(PNG_START):
        _check_png(content)
    else:
        named = f" (format {format_name!r})" if format_name else ""
        raise MessageError(
            f"compressed data beginning with {content[:8].hex(' ') or 'nothing'}{named}; expected JPEG "
            "or PNG: set the image transport to one of these formats"
        )


def _check_jpeg(content: bytes) -> None:
    """Refuse a JPEG of too many pixels or scans, by its first frame header (ITU T.81, B.2.2)."""
    if (scans := content.count(JPEG_SCAN)) > SCANS:
        raise MessageError(f"a JPEG of {scans} scans; expected at most {SCANS}")
    position = 2
    while position + 9 <= len(content):
        marker = content[position + 1]
        if content[position] != 0xFF or marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 1 if content[position] != 0xFF or marker == 0xFF else 2  # padding, or a marker by itself
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, position + 5)
            _check_pixels("JPEG", width, height)
            return
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")


def _check_pixels(kind: str, width: int, height: int) -> None:
    if width * height > PIXELS:
        raise MessageError(f"a {kind} of {width}x{height}; expected at most {PIXELS} pixels: publish a smaller image")


def _check_png(content: bytes) -> None:
    if len(content) > PNG_DEPTH_AT:
        _check_pixels("PNG", *struct.unpack_from(">II", content, 16))
    position, name = len(PNG_START), b""
    while name != b"IEND":
        length = int.from_bytes(content[position : position + 4], "big")
        name = content[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(content):
            raise MessageError(f"a PNG of {len(content)} bytes without an end: the message is truncated")
        if zlib.crc32(content[position + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
            raise MessageError(f"a PNG whose checksum of {name!r} does not match: the data is damaged")
        position = end
    if len(content) <= PNG_DEPTH_AT or content[12:16] != b"IHDR":
        raise MessageError("a PNG without its first chunk, IHDR: the data is damaged")
    if content[PNG_DEPTH_AT] > 8:
        raise MessageError(
            f"a PNG of {content[PNG_DEPTH_AT]} bits per channel; expected 8: more bits would wrap around; "
            "convert the image to 8 bits in the camera's node"
        )


def rgb_of_compressed(data: Data, format_name: str = "", answer: str = "") -> Bytes:
    """Return uint8 [H, W, 3] RGB of one whole JPEG or PNG.

    Args:
        format_name: ``format`` of its ``CompressedImage``, as compressed_image_transport writes it: the encoding that
            was sent, ``;``, the codec, and the colours that were compressed.
        answer: the encoding that the profile names, where the format leaves the colours open.

    Raises:
        MessageError: the data are no whole JPEG or PNG of 8 bits, or were made of more bits.
    """
    import cv2

    check_compressed(data, format_name)
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR)
    except cv2.error as error:
        raise MessageError(f"OpenCV cannot decode {format_name!r}: {error}") from error
    if picture is None:
        raise MessageError(f"OpenCV cannot decode {format_name!r}: the data is damaged")
    sent, is_rgb = _format(format_name)
    is_open = OPEN.fullmatch(sent) is not None
    if picture.ndim == 2:  # grey, or the pattern of a Bayer sensor, which is compressed as it is
        if is_open or MANY_BITS.search(sent):
            sent = resolved(sent, answer)
        known = ENCODINGS.get(sent)
        return _converted(picture, known.code if known is not None and known.pixel == 1 else "GRAY2RGB")
    # compressors take bytes without named colours for blue, green, red
    swapped = (is_open and resolved(sent, answer).startswith("rgb")) or is_rgb
    return np.asarray(picture, dtype=np.uint8) if swapped else _converted(picture, "BGR2RGB")


def is_plain(format_name: str) -> bool:
    """Return whether ``rgb_of_compressed`` gives the colours that any decoder gives, by the ``format`` of a message."""
    sent, is_rgb = _format(format_name)
    return not (is_rgb or OPEN.match(sent) or MANY_BITS.search(sent) or sent.startswith("bayer"))


def _format(name: str) -> tuple[str, bool]:
    """Return the encoding that was sent, and whether red, green, blue was compressed, of a compressed message."""
    sent, _, codec = name.partition(";")
    return sent.strip(), "compressed rgb" in codec


def _converted(picture: NDArray[Any], code: str) -> Bytes:
    import cv2

    try:
        return np.asarray(cv2.cvtColor(picture, getattr(cv2, f"COLOR_{code}")), dtype=np.uint8)
    except cv2.error as error:
        raise MessageError(f"OpenCV cannot convert {picture.shape[1]}x{picture.shape[0]} by {code}: {error}") from error
