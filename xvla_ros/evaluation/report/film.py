"""The film of a run, in ROS time whatever the speed of the simulation was; ``film_frame`` draws its frames."""

from __future__ import annotations

import bisect
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from xvla_ros.errors import XvlaError
from xvla_ros.evaluation.report.film_frame import HEIGHT, WIDTH, Composer, Image, Scene
from xvla_ros.evaluation.report.recording import Recording
from xvla_ros.nodes.recording import RecordingReader

RATE = 15


class FilmError(XvlaError, RuntimeError):
    """The film cannot be written."""


def write_film(folder: Path, recording: Recording, scene: Scene, path: Path, rate: int = RATE) -> str:
    """Write the film of the recording in ``folder`` to ``path`` (MP4); return the name of the video codec.

    H.264 where PyAV has an encoder for it, else MPEG-4 part 2.

    Raises:
        FilmError: no encoder, or nothing to show.
    """
    import av

    if not recording.start:
        raise FilmError("there is nothing to film: no command was recorded")
    composer = Composer(scene)
    codec, options = _encoder(av)
    frames = max(1, int(recording.duration * rate))
    views = _Views(folder, recording)
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
    finally:
        views.close()
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
    """The newest picture of every camera at a given time; each is decoded once."""

    def __init__(self, folder: Path, recording: Recording) -> None:
        self._reader = RecordingReader(folder)
        self._pictures = defaultdict(list)
        for picture in sorted(recording.pictures, key=lambda picture: picture.time):
            self._pictures[picture.camera].append(picture)
        self._times = {camera: [picture.time for picture in found] for camera, found in self._pictures.items()}
        self._decoded: dict[str, tuple[int, Image]] = {}

    def at(self, time: float) -> dict[str, Image]:
        for camera, times in self._times.items():
            index = bisect.bisect_right(times, time) - 1
            if index >= 0 and self._decoded.get(camera, (-1, None))[0] != index:
                image = decode(self._reader.picture(dict(self._pictures[camera][index].record)))
                if image is not None:
                    self._decoded[camera] = (index, image)
        return {camera: image for camera, (_, image) in self._decoded.items()}

    def close(self) -> None:
        self._reader.close()


def decode(picture: bytes) -> Image | None:
    """Return an encoded picture as uint8 [H, W, 3] RGB, or None where it is broken."""
    import cv2

    image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else np.asarray(image[..., ::-1], dtype=np.uint8).copy()


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
