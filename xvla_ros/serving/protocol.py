# SPDX-License-Identifier: Apache-2.0
"""Our protocol between a policy server and its clients: maps in msgpack, as binary messages of a WebSocket.

The client says ``hello`` with its version and its robots, the server ``welcome`` with its metadata, or ``error``. Then
each ``ask`` is answered by ``chunks`` or ``error`` with the same ``id``, one at a time. docs/reference/serving.md lists
the fields. Arrays are maps of ``dtype``, ``shape`` and ``data``; what comes is bounded before memory is taken for it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from xvla_ros import limits
from xvla_ros.errors import RequestError
from xvla_ros.types import ActionChunk, Embodiment, Observation, Prefix

VERSION = 1
PATH = "/xvla"

# reasons of a refusal
VERSION_DIFFERS, MESSAGE, ROBOT, OBSERVATION = "version", "message", "robot", "observation"
LATE, RATE, OVERLOADED, POLICY = "late", "rate", "overloaded", "policy"
REASONS = (VERSION_DIFFERS, MESSAGE, ROBOT, OBSERVATION, LATE, RATE, OVERLOADED, POLICY)

MAX_MESSAGE = 16 << 20  # bytes
MAX_PIXELS = 1 << 22  # of one picture: 2048 x 2048
MAX_VIEWS, MAX_ROBOTS = 8, 16
MAX_TEXT = 4096  # characters of an instruction or a name
MAX_WAYPOINTS, MAX_WIDTH = 512, 256
MAX_STEPS = 100
LONGEST_WAIT_S = 60.0  # of an ask that names no earlier deadline
MAX_ENTRIES = 4096  # of one list or map
MAX_ENTRIES_IN_ALL = 1 << 16  # of a message: more would keep every other client waiting while they are read
NUMBERS = ("<f2", "<f4", "<f8", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "|b1")
PICTURES = ("|u1",)
SAME_TIME_S = 1e-6  # by which the times of an answer may differ from those of its robot

JPEG_QUALITY = 95
_LARGEST = int(np.finfo(np.float64).max)


def pack(message: Mapping[str, Any]) -> bytes:
    """Return a message as it is sent; arrays may stand anywhere in it."""
    packed: bytes = msgpack.packb(message, default=_plain)
    return packed


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "shape": list(value.shape), "data": value.tobytes()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be sent")


def unpack(data: bytes) -> dict[Any, Any]:
    """Return a message.

    Raises:
        RequestError: it is no map in msgpack, or holds more entries than a message of ours.
    """
    left = MAX_ENTRIES_IN_ALL

    def counted(part: Any) -> Any:
        nonlocal left
        left -= len(part)
        if left < 0:
            raise ValueError(f"more than {MAX_ENTRIES_IN_ALL} entries of lists and maps")
        return part

    try:
        message = msgpack.unpackb(
            data, max_array_len=MAX_ENTRIES, max_map_len=MAX_ENTRIES, max_ext_len=0, max_str_len=1 << 16,
            list_hook=counted, object_hook=counted,
        )  # fmt: skip
    except Exception as error:  # msgpack raises ValueErrors and exceptions of its own
        raise RequestError(MESSAGE, f"not msgpack within the limits: {type(error).__name__}: {error}"[:200]) from None
    if not isinstance(message, dict):
        raise RequestError(MESSAGE, f"a {type(message).__name__}; expected a map")
    return message


def array(
    value: Any, what: str, *, dtypes: Sequence[str] = NUMBERS, shape: Sequence[int | None] = (), keys: str = ""
) -> NDArray[Any]:
    """Return an array that came as a map; it shares the message's memory and cannot be written.

    Args:
        what: what it is, for the error.
        dtypes: those allowed.
        shape: that is expected, None where any length will do.
        keys: ``openpi`` for maps with its byte keys.

    Raises:
        RequestError: naming what was found and what is expected.
    """
    names = ("dtype", "shape", "data") if keys != "openpi" else (b"dtype", b"shape", b"data")
    if not isinstance(value, Mapping) or any(name not in value for name in names):
        raise RequestError(MESSAGE, f"{what} is {_kind(value)}; expected an array: a map of dtype, shape and data")
    dtype, sizes, data = (value[name] for name in names)
    if isinstance(dtype, bytes):
        dtype = dtype.decode("ascii", "replace")
    return of_buffer(data, dtype, sizes, what, dtypes=dtypes, shape=shape)


def of_buffer(
    data: Any, dtype: Any, sizes: Any, what: str, *, dtypes: Sequence[str], shape: Sequence[int | None]
) -> NDArray[Any]:
    """Return the array in a buffer; see ``array``."""
    if dtype not in dtypes:
        raise RequestError(MESSAGE, f"{what} has dtype {str(dtype)[:40]!r}; expected one of {', '.join(dtypes)}")
    if (
        not isinstance(sizes, list | tuple)
        or len(sizes) > 4
        or not all(type(size) is int and 0 <= size <= MAX_MESSAGE for size in sizes)
    ):
        raise RequestError(
            MESSAGE, f"{what} has shape {str(sizes)[:80]}; expected up to four whole numbers of 0 or more"
        )
    needed = math.prod(sizes) * np.dtype(dtype).itemsize
    if not isinstance(data, bytes) or len(data) != needed:
        found = len(data) if isinstance(data, bytes) else _kind(data)
        raise RequestError(MESSAGE, f"{what} of {dtype} {list(sizes)} has {found} bytes of data; expected {needed}")
    fits = len(shape) == len(sizes) and all(
        want is None or want == have for want, have in zip(shape, sizes, strict=True)
    )
    if shape and not fits:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise RequestError(OBSERVATION, f"{what} has shape {list(sizes)}; expected [{expected}]")
    return np.frombuffer(data, dtype).reshape(sizes)


def text(value: Any, what: str) -> str:
    """Return a text of bounded length, as it came.

    Raises:
        RequestError: it is none.
    """
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise RequestError(MESSAGE, f"{what} is {_kind(value)}; expected a text of at most {MAX_TEXT} characters")
    if not limits.is_text(value):
        raise RequestError(MESSAGE, f"{what} has half of a surrogate pair; expected Unicode text")
    return value


def whole(value: Any, what: str, least: int, most: int) -> int:
    """Return a whole number within bounds.

    Raises:
        RequestError: it is none.
    """
    if type(value) is not int or not least <= value <= most:
        found = _digits(value) if type(value) is int else _kind(value)
        raise RequestError(MESSAGE, f"{what} is {found}; expected a whole number of {least} … {most}")
    return value


def number(value: Any, what: str, least: float, most: float) -> float:
    """Return a number within bounds.

    Raises:
        RequestError: it is none.
    """
    if type(value) not in (int, float) or not least <= value <= most or (type(value) is int and abs(value) > _LARGEST):
        found = _digits(value) if type(value) in (int, float) else _kind(value)
        raise RequestError(MESSAGE, f"{what} is {found}; expected a number of {least:g} … {most:g}")
    return float(value)


def _digits(value: float) -> str:
    digits = str(value)
    return digits if len(digits) <= 40 else f"{digits[:40]}…"


def _kind(value: Any) -> str:
    if isinstance(value, str | bytes | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


# pictures


def encode_picture(
    picture: NDArray[np.uint8], quality: int | None = JPEG_QUALITY, what: str = "the picture"
) -> bytes | NDArray[np.uint8]:
    """Return a picture [H, W, 3] RGB as it is sent: a JPEG of this quality, colours at full size; None sends it raw.

    Raises:
        RequestError: it is not uint8 [H, W, 3] of at most ``MAX_PIXELS``.
    """
    picture = bounded(picture, what)
    if quality is None:
        return picture
    import cv2

    settings = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    encoded: bytes = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), settings)[1].tobytes()
    return encoded


def decode_picture(value: Any, what: str, take: Callable[[int], None] = lambda size: None) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 3] RGB of a picture as it came: a JPEG, a PNG or an array.

    ``take`` is called with its bytes before memory is taken for them; what it raises passes.

    Raises:
        RequestError: it is none of these, damaged, or of more than ``MAX_PIXELS``.
    """
    if not isinstance(value, bytes):
        picture = value
        if not isinstance(value, np.ndarray):
            picture = array(value, what, dtypes=PICTURES, shape=(None, None, 3))
        picture = bounded(picture, what)
        take(picture.nbytes)
        return picture
    from xvla_ros.errors import MessageError
    from xvla_ros.observation.images import rgb_of_compressed

    take(3 * _pixels(value, what))
    try:
        return rgb_of_compressed(value)
    except MessageError as error:
        raise RequestError(OBSERVATION, f"{what}: {error}") from None


def bounded(picture: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Return a picture that is uint8 [H, W, 3] of at most ``MAX_PIXELS``.

    Raises:
        RequestError: it is not.
    """
    found = f"{picture.dtype} {list(picture.shape)}"
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise RequestError(OBSERVATION, f"{what} is {found}; expected uint8 [H, W, 3] RGB")
    if picture.shape[0] * picture.shape[1] > MAX_PIXELS:
        raise RequestError(
            OBSERVATION, f"{what} is {found}; expected at most {MAX_PIXELS} pixels: send a smaller image"
        )
    return picture


def _pixels(data: bytes, what: str) -> int:
    """Return the pixels of a picture as its header says; too many are refused."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as opened:
            width, height = opened.size
    except Image.DecompressionBombError as error:
        raise RequestError(OBSERVATION, f"{what}: {error}; expected at most {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow raises what its plugins raise
        raise RequestError(
            OBSERVATION, f"{what}: {len(data)} bytes beginning with {data[:8].hex(' ')}; expected a JPEG or PNG"
        ) from error
    if width * height > MAX_PIXELS:
        raise RequestError(
            OBSERVATION, f"{what} is {width}x{height}; expected at most {MAX_PIXELS} pixels: send a smaller image"
        )
    return width * height


# records


def observation_message(
    observation: Observation, prefix: Prefix | None = None, quality: int | None = JPEG_QUALITY
) -> dict[str, Any]:
    """Return an observation as it is asked about; a view that its camera compressed goes as the camera gave it.

    Raises:
        RequestError: a view is no picture.
    """
    views = {
        slot: observation.encoded[slot]
        if slot in observation.encoded
        else encode_picture(picture, quality, f"view {slot!r}")
        for slot, picture in observation.images.items()
    }
    return {
        "robot": observation.embodiment.robot,
        "stamp": observation.stamp,
        "instruction": observation.instruction,
        "state": np.asarray(observation.state, dtype="<f4"),
        "views": views,
        "steps": observation.embodiment.denoising_steps,
        "prefix": None if prefix is None else _prefix_message(prefix),
    }


def _prefix_message(prefix: Prefix) -> dict[str, Any]:
    return {
        "actions": np.asarray(prefix.actions, dtype="<f4"),
        "weights": np.asarray(prefix.weights, dtype="<f4"),
        "guidance": float(prefix.guidance),
    }


def prefix_of(message: Any) -> Prefix | None:
    """Return the prefix of an observation that came.

    Raises:
        RequestError: it is none.
    """
    if message is None:
        return None
    if not isinstance(message, dict):
        raise RequestError(MESSAGE, f"prefix is {_kind(message)}; expected a map of actions, weights and guidance")
    actions = array(message.get("actions"), "prefix.actions", dtypes=("<f4",), shape=(None, None))
    weights = array(message.get("weights"), "prefix.weights", dtypes=("<f4",), shape=(len(actions),))
    if len(actions) > MAX_WAYPOINTS or actions.shape[1] > MAX_WIDTH:
        raise RequestError(
            OBSERVATION,
            f"prefix.actions has shape {list(actions.shape)}; expected at most {MAX_WAYPOINTS} x {MAX_WIDTH}",
        )
    return Prefix(actions.copy(), weights.copy(), number(message.get("guidance", 0.0), "prefix.guidance", 0.0, 1e6))


def embodiment_of(message: Any) -> Embodiment:
    """Return an embodiment that came as a map of its fields.

    Raises:
        RequestError: a field is missing, unknown or of another kind.
    """
    known = {each.name for each in fields(Embodiment)}
    if not isinstance(message, dict) or set(message) - known:
        unknown = sorted(map(str, set(message) - known)) if isinstance(message, dict) else _kind(message)
        raise RequestError(ROBOT, f"embodiment has {str(unknown)[:200]}; expected fields of {', '.join(sorted(known))}")
    slots = message.get("slots")
    if not isinstance(slots, list) or not 0 < len(slots) <= MAX_VIEWS:
        raise RequestError(ROBOT, f"slots is {_kind(slots)}; expected a list of 1 … {MAX_VIEWS} names of views")
    width, relative = message.get("action_width"), message.get("relative", [])
    if not isinstance(relative, list | tuple) or len(relative) > MAX_WIDTH:
        raise RequestError(ROBOT, f"relative is {_kind(relative)}; expected a list of at most {MAX_WIDTH} channels")
    return Embodiment(
        robot=text(message.get("robot"), "robot"),
        domain_id=whole(message.get("domain_id"), "domain_id", 0, 65535),
        action_mode=text(message.get("action_mode"), "action_mode"),
        slots=tuple(text(slot, "a slot") for slot in slots),
        waypoint_dt=number(message.get("waypoint_dt"), "waypoint_dt", 1e-6, 10.0),
        first_waypoint_offset=number(message.get("first_waypoint_offset"), "first_waypoint_offset", 0.0, 10.0),
        denoising_steps=whole(message.get("denoising_steps", 10), "denoising_steps", 1, MAX_STEPS),
        image_pipeline=text(message.get("image_pipeline", ""), "image_pipeline"),
        rot6d=text(message.get("rot6d", "interleaved"), "rot6d"),
        action_width=None if width is None else whole(width, "action_width", 1, MAX_WIDTH),
        relative=tuple(whole(each, "a relative channel", 0, MAX_WIDTH - 1) for each in relative),
    )


def chunk_fields(chunk: ActionChunk) -> dict[str, Any]:
    """Return a chunk as it is answered."""
    return asdict(chunk)


def chunk_in(message: Any) -> ActionChunk:
    """Return the chunk of an answer.

    Raises:
        RequestError: it is none.
    """
    if not isinstance(message, dict):
        raise RequestError(MESSAGE, f"a chunk is {_kind(message)}; expected a map")
    actions = array(message.get("actions"), "actions", dtypes=("<f4",), shape=(None, None))
    times = array(message.get("times"), "times", dtypes=("<f8",), shape=(len(actions),))
    return ActionChunk(
        robot=text(message.get("robot"), "robot"),
        domain_id=whole(message.get("domain_id"), "domain_id", 0, 65535),
        action_mode=text(message.get("action_mode"), "action_mode"),
        instruction=text(message.get("instruction"), "instruction"),
        stamp=whole(message.get("stamp"), "stamp", -(1 << 63), (1 << 63) - 1),
        times=times,
        actions=actions,
        inference_ms=number(message.get("inference_ms"), "inference_ms", 0.0, 1e9),
        seed=whole(message.get("seed"), "seed", 0, (1 << 64) - 1),
    )


def answer_to(seen: Observation, chunk: ActionChunk) -> ActionChunk:
    """Return a chunk that answers an observation: of its robot, stamp and words, due when its robot says, and finite.

    Raises:
        RequestError: naming what differs.
    """
    embodiment = seen.embodiment
    due = embodiment.first_waypoint_offset + np.arange(len(chunk.actions)) * embodiment.waypoint_dt
    for what, found, expected in (
        ("robot", chunk.robot, embodiment.robot),
        ("domain_id", chunk.domain_id, embodiment.domain_id),
        ("action_mode", chunk.action_mode, embodiment.action_mode),
        ("stamp", chunk.stamp, seen.stamp),
        ("instruction", chunk.instruction, seen.instruction),
    ):
        if found != expected:
            raise RequestError(MESSAGE, f"{what} is {str(found)[:80]!r}; expected {str(expected)[:80]!r}, as requested")
    if not len(due) or not np.allclose(chunk.times, due, rtol=0.0, atol=SAME_TIME_S):
        said = ", ".join(f"{each:g}" for each in chunk.times[:3])
        expected = f"from {embodiment.first_waypoint_offset:g} every {embodiment.waypoint_dt:g}"
        raise RequestError(
            MESSAGE, f"{len(chunk.times)} waypoints due at {said or 'no time'} … s; expected {expected} s"
        )
    if not np.isfinite(chunk.actions).all():
        raise RequestError(MESSAGE, "actions contain NaN or Inf")
    return chunk
