# SPDX-License-Identifier: Apache-2.0
"""Frames decoded and resized once, kept on disk as plain pixels so that a draw is a short read.

A store is a folder of one recording, named by a fingerprint of everything in it depends on:

* ``store.json``: schema_version, source, episodes, picture sizes, what was skipped and noted.
* ``numbers.npz``: stamps int64 [N], episode int32 [N], state float32 [N, P], present bool [N, S], paths and plans.
* ``<slot>.rgb``: uint8 [N, H, W, 3], one picture after the other; an absent one is black and not ``present``.

It is written beside its name and renamed when it is whole, under a lock: of several processes one writes, the others
wait for it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import Problem
from xvla_ros.observation.faults import JOINTS_IMPLAUSIBLE, Fault, FaultTally
from xvla_ros.recordings.action_path import ActionPath, Channels, Plans
from xvla_ros.recordings.recording import (
    ActionSource,
    Episode,
    Frame,
    LostEpisode,
    Recording,
    SamplesError,
    Survey,
    joint_leaps,
)
from xvla_ros.resources import open_lock

SCHEMA_VERSION = 3
META, NUMBERS = "store.json", "numbers.npz"

Rgb = NDArray[np.uint8]
Size = tuple[int, int]


class Resizer:
    """Resizes uint8 [H, W, 3] RGB as an image pipeline does.

    ``squash`` gives the very bytes that the pipeline makes of the picture; ``letterbox`` fits it into the size without
    its padding, rounded to 8 bits.

    Args:
        size: (height, width) of the network's input; None leaves pictures as they are.
        pipeline: as in the profile.
    """

    def __init__(self, size: Size | None, pipeline: str) -> None:
        self.size, self._pipeline = size, pipeline

    def __call__(self, image: Rgb) -> Rgb:
        """Return the picture as it is kept."""
        if self.size is None or image.shape[:2] == self.size:
            return image
        return _squashed(image, self.size) if self._pipeline == "squash" else _fitted(image, self.size)


def _squashed(image: Rgb, size: Size) -> Rgb:
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))


def _fitted(image: Rgb, size: Size) -> Rgb:
    import torch
    from torch.nn import functional

    ratio = max(image.shape[1] / size[1], image.shape[0] / size[0])
    inner = (int(image.shape[0] / ratio), int(image.shape[1] / ratio))
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(torch.float32)
    resized = functional.interpolate(planes, size=inner, mode="bilinear", align_corners=False)
    return resized[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


@dataclass(frozen=True)
class PictureFile:
    """Pictures uint8 [N, H, W, 3] of a file, read one at a time.

    The file is opened for each: a data set of a thousand bags would otherwise hold more files open than a process may.
    The system keeps the pages in memory as it does those of a mapping.
    """

    file: Path
    shape: tuple[int, int, int, int]

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        """Return a picture."""
        size = self.shape[1] * self.shape[2] * 3
        return np.fromfile(self.file, np.uint8, size, offset=row * size).reshape(self.shape[1:])


@dataclass(frozen=True, eq=False)
class Store:
    """An open store.

    Attributes:
        folder: where it is.
        source: what was recorded.
        episodes: with their paths.
        first: int [E + 1], the row of each episode's first frame; the last entry is N.
        stamps: int64 [N].
        state: float32 [N, P].
        present: bool [N, S], in the order of ``slots``.
        slots: S names.
        pictures: slot → its file; a slot that never had a picture has none.
        frame_rate, actions, skipped, notes, left_out: as in ``Survey``.
        faults: why there was no observation where one was wanted.
    """

    folder: Path
    source: str
    episodes: tuple[Episode, ...]
    first: NDArray[np.int64]
    stamps: NDArray[np.int64]
    state: NDArray[np.float32]
    present: NDArray[np.bool_]
    slots: tuple[str, ...]
    pictures: dict[str, PictureFile]
    frame_rate: float
    actions: ActionSource
    skipped: dict[str, int]
    notes: tuple[str, ...]
    left_out: tuple[Problem, ...]
    faults: FaultTally

    def __len__(self) -> int:
        return len(self.stamps)

    def images(self, row: int) -> dict[str, NDArray[np.uint8]]:
        """Return the pictures of a row."""
        return {slot: self.pictures[slot][row] for number, slot in enumerate(self.slots) if self.present[row, number]}


def store_name(recording: Recording, size: Size | None, pipeline: str) -> str:
    """Return the name of a recording's store: its fingerprint with that of how pictures are kept."""
    told = f"{SCHEMA_VERSION} {recording.fingerprint()} {size} {pipeline if size else ''}"
    return hashlib.blake2b(told.encode(), digest_size=12).hexdigest()


def open_store(recording: Recording, cache: Path, size: Size | None, pipeline: str) -> Store:
    """Return the store of a recording, made first where there is none.

    Args:
        recording: a bag or a LeRobot data set.
        cache: folder of all stores.
        size: (height, width) the pictures are kept at; None keeps them as they were recorded.
        pipeline: image pipeline of the profile, which says how they are resized.

    Raises:
        SamplesError: the recording has problems, gives no sample, or does not fit on the disk.
    """
    return _read(make_store(recording, cache, size, pipeline), recording)


def make_store(recording: Recording, cache: Path, size: Size | None, pipeline: str) -> Path:
    """Make the store of a recording where there is none, and return its folder; arguments and errors as above."""
    with recording.opened():
        folder = cache / store_name(recording, size, pipeline)
        if not (folder / META).is_file():
            try:
                with _locked(cache, folder.name):
                    if not (folder / META).is_file():
                        _make(recording, folder, Resizer(size, pipeline))
            except OSError as error:
                raise _full(folder, error) from error
    return folder


@contextmanager
def _locked(cache: Path, name: str) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    lock = open_lock(cache / f"{name}.lock", 0o666)  # several users may share a cache
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _make(recording: Recording, folder: Path, resizer: Resizer) -> None:
    survey = recording.survey()
    if survey.problems:
        raise SamplesError(survey.problems)
    _check_room(recording, survey, folder.parent, resizer.size)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(recording, survey, partial, resizer)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_room(recording: Recording, survey: Survey, cache: Path, size: Size | None) -> None:
    if size is None:
        return
    seconds = sum((episode.end - episode.start) / 1e9 for episode in survey.episodes)
    needed = int(seconds * survey.frame_rate * len(recording.profile.cameras.slots) * size[0] * size[1] * 3)
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise SamplesError(
            [
                Problem(
                    str(cache),
                    "cache",
                    f"{free >> 20} MiB free",
                    f"about {needed >> 20} MiB",
                    f"the decoded images of {recording.source} do not fit on the disk: free space, choose another "
                    "cache folder, or set rate",
                )
            ]
        )


class _Pictures:
    """The open files of the slots, each of one picture size."""

    def __init__(self, folder: Path, slots: tuple[str, ...], source: str, stack: ExitStack) -> None:
        self._files: dict[str, BinaryIO] = {
            slot: stack.enter_context((folder / f"{slot}.rgb").open("wb")) for slot in slots
        }
        self._source = source
        self._waiting: Counter[str] = Counter()  # absent pictures of a slot whose size is not known yet
        self.shapes: dict[str, tuple[int, int]] = {}

    def add(self, images: dict[str, NDArray[np.uint8]]) -> list[bool]:
        """Append one picture for every slot, black where there is none; return which there were."""
        return [self._add(slot, images.get(slot)) for slot in self._files]

    def _add(self, slot: str, image: NDArray[np.uint8] | None) -> bool:
        shape = self.shapes.get(slot)
        if image is None:
            if shape is None:
                self._waiting[slot] += 1
            else:
                self._black(slot, 1)
            return False
        if shape is None:
            self.shapes[slot] = (image.shape[0], image.shape[1])
            self._black(slot, self._waiting[slot])
        elif image.shape[:2] != shape:
            raise SamplesError(
                [
                    Problem(
                        self._source,
                        slot,
                        list(image.shape[:2]),
                        f"{shape[1]}x{shape[0]} as the images before",
                        f"images of slot {slot!r} change their size to {image.shape[1]}x{image.shape[0]}: set "
                        "image_size, so that all images are stored at one size",
                    )
                ]
            )
        self._files[slot].write(np.ascontiguousarray(image).data)
        return True

    def _black(self, slot: str, count: int) -> None:
        height, width = self.shapes[slot]
        for _ in range(count):
            self._files[slot].write(bytes(height * width * 3))


def _write(recording: Recording, survey: Survey, folder: Path, resizer: Resizer) -> None:
    slots = recording.profile.cameras.slots
    rows: list[tuple[int, int, NDArray[np.float32], list[bool]]] = []
    faults, lost = FaultTally(), dict[int, Problem]()
    with ExitStack() as stack:
        pictures = _Pictures(folder, slots, recording.source, stack)
        for frame in recording.frames(survey):
            if isinstance(frame, Fault):
                faults.add(frame)
                continue
            if isinstance(frame, LostEpisode):
                lost[frame.episode] = frame.problem
                continue
            _check_state(recording, frame)
            kept = {slot: resizer(image) for slot, image in frame.images.items()}
            rows.append((frame.episode, frame.stamp, frame.state, pictures.add(kept)))
    # the frames of an episode lie together, in order of time
    order = [row for row in range(len(rows)) if rows[row][0] not in lost]
    order.sort(key=lambda row: (rows[row][0], rows[row][1]))
    _check_faults(recording, survey, faults, len(order))
    if order != list(range(len(rows))):
        _reorder(folder, slots, pictures.shapes, order, len(rows))
        rows = [rows[row] for row in order]
    whole = [number for number in range(len(survey.episodes)) if number not in lost]
    rows = [(whole.index(row[0]), *row[1:]) for row in rows] if lost else rows
    left_out = (*survey.left_out, *lost.values())
    survey = replace(survey, episodes=tuple(survey.episodes[number] for number in whole), left_out=left_out)
    _write_numbers(folder, survey, rows)
    meta = {
        "schema_version": SCHEMA_VERSION,
        "source": recording.source,
        "robot": recording.profile.name,
        "frame_rate": survey.frame_rate,
        "actions": survey.actions,
        "skipped": dict(survey.skipped),
        "faults": faults.records(),
        "notes": list(survey.notes),
        "left_out": [problem.to_dict() for problem in survey.left_out],
        "shapes": {slot: pictures.shapes.get(slot) for slot in slots},
        "channels": vars(survey.episodes[0].path.channels),
        "episodes": [
            {
                "key": e.key,
                "instruction": e.instruction,
                "success": e.success,
                "start": e.start,
                "end": e.end,
                "task": e.task,
                "seed": e.seed,
                "changes": [list(change) for change in e.changes],
                "place": e.place,
            }
            for e in survey.episodes
        ],
    }
    (folder / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def _check_faults(recording: Recording, survey: Survey, faults: FaultTally, frames: int) -> None:
    if not frames:
        raise SamplesError(
            [
                Problem(
                    recording.source,
                    "observations",
                    0,
                    "at least one complete observation",
                    "no observation can be built: "
                    + ("; ".join(faults.lines()) or "no episode has an image of the main camera"),
                )
            ]
        )
    if leap := joint_leaps(faults, survey):
        raise SamplesError(
            [
                Problem(
                    recording.source,
                    "joints",
                    faults.by_reason()[JOINTS_IMPLAUSIBLE],
                    "joints that move at a plausible speed",
                    leap,
                )
            ]
        )


def _check_state(recording: Recording, frame: Frame) -> None:
    bad = np.flatnonzero(~np.isfinite(frame.state))
    if bad.size:
        raise SamplesError(
            [
                Problem(
                    recording.source,
                    recording.profile.channels[int(bad[0])],
                    float(frame.state[bad[0]]),
                    "a finite number",
                    f"the state at {frame.stamp / 1e9:.3f} s is not finite",
                )
            ]
        )


def _write_numbers(folder: Path, survey: Survey, rows: list[Any]) -> None:
    paths = [episode.path for episode in survey.episodes]
    np.savez(
        folder / NUMBERS,
        episode=np.array([row[0] for row in rows], dtype=np.int32),
        stamps=np.array([row[1] for row in rows], dtype=np.int64),
        state=np.stack([row[2] for row in rows]).astype(np.float32),
        present=np.array([row[3] for row in rows], dtype=np.bool_),
        path_lengths=np.array([len(path.times) for path in paths], dtype=np.int64),
        path_times=np.concatenate([path.times for path in paths]),
        path_values=np.concatenate([path.values for path in paths]).astype(np.float32),
        **_plan_numbers([episode.plans for episode in survey.episodes]),  # type: ignore[arg-type]  # not allow_pickle
    )


def _plan_numbers(plans: list[Plans | None]) -> dict[str, NDArray[Any]]:
    """Return the plans of all episodes as arrays, with the number of plans and knots of each; empty without plans."""
    found = [each for each in plans if each is not None]
    if not found:
        return {}
    return {
        "plan_counts": np.array([(0, 0) if e is None else (len(e.stamps), len(e.times)) for e in plans], np.int64),
        "plan_stamps": np.concatenate([each.stamps for each in found]),
        "plan_lengths": np.concatenate([np.diff(each.first) for each in found]),
        "plan_times": np.concatenate([each.times for each in found]),
        "plan_values": np.concatenate([each.values for each in found]).astype(np.float32),
    }


def _plans(numbers: dict[str, NDArray[Any]], episodes: int, channels: Channels) -> list[Plans | None]:
    if "plan_counts" not in numbers:
        return [None] * episodes
    made: list[Plans | None] = []
    plan, knot = 0, 0
    for plans, knots in numbers["plan_counts"].tolist():
        lengths = numbers["plan_lengths"][plan : plan + plans]
        first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        mine = slice(knot, knot + knots)
        made.append(
            Plans(
                numbers["plan_stamps"][plan : plan + plans],
                first,
                numbers["plan_times"][mine],
                numbers["plan_values"][mine],
                channels,
            )
            if plans
            else None
        )
        plan, knot = plan + plans, knot + knots
    return made


def _reorder(folder: Path, slots: tuple[str, ...], shapes: dict[str, Size], order: list[int], count: int) -> None:
    """Put the pictures of the rows in ``order``, of ``count`` that were written, into that order."""
    for slot in slots:
        if slot in shapes:
            file, new = folder / f"{slot}.rgb", folder / f"{slot}.new"
            pictures = np.memmap(file, np.uint8, "r", shape=(count, *shapes[slot], 3))
            with new.open("wb") as stream:
                for row in order:
                    stream.write(pictures[row].data)
            del pictures
            new.replace(file)


def _read(folder: Path, recording: Recording) -> Store:
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    with np.load(folder / NUMBERS) as numbers:
        found = {name: numbers[name] for name in numbers.files}
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in meta["channels"].items()}
    channels = Channels(**fields)
    ends = np.cumsum(found["path_lengths"])
    episodes = tuple(
        Episode(
            told["key"],
            told["instruction"],
            told["success"],
            told["start"],
            told["end"],
            ActionPath(found["path_times"][end - count : end], found["path_values"][end - count : end], channels),
            told["task"],
            told["seed"],
            plans,
            tuple((int(time), text) for time, text in told.get("changes", ())),
            told.get("place"),
        )
        for told, end, count, plans in zip(
            meta["episodes"], ends, found["path_lengths"], _plans(found, len(ends), channels), strict=True
        )
    )
    rows = len(found["stamps"])
    pictures = {
        slot: PictureFile(folder / f"{slot}.rgb", (rows, shape[0], shape[1], 3))
        for slot, shape in meta["shapes"].items()
        if shape
    }
    first = np.searchsorted(found["episode"], np.arange(len(episodes) + 1)).astype(np.int64)
    return Store(
        folder,
        recording.source,
        episodes,
        first,
        found["stamps"],
        found["state"],
        found["present"],
        tuple(meta["shapes"]),
        pictures,
        meta["frame_rate"],
        meta["actions"],
        meta["skipped"],
        tuple(meta["notes"]),
        tuple(Problem(**each) for each in meta.get("left_out", ())),
        FaultTally(meta["faults"]),
    )


def _full(folder: Path, error: OSError) -> SamplesError:
    problem = f"{error.filename or folder} cannot be written: {error.strerror or error}"
    expected = "a writable folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem, expected = "no space is left on the disk for decoded images", "free space, or another cache folder"
    return SamplesError([Problem(str(folder.parent), "cache", error.strerror, expected, problem)])
