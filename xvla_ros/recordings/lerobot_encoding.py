# SPDX-License-Identifier: Apache-2.0
"""One bag encoded into episodes of a LeRobot data set.

LeRobot counts frames: frame k of an episode is k / fps s after its first. So the frames of an episode are the pictures
of slot 0 that lie nearest to a grid of that rate, each with the state and the action of its own stamp. Where no picture
came for a point of the grid the newest ones stand there again, for as long as the node would have used them. Where no
observation can be built (a camera that fell silent, joints that leap) the episode ends, and another begins after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import BagError, Problem
from xvla_ros.observation.faults import CAMERA_MISSING, Fault, FaultTally
from xvla_ros.recordings.action_path import Times
from xvla_ros.recordings.bag_recording import BagOptions, BagRecording, Seen
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.lerobot_writer import LOOKED_AT, MOST_SECONDS, ClipWriter, EncodedEpisode, PictureSums
from xvla_ros.recordings.recording import SamplesError, Survey, joint_leaps
from xvla_ros.robots.profile import Profile
from xvla_ros.types import NS, Observation

LEAST = 2  # frames of an episode: with one there is no motion, and no deviation for LeRobot's statistics
HALFWAY = 1e-6  # of a period: a picture midway between two points of the grid belongs to the earlier


@dataclass(frozen=True)
class ExportOptions:
    """How bags are exported.

    Attributes:
        robot: name of a profile or its file; empty takes the bags' own.
        fps: frames a second; None takes the rate of slot 0, as a whole number.
        instruction: in place of the recorded ones.
        only_successes: leave out episodes marked as failed.
        actions: what the actions are, as in ``BagOptions``.
        codec: of the videos.
        skip_bad: skip bags with problems instead of ending with an error.
        jobs: processes, a bag each.
        threads: of each encoder; 0 leaves that to it.
    """

    robot: str = ""
    fps: int | None = None
    instruction: str = ""
    only_successes: bool = True
    actions: Literal["auto", "commanded", "measured"] = "auto"
    codec: str = "h264"
    skip_bad: bool = False
    jobs: int = 1
    threads: int = 0


@dataclass(frozen=True)
class BagTask:
    """A bag to encode."""

    number: int
    bag: Path
    profile: Profile
    options: ExportOptions
    fps: int
    sizes: Mapping[str, tuple[int, int]]
    folder: Path


@dataclass(frozen=True, eq=False)
class EncodedBag:
    """A bag that was encoded."""

    episodes: tuple[EncodedEpisode, ...]
    skipped: Counter[str]
    faults: FaultTally
    problem: str = ""


def recording_of(bag: Bag, profile: Profile, options: ExportOptions) -> BagRecording:
    """Return a bag as it is read for an export."""
    return BagRecording(
        bag,
        profile,
        BagOptions(
            options.actions, None, options.instruction, options.only_successes, "give it with --instruction TEXT"
        ),
    )


def encode(task: BagTask, go_on: Callable[[], None] = lambda: None) -> EncodedBag:
    """Encode the episodes of a bag; one that turns out to be bad leaves a problem and no episode.

    Args:
        task: what to encode, and where to.
        go_on: called before every frame; it raises what ends this.

    Raises:
        OSError: a video cannot be written.
    """
    encoder = _BagEncoder(task, go_on)
    try:
        return encoder.run()
    except (SamplesError, BagError) as error:
        encoder.drop()
        return EncodedBag((), Counter(), FaultTally(), str(error))
    except OSError as error:
        encoder.drop()
        raise OSError(error.errno, error.strerror) from None  # that of PyAV comes through no pipe
    except BaseException:
        encoder.drop()
        raise


class _BagEncoder:
    """One bag on its way into videos."""

    def __init__(self, task: BagTask, go_on: Callable[[], None]) -> None:
        self._go_on, self._task, self._fps, self._number = go_on, task, task.fps, 0
        self._recording = recording_of(Bag(task.bag), task.profile, task.options)
        self._survey = Survey(())
        self._grids: list[_FrameGrid] = []
        self._run: _OpenEpisode | None = None
        self._done: list[EncodedEpisode] = []
        self._skipped, self._faults = Counter[str](), FaultTally()
        self._age = round(task.profile.cameras.by_name[task.profile.cameras.slots[0]].max_age * NS)

    def run(self) -> EncodedBag:
        with self._recording.opened():
            self._survey = self._recording.survey(plans=False)
            self._grids = [
                _FrameGrid(self._recording.picture_stamps(number), self._fps)
                for number, _ in enumerate(self._survey.episodes)
            ]
            for seen in self._recording.seen(self._survey, lambda episode, stamp: stamp in self._grids[episode].place):
                self._go_on()
                found = self._complete(seen.found)
                if isinstance(found, Fault):
                    self._skipped[found.reason] += 1
                    self._faults.add(found)
                else:
                    self._take(seen, found)
            self._end()
        if told := joint_leaps(self._faults, self._survey):
            raise SamplesError([Problem(str(self._task.bag), "joints", None, "", told)])
        return EncodedBag(tuple(self._done), self._skipped, self._faults)

    def drop(self) -> None:
        """Remove what was written of the bag."""
        if self._run is not None:
            self._run.drop()
        for episode in self._done:
            for clip in episode.clips.values():
                clip.unlink(missing_ok=True)

    def _complete(self, found: Observation | Fault) -> Observation | Fault:
        if isinstance(found, Fault):
            return found
        missing = [slot for slot in self._task.sizes if slot not in found.images]
        return Fault(CAMERA_MISSING, f"{', '.join(missing)}: no image") if missing else found

    def _take(self, seen: Seen, found: Observation) -> None:
        episode, grid = seen.episode, self._grids[seen.episode]
        place, run = grid.place[seen.stamp], self._run
        if run is not None and (run.episode != episode or not self._reaches(run, grid, place)):
            self._end()
            run = None
        if run is None:
            self._number += 1
            run = self._run = _OpenEpisode(self._task, self._number, episode)
        for between in range(run.place + 1, place) if run.frames else ():
            stamp = grid.at(between)
            run.repeat(stamp, self._recording.state(self._survey, episode, stamp))
        run.add(place, found)

    def _reaches(self, run: _OpenEpisode, grid: _FrameGrid, place: int) -> bool:
        """Return whether an episode goes on from one point of the grid to another: its pictures last that long."""
        between = range(run.place + 1, place)
        return run.frames + len(between) < MOST_SECONDS * self._fps and all(
            point not in grid.taken and grid.at(point) - run.pictured <= self._age for point in between
        )

    def _end(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        if run.frames < LEAST:
            run.drop()
            self._skipped["too_short"] += 1
            return
        episode = self._survey.episodes[run.episode]
        origin = {
            "bag": self._task.bag.name,
            "start": run.stamps[0],
            "end": run.stamps[-1],
            "success": episode.success,
            "task": episode.task,
            "seed": episode.seed,
        }
        tasks = [episode.instruction_at(stamp) for stamp in run.stamps]
        self._done.append(run.finish(tasks, episode.path.at(np.array(run.stamps)), origin))


class _FrameGrid:
    """Which pictures of an episode are its frames.

    Args:
        stamps: of the pictures, ns, increasing, at least one.
        fps: of the grid.

    Attributes:
        place: stamp → which point of the grid it is the nearest to, of those that are the nearest to one.
        taken: the points that have a picture.
    """

    def __init__(self, stamps: Times, fps: int) -> None:
        self._first, self._period = int(stamps[0]), NS / fps
        far = (stamps - self._first) / self._period  # in periods
        # where the stamps lie within a period, of theirs if that is shorter, on average: so that jitter throws none to
        # a neighbour's place
        parts = max(1, round(1 / float(np.median(np.diff(far))))) if len(far) > 1 else 1
        self._phase = float(np.angle(np.exp(2j * np.pi * parts * far).mean()) / (2 * np.pi * parts))
        points = np.ceil(far - self._phase - 0.5 - HALFWAY).astype(np.int64)
        order = np.lexsort((np.abs(far - self._phase - points), points))
        places, nearest = np.unique(points[order], return_index=True)
        self.place: dict[int, int] = dict(zip(stamps[order[nearest]].tolist(), places.tolist(), strict=True))
        self.taken = set(self.place.values())

    def at(self, point: int) -> int:
        """Return when a point is, ROS time in ns."""
        return self._first + round((point + self._phase) * self._period)


class _OpenEpisode:
    """Frames that follow each other: an episode of the data set while it is written."""

    def __init__(self, task: BagTask, number: int, episode: int) -> None:
        self.episode, self.place, self.pictured = episode, 0, 0
        self.stamps: list[int] = []
        self._task = task
        self._states: list[NDArray[np.float32]] = []
        self._images: Mapping[str, NDArray[np.uint8]] = {}
        name = f"{task.number:06d}-{number:06d}"
        self._clips: dict[str, ClipWriter] = {}
        for slot, size in task.sizes.items():
            file = task.folder / f"{name}-{slot}.mp4"
            self._clips[slot] = ClipWriter(file, size, task.fps, task.options.codec, task.options.threads)
        self._pictures = {slot: PictureSums() for slot in task.sizes}
        self._every = 1

    @property
    def frames(self) -> int:
        return len(self.stamps)

    def add(self, place: int, found: Observation) -> None:
        """Append an observation."""
        for slot, size in self._task.sizes.items():
            shape = found.images[slot].shape[0], found.images[slot].shape[1]
            if shape != size:
                told = f"at {found.stamp / NS:.3f} s images of {slot} have another size than before"
                problem = Problem(str(self._task.bag), f"cameras.{slot}", shown(shape), shown(size), told)
                raise SamplesError([problem])
        self.place, self.pictured, self._images = place, found.stamp, found.images
        self._append(found.stamp, found.state)

    def repeat(self, stamp: int, state: NDArray[np.float32]) -> None:
        """Append the pictures of the last frame again, with the state of another instant."""
        self.place += 1
        self._append(stamp, state)

    def _append(self, stamp: int, state: NDArray[np.float32]) -> None:
        for slot, clip in self._clips.items():
            clip.add(self._images[slot])
            if self.frames % self._every == 0:
                self._pictures[slot].add(self._images[slot])
        self.stamps.append(stamp)
        self._states.append(state)
        if self.frames == 2 * LOOKED_AT * self._every:  # of long episodes as many as of short ones, about
            self._every *= 2

    def finish(self, tasks: Sequence[str], actions: NDArray[np.float32], origin: Mapping[str, Any]) -> EncodedEpisode:
        """Close the videos, and return the episode."""
        for clip in self._clips.values():
            clip.close()
        clips = {slot: clip.file for slot, clip in self._clips.items()}
        return EncodedEpisode(tasks, np.array(self._states), actions, clips, self._pictures, origin)

    def drop(self) -> None:
        """Close and remove the videos."""
        for clip in self._clips.values():
            clip.drop()


def shown(size: tuple[int, int]) -> str:
    """Return a (height, width) as people write it."""
    return f"{size[1]}x{size[0]}"
