# SPDX-License-Identifier: Apache-2.0
"""The files of a LeRobot data set, v2.0 to v3: which episodes it has, their numbers, and frames of its videos.

Read with pyarrow and PyAV; LeRobot is not imported. Formats as its documentation gives them: v2.1 has a parquet file
and a video for each episode, v3.0 many episodes in each file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import Problem
from xvla_ros.recordings.recording import SamplesError

INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
FAR_AHEAD = 2.0  # s; for a frame further ahead than this the reader seeks a key frame

Rgb = NDArray[np.uint8]


@dataclass(frozen=True)
class Clip:
    """The part of a video file that belongs to an episode; ``start`` in s within the file."""

    file: Path
    start: float


@dataclass(frozen=True)
class EpisodeFiles:
    """Where one episode is.

    Attributes:
        index: its number.
        length: frames.
        task: what was to be done; empty where the data set does not say.
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
            self.info: dict[str, Any] = json.loads((folder / INFO).read_text(encoding="utf-8"))
            self.version = str(self.info["codebase_version"])
            self.features: dict[str, dict[str, Any]] = self.info["features"]
            self.fps = float(self.info["fps"])
        except FileNotFoundError:
            raise self._error(INFO, None, "the folder of a LeRobot data set", "there is no such file") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._error(INFO, None, "codebase_version, fps and features", f"cannot be read: {error!r}") from error
        if self.version not in VERSIONS:
            raise self._error(
                f"{INFO}:codebase_version",
                self.version,
                f"one of {', '.join(VERSIONS)}",
                f"is of version {self.version}; convert it with LeRobot",
            )
        self.episodes = self._episodes_of_v3() if self.version.startswith("v3") else self._episodes_of_v2()

    @property
    def videos(self) -> tuple[str, ...]:
        """Features that are kept as videos."""
        return tuple(name for name, feature in self.features.items() if feature.get("dtype") == "video")

    def names(self, feature: str) -> tuple[str, ...]:
        """Return the names of the channels of a feature, or their numbers where it has none."""
        told = self.features[feature]
        width = int(np.prod(told.get("shape") or [0]))
        names = told.get("names")
        if isinstance(names, dict):
            names = [name for group in names.values() for name in (group if isinstance(group, list) else [])]
        return tuple(map(str, names)) if names and len(names) == width else tuple(map(str, range(width)))

    def rows(self, episode: EpisodeFiles, columns: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return columns of an episode, float64 [N] or [N, D].

        Raises:
            SamplesError: the file is damaged, lacks a column or rows.
        """
        table = self._table(episode, columns)
        found = {}
        for column in columns:
            values = table.column(column).to_pylist()
            try:
                found[column] = np.array(values, dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise self._error(
                    column, None, "a number for each channel of each frame", f"{episode.data.name}: {error}"
                ) from error
        return found

    def pictures(self, episode: EpisodeFiles, feature: str) -> Iterator[Rgb]:
        """Yield the pictures that are kept within the parquet file, in order."""
        import io

        from PIL import Image

        for cell in self._table(episode, [feature]).column(feature).to_pylist():
            with Image.open(io.BytesIO(cell["bytes"])) as picture:
                yield np.array(picture.convert("RGB"))

    def files(self) -> list[Path]:
        """Return every file that samples come from."""
        found = [path for path in (self.folder / "meta").rglob("*") if path.is_file()]
        found += [episode.data for episode in self.episodes]
        found += [clip.file for episode in self.episodes for clip in episode.clips.values()]
        return sorted(set(found))

    def _table(self, episode: EpisodeFiles, columns: Sequence[str]) -> Any:
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(
                episode.data, columns=[*columns, "frame_index"], filters=[("episode_index", "=", episode.index)]
            ).sort_by("frame_index")
        except FileNotFoundError:
            raise self._error(
                str(episode.data), None, "a parquet file", f"episode {episode.index}: the file is missing"
            ) from None
        except Exception as error:  # pyarrow raises errors of many kinds
            raise self._error(
                str(episode.data),
                None,
                f"a parquet file with {', '.join(columns)}",
                f"episode {episode.index} cannot be read: {str(error).splitlines()[0]}",
            ) from error
        if table.num_rows != episode.length:
            raise self._error(
                str(episode.data),
                table.num_rows,
                f"{episode.length} rows",
                f"episode {episode.index} has {table.num_rows} rows instead of {episode.length}",
            )
        return table

    def _episodes_of_v2(self) -> tuple[EpisodeFiles, ...]:
        chunk = int(self.info.get("chunks_size", 1000))
        found = []
        for told in self._lines("meta/episodes.jsonl"):
            index = int(told["episode_index"])
            place = {"episode_chunk": index // chunk, "episode_index": index}
            clips = {
                key: Clip(self.folder / str(self.info["video_path"]).format(**place, video_key=key), 0.0)
                for key in self.videos
            }
            tasks = told.get("tasks") or [""]
            data = self.folder / str(self.info["data_path"]).format(**place)
            found.append(EpisodeFiles(index, int(told["length"]), str(tasks[0]), len(tasks), data, clips))
        return tuple(found)

    def _episodes_of_v3(self) -> tuple[EpisodeFiles, ...]:
        import pyarrow.parquet as pq

        files = sorted((self.folder / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise self._error("meta/episodes", None, "parquet files", "there are no episodes")
        found = []
        for file in files:
            try:
                schema = pq.read_schema(file)
                rows = pq.read_table(
                    file, columns=[name for name in schema.names if not name.startswith("stats/")]
                ).to_pylist()
                found += [self._episode_of_v3(row) for row in rows]
            except Exception as error:
                raise self._error(str(file), None, "a row for each episode", f"cannot be read: {error!r}") from error
        return tuple(sorted(found, key=lambda episode: episode.index))

    def _episode_of_v3(self, row: dict[str, Any]) -> EpisodeFiles:
        data = str(self.info["data_path"]).format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        clips = {}
        for key in self.videos:
            file = str(self.info["video_path"]).format(
                video_key=key, chunk_index=row[f"videos/{key}/chunk_index"], file_index=row[f"videos/{key}/file_index"]
            )
            clips[key] = Clip(self.folder / file, float(row[f"videos/{key}/from_timestamp"]))
        tasks = row.get("tasks") or [""]
        return EpisodeFiles(
            int(row["episode_index"]), int(row["length"]), str(tasks[0]), len(tasks), self.folder / data, clips
        )

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        try:
            text = (self.folder / name).read_text(encoding="utf-8")
            yield from (json.loads(line) for line in text.splitlines() if line.strip())
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
                "LeRobot data sets are read with pyarrow and PyAV: pip install 'xvla_ros[lerobot]'",
            )

    def _error(self, key: str, value: Any, expected: str, message: str) -> SamplesError:
        return SamplesError([Problem(str(self.folder), key.removeprefix(f"{self.folder}/"), value, expected, message)])


class Video:
    """Frames of one video file by their time, best asked for in order.

    Raises:
        SamplesError: the file is missing or no video.
    """

    def __init__(self, file: Path, fps: float) -> None:
        import av

        self._file, self._half = file, 0.5 / fps
        self._time = -np.inf
        self._frame: Any = None
        try:
            self._container = av.open(str(file))
            self._stream: Any = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"
            self._frames = self._container.decode(self._stream)
        except (OSError, IndexError, av.error.FFmpegError) as error:
            raise self._error(f"cannot be opened: {error}") from error

    def at(self, time: float) -> Rgb:
        """Return the frame at ``time`` s, uint8 [H, W, 3].

        Raises:
            SamplesError: there is none within half a frame, or the file is damaged.
        """
        import av

        if not self._time - self._half <= time <= self._time + FAR_AHEAD:
            self._container.seek(max(int((time - self._half) / self._stream.time_base), 0), stream=self._stream)
            self._frames, self._time = self._container.decode(self._stream), -np.inf
        try:
            while self._time < time - self._half:
                self._frame = next(self._frames)
                self._time = float(self._frame.pts * self._stream.time_base)
        except (StopIteration, av.error.FFmpegError) as error:
            raise self._error(f"no frame at {time:.3f} s: the video ends at {self._time:.3f} s") from error
        if abs(self._time - time) > 2 * self._half:
            raise self._error(f"no frame at {time:.3f} s: the next is at {self._time:.3f} s")
        return np.asarray(self._frame.to_ndarray(format="rgb24"))

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _error(self, message: str) -> SamplesError:
        return SamplesError([Problem(str(self._file), "", None, "a frame for each row of the data", message)])
