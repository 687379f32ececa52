# SPDX-License-Identifier: Apache-2.0
"""Episodes and frames of a LeRobot data set, its features brought to a profile's cameras, joints and units."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import KinematicsError, MessageError, Problem, ProfileError, did_you_mean
from xvla_ros.observation.faults import CAMERA_MISSING, Fault
from xvla_ros.observation.images import view_of
from xvla_ros.recordings.action_checks import action_problems
from xvla_ros.recordings.action_path import ActionPath, Channels
from xvla_ros.recordings.bag_paths import tool_actions
from xvla_ros.recordings.bag_recording import Seen
from xvla_ros.recordings.bags import sampled
from xvla_ros.recordings.lerobot_files import LANGUAGE, EpisodeFiles, LeRobotFiles, Video
from xvla_ros.recordings.lerobot_mapping import (
    ChannelSource,
    Columns,
    LeRobotMapping,
    columns_of,
    place_of,
    written_mapping,
    written_origins,
    written_profile,
)
from xvla_ros.recordings.recording import (
    Episode,
    Frame,
    LostEpisode,
    SamplesError,
    Survey,
    joint_problems,
    joints_outside,
    path_problems,
    profile_essence,
)
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.joints import from_policy, gripper_joints, to_policy
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.tools import tool_arms
from xvla_ros.types import NS, Floats, Observation

READER_VERSION = 4
UNIT_ROOM = 0.05  # by which a gripper of 0..1 may be beyond its ends
UNIT_USED = 0.5  # of 0..1, which a gripper in use moves at least; one that stays closed at 0..100 trembles by less
FAR_MORE = 10.0  # range of a gripper that cannot be one of 0..1, or of rad or m
WHOLE = 1 << 28  # bytes up to which a table goes into the fingerprint whole; of larger files, and of videos, parts


@dataclass(frozen=True)
class LeRobotOptions:
    """How a LeRobot data set is read; see ``DatasetSettings``."""

    mapping: LeRobotMapping = field(default_factory=LeRobotMapping)
    actions: Literal["auto", "planned", "commanded", "measured"] = "auto"
    rate: float | None = None
    instruction: str = ""
    episodes: frozenset[int] = frozenset()  # numbers of those wanted; empty wants all
    skip_bad: bool = False
    only_successes: bool = True  # leave out episodes that xvla export wrote as failed


@dataclass(frozen=True, eq=False)
class _Read:
    """An episode as it was read: its files, what trains on it, and its numbers.

    Attributes:
        state: [N, P] in the policy's units.
        joints: measured and commanded [N, J], rad or m.
        measured: as joints, or the vectors they are.
        pair: states and actions in the data set's units.
    """

    files: EpisodeFiles
    episode: Episode
    state: Floats
    joints: tuple[Floats, Floats]
    measured: Floats
    pair: tuple[Floats, Floats]


class LeRobotRecording:
    """One data set folder of one robot.

    Args:
        folder: with ``meta/info.json``.
        profile: the robot.
        options: how to read it, its ``mapping`` above all; without one a data set of ``xvla export`` says it itself.
    """

    def __init__(self, folder: Path, profile: Profile, options: LeRobotOptions = LeRobotOptions()) -> None:
        if options.mapping == LeRobotMapping():
            options = replace(options, mapping=written_mapping(folder, profile) or options.mapping)
        self._folder, self._profile, self._options = folder, profile, options
        self._opened: LeRobotFiles | None = None
        self._states: list[Floats] = []
        self._joints_of: list[tuple[Floats, Floats]] = []  # measured and commanded, rad or m, of each episode
        self._kept: list[EpisodeFiles] = []
        self._ends: dict[Path, float] = {}

    @property
    def source(self) -> str:
        return str(self._folder)

    @property
    def profile(self) -> Profile:
        return self._profile

    @property
    def _files(self) -> LeRobotFiles:
        if self._opened is None:
            self._opened = LeRobotFiles(self._folder)
        return self._opened

    @cached_property
    def _written(self) -> Profile | None:
        try:
            return written_profile(self._folder)
        except ProfileError as error:
            raise SamplesError(error.problems) from error

    def opened(self) -> AbstractContextManager[object]:
        """Return a context that does nothing: its files are opened one by one."""
        return nullcontext()

    def survey(self) -> Survey:
        """Read the numbers of every episode.

        Raises:
            SamplesError: it is no data set, or lacks features that the profile needs.
        """
        problems = self._camera_problems()
        if not self._files.episodes:
            problems.append(self._problem("meta/episodes", 0, "at least one episode", "has no episode"))
        commanded = self._options.actions != "measured" and self._options.mapping.action in self._files.features
        if self._options.actions == "planned":
            problems.append(
                self._problem(
                    "actions",
                    "planned",
                    "commanded or measured",
                    "contains one action per frame and no plans: set actions to commanded",
                )
            )
        if self._options.actions == "commanded" and not commanded:
            problems.append(
                self._problem(
                    "features",
                    self._options.mapping.action,
                    "a feature of the data set",
                    f"has no {self._options.mapping.action}: set mapping.action",
                )
            )
        if problems:
            raise SamplesError(problems)
        encoder, state = self._encoder(), self._columns(self._options.mapping.state, self._options.mapping.channels)
        differing = {**self._options.mapping.channels, **self._options.mapping.action_channels}
        action = self._columns(self._options.mapping.action, differing) if commanded else state
        read: list[_Read] = []
        left_out: list[Problem] = []
        skipped: dict[str, int] = {}
        origins = written_origins(self._folder)
        chosen = self._chosen()
        for files in chosen:
            origin = origins.get(files.index, {})
            if self._options.only_successes and origin.get("success") is False:
                skipped["failed"] = skipped.get("failed", 0) + 1
                continue
            try:
                found, rows, words = self._episode_problems(files, commanded)
            except SamplesError as error:
                left_out += error.problems[:1]
                continue
            if found:
                left_out += found[:1]
                continue
            # they are float32 s: beyond a microsecond the digits mean nothing
            times = np.rint(rows["timestamp"] * 1e6).astype(np.int64) * 1000
            seen = state.take(rows[self._options.mapping.state])
            told = action.take(rows[self._options.mapping.action]) if commanded else seen
            measured, values = self._joints(seen), self._joints(told)
            path = ActionPath(times, self._actions(values, encoder).astype(np.float32), Channels.of(self._profile))
            if bad := path_problems(self.source, f"episode {files.index}", path, self._profile.channels):
                left_out += bad[:1]
                continue
            first, *others = _changes(times, words)
            seed = origin.get("seed")
            episode = Episode(
                str(files.index), first[1], origin.get("success"), int(times[0]), int(times[-1]), path,
                str(origin.get("task") or ""), seed if isinstance(seed, int) else None, changes=tuple(others),
            )  # fmt: skip
            joints = self._as_joints(measured), self._as_joints(values)
            read.append(_Read(files, episode, self._state(measured, encoder), joints, measured, (seen, told)))
        read = self._without_strays(read, left_out)
        self._states, self._joints_of = [each.state for each in read], [each.joints for each in read]
        self._kept, episodes = [each.files for each in read], [each.episode for each in read]
        problems = self._too_many(left_out, len(chosen))
        notes: list[str] = []
        if not problems and read:
            pairs = [each.pair for each in read] if commanded else []
            problems, notes = self._unit_problems([each.measured for each in read], pairs)
        if not read and not problems:
            expected, message = "an episode that succeeded, or only_successes set to false", "has failed episodes alone"
            problems = [self._problem("only_successes", True, expected, message)]
        return Survey(
            tuple(episodes),
            tuple(problems),
            self._files.fps,
            "commanded" if commanded else "measured",
            skipped,
            (*self._word_notes(episodes), *notes),
            tuple(left_out),
        )

    def _without_strays(self, read: list[_Read], left_out: list[Problem]) -> list[_Read]:
        """Leave out the episodes with positions far outside the limits, unless they are as many as with wrong units."""
        if self._options.mapping.units == "vector":
            return read
        strays = {}
        for each in read:
            low, high = each.measured.min(axis=0), each.measured.max(axis=0)
            if problem := joints_outside(self.source, self._profile, low, high):
                strays[each.files.index] = replace(problem, message=f"episode {each.files.index}: {problem.message}")
        if 2 * len(strays) >= len(read):
            return read
        left_out += strays.values()
        return [each for each in read if each.files.index not in strays]

    def _chosen(self) -> list[EpisodeFiles]:
        """Return the episodes that the options want.

        Raises:
            SamplesError: naming those that are not there.
        """
        wanted, known = self._options.episodes, {files.index for files in self._files.episodes}
        if missing := sorted(wanted - known):
            expected = f"numbers of {min(known)}…{max(known)}"
            message = f"has no episode {', '.join(map(str, missing[:5]))}"
            raise SamplesError([self._problem("episodes", missing[:5], expected, message)])
        return [files for files in self._files.episodes if not wanted or files.index in wanted]

    def _episode_problems(
        self, files: EpisodeFiles, commanded: bool
    ) -> tuple[list[Problem], dict[str, Floats], list[str]]:
        """Read an episode's numbers and words; return what is wrong with it alone, the numbers and the words.

        Raises:
            SamplesError: they cannot be read.
        """
        name, mapping = f"episode {files.index}", self._options.mapping
        if not files.length:
            return [self._problem(name, 0, "at least two frames", f"{name} has no frame")], {}, []
        rows = self._files.rows(files, ["timestamp", mapping.state, *([mapping.action] if commanded else [])])
        times = np.rint(rows["timestamp"] * 1e6).astype(np.int64) * 1000
        found = self._row_problems(name, rows, times) or self._clip_problems(name, files, times)
        if self._options.instruction:
            return found, rows, [self._options.instruction] * files.length
        words = [text or self._profile.instruction for text in self._files.words(files, mapping.words)]
        if not all(words):
            found.append(self._problem(name, "", "a task description", f"{name} has no task: set instruction"))
        return found, rows, words

    def _clip_problems(self, name: str, files: EpisodeFiles, times: NDArray[np.int64]) -> list[Problem]:
        """Find rows that lie behind the end of their pictures."""
        problems = []
        wanted = set(self._cameras().values())
        for feature, clip in files.clips.items():
            if feature not in wanted:
                continue
            place = str(clip.file.relative_to(self._folder))
            if not clip.file.is_file():
                problems.append(self._problem(place, None, "a video file", f"{name}: the file is missing"))
                continue
            end = min(clip.end, self._video_end(clip.file))
            beyond = int((clip.start + times / NS > end - 0.4 / self._files.fps).sum())
            if beyond:
                problems.append(
                    self._problem(
                        place, round(clip.start + float(times[-1]) / NS, 3), f"frames up to {end:.3f} s at most",
                        f"{name}: {beyond} of its {len(times)} rows are after the end of their images of {feature}",
                    )
                )  # fmt: skip
        return problems

    def _video_end(self, file: Path) -> float:
        if file not in self._ends:
            video = self._files.video(file)
            self._ends[file] = video.end
            video.close()
        return self._ends[file]

    def _too_many(self, left_out: Sequence[Problem], count: int) -> list[Problem]:
        """Return the problems of episodes where they are too many for chance, or all; none where the rest may count."""
        if not left_out or (len(left_out) < count and (self._options.skip_bad or 2 * len(left_out) < count)):
            return []
        hint = "" if len(left_out) == count else ": choose other episodes with episodes, or skip these with skip_bad"
        message = f"{len(left_out)} of {count} episodes cannot be used{hint}"
        return [*left_out, self._problem("episodes", len(left_out), "less than half of them", message)]

    def _unit_problems(
        self, joints: Sequence[Floats], pairs: Sequence[tuple[Floats, Floats]]
    ) -> tuple[list[Problem], list[str]]:
        """Return what looks wrong with the units of the state, or with the actions beside it, and what may be.

        Args:
            joints: the states of each episode, in rad or m, or as the vectors they are.
            pairs: states and actions of each episode in the data set's units; none where nothing is commanded.
        """
        seen, told = [state for state, _ in pairs], [action for _, action in pairs]
        if self._options.mapping.units == "vector":
            if not pairs:
                return [], []
            together = np.concatenate(seen)
            names = [*self._profile.channels, *map(str, range(len(self._profile.channels), together.shape[1]))]
            found = action_problems(self.source, names, np.ptp(together, axis=0), seen, told)
            # a vector may be steps on purpose
            return [], [f"{self._folder}: {problem.message}" for problem in found]
        low = np.min([each.min(axis=0) for each in joints], axis=0)
        high = np.max([each.max(axis=0) for each in joints], axis=0)
        problems = joint_problems(self.source, self._profile, low, high) or self._small_grippers(low, high)
        if problems or not pairs:
            return problems, []
        limits = np.array([(joint.lower, joint.upper) for joint in self._profile.joints.ordered]).T
        if self._options.mapping.units == "policy":
            limits = to_policy(limits, self._profile)
        sizes = np.abs(limits[1] - limits[0])
        return action_problems(self.source, self._profile.joints.policy_order, sizes, seen, told), []

    def _small_grippers(self, low: Floats, high: Floats) -> list[Problem]:
        """Return the grippers that move within 0..1 where the profile has far more, unless something states their unit.

        Args:
            low, high: extremes [J] of the joints, rad or m.
        """
        mapping, names = self._options.mapping, self._files.names(self._options.mapping.state)
        if mapping.units != "policy":
            return []
        ranges = np.array([(joint.lower, joint.upper) for joint in self._profile.joints.ordered]).T
        ends = np.round(np.sort(to_policy(ranges, self._profile), axis=0), 3)
        least, most = np.sort(to_policy(np.array([low, high]), self._profile), axis=0)
        problems = []
        for index in gripper_joints(self._profile):
            joint, size = self._profile.joints.policy_order[index], ends[1, index] - ends[0, index]
            told, spread = mapping.channels.get(joint, joint), most[index] - least[index]
            unit = least[index] >= -UNIT_ROOM and most[index] <= 1 + UNIT_ROOM and spread > UNIT_USED
            if not isinstance(told, str) or not unit or size < FAR_MORE:
                continue
            offset = f", offset: {ends[0, index]:.3g}" if abs(ends[0, index]) > UNIT_ROOM else ""
            channel = names[place_of(told, names) or 0]
            problems.append(
                self._problem(
                    f"mapping.channels.{joint}", [float(least[index]), float(most[index])],
                    f"{{name: {channel}, scale: {size:.3g}{offset}}}, or scale: 1 if it does stay there",
                    f"{channel} is between 0 and 1 where the profile has {ends[0, index]:.3g} to {ends[1, index]:.3g}",
                )
            )  # fmt: skip
        return problems if self._written is None else []

    def _word_notes(self, episodes: Sequence[Episode]) -> list[str]:
        changing = [episode.key for episode in episodes if episode.changes]
        notes = []
        if changing:
            what = "subtasks" if self._options.mapping.words == "subtask" else "tasks"
            some = _some(changing)
            notes.append(
                f"{self._folder}: {len(changing)} episodes have several {what} ({some}): each frame uses its own"
            )
        has_subtasks = self._files.subtasks or LANGUAGE in self._files.features
        if has_subtasks and self._options.mapping.words == "task" and not self._options.instruction:
            notes.append(f"{self._folder}: also has subtasks; mapping.words: subtask uses them")
        return notes

    @property
    def has_joints(self) -> bool:
        """Whether it says where the joints were, and not the poses of the tools alone."""
        return self._options.mapping.units != "vector" or not self._profile.action_spec.is_end_effector

    def joint_path(self, survey: Survey, episode: int) -> tuple[NDArray[np.int64], Floats]:
        """Return the path of an episode as joint positions: knots [K] in ns and joints [K, J], rad or m."""
        return survey.episodes[episode].path.times, self._joints_of[episode][1]

    def measured(self, survey: Survey, episode: int, stamp: int) -> Floats:
        """Return where the joints [J] were measured at the stamp of a frame, rad or m."""
        row = int(np.searchsorted(survey.episodes[episode].path.times, stamp))
        return np.asarray(self._joints_of[episode][0][row])

    def seen(self, survey: Survey, chosen: Callable[[int, int], bool] = lambda episode, stamp: True) -> Iterator[Seen]:
        """Yield the frames for which ``chosen`` says so, as observations; see ``BagRecording.seen``."""
        robot = self._profile.embodiment()
        for frame in self._frames(survey, chosen):
            if isinstance(frame, LostEpisode):
                start = survey.episodes[frame.episode].start
                yield Seen(frame.episode, start, Fault(CAMERA_MISSING, str(frame.problem)))
                continue
            found = Observation(robot, frame.stamp, frame.images, frame.state, "", {})
            yield Seen(frame.episode, frame.stamp, found)

    def frames(self, survey: Survey) -> Iterator[Frame | LostEpisode]:
        """Yield the frames, the videos read from their beginnings on; an episode with a damaged picture ends there.

        Raises:
            SamplesError: too many episodes do.
        """
        return self._frames(survey, lambda episode, stamp: True)

    def _frames(self, survey: Survey, chosen: Callable[[int, int], bool]) -> Iterator[Frame | LostEpisode]:
        if not self._kept:
            self.survey()
        videos: dict[str, tuple[Path, Video]] = {}
        lost = list(survey.left_out)
        try:
            for number, (files, states) in enumerate(zip(self._kept, self._states, strict=True)):
                times = survey.episodes[number].path.times
                try:
                    yield from self._frames_of(number, files, states, times, videos, chosen)
                except SamplesError as error:
                    yield LostEpisode(number, error.problems[0])
                    lost += error.problems[:1]
        finally:
            for _, video in videos.values():
                video.close()
        if len(lost) > len(survey.left_out) and (problems := self._too_many(lost, len(self._chosen()))):
            raise SamplesError(problems)

    def fingerprint(self) -> str:
        """Return hex digits of the files' content, the profile, its URDFs and the settings."""
        digest = hashlib.blake2b(digest_size=16)
        for file in self._files.files():
            if file.is_file():
                size = file.stat().st_size
                digest.update(f"{file.relative_to(self._folder)} {size}".encode())
                is_table = file.suffix in (".parquet", ".json", ".jsonl")
                with file.open("rb") as stream:
                    whole = is_table and size <= WHOLE
                    digest.update(hashlib.file_digest(stream, "sha256").digest() if whole else sampled(stream))
        options = self._options
        told = [
            READER_VERSION,
            profile_essence(self._profile),
            self._profile.instruction,
            options.mapping.model_dump(),
            options.actions,
            options.rate,
            options.instruction,
            sorted(options.episodes),
            options.skip_bad,
            options.only_successes,
        ]
        digest.update(json.dumps(told, sort_keys=True).encode())
        return digest.hexdigest()

    def _frames_of(
        self,
        number: int,
        files: EpisodeFiles,
        states: Floats,
        times: NDArray[np.int64],
        videos: dict[str, tuple[Path, Video]],
        chosen: Callable[[int, int], bool],
    ) -> Iterator[Frame]:
        cameras = self._cameras()
        kept = {
            slot: self._files.pictures(files, feature)
            for slot, feature in cameras.items()
            if feature not in files.clips
        }
        due = times[0]
        for row, time in enumerate(times):
            inside = {slot: next(pictures) for slot, pictures in kept.items()}
            if self._options.rate is not None:
                if time < due - 0.5 * NS / self._files.fps:
                    continue
                step = round(NS / self._options.rate)
                due += step * max(1, int((time - due) // step) + 1)  # after a gap it goes on from there
            if not chosen(number, int(time)):
                continue
            images = {
                slot: self._view(
                    slot, inside[slot] if slot in inside else self._picture(files, feature, time / NS, videos)
                )
                for slot, feature in cameras.items()
            }
            yield Frame(number, int(time), states[row].astype(np.float32), images)

    def _picture(
        self, files: EpisodeFiles, feature: str, time: float, videos: dict[str, tuple[Path, Video]]
    ) -> NDArray[np.uint8]:
        clip = files.clips[feature]
        opened = videos.get(feature)
        if opened is None or opened[0] != clip.file:
            if opened is not None:
                opened[1].close()
            videos[feature] = clip.file, self._files.video(clip.file)
        return videos[feature][1].at(clip.start + time)

    def _view(self, slot: str, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a picture of a slot as the policy sees it."""
        if self._options.mapping.pictures != "as_sent":
            return picture
        camera = self._profile.cameras.by_name[slot]
        try:
            return view_of(picture, camera)
        except MessageError as error:
            raise SamplesError(
                [self._problem(f"cameras.{slot}.crop", list(camera.crop), "a part of the images", str(error))]
            ) from error

    def _cameras(self) -> dict[str, str]:
        """Return the feature of each slot that the files have pictures for."""
        told = self._options.mapping.cameras
        candidates = {slot: told.get(slot, f"observation.images.{slot}") for slot in self._profile.cameras.slots}
        return {slot: feature for slot, feature in candidates.items() if feature in self._files.features}

    def _camera_problems(self) -> list[Problem]:
        known = [name for name, told in self._files.features.items() if told.get("dtype") in ("video", "image")]
        slots, cameras = self._profile.cameras.slots, self._profile.cameras.by_name
        problems = [
            self._problem(
                f"mapping.cameras.{slot}",
                slot,
                f"a camera slot of {self._profile.name}: {', '.join(slots)}",
                f"{self._profile.name} has no camera slot {slot!r}{did_you_mean(slot, slots)}",
            )
            for slot in self._options.mapping.cameras
            if slot not in slots
        ]
        found = self._cameras()
        for slot in slots:
            feature = self._options.mapping.cameras.get(slot, f"observation.images.{slot}")
            asked = slot in self._options.mapping.cameras or cameras[slot].required
            if slot in found and self._files.is_depth(feature):
                problems.append(
                    self._problem(
                        f"mapping.cameras.{slot}",
                        feature,
                        "a feature with colours: " + (", ".join(set(known) - {feature}) or "there is none"),
                        f"{feature} holds depths (is_depth_map), which slot {slot!r} cannot show",
                    )
                )
            elif asked and (slot not in found or feature not in known):
                problems.append(
                    self._problem(
                        f"mapping.cameras.{slot}",
                        feature,
                        "one of " + (", ".join(known) or "its features, which have no images"),
                        f"has no images {feature!r} for slot {slot!r}{did_you_mean(feature, known)}",
                    )
                )
        changed = [slot for slot in found if cameras[slot].rotate or cameras[slot].crop]
        if changed and not self._options.mapping.pictures:
            problems.append(
                self._problem(
                    "mapping.pictures",
                    "",
                    "as_sent or as_seen",
                    f"the profile rotates or crops {', '.join(changed)}: state "
                    "whether the data set has these images as the camera sent them, or as the policy sees them",
                )
            )
        if self._options.mapping.state not in self._files.features:
            problems.append(
                self._problem(
                    "mapping.state",
                    self._options.mapping.state,
                    "one of " + ", ".join(self._files.features),
                    f"has no feature {self._options.mapping.state!r}",
                )
            )
        return problems

    def _row_problems(self, name: str, rows: dict[str, Floats], times: NDArray[np.int64]) -> list[Problem]:
        problems = []
        for feature in (self._options.mapping.state, self._options.mapping.action):
            values = rows.get(feature, np.zeros(len(times))).reshape(len(times), -1)
            bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if bad.size:
                problems.append(
                    self._problem(
                        f"{name}.{feature}",
                        "NaN",
                        "finite numbers",
                        f"{name}: {feature} is not finite at {rows['timestamp'][bad[0]]:.3f} s",
                    )
                )
        if len(times) < 2 or (np.diff(times) <= 0).any():
            problems.append(
                self._problem(
                    f"{name}.timestamp",
                    len(times),
                    "at least two frames, ordered by time",
                    f"{name}: its {len(times)} timestamps do not increase",
                )
            )
        elif abs(np.median(np.diff(times)) * self._files.fps / NS - 1.0) > 0.1:
            found = NS / float(np.median(np.diff(times)))
            problems.append(
                self._problem(
                    f"{name}.timestamp",
                    round(found, 2),
                    f"{self._files.fps:g} Hz as fps says",
                    f"mixed rates: {name} has {found:.3g} frames per second",
                )
            )
        return problems

    def _columns(self, feature: str, channels: Mapping[str, ChannelSource | str]) -> Columns:
        names, units = self._files.names(feature), self._options.mapping.units
        return columns_of(self.source, feature, names, self._profile, units, channels, self._written)

    def _joints(self, values: Floats) -> Floats:
        """Return values of a feature as joints in rad or m, or as the vectors they are."""
        return from_policy(values, self._profile) if self._options.mapping.units == "policy" else values

    def _as_joints(self, values: Floats) -> Floats:
        """Return joints as they are; of a policy's vectors the joints in them, or the vectors themselves."""
        vector = self._options.mapping.units == "vector"
        return from_policy(values, self._profile) if vector and self.has_joints else values

    def _state(self, joints: Floats, encoder: StateEncoder) -> Floats:
        return self._vector(joints) if self._options.mapping.units == "vector" else encoder.state(joints)

    def _actions(self, joints: Floats, encoder: StateEncoder) -> Floats:
        if self._options.mapping.units == "vector":
            return self._vector(joints)
        if not self._profile.action_spec.is_end_effector:
            return to_policy(joints, self._profile)
        return tool_actions(joints, self._profile, encoder)

    def _vector(self, values: Floats) -> Floats:
        return np.pad(values, [(0, 0), (0, self._profile.state_width - values.shape[1])])

    def _encoder(self) -> StateEncoder:
        try:
            arms = {} if self._options.mapping.units == "vector" else tool_arms(self._profile)
            return StateEncoder(self._profile, arms)
        except KinematicsError as error:
            raise SamplesError(
                [self._problem("robot", self._profile.name, "URDFs and Pinocchio for tool poses", str(error))]
            ) from error

    def _problem(self, key: str, value: Any, expected: str, message: str) -> Problem:
        return Problem(self.source, key, value, expected, message)


def _changes(times: NDArray[np.int64], words: Sequence[str]) -> list[tuple[int, str]]:
    """Return (ns, text) from where on each text counts."""
    starts = [0, *(row for row in range(1, len(words)) if words[row] != words[row - 1])]
    return [(int(times[row]), words[row]) for row in starts]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
