# SPDX-License-Identifier: Apache-2.0
"""Bags of one robot made into a LeRobot data set: looked at together, encoded a bag a process, and joined."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from xvla_ros.errors import BagError, DataSetWriteError, KinematicsError, Problem, ProfileError, SetupError
from xvla_ros.observation.faults import Fault, FaultTally
from xvla_ros.recordings.bag_recording import BagRecording, profile_of_bag
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.lerobot_encoding import BagTask, EncodedBag, ExportOptions, encode, recording_of, shown
from xvla_ros.recordings.lerobot_writer import ACTION, STATE, LeRobotWriter, check_size
from xvla_ros.recordings.recording import NothingLeftError, SamplesError, Survey, profile_essence
from xvla_ros.robots.profile import Profile, load_robot, profile_document

SCHEMA_VERSION = 1  # of what is written beside LeRobot's files
PART, CLIPS = ".part", "clips"  # suffix of the folder while it is made, and what of it goes at the end
MIXED_RATES = 1.5  # ratio of picture rates from which on two bags do not belong together
MOST_LOOKED = 200  # observations, at most, in which a bag shows the sizes of its pictures
SUFFIX = ".pos"  # of the names that LeRobot's drivers give to joint positions

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: of the data set.
        episodes, frames, fps: how many.
        tasks: different ones.
        cameras: slot → (height, width).
        actions: what they are.
        skipped: why episodes or observations were left out → how many.
        faults: of the observations among them.
        notes: what a person should know.
    """

    folder: Path
    episodes: int
    frames: int
    fps: int
    tasks: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int]]
    actions: str
    skipped: Mapping[str, int]
    faults: FaultTally
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Looked:
    """What a look at a bag says, before anything is written."""

    bag: Path
    profile: Profile | None = None
    rate: float = 0.0
    actions: str = ""
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def robot(self) -> Profile:
        """Its profile, of a bag with something to export."""
        if self.profile is None:
            raise ValueError(f"{self.bag} contains no profile")
        return self.profile


def export(
    bags: Sequence[Path], output: Path, options: ExportOptions, progress: Callable[[str, int, int], None]
) -> Exported:
    """Write a data set of the episodes of some bags of one robot.

    It is made in a folder beside ``output`` and renamed when it is whole; whatever ends this before removes it.

    Args:
        bags: their paths, in the order of the episodes.
        output: folder of the data set; it must not be there, or be empty.
        options: how.
        progress: called with what is done now, how many bags it is done with, and of how many.

    Raises:
        SamplesError: naming everything that is wrong with any of the bags, before anything is written.
        SetupError: the output folder is there already, or one that another export left.
        DataSetWriteError: it cannot be written: the disk is full, say.
    """
    with _part_of(output) as part, _workers(min(options.jobs, len(bags))) as run:
        told = [(bag, options) for bag in bags]
        looked = list(_counted(run(_look, told), "look at", len(bags), progress))
        chosen = _check_together(looked, options)
        fps, sizes, notes = _fps(chosen, options), *_cameras(chosen)
        try:
            clips = part / CLIPS
            clips.mkdir()
            tasks = [
                BagTask(number, each.bag, each.robot, options, fps, sizes, clips) for number, each in enumerate(chosen)
            ]
            made = _counted(run(_encode, tasks), "encode", len(tasks), progress)
            found = _write(part, made, chosen, fps, sizes, options)
            shutil.rmtree(clips)
            part.rename(output)
        except OSError as error:
            raise _unwritten(output, error.strerror or str(error)) from error
        except BrokenExecutor as error:
            raise _unwritten(output, "an encoding process was killed, perhaps because memory ran out") from error
    skipped: Counter[str] = Counter()
    for bag in looked:
        skipped.update(bag.skipped)
        notes += [*bag.notes, *(f"skipped: {problem}" for problem in bag.problems)]
    skipped.update(found.skipped)
    return Exported(
        output,
        found.episodes,
        found.frames,
        fps,
        found.tasks,
        sizes,
        chosen[0].actions,
        dict(skipped),
        found.faults,
        tuple(notes),
    )


@dataclass(frozen=True)
class _Written:
    episodes: int
    frames: int
    tasks: tuple[str, ...]
    skipped: Counter[str]
    faults: FaultTally


def _write(
    part: Path,
    made: Iterator[EncodedBag],
    chosen: Sequence[_Looked],
    fps: int,
    sizes: Mapping[str, tuple[int, int]],
    options: ExportOptions,
) -> _Written:
    """Join what was encoded to one data set."""
    profile = chosen[0].robot
    vector = profile.action_spec.is_end_effector
    names = list(profile.channels) if vector else [name + SUFFIX for name in profile.channels]
    skipped, faults, problems = Counter[str](), FaultTally(), []
    with LeRobotWriter(
        part, fps=fps, robot=profile.name, names={STATE: names, ACTION: names}, cameras=sizes, codec=options.codec
    ) as writer:
        for each in made:
            skipped.update(each.skipped)
            for fault, count in each.faults.commonest():
                faults.add(fault, count)
            problems += [each.problem] * bool(each.problem)
            for episode in each.episodes:
                writer.add(episode)
                for clip in episode.clips.values():
                    clip.unlink()
        if (problems and not options.skip_bad) or not writer.frames:
            told = problems or ["no two observations of the bags follow each other", *faults.lines()]
            raise SamplesError([Problem("", "", None, "", text) for text in told])
        mapping: dict[str, Any] = {"units": "vector" if vector else "policy", "pictures": "as_seen"}
        writer.finish(
            {
                "schema_version": SCHEMA_VERSION,
                "robot": profile.name,
                "profile": profile_document([profile]),
                "mapping": mapping,
                "actions": chosen[0].actions,
            }
        )
        skipped.update({"problems": len(problems)} if problems else {})
        return _Written(len(writer.origins), writer.frames, tuple(writer.tasks), skipped, faults)


@contextmanager
def _part_of(output: Path) -> Iterator[Path]:
    """Make the folder that a data set is made in, for this export alone; it is gone at the end, renamed or removed."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise SetupError(f"{output} already exists: give another --output, or remove it")
    part = output.with_name(output.name + PART)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
    except FileExistsError:
        raise SetupError(
            f"{part} exists: another export to {output} is running, or was killed; remove it if no export is running"
        ) from None
    except OSError as error:
        raise _unwritten(output, error.strerror or str(error)) from error
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unwritten(output: Path, why: str) -> DataSetWriteError:
    return DataSetWriteError(
        f"{output} cannot be written, and its partial files were removed: {why}; expected a writable folder, on a "
        "disk with space for the videos"
    )


def _look(told: tuple[Path, ExportOptions]) -> _Looked:
    """Survey a bag, and find the sizes of its pictures."""
    path, options = told
    bag = Bag(path)
    try:
        with bag:
            profile = load_robot(options.robot) if options.robot else profile_of_bag(bag)
            recording = recording_of(bag, profile, options)
            survey = recording.survey(plans=False)
            sizes, problems = _sizes(recording, survey, options)
            return _Looked(
                path,
                profile,
                survey.frame_rate,
                survey.actions,
                sizes,
                (*survey.problems, *problems),
                survey.skipped,
                survey.notes,
            )
    except NothingLeftError as error:
        return _Looked(path, skipped=error.skipped, notes=(f"skipped: {error}",))
    except ProfileError as error:
        return _Looked(path, problems=tuple(error.problems))
    except (BagError, KinematicsError) as error:
        return _Looked(path, problems=(Problem(str(path), "", None, "", str(error).removeprefix(f"{path}: ")),))


def _sizes(
    recording: BagRecording, survey: Survey, options: ExportOptions
) -> tuple[dict[str, tuple[int, int]], list[Problem]]:
    """Return slot → (height, width) of the cameras that a bag has pictures of, in the order of the slots."""
    left, faults, found = MOST_LOOKED, FaultTally(), dict[str, tuple[int, int]]()

    def chosen(episode: int, stamp: int) -> bool:
        nonlocal left
        left -= 1
        return left >= 0

    slots = recording.profile.cameras.slots
    for seen in recording.seen(survey, chosen):
        if isinstance(seen.found, Fault):
            faults.add(seen.found)
            continue
        for slot, picture in seen.found.images.items():
            found.setdefault(slot, (picture.shape[0], picture.shape[1]))
        if len(found) == len(slots):
            break
    problems = []
    if not found:
        told = "; ".join(["no observation can be built", *faults.lines(1)])
        problems.append(Problem(recording.source, "", None, "images and joint states that belong together", told))
    for slot, size in found.items():
        try:
            check_size(recording.source, slot, size, options.codec)
        except SamplesError as error:
            problems += error.problems
    return {slot: found[slot] for slot in slots if slot in found}, problems


def _check_together(looked: Sequence[_Looked], options: ExportOptions) -> list[_Looked]:
    """Return the bags that have something to export, having checked that they can be one data set.

    Raises:
        SamplesError: naming everything that is in the way.
    """
    good = [each for each in looked if each.sizes and not each.problems]
    bad = [problem for each in looked for problem in each.problems]
    problems = ([] if options.skip_bad else bad) + [problem for each in good for problem in _apart(good[0], each)]
    rates = {each.bag: each.rate for each in good if each.rate > 0}
    if rates and options.fps is None and max(rates.values()) > MIXED_RATES * min(rates.values()):
        slow, fast = min(rates, key=lambda bag: rates[bag]), max(rates, key=lambda bag: rates[bag])
        told = "mixed rates: images of the main camera come more often than in the other bags: give --fps"
        problems.append(Problem(str(fast), "fps", round(rates[fast], 2), f"about {rates[slow]:.3g} Hz as {slow}", told))
    if not good:
        problems = bad + [Problem("", "", None, "", note) for each in looked for note in each.notes]
    if problems:
        raise SamplesError(problems)
    return good


def _apart(first: _Looked, each: _Looked) -> Iterator[Problem]:
    """Yield what keeps a bag from being one data set with the first."""
    bag, robot = str(each.bag), each.robot
    if robot.name != first.robot.name:
        told = f"is of robot {robot.name}, the first bag of {first.robot.name}: export them separately"
        yield Problem(bag, "robot", robot.name, first.robot.name, told)
        return
    if profile_essence(robot) != profile_essence(first.robot):
        told = f"has another profile of {robot.name} than {first.bag}: choose one with --robot"
        yield Problem(bag, "robot", None, "one profile for all bags", told)
    if each.actions != first.actions:
        told = f"its actions are {each.actions}, those of {first.bag} {first.actions}: use --actions measured"
        yield Problem(bag, "actions", each.actions, first.actions, told)
    for slot, size in each.sizes.items():
        if first.sizes.get(slot, size) != size:
            told = f"images of {slot} have another size than in {first.bag}: export them separately"
            yield Problem(bag, f"cameras.{slot}", shown(size), shown(first.sizes[slot]), told)


def _fps(chosen: Sequence[_Looked], options: ExportOptions) -> int:
    rate = float(np.median([each.rate for each in chosen if each.rate > 0] or [0.0]))
    if options.fps is None and round(rate) < 1:
        told = (
            f"images of the main camera come at {rate:.3g} Hz, and LeRobot needs a whole number of frames per "
            "second: give --fps"
        )
        raise SamplesError([Problem(str(chosen[0].bag), "fps", round(rate, 3), "1 Hz or more", told)])
    return options.fps or round(rate)


def _cameras(chosen: Sequence[_Looked]) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return the cameras that every bag has, and notes about the others."""
    sizes, notes = dict(chosen[0].sizes), list[str]()
    for slot in dict.fromkeys(slot for each in chosen for slot in each.sizes):
        without = [str(each.bag) for each in chosen if slot not in each.sizes]
        if without:
            sizes.pop(slot, None)
            notes.append(
                f"camera {slot} is skipped: {len(without)} of {len(chosen)} bags lack it, the first is {without[0]}"
            )
    return sizes, notes


def _encode(task: BagTask) -> EncodedBag:
    return encode(task, _go_on)


# The processes.

_stop: Any = None  # in a process of the pool: an event, set when it is to end


def _go_on() -> None:
    """End what this process does where the pool is to end."""
    if _stop is not None and _stop.is_set():
        raise KeyboardInterrupt


def _begin(stop: Any) -> None:
    """Prepare a process of the pool: who started it stops it, and it does not outlive that."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


@contextmanager
def _workers(jobs: int) -> Iterator[Callable[[Callable[[Given], Made], Sequence[Given]], Iterator[Made]]]:
    """Give a ``map`` over so many processes, or within this one for one job; what they do ends with the block."""
    if jobs <= 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    stop = context.Event()
    pool = ProcessPoolExecutor(jobs, context, _begin, (stop,))
    try:
        yield pool.map
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _counted(made: Iterator[Made], what: str, total: int, progress: Callable[[str, int, int], None]) -> Iterator[Made]:
    progress(what, 0, total)
    for number, each in enumerate(made, 1):
        yield each
        progress(what, number, total)
