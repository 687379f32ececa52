# SPDX-License-Identifier: Apache-2.0
"""Small LeRobot data sets of both versions, written with pyarrow and PyAV as LeRobot documents the format."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = VIDEO_FPS = 20
SIZE = (48, 64)
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
NAMES = [f"{side}_{joint}.pos" for side in ("left", "right") for joint in JOINTS]
CAMERAS = ("observation.images.top", "observation.images.left", "observation.images.right")


def state(seconds: Any) -> np.ndarray:
    """Degrees, grippers 0..100, at s since the beginning of an episode."""
    number = np.arange(12)
    values = 30.0 * np.sin(np.asarray(seconds)[..., None] * 2.0 + number)
    values[..., [5, 11]] = 50 + values[..., [5, 11]]
    return values


def action(seconds: Any) -> np.ndarray:
    """Where the joints are to be: the state 0.1 s later."""
    return state(np.asarray(seconds) + 0.1)


def grey(episode: int, frame: int, camera: int) -> int:
    """The level of a picture of one grey; it survives the coding of a video to a few levels."""
    return 20 + 60 * camera + 4 * (frame % 10) + 2 * episode


def write(
    folder: Path,
    version: str,
    lengths: tuple[int, ...] = (30, 24),
    video: bool | str = True,
    tasks: tuple[str, ...] = ("touch the red cube", "touch the blue cube"),
    **changes: Any,
) -> Path:
    """Write a data set; ``changes`` replace or add columns: name → function of (episode, values or None).

    Pictures are in videos, or in the parquet file; ``video="beside"`` leaves the paths of files there.
    """
    rows = [_rows(episode, length, tasks, video, changes) for episode, length in enumerate(lengths)]
    features = {
        "observation.state": {"dtype": "float32", "shape": [12], "names": NAMES},
        "action": {"dtype": "float32", "shape": [12], "names": NAMES},
        **{
            camera: {
                "dtype": "video" if video is True else "image",
                "shape": [*SIZE, 3],
                "names": ["height", "width", "channel"],
            }
            for camera in CAMERAS
        },
        **{name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "episode_index", "index")},
    }
    info = {
        "codebase_version": version,
        "fps": FPS,
        "features": features,
        "chunks_size": 1000,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
    }
    (folder / "meta").mkdir(parents=True)
    (_write_v3 if version.startswith("v3") else _write_v2)(folder, info, rows, lengths, tasks, video is True)
    if video == "beside":
        for episode, length in enumerate(lengths):
            for number, camera in enumerate(CAMERAS):
                for frame in range(length):
                    place = folder / _beside(camera, episode, frame)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(png(grey(episode, frame, number)))
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    return folder


def _rows(episode: int, length: int, tasks: tuple[str, ...], video: bool, changes: dict[str, Any]) -> dict[str, Any]:
    seconds = np.arange(length) / FPS
    columns: dict[str, Any] = {
        "observation.state": state(seconds),
        "action": action(seconds),
        "timestamp": seconds,
        "frame_index": np.arange(length),
        "episode_index": np.full(length, episode),
        "index": np.arange(length) + 1000 * episode,
        "task_index": np.full(length, episode % len(tasks)),
    }
    for name, change in changes.items():
        columns[name] = change(episode, columns.get(name))
    arrays = {
        name: values
        if isinstance(values, pa.Array)
        else pa.array([list(map(float, row)) for row in values], pa.list_(pa.float32()))
        if values.ndim == 2
        else pa.array(values, pa.float32() if name == "timestamp" else pa.int64())
        for name, values in columns.items()
    }
    if video is not True:
        for number, camera in enumerate(CAMERAS):
            if camera in changes:
                continue
            cells = [
                {"bytes": None, "path": _beside(camera, episode, frame)}
                if video == "beside"
                else {"bytes": png(grey(episode, frame, number)), "path": None}
                for frame in range(length)
            ]
            arrays[camera] = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return arrays


def _beside(camera: str, episode: int, frame: int) -> str:
    return f"images/{camera}/episode_{episode:06d}/frame_{frame:06d}.png"


def edit_episodes(folder: Path, change: Any) -> None:
    """Change the rows of the episodes of v3.0: function of the list of their dictionaries."""
    file = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rows = pq.read_table(file).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), file)


def _write_v2(folder: Path, info: dict[str, Any], rows: list[Any], lengths: Any, tasks: Any, video: bool) -> None:
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    episodes = []
    for episode, length in enumerate(lengths):
        data = folder / info["data_path"].format(episode_chunk=0, episode_index=episode)
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows[episode]), data)
        for number, camera in enumerate(CAMERAS if video else ()):
            place = info["video_path"].format(episode_chunk=0, episode_index=episode, video_key=camera)
            _video(folder / place, [grey(episode, frame, number) for frame in range(length)])
        episodes.append({"episode_index": episode, "tasks": [tasks[episode % len(tasks)]], "length": length})
    text = "\n".join(map(json.dumps, episodes)) + "\n"
    (folder / "meta" / "episodes.jsonl").write_text(text)
    lines = [json.dumps({"task_index": number, "task": task}) for number, task in enumerate(tasks)]
    (folder / "meta" / "tasks.jsonl").write_text("\n".join(lines) + "\n")


def _write_v3(folder: Path, info: dict[str, Any], rows: list[Any], lengths: Any, tasks: Any, video: bool) -> None:
    info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    data = folder / info["data_path"].format(chunk_index=0, file_index=0)
    data.parent.mkdir(parents=True)
    pq.write_table(pa.concat_tables([pa.table(each) for each in rows]), data)
    for number, camera in enumerate(CAMERAS if video else ()):
        place = info["video_path"].format(chunk_index=0, file_index=0, video_key=camera)
        _video(
            folder / place,
            [grey(episode, frame, number) for episode, length in enumerate(lengths) for frame in range(length)],
        )
    first = np.cumsum([0, *lengths])
    table: dict[str, Any] = {
        "episode_index": list(range(len(lengths))),
        "length": list(lengths),
        "tasks": [[tasks[episode % len(tasks)]] for episode in range(len(lengths))],
        "data/chunk_index": [0] * len(lengths),
        "data/file_index": [0] * len(lengths),
        "dataset_from_index": first[:-1].tolist(),
        "dataset_to_index": first[1:].tolist(),
        "stats/action/mean": [[0.0] * 12] * len(lengths),
    }
    for camera in CAMERAS if video else ():
        table |= {
            f"videos/{camera}/chunk_index": [0] * len(lengths),
            f"videos/{camera}/file_index": [0] * len(lengths),
            f"videos/{camera}/from_timestamp": (first[:-1] / FPS).tolist(),
            f"videos/{camera}/to_timestamp": (first[1:] / FPS).tolist(),
        }
    file = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table(table), file)
    # as pandas keeps a table whose index are the texts
    texts = pa.table({"task_index": list(range(len(tasks))), "__index_level_0__": list(tasks)})
    pq.write_table(texts, folder / "meta" / "tasks.parquet")


def png(level: int) -> bytes:
    """A picture of one grey."""
    content = io.BytesIO()
    Image.fromarray(np.full((*SIZE, 3), level, np.uint8)).save(content, "png")
    return content.getvalue()


def _video(file: Path, levels: list[int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=VIDEO_FPS)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.options = {"g": "2", "crf": "10"}
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((*SIZE, 3), level, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
