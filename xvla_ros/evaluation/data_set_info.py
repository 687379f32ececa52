# SPDX-License-Identifier: Apache-2.0
"""``xvla data info`` of a LeRobot data set: what it holds, and whether it suits a robot."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xvla_ros.evaluation.bag_info import aligned
from xvla_ros.limits import LimitError, inside
from xvla_ros.recordings.lerobot_files import WRITTEN, LeRobotFiles, open_video
from xvla_ros.recordings.lerobot_mapping import LeRobotMapping, profile_of_data_set, read_mapping
from xvla_ros.recordings.lerobot_recording import LeRobotOptions, LeRobotRecording
from xvla_ros.recordings.recording import SamplesError
from xvla_ros.robots.profile import Profile, load_robot

SCHEMA_VERSION = 1
SHOWN = 10  # tasks, in lines for people


@dataclass(frozen=True)
class ChannelInfo:
    """Lowest and highest value of a channel, over all episodes that can be read, as the files have it."""

    feature: str
    name: str
    low: float
    high: float


@dataclass(frozen=True)
class PicturesInfo:
    """Pictures of a camera.

    Attributes:
        feature, width, height: of it, as ``meta/info.json`` says.
        codec, pixels: of the first video; empty for pictures within the parquet files, or where it cannot be opened.
        files: how many videos, and their ``megabytes``; of them ``missing`` are not there.
    """

    feature: str
    width: int
    height: int
    codec: str = ""
    pixels: str = ""
    files: int = 0
    megabytes: float = 0.0
    missing: int = 0


@dataclass(frozen=True)
class DataSetInfo:
    """Everything that is reported of a data set.

    Attributes:
        path, version, robot_type, fps: of the data set, fps in Hz.
        episodes, frames, duration: how many, and s in all.
        shortest, longest: episode, s.
        tasks: what was to be done → episodes.
        pictures, channels: of its features.
        exported: whether ``xvla export`` wrote it.
        robot: whose profile it was held against; empty for none.
        actions: what a policy of that robot would learn: what was commanded, or measured.
        problems: why it must not be used as it is; notes: what a person should know.
    """

    path: str
    version: str
    robot_type: str
    fps: float
    episodes: int
    frames: int
    duration: float
    shortest: float
    longest: float
    tasks: dict[str, int]
    pictures: tuple[PicturesInfo, ...]
    channels: tuple[ChannelInfo, ...]
    exported: bool
    robot: str = ""
    actions: str = ""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """1 where something is wrong with it, or it does not suit the robot."""
        return 1 if self.problems else 0

    def to_mapping(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def inspect(folder: Path, robot: str = "", mapping: str = "") -> DataSetInfo:
    """Read the numbers of a data set and look at its videos, and return what it holds.

    Args:
        folder: of the data set.
        robot: name of a profile or its file; empty takes the one ``xvla export`` wrote, if any.
        mapping: file that says how features become the profile's; empty for none.

    Raises:
        SamplesError: it is no data set, or its ``meta`` is damaged.
        ProfileError: the robot has no profile.
    """
    files, exported = LeRobotFiles(folder), (folder / WRITTEN).is_file()
    profile = load_robot(robot) if robot else profile_of_data_set(folder) if exported else None
    channels, problems = _channels(files)
    pictures = tuple(_pictures(files, feature) for feature in files.features if _has_pictures(files, feature))
    lengths = [episode.length for episode in files.episodes]
    tasks = Counter(episode.task for episode in files.episodes)
    actions, notes = "", tuple[str, ...]()
    if profile is not None:
        actions, found, notes = _for_robot(folder, profile, mapping)
        problems = found if found else problems
    else:
        problems += [f"{each.feature}: {each.missing} videos are missing" for each in pictures if each.missing]
    return DataSetInfo(
        str(folder),
        files.version,
        str(files.info.get("robot_type") or ""),
        files.fps,
        len(lengths),
        sum(lengths),
        sum(lengths) / files.fps,
        min(lengths, default=0) / files.fps,
        max(lengths, default=0) / files.fps,
        dict(tasks.most_common()),
        pictures,
        channels,
        exported,
        profile.name if profile is not None else "",
        actions,
        tuple(problems),
        notes,
    )


def _for_robot(folder: Path, profile: Profile, mapping: str) -> tuple[str, list[str], tuple[str, ...]]:
    """Return what a robot's training makes of a data set: the kind of actions, problems and notes."""
    told = read_mapping(Path(mapping)) if mapping else LeRobotMapping()
    try:
        survey = LeRobotRecording(folder, profile, LeRobotOptions(told, only_successes=False)).survey()
    except SamplesError as error:
        return "", [str(problem).removeprefix(f"{folder}: ") for problem in error.problems], ()
    left_out = [f"skipped: {each}".replace(f"{folder}: ", "") for each in survey.left_out]
    return (
        survey.actions,
        [str(each).removeprefix(f"{folder}: ") for each in survey.problems],
        (*survey.notes, *left_out),
    )


def _has_pictures(files: LeRobotFiles, feature: str) -> bool:
    return files.features[feature].get("dtype") in ("video", "image")


def _channels(files: LeRobotFiles) -> tuple[tuple[ChannelInfo, ...], list[str]]:
    """Return the ranges of the numbers that are no index, and the episodes that cannot be read."""
    wanted = [
        name
        for name, told in files.features.items()
        if str(told.get("dtype", "")).startswith("float") and name != "timestamp" and len(told.get("shape") or []) == 1
    ]
    extremes: dict[str, list[Any]] = {name: [] for name in wanted}
    problems = []
    for episode in files.episodes if wanted else ():
        try:
            rows = files.rows(episode, wanted)
        except SamplesError as error:
            problems += [str(problem).removeprefix(f"{files.folder}: ") for problem in error.problems]
            continue
        for name, values in rows.items():
            values = values.reshape(len(values), -1)
            extremes[name].append((values.min(axis=0), values.max(axis=0)))
    found = []
    for name, ranges in extremes.items():
        if ranges:
            low, high = np.min([low for low, _ in ranges], axis=0), np.max([high for _, high in ranges], axis=0)
            found += [
                ChannelInfo(name, channel, float(least), float(most))
                for channel, least, most in zip(files.names(name), low, high, strict=True)
            ]
    return tuple(found), problems


def _pictures(files: LeRobotFiles, feature: str) -> PicturesInfo:
    import av

    height, width = ([*(files.features[feature].get("shape") or []), 0, 0])[:2]
    videos = {episode.clips[feature].file for episode in files.episodes if feature in episode.clips}
    there = sorted(file for file in videos if file.is_file())
    codec = pixels = ""
    if there:
        try:
            with open_video(inside(files.folder, there[0])) as video:
                context: Any = video.streams.video[0].codec_context
                # the decoder of AV1 has a name of its own
                codec, pixels = str(context.name).replace("libdav1d", "av1"), str(context.pix_fmt)
        except (OSError, IndexError, LimitError, av.error.FFmpegError):
            codec = "cannot be opened"
    size = sum(file.stat().st_size for file in there) / 1e6
    return PicturesInfo(feature, width, height, codec, pixels, len(videos), size, len(videos) - len(there))


def text_of(info: DataSetInfo) -> str:
    """Return the report in lines for people."""
    lines = [
        f"{info.path}: LeRobot {info.version}, {info.robot_type or 'no robot type'}, {info.episodes} episodes, "
        f"{info.frames} frames at {info.fps:g} Hz, {info.duration:.1f} s ({info.shortest:.1f} to {info.longest:.1f} s)"
        + "; written by xvla export"
        * info.exported
    ]
    tasks = [(str(count), task or "no task") for task, count in list(info.tasks.items())[:SHOWN]]
    lines += ["", *aligned([("episodes", "task"), *tasks])]
    lines += [f"and {len(info.tasks) - SHOWN} other tasks"] if len(info.tasks) > SHOWN else []
    cameras = [
        (
            each.feature,
            f"{each.width}x{each.height}",
            f"{each.codec} {each.pixels}" if each.codec else "in the parquet files",
            str(each.files),
            f"{each.megabytes:.1f} MB",
            f"{each.missing} missing" * bool(each.missing),
        )
        for each in info.pictures
    ]
    lines += ["", *aligned([("camera", "size", "video", "files", "", ""), *cameras])] if cameras else []
    ranges = [(each.feature, each.name, f"{each.low:.4g}", f"{each.high:.4g}") for each in info.channels]
    lines += ["", *aligned([("feature", "channel", "lowest", "highest"), *ranges])] if ranges else []
    if info.robot:
        fits = (
            f"can be used for training, its actions are {info.actions}"
            if not info.problems
            else "must not be used as it is:"
        )
        lines += ["", f"for {info.robot}: {fits}"]
    elif info.problems:
        lines += ["", "must not be used as it is:"]
    return "\n".join([*lines, *(f"  {each}" for each in (*info.problems, *info.notes))])
