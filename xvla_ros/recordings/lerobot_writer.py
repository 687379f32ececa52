# SPDX-License-Identifier: Apache-2.0
"""A LeRobot data set of v3.0, written episode by episode: numbers, videos, statistics, tasks.

Written with pyarrow and PyAV; LeRobot is not imported. Many episodes share a file, up to a size; ``meta/info.json``, by
which a data set is found, is written last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import Problem
from xvla_ros.recordings.lerobot_files import INFO, WRITTEN
from xvla_ros.recordings.recording import SamplesError
from xvla_ros.resources import without_real_time
from xvla_ros.types import Floats

VERSION = "v3.0"
STATE, ACTION, PICTURES = "observation.state", "action", "observation.images."
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_FILE = Path("meta/episodes/chunk-000/file-000.parquet")
FILES_A_CHUNK = 1000
MOST_MB, MOST_VIDEO_MB = 100, 200  # of a file of numbers, and of a video
# LeRobot compares times within a video as float32, to 0.1 ms: from 1024 s on these are further apart.
MOST_SECONDS = 1000
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
LOOKED_AT = 100  # pixels along the shorter side, about, and pictures of an episode, at least, that statistics read

Rgb = NDArray[np.uint8]


@dataclass(frozen=True)
class Codec:
    """How a video is coded: a key frame every second frame, so that any frame is decoded from two at most.

    Attributes:
        encoder, pixels: as FFmpeg names them.
        options: of the encoder.
        even: whether it takes pictures of even width and height only.
    """

    encoder: str
    pixels: str
    options: Mapping[str, str]
    even: bool

    def limited(self, threads: int) -> dict[str, str]:
        """Return the encoder's options, with so many threads at most; 0 leaves that to the encoder."""
        if not threads:
            return dict(self.options)
        limit = {"svtav1-params": f"lp={threads}"} if self.encoder == "libsvtav1" else {"threads": str(threads)}
        return {**self.options, **limit}


_X264 = {"preset": "veryfast", "crf": "20", "g": "2", "bf": "0"}
CODECS = {
    "h264": Codec("libx264", "yuv420p", _X264, True),
    "h264-444": Codec("libx264", "yuv444p", _X264, False),
    "av1": Codec("libsvtav1", "yuv420p", {"preset": "12", "crf": "30", "g": "2"}, True),
}


class ClipWriter:
    """The video of one episode and camera, while it is written.

    Args:
        file: to write.
        size: (height, width) of its pictures.
        fps: frames a second.
        codec: a key of ``CODECS``.
        threads: of the encoder, at most; 0 leaves that to it.
    """

    def __init__(self, file: Path, size: tuple[int, int], fps: int, codec: str, threads: int = 0) -> None:
        import av

        os.environ.setdefault("SVT_LOG", "1")  # else SVT-AV1 tells its settings for every clip
        self.file, self.size, self._fps, self._count = file, size, fps, 0
        told = CODECS[codec]
        self._container = cast(Any, av.open(str(file), "w"))
        self._stream = self._container.add_stream(told.encoder, rate=fps)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt, self._stream.options = told.pixels, told.limited(threads)
        self._stream.codec_context.open()
        without_real_time()  # SVT-AV1 takes it where root runs it, and would stop all else on the machine

    def add(self, picture: Rgb) -> None:
        """Append a picture, uint8 [H, W, 3]."""
        import av

        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = self._count, Fraction(1, self._fps)
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still holds, and close the file."""
        self._container.mux(self._stream.encode())
        self._container.close()

    def drop(self) -> None:
        """Close the file, whatever is in it, and remove it."""
        with suppress(OSError):  # it could not be written: that is why it is dropped
            self._container.close()
        self.file.unlink(missing_ok=True)


class PictureSums:
    """What statistics of pictures need: how often each value of each channel came."""

    def __init__(self) -> None:
        self.count = 0
        self.histogram = np.zeros((3, 256), np.int64)

    def add(self, picture: Rgb) -> None:
        """Take a picture, uint8 [H, W, 3]; of a large one every n-th pixel."""
        import cv2

        step = max(1, min(picture.shape[:2]) // LOOKED_AT)
        seen = np.ascontiguousarray(picture[::step, ::step])
        for channel in range(3):
            self.histogram[channel] += cv2.calcHist([seen], [channel], None, [256], [0, 256])[:, 0].astype(np.int64)
        self.count += 1

    def merge(self, other: PictureSums) -> None:
        """Take what another one has seen."""
        self.count += other.count
        self.histogram += other.histogram

    def statistics(self) -> dict[str, Any]:
        """Return minimum, maximum, mean, deviation, quantiles [3][1][1] of values from 0 to 1, and count [1]."""
        levels = np.arange(256) / 255.0
        share = self.histogram / self.histogram.sum(axis=1, keepdims=True)
        below = np.cumsum(share, axis=1)
        mean = share @ levels
        found = {
            "min": levels[np.argmax(self.histogram > 0, axis=1)],
            "max": levels[255 - np.argmax(self.histogram[:, ::-1] > 0, axis=1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0.0)),
            **{_quantile(q): levels[(below >= q - 1e-12).argmax(axis=1)] for q in QUANTILES},
        }
        return {name: value.reshape(3, 1, 1).tolist() for name, value in found.items()} | {"count": [self.count]}


def statistics(values: NDArray[Any]) -> dict[str, Any]:
    """Return minimum, maximum, mean, deviation and quantiles [D] of rows [N, D] or [N], and count [1]."""
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    found: dict[str, Floats] = {
        "min": rows.min(axis=0),
        "max": rows.max(axis=0),
        "mean": rows.mean(axis=0),
        "std": rows.std(axis=0),
        **dict(zip(map(_quantile, QUANTILES), np.quantile(rows, QUANTILES, axis=0), strict=True)),
    }
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(rows)]}


def _quantile(share: float) -> str:
    return f"q{round(share * 100):02d}"


@dataclass(frozen=True, eq=False)
class EncodedEpisode:
    """One episode, its videos in files of their own.

    Attributes:
        tasks: [N] what was to be done at each frame.
        states: float32 [N, P], the policy's units.
        actions: float32 [N, D], the policy's units.
        clips: slot → its video.
        pictures: slot → what its statistics need.
        origin: where it comes from, for ``WRITTEN``.
    """

    tasks: Sequence[str]
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    clips: Mapping[str, Path]
    pictures: Mapping[str, PictureSums]
    origin: Mapping[str, Any]


@dataclass
class _VideoFile:
    """The video that clips of one camera are joined to, packet by packet."""

    key: str
    folder: Path
    number: int = -1
    frames: int = 0
    size: int = 0
    begun_with: bytes = b""
    container: Any = None
    stream: Any = None

    def append(self, clip: Path, frames: int, fps: int) -> tuple[int, float]:
        """Copy a clip to the end of the file, or to a new one where that is full.

        Returns:
            Number of the file, and where in it the clip begins, s.
        """
        import av

        with av.open(str(clip)) as source:
            video: Any = source.streams.video[0]
            header, size = bytes(video.codec_context.extradata or b""), clip.stat().st_size
            if (
                self.container is None
                or header != self.begun_with
                or self.size + size > MOST_VIDEO_MB << 20
                or self.frames + frames > MOST_SECONDS * fps
            ):
                self._begin(video, header)
            begin = Fraction(self.frames, fps)
            shift = round(begin / video.time_base)
            packets: Any = source.demux(video)
            for packet in packets:
                if packet.dts is None:  # the end of the file
                    continue
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = self.stream
                self.container.mux(packet)
        self.frames += frames
        self.size += size
        return self.number, float(begin)

    def _begin(self, template: Any, header: bytes) -> None:
        import av

        self.close()
        self.number, self.frames, self.size, self.begun_with = self.number + 1, 0, 0, header
        file = self.folder / VIDEO_PATH.format(video_key=self.key, **_place(self.number))
        file.parent.mkdir(parents=True, exist_ok=True)
        self.container = av.open(str(file), "w")
        self.stream = self.container.add_stream_from_template(template, opaque=True)

    def close(self) -> None:
        if self.container is not None:
            self.container.close()
            self.container = None


def _place(number: int) -> dict[str, int]:
    return dict(zip(("chunk_index", "file_index"), divmod(number, FILES_A_CHUNK), strict=True))


class LeRobotWriter:
    """Writes one data set; in a ``with`` block its files are closed whatever happens.

    Args:
        folder: to write to.
        fps: frames a second.
        robot: its name.
        names: feature → names of its channels, for ``STATE`` and ``ACTION``.
        cameras: slot → (height, width), in the order of the slots.
        codec: of the videos.
    """

    _NUMBERS: ClassVar[dict[str, str]] = {
        "timestamp": "float32",
        "frame_index": "int64",
        "episode_index": "int64",
        "index": "int64",
        "task_index": "int64",
    }

    def __init__(
        self,
        folder: Path,
        *,
        fps: int,
        robot: str,
        names: Mapping[str, Sequence[str]],
        cameras: Mapping[str, tuple[int, int]],
        codec: str,
    ) -> None:
        self.folder, self.fps, self.robot, self.codec = folder, fps, robot, codec
        self.names, self.cameras = dict(names), dict(cameras)
        self.tasks: dict[str, int] = {}
        self.frames = 0
        self.origins: list[Mapping[str, Any]] = []
        self._videos = {slot: _VideoFile(PICTURES + slot, folder) for slot in cameras}
        self._pictures = {slot: PictureSums() for slot in cameras}
        self._columns: dict[str, list[NDArray[Any]]] = {}
        self._rows: list[dict[str, Any]] = []
        self._data: Any = None
        self._data_number, self._data_size = -1, 0
        (folder / "meta").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for video in self._videos.values():
            video.close()
        if self._data is not None:
            self._data.close()
            self._data = None

    def add(self, episode: EncodedEpisode) -> None:
        """Append an episode; its clips are copied, and may be removed then.

        Raises:
            OSError: it cannot be written.
        """
        index, count = len(self._rows), len(episode.states)
        columns = {
            STATE: episode.states,
            ACTION: episode.actions,
            "timestamp": (np.arange(count) / self.fps).astype(np.float32),
            "frame_index": np.arange(count),
            "episode_index": np.full(count, index),
            "index": self.frames + np.arange(count),
            "task_index": np.array([self.tasks.setdefault(task, len(self.tasks)) for task in episode.tasks]),
        }
        row: dict[str, Any] = {"episode_index": index, "tasks": list(dict.fromkeys(episode.tasks)), "length": count}
        row |= {f"data/{key}": value for key, value in _place(self._write_numbers(columns)).items()}
        row |= {"dataset_from_index": self.frames, "dataset_to_index": self.frames + count}
        for slot, video in self._videos.items():
            number, begin = video.append(episode.clips[slot], count, self.fps)
            row |= {f"videos/{video.key}/{key}": value for key, value in _place(number).items()}
            row[f"videos/{video.key}/from_timestamp"] = begin
            row[f"videos/{video.key}/to_timestamp"] = begin + count / self.fps
            row |= _flat(video.key, episode.pictures[slot].statistics())
            self._pictures[slot].merge(episode.pictures[slot])
        for name, values in columns.items():
            row |= _flat(name, statistics(values))
            self._columns.setdefault(name, []).append(values)
        self._rows.append({**row, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self.frames += count
        self.origins.append(episode.origin)

    def finish(self, beside: Mapping[str, Any]) -> None:
        """Write statistics, tasks and episodes, and last ``meta/info.json``.

        Args:
            beside: what ``WRITTEN`` holds besides the episodes' origins.

        Raises:
            OSError: they cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.__exit__()
        every = {PICTURES + slot: sums.statistics() for slot, sums in self._pictures.items()}
        every |= {name: statistics(np.concatenate(parts)) for name, parts in self._columns.items()}
        self._write_json("meta/stats.json", every)
        pq.write_table(_tasks_table(self.tasks), self.folder / "meta/tasks.parquet")
        (self.folder / EPISODES_FILE).parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._rows), self.folder / EPISODES_FILE)
        self._write_json(WRITTEN, {**beside, "episodes": self.origins})
        self._write_json(INFO, self._info())

    def _write_numbers(self, columns: Mapping[str, NDArray[Any]]) -> int:
        """Append an episode's rows, as a group of their own; return the number of the file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({name: _arrow(values) for name, values in columns.items()})
        if self._data is None or self._data_size + table.nbytes > MOST_MB << 20:
            if self._data is not None:
                self._data.close()
            self._data_number, self._data_size = self._data_number + 1, 0
            file = self.folder / DATA_PATH.format(**_place(self._data_number))
            file.parent.mkdir(parents=True, exist_ok=True)
            self._data = pq.ParquetWriter(file, table.schema)
        self._data.write_table(table)
        self._data_size += table.nbytes
        return self._data_number

    def _write_json(self, name: str, document: Mapping[str, Any]) -> None:
        text = json.dumps(document, indent=4, ensure_ascii=False, allow_nan=False)
        (self.folder / name).write_text(text + "\n", encoding="utf-8")

    def _info(self) -> dict[str, Any]:
        features: dict[str, Any] = {
            name: {"dtype": "float32", "shape": [len(told)], "names": list(told)} for name, told in self.names.items()
        }
        for slot, size in self.cameras.items():
            told = {
                "video.height": size[0],
                "video.width": size[1],
                "video.codec": "av1" if self.codec == "av1" else "h264",
                "video.pix_fmt": CODECS[self.codec].pixels,
                "video.is_depth_map": False,
                "video.fps": self.fps,
                "video.channels": 3,
                "has_audio": False,
            }
            features[PICTURES + slot] = {
                "dtype": "video",
                "shape": [*size, 3],
                "names": ["height", "width", "channels"],
                "info": told,
            }
        features |= {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in self._NUMBERS.items()}
        return {
            "codebase_version": VERSION,
            "robot_type": self.robot,
            "total_episodes": len(self._rows),
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": FILES_A_CHUNK,
            "data_files_size_in_mb": MOST_MB,
            "video_files_size_in_mb": MOST_VIDEO_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": features,
        }


def _flat(feature: str, found: Mapping[str, Any]) -> dict[str, Any]:
    return {f"stats/{feature}/{name}": value for name, value in found.items()}


def _arrow(values: NDArray[Any]) -> Any:
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(values).reshape(-1)))


def _tasks_table(tasks: Mapping[str, int]) -> Any:
    """Return the table of tasks; LeRobot reads it with pandas, the words as its index."""
    import pyarrow as pa

    words = "__index_level_0__"
    index: dict[str, Any] = {"name": None, "field_name": words, "pandas_type": "unicode", "numpy_type": "object"}
    number = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    told = {
        "index_columns": [words],
        "column_indexes": [{**index, "field_name": None, "metadata": {"encoding": "UTF-8"}}],
        "columns": [{**column, "metadata": None} for column in (number, index)],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.3",
    }
    table = pa.table({"task_index": pa.array(tasks.values(), pa.int64()), words: pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(told)})


def check_size(source: str, slot: str, size: tuple[int, int], codec: str) -> None:
    """Check that a codec takes pictures of this (height, width).

    Raises:
        SamplesError: naming the camera and the size.
    """
    if CODECS[codec].even and (size[0] % 2 or size[1] % 2):
        problem = Problem(
            source,
            f"cameras.{slot}",
            f"{size[1]}x{size[0]}",
            "an even width and height",
            f"{codec} cannot encode images of {size[1]}x{size[0]} pixels: give --codec h264-444, or crop the camera",
        )
        raise SamplesError([problem])
