"""The film of a run, in ROS time whatever the speed of the simulation was; ``film_frame`` draws its frames."""

from __future__ import annotations

import bisect
import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xvla_ros.errors import XvlaError
from xvla_ros.evaluation.report.film_frame import HEIGHT, WIDTH, Composer, Image, Scene
from xvla_ros.evaluation.report.recording import NS, Recording
from xvla_ros.observation.images import ImageError, view_of
from xvla_ros.recordings.bags import bag_messages
from xvla_ros.recordings.cdr import CdrError, peek_stamp
from xvla_ros.recordings.observations import decode_image

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile

RATE = 15


class FilmError(XvlaError, RuntimeError):
    """The film cannot be written."""


def write_film(
    bag: Path, recording: Recording, profile: Profile, scene: Scene, path: Path, rate: int = RATE
) -> str:
    """Write the film of a recording to ``path`` (MP4), with the pictures of its bag; return the name of the codec.

    H.264 where PyAV has an encoder for it, else MPEG-4 part 2.

    Raises:
        FilmError: no encoder, or nothing to show.
    """
    import av

    if not recording.start:
        raise FilmError("there is nothing to film: nothing of the robot was recorded")
    composer = Composer(scene)
    codec, options = _encoder(av)
    frames = max(1, int(recording.duration * rate))
    views = _Views(bag, profile, recording.start)
    times = [record.time for record in recording.statuses]
    try:
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            stream: Any = container.add_stream(codec, rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for index in range(frames):
                time = index / rate
                newest = bisect.bisect_right(times, time)
                status = recording.statuses[newest - 1] if newest else None
                image = composer.frame(
                    time, views.at(time), status, recording.measured, recording.commanded, recording.episodes
                )
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    except (OSError, av.error.FFmpegError) as error:
        raise FilmError(f"the film {path} cannot be written: {error}") from error
    return codec


def read_frame(path: Path, time: float) -> Image:
    """Return the frame of the film at ``time`` s: uint8 [H, W, 3] RGB; the last one if the film is shorter."""
    import av

    found = None
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            found = frame
            if frame.time is not None and frame.time >= time:
                break
    if found is None:
        raise FilmError(f"the film {path} holds no frame")
    return np.asarray(found.to_ndarray(format="rgb24"), dtype=np.uint8)


class _Views:
    """The newest picture of every camera at times that go up, as a policy sees it; only those shown are decoded."""

    def __init__(self, bag: Path, profile: Profile, start: int) -> None:
        self._cameras, self._start = profile.cameras, start
        self._messages = bag_messages(bag, set(profile.cameras.by_topic))
        self._next = next(self._messages, None)
        self._undecoded: dict[str, bytes] = {}
        self._shown: dict[str, Image] = {}

    def at(self, time: float) -> dict[str, Image]:
        while self._next is not None and self._due(self._next.data) <= time:
            for slot in self._cameras.by_topic[self._next.topic]:
                self._undecoded[slot] = self._next.data
            self._next = next(self._messages, None)
        for slot, data in self._undecoded.items():
            camera = self._cameras.by_name[slot]
            with suppress(ImageError):  # the picture before it stays
                self._shown[slot] = view_of(decode_image(data, camera), camera)
        self._undecoded.clear()
        return self._shown

    def _due(self, data: bytes) -> float:
        try:
            return (peek_stamp(data) - self._start) / NS
        except CdrError:
            return -math.inf


def _encoder(av: Any) -> tuple[str, dict[str, str]]:
    choices = (
        ("libx264", {"preset": "veryfast", "crf": "21"}),
        ("libopenh264", {"b": "2500000"}),
        ("mpeg4", {"qscale": "4"}),
    )
    for name, options in choices:
        try:
            av.Codec(name, "w")
        except ValueError:  # av.codec.codec.UnknownCodecError
            continue
        return name, options
    raise FilmError("PyAV has neither an H.264 nor an MPEG-4 encoder; install the av wheel from PyPI")
