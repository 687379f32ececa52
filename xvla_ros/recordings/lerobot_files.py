# SPDX-License-Identifier: Apache-2.0
"""The files of a LeRobot data set, v2.0 to v3: which episodes it has, their numbers, and frames of its videos.

Read with pyarrow and PyAV; LeRobot is not imported. Formats as its documentation gives them: v2.1 has a parquet file
and a video for each episode, v3.0 many episodes in each file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xvla_ros import limits
from xvla_ros.errors import Problem, brief
from xvla_ros.recordings import parquet_files
from xvla_ros.recordings.recording import SamplesError

INFO = "meta/info.json"
TASKS, SUBTASKS = "tasks", "subtasks"  # tables in meta: a text for each number
LANGUAGE = "language_persistent"  # column of v3.0: what is said from a time of the episode on, each of a style
WRITTEN = "meta/xvla_ros.json"  # what xvla export says of a data set besides: profile, mapping, origins
VERSIONS = ("v2.0", "v2.1", "v3.0")
COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's modes of 8 bits a channel
DEPTH_FORMATS = ("gray9", "gray10", "gray12", "gray14", "gray16", "grayf")  # pixels of one wide channel
PICTURES = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
VIDEOS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
MAX_FPS = 10_000.0
NEAR = 0.2  # of the time between two frames, by which a frame may be beside its row: times of videos are rounded
FAR_AHEAD = 2.0  # s; for a frame further ahead than this the reader seeks a key frame

Rgb = NDArray[np.uint8]


def is_data_set(path: Path) -> bool:
    """Return whether a path is the folder of a LeRobot data set."""
    return (path / INFO).is_file()


@dataclass(frozen=True)
class Clip:
    """The part of a video file that belongs to an episode; ``start`` and ``end`` in s within the file."""

    file: Path
    start: float
    end: float = np.inf


@dataclass(frozen=True)
class EpisodeFiles:
    """Where one episode is.

    Attributes:
        index: its number.
        length: frames.
        task: what was to be done, the first of several; empty where the data set does not say.
        tasks: how many different tasks it has.
        data: parquet file with its rows.
        clips: video feature → its part of a file.
    """

    index: int
    length: int
    task: str
    tasks: int
    data: Path
    clips: dict[str, Clip]


class LeRobotFiles:
    """One data set folder.

    Raises:
        SamplesError: it is none, is of a version that is not known, or its files are damaged or missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._require()
        try:
            self.info: dict[str, Any] = limits.read_json(folder / INFO)
            self.version = str(self.info["codebase_version"])
            self.features = _features(self.info["features"])
            self.fps = float(self.info["fps"])
            if not 0.0 < self.fps <= MAX_FPS:
                raise ValueError(f"fps is {self.fps:g}, expected more than 0 and at most {MAX_FPS:g}")
        except FileNotFoundError:
            raise self._error(INFO, None, "the folder of a LeRobot data set", "there is no such file") from None
        except Exception as error:  # what is no info fails in as many ways
            raise self._error(INFO, None, "codebase_version, fps and features", f"cannot be read: {error!r}") from error
        if self.version not in VERSIONS:
            raise self._error(
                f"{INFO}:codebase_version",
                self.version,
                f"one of {', '.join(VERSIONS)}",
                f"is of version {self.version}; convert it with LeRobot",
            )
        with self._edge("meta", "a description of each episode"):
            self.episodes = self._episodes_of_v3() if self.version.startswith("v3") else self._episodes_of_v2()

    @cached_property
    def tasks(self) -> dict[int, str]:
        """Task number → text; empty where no table says."""
        return self._texts(TASKS, "task")

    @cached_property
    def subtasks(self) -> dict[int, str]:
        """Subtask number → text; empty where no table says."""
        return self._texts(SUBTASKS, "subtask")

    def columns(self, episode: EpisodeFiles) -> tuple[str, ...]:
        """Return the names of the columns of an episode's file.

        Raises:
            SamplesError: the file is missing or damaged.
        """
        import pyarrow.parquet as pq

        try:
            with limits.open_file(limits.inside(self.folder, episode.data)) as file:
                return tuple(pq.read_schema(file).names)
        except Exception as error:  # pyarrow raises errors of many kinds
            raise self._unreadable(episode, (), error) from error

    def _edge(self, key: str, expected: str) -> AbstractContextManager[None]:
        """Return a context in which whatever cannot be read becomes an error of this data set."""
        return limits.edge(SamplesError, lambda cause: self._error(key, None, expected, f"cannot be read: {cause}"))

    def is_depth(self, feature: str) -> bool:
        """Return whether the info of a feature says that it holds depths."""
        told = self.features[feature]
        infos = [told.get(key) or {} for key in ("info", "video_info")]
        return any(info.get(key) for info in infos for key in ("is_depth_map", "video.is_depth_map"))

    def words(self, episode: EpisodeFiles, source: Literal["task", "subtask"]) -> list[str]:
        """Return what is to be done at each frame of an episode, as LeRobot resolves it.

        A task is that of the frame's ``task_index``. A subtask is that of its ``subtask_index``, or the newest of the
        style subtask in ``language_persistent``; a frame without one has its task.

        Raises:
            SamplesError: the file is damaged, or an index has no text.
        """
        with self._edge(str(episode.data), "a text for each frame"):
            return self._words(episode, source)

    def _words(self, episode: EpisodeFiles, source: Literal["task", "subtask"]) -> list[str]:
        known = self.columns(episode)
        texts = self._indexed(episode, "task_index", self.tasks) if "task_index" in known and self.tasks else None
        if texts is None:
            if episode.tasks > 1:
                raise self._error(
                    "meta/tasks", None, "a text for each task_index",
                    f"episode {episode.index} has {episode.tasks} tasks, and the data does not say which frame has "
                        "which",
                )  # fmt: skip
            texts = [episode.task] * episode.length
        if source == "task":
            return texts
        if "subtask_index" in known and self.subtasks:
            found: list[str] = self._indexed(episode, "subtask_index", self.subtasks, absent="")
        elif LANGUAGE in known:
            found = self._persistent(episode, "subtask")
        else:
            raise self._error(
                "features", None, f"subtask_index with meta/{SUBTASKS}.parquet, or {LANGUAGE}",
                f"episode {episode.index} has no subtasks: set mapping.words to task",
            )  # fmt: skip
        return [subtask or task for subtask, task in zip(found, texts, strict=True)]

    def _indexed(
        self, episode: EpisodeFiles, column: str, texts: dict[int, str], absent: str | None = None
    ) -> list[str]:
        numbers = self._table(episode, [column]).column(column).to_pylist()
        numbers = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in numbers]
        unknown = sorted({each for each in numbers if each not in texts}, key=str) if absent is None else []
        if unknown:
            known = f"one of {min(texts)}…{max(texts)}"
            message = f"episode {episode.index}: {column} {unknown[0]} has no text in meta"
            raise self._error(column, unknown[0], known, message)
        return [texts.get(each, absent or "") for each in numbers]

    def _persistent(self, episode: EpisodeFiles, style: str) -> list[str]:
        """Return at each frame the newest text of a style among those that are told up to then; empty before."""
        table = self._table(episode, ["timestamp", LANGUAGE])
        times, rows = (table.column(name).to_pylist() for name in ("timestamp", LANGUAGE))
        found = []
        for time, told in zip(times, rows, strict=True):
            mine = [each for each in told or [] if each.get("style") == style and each["timestamp"] <= time]
            newest = max(mine, key=lambda each: float(each["timestamp"]), default=None)
            found.append(str(newest["content"] or "").strip() if newest is not None else "")
        return found

    def _texts(self, name: str, column: str) -> dict[int, str]:
        """Read a table of texts by number: JSON lines to v2.1, parquet from v3.0; empty where there is none."""
        lines, file = self.folder / "meta" / f"{name}.jsonl", self.folder / "meta" / f"{name}.parquet"
        if file.is_file():
            try:
                table = parquet_files.read_table(file)
                texts = table.column(_text_column(table, column)).to_pylist()
                numbers = table.column(f"{column}_index").to_pylist()
                return {int(number): str(text or "") for number, text in zip(numbers, texts, strict=True)}
            except Exception as error:  # pyarrow raises errors of many kinds
                expected = f"{column}_index and a text in each row"
                raise self._error(str(file), None, expected, f"cannot be read: {error!r}") from error
        if not lines.is_file():
            return {}
        try:
            return {int(row[f"{column}_index"]): str(row[column] or "") for row in self._lines(f"meta/{name}.jsonl")}
        except SamplesError:
            raise
        except Exception as error:
            expected = f"{column}_index and {column} in each line"
            raise self._error(str(lines), None, expected, f"cannot be read: {error!r}") from error

    @property
    def videos(self) -> tuple[str, ...]:
        """Features that are kept as videos."""
        return tuple(name for name, feature in self.features.items() if feature.get("dtype") == "video")

    def names(self, feature: str) -> tuple[str, ...]:
        """Return the names of the channels of a feature, or their numbers where it has none.

        Raises:
            SamplesError: the data set says nothing of it.
        """
        if feature not in self.features:
            raise self._error(
                f"{INFO}:features", feature, f"one of {brief(list(self.features))}", f"does not describe {feature}"
            )
        told = self.features[feature]
        width = math.prod(told.get("shape") or [0])
        names = told.get("names")
        if isinstance(names, dict):
            names = [name for group in names.values() for name in (group if isinstance(group, list) else [])]
        return tuple(map(str, names)) if names and len(names) == width else tuple(map(str, range(width)))

    def rows(self, episode: EpisodeFiles, columns: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return columns of an episode, float64 [N], or [N, D] with more than one channel.

        Raises:
            SamplesError: the file is damaged, lacks a column or rows, or has another number of channels than the info.
        """
        table = self._table(episode, columns)
        found = {}
        for column in columns:
            values = table.column(column).to_pylist()
            told = self.features.get(column, {}).get("shape")
            try:
                rows = np.array(values, dtype=np.float64).reshape(len(values), -1)
            except (TypeError, ValueError) as error:
                raise self._error(
                    column, None, "a number for each channel of each frame", f"episode {episode.index}: {error}"
                ) from error
            width = math.prod(told) if told else rows.shape[1]
            if rows.shape[1] != width:
                message = f"episode {episode.index}: {column} has {rows.shape[1]} channels, and {INFO} says {width}"
                raise self._error(column, rows.shape[1], f"{width} channels", message)
            found[column] = rows if width > 1 else rows[:, 0]
        return found

    def pictures(self, episode: EpisodeFiles, feature: str) -> Iterator[Rgb]:
        """Yield the pictures that are kept within the parquet file, or in files that it names, in order.

        Raises:
            SamplesError: one is missing, damaged, or holds depths.
        """
        for number, cell in enumerate(self._table(episode, [feature]).column(feature).to_pylist()):
            yield self._decoded(episode, feature, number, cell)

    def _decoded(self, episode: EpisodeFiles, feature: str, number: int, cell: Any) -> Rgb:
        import io

        from PIL import Image

        where = f"episode {episode.index}: {feature} of frame {number}"
        told = cell if isinstance(cell, dict) else {}
        content = told.get("bytes")
        if content is None:
            file = self._beside(episode, feature, str(told.get("path") or ""))
            if file is None:
                expected = "bytes of an image in the parquet file, or the path of a file within the data set"
                raise self._error(feature, told.get("path"), expected, f"{where} is not there")
            with self._edge(feature, "a PNG or JPEG"):
                content = limits.read_bytes(file, limits.PART_BYTES)
        try:
            with Image.open(io.BytesIO(content), formats=PICTURES) as picture:
                if picture.width * picture.height > limits.PIXELS:
                    found, expected = f"{picture.width}x{picture.height}", f"at most {limits.PIXELS} pixels"
                    raise self._error(feature, found, expected, f"{where} is too large")
                if picture.mode not in COLOURS:
                    expected = "an image of 8 bits a channel"
                    raise self._error(
                        feature, picture.mode, expected, f"{where} has mode {picture.mode}, which is for depth images"
                    )
                return np.array(picture.convert("RGB"))
        except SamplesError:
            raise
        except Exception as error:  # of Pillow, for what is no picture or cut short
            raise self._error(feature, None, "a PNG or JPEG", f"{where} cannot be decoded: {error}") from error

    def _beside(self, episode: EpisodeFiles, feature: str, path: str) -> Path | None:
        """Return the file of a picture whose bytes are not in the parquet file; None where it is not in the folder."""
        name = Path(path).name
        folders = [f"images/{feature}/episode{mark}{episode.index:06d}" for mark in "_-"]
        places = [path, *(f"{folder}/{name}" for folder in folders)]
        inside = self.folder.resolve()
        files = [self.folder / place for place in places] if name else []
        return next((each for each in files if each.is_file() and each.resolve().is_relative_to(inside)), None)

    def _patterns(self, *fields: str) -> tuple[str, str]:
        """Return the patterns of paths of data and videos, which lead to files of the folder.

        Raises:
            SamplesError: one leads out, or is no pattern.
        """
        found = {}
        for key, known in (("data_path", fields), ("video_path", (*fields, "video_key"))):
            try:
                needed = key == "data_path" or self.videos
                found[key] = limits.pattern_of(self.info.get(key), known) if needed else ""
                for feature in self.videos:
                    limits.within(self.folder, feature)
            except limits.LimitError as error:
                raise self._error(f"{INFO}:{key}", None, "", str(error)) from error
        return found["data_path"], found["video_path"]

    def video(self, file: Path) -> Video:
        """Open a video of the data set.

        Raises:
            SamplesError: as of ``Video``, and where it is a link that leads out of the folder.
        """
        with self._edge(str(file), "a video"):
            return Video(limits.inside(self.folder, file), self.fps)

    def files(self) -> list[Path]:
        """Return every file that samples come from, pictures that lie beside the tables among them."""
        found = [path for part in ("meta", "images") for path in (self.folder / part).rglob("*") if path.is_file()]
        found += [episode.data for episode in self.episodes]
        found += [clip.file for episode in self.episodes for clip in episode.clips.values()]
        return sorted(set(found))

    def _table(self, episode: EpisodeFiles, columns: Sequence[str]) -> Any:
        try:
            file = limits.inside(self.folder, episode.data)
            table = parquet_files.read_table(file, [*columns, "frame_index"], episode.index).sort_by("frame_index")
        except Exception as error:  # pyarrow raises errors of many kinds
            raise self._unreadable(episode, columns, error) from error
        if table.num_rows != episode.length:
            raise self._error(
                str(episode.data),
                table.num_rows,
                f"{episode.length} rows",
                f"episode {episode.index} has {table.num_rows} rows instead of {episode.length}",
            )
        return table

    def _unreadable(self, episode: EpisodeFiles, columns: Sequence[str], error: Exception) -> SamplesError:
        file, expected = str(episode.data), "a parquet file" + (f" with {', '.join(columns)}" if columns else "")
        if isinstance(error, FileNotFoundError):
            return self._error(file, None, expected, f"episode {episode.index}: the file is missing")
        message = f"episode {episode.index} cannot be read: {limits.cause(error)}"
        return self._error(file, None, expected, message)

    def _episodes_of_v2(self) -> tuple[EpisodeFiles, ...]:
        chunk = int(self.info.get("chunks_size", 1000))
        of_data, of_videos = self._patterns("episode_chunk", "episode_index")
        known: set[int] = set()
        videos, found = self.videos, []
        for told in self._lines("meta/episodes.jsonl"):
            index = int(told["episode_index"])
            if index in known:
                raise ValueError(f"episode {index} occurs twice")
            known.add(index)
            place = {"episode_chunk": index // chunk, "episode_index": index}
            clips = {key: Clip(self.folder / of_videos.format(**place, video_key=key), 0.0) for key in videos}
            tasks = _listed(told.get("tasks"))
            data = self.folder / of_data.format(**place)
            found.append(EpisodeFiles(index, _length(told["length"]), tasks[0], len(tasks), data, clips))
            if len(found) > limits.EPISODES:
                raise limits.LimitError(f"has more than {limits.EPISODES} episodes; split it")
        return tuple(found)

    def _episodes_of_v3(self) -> tuple[EpisodeFiles, ...]:
        import pyarrow.parquet as pq

        files = sorted((self.folder / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise self._error("meta/episodes", None, "parquet files", "the data set has no episodes")
        found = []
        of_data, of_videos = self._patterns("chunk_index", "file_index")
        for file in files:
            try:
                with limits.open_file(file) as stream:
                    names = pq.read_schema(stream).names
                table = parquet_files.read_table(file, [name for name in names if not name.startswith("stats/")])
                rows = table.to_pylist()
                found += [self._episode_of_v3(row, of_data, of_videos) for row in rows]
            except SamplesError:
                raise
            except Exception as error:
                raise self._error(str(file), None, "a row for each episode", f"cannot be read: {error!r}") from error
        return _ended(sorted(found, key=lambda episode: episode.index))

    def _episode_of_v3(self, row: dict[str, Any], of_data: str, of_videos: str) -> EpisodeFiles:
        chunk, number = (int(row[f"data/{name}_index"]) for name in ("chunk", "file"))
        data = self.folder / of_data.format(chunk_index=chunk, file_index=number)
        clips = {}
        for key in self.videos:
            if f"videos/{key}/from_timestamp" not in row:  # named where a camera wants it
                continue
            chunk, number = (int(row[f"videos/{key}/{name}_index"]) for name in ("chunk", "file"))
            file = self.folder / of_videos.format(video_key=key, chunk_index=chunk, file_index=number)
            end = row.get(f"videos/{key}/to_timestamp")
            start = float(row[f"videos/{key}/from_timestamp"])
            clips[key] = Clip(file, start, float(end) if end is not None else np.inf)
        tasks = _listed(row.get("tasks"))
        return EpisodeFiles(int(row["episode_index"]), _length(row["length"]), tasks[0], len(tasks), data, clips)

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        try:
            for line in limits.json_lines(self.folder / name):
                if not isinstance(line, dict):
                    raise ValueError(f"a line contains {type(line).__name__}")
                yield line
        except (OSError, ValueError) as error:
            raise self._error(name, None, "one JSON object a line", f"cannot be read: {error}") from error

    def _require(self) -> None:
        from importlib.util import find_spec

        missing = [name for name in ("pyarrow", "av") if find_spec(name) is None]
        if missing:
            raise self._error(
                "",
                missing,
                "pyarrow and PyAV",
                "reading LeRobot data sets needs pyarrow and PyAV: pip install 'xvla_ros[lerobot]'",
            )

    def _error(self, key: str, value: Any, expected: str, message: str) -> SamplesError:
        return SamplesError([Problem(str(self.folder), key.removeprefix(f"{self.folder}/"), value, expected, message)])


def _features(told: Any) -> dict[str, dict[str, Any]]:
    """Return the features of an info, each with a shape of positive integers.

    Raises:
        ValueError, TypeError: they have another form.
    """
    for name, feature in told.items():
        shape = feature.get("shape") or []
        if not isinstance(shape, list | tuple) or len(shape) > limits.DIMENSIONS:
            raise ValueError(f"{name} has the shape {brief(shape)}")
        if not all(type(each) is int and 0 <= each <= limits.WIDTH for each in shape):
            raise ValueError(f"{name} has the shape {brief(shape)}")
        names = feature.get("names")
        if isinstance(names, str):
            feature["names"] = names = [names]
        if not isinstance(names, dict | list | tuple | None) or len(names or ()) > limits.WIDTH:
            raise ValueError(f"{name} has the names {brief(names)}")
        for key in ("info", "video_info"):
            if not isinstance(feature.get(key), dict | None):
                raise ValueError(f"{name} has the {key} {brief(feature[key])}")
    return dict(told)


def _length(told: Any) -> int:
    length = int(told)
    if not 0 <= length <= limits.VALUES:
        raise ValueError(f"an episode of {length} frames")
    return length


def _listed(tasks: Any) -> list[str]:
    return [tasks] if isinstance(tasks, str) else [str(task or "") for task in tasks or [""]]


def _text_column(table: Any, name: str) -> str:
    """Return the column of a table of texts: the one of that name, or pandas' index, which may have another name.

    Raises:
        ValueError: there is none, or it could be any of several.
    """
    told = (table.schema.pandas_metadata or {}).get("index_columns") or ()
    others = [each for each in table.column_names if each != f"{name}_index"]
    for candidate in (name, *(each for each in told if isinstance(each, str)), "__index_level_0__"):
        if candidate in others:
            return str(candidate)
    if len(others) != 1:
        raise ValueError(f"has the columns {', '.join(others) or 'none'} and no {name}")
    return str(others[0])


def _ended(episodes: Sequence[EpisodeFiles]) -> tuple[EpisodeFiles, ...]:
    """Let no clip reach into the next one of its file."""
    starts: dict[Path, set[float]] = {}
    for episode in episodes:
        for clip in episode.clips.values():
            starts.setdefault(clip.file, set()).add(clip.start)
    sorted_starts = {file: np.array(sorted(found)) for file, found in starts.items()}

    def ended(clip: Clip) -> Clip:
        later = sorted_starts[clip.file]
        place = int(np.searchsorted(later, clip.start, side="right"))
        return replace(clip, end=min(clip.end, float(later[place]))) if place < len(later) else clip

    return tuple(replace(each, clips={key: ended(clip) for key, clip in each.clips.items()}) for each in episodes)


def open_video(file: Path) -> Any:
    """Open a file of one of the formats of videos alone: others, lists of files say, would open what they name.

    Raises:
        LimitError, OSError, FFmpegError: it is none that can be opened.
    """
    import av

    limits.check_file(file)  # FFmpeg would wait for a pipe
    return av.open(str(file), options={"format_whitelist": VIDEOS, "protocol_whitelist": "file"})


class Video:
    """Frames of one video file by their time, best asked for in order.

    Raises:
        SamplesError: the file is missing or no video.
    """

    def __init__(self, file: Path, fps: float) -> None:

        self._file, self._fps, self._half = file, fps, 0.5 / fps
        self._time = -np.inf
        self._frame: Any = None
        try:
            self._container = open_video(file)
            self._stream: Any = self._container.streams.video[0]
            self._check_size(self._stream.codec_context)
            self._stream.thread_type = "AUTO"
            self._frames = self._container.decode(self._stream)
        except SamplesError:
            raise
        except Exception as error:
            raise self._error(f"cannot be opened: {limits.cause(error)}") from error
        if str(self._stream.codec_context.pix_fmt).startswith(DEPTH_FORMATS):
            self._container.close()
            raise self._error(
                f"contains depth images ({self._stream.codec_context.pix_fmt}), expected colours of 8 bits"
            )

    @property
    def end(self) -> float:
        """Time in s at which its last frame ends; infinite where the file does not say."""
        import av

        if self._stream.duration is not None and self._stream.time_base is not None:
            return float((self._stream.duration + (self._stream.start_time or 0)) * self._stream.time_base)
        duration = self._container.duration
        return float(duration / av.time_base) if duration is not None else np.inf

    def at(self, time: float) -> Rgb:
        """Return the frame at ``time`` s, uint8 [H, W, 3].

        Raises:
            SamplesError: there is none within a fifth of a frame, or the file is damaged.
        """
        with limits.edge(SamplesError, lambda cause: self._error(f"no frame at {time:.3f} s: {cause}")):
            return self._at(time)

    def _at(self, time: float) -> Rgb:
        import av

        if not self._time - self._half <= time <= self._time + FAR_AHEAD:
            self._container.seek(max(int((time - self._half) / self._stream.time_base), 0), stream=self._stream)
            self._frames, self._time = self._container.decode(self._stream), -np.inf
        try:
            while self._time < time - self._half:
                self._frame = next(self._frames)
                self._time = float(self._frame.pts * self._stream.time_base)
            self._check_size(self._frame)
        except (StopIteration, av.error.FFmpegError, TypeError) as error:
            raise self._error(f"no frame at {time:.3f} s: the video ends at {self._time:.3f} s") from error
        if abs(self._time - time) > NEAR / self._fps:
            rate = float(self._stream.average_rate or 0.0)
            raise self._error(
                f"no frame at {time:.3f} s: the next is at {self._time:.3f} s. The video has {rate:.3g} frames per "
                f"second, and the data set {self._fps:g}"
            )
        return np.asarray(self._frame.to_ndarray(format="rgb24"))

    def _check_size(self, pictured: Any) -> None:
        if pictured.width * pictured.height > limits.PIXELS:
            raise self._error(f"has {pictured.width}x{pictured.height}; expected at most {limits.PIXELS} pixels")

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _error(self, message: str) -> SamplesError:
        return SamplesError([Problem(str(self._file), "", None, "a frame for each row of the data", message)])
