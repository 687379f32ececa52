# SPDX-License-Identifier: Apache-2.0
"""What a replay writes of every observation it answered: on disk, as it grows with the bag, and not in memory.

A file of rows is read back block by block, so that the figures of an hour need little memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from xvla_ros.evaluation.replay.measures import Measures
from xvla_ros.robots.profile import Profile
from xvla_ros.types import NS, Observation

Rows = NDArray[Any]

# s by which the prediction is compared with what was recorded later (or earlier): by so much a robot may answer late
SHIFTS = (-0.2, -0.1, 0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
BLOCK = 256

# The worst moments: how many, how far apart in s within an episode, and their pictures' pixels and JPEG quality.
KEPT, APART, WIDTH, QUALITY = 6, 1.0, 320, 80


@dataclass(frozen=True)
class RowLayout:
    """The sizes of a row.

    Attributes:
        waypoints: T.
        width: D, numbers of an action.
        runs: R, policies that answered.
        measures: M.
        joints: J where tool poses are decoded to joints as well, else 0.
        parts: names of the cameras and joint topics whose ages are kept.
        cameras: how many of them are cameras; they come first.
    """

    waypoints: int
    width: int
    runs: int
    measures: int
    joints: int
    parts: tuple[str, ...]
    cameras: int

    @staticmethod
    def of(profile: Profile, waypoints: int, runs: int) -> RowLayout:
        """Return the layout of a robot's rows."""
        topics = profile.joints.topics
        joints = len(profile.joints.policy_order) if profile.action_spec.is_end_effector else 0
        return RowLayout(
            waypoints,
            profile.state_width,
            runs,
            len(Measures(profile).all),
            joints,
            (*profile.cameras.slots, *topics),
            len(profile.cameras.slots),
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """The row: times in ns, actions in the policy's units, joints in rad or m, ages in s.

        ``shifted`` holds sums of differences over the waypoints whose later instants were recorded.
        """
        t, d, r, j = self.waypoints, self.width, self.runs, self.joints
        fields: list[Any] = [
            ("stamp", "i8"),
            ("episode", "i4"),
            ("mask", "?", (t,)),
            ("predicted", "f4", (r, t, d)),
            ("recorded", "f4", (t, d)),
            ("measured", "f4", (d,)),
            ("told", "f4", (d,)),
            ("latency_ms", "f4", (r,)),
            ("age", "f4", (len(self.parts),)),
            ("shifted", "f8", (r, len(SHIFTS), self.measures)),
            ("shifted_count", "i4", (len(SHIFTS),)),
        ]
        if j:
            fields += [("joints", "f4", (r, t, j)), ("joints_recorded", "f4", (t, j)), ("missed", "?", (r, t))]
        return np.dtype(fields)


class RowWriter:
    """Appends rows to a file."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self.count = 0

    def write(self, rows: Rows) -> None:
        """Append rows."""
        self._stream.write(np.ascontiguousarray(rows).tobytes())
        self.count += len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()


def read_rows(path: Path, dtype: np.dtype[Any]) -> Rows:
    """Return all rows of a file, in memory."""
    return np.fromfile(path, dtype=dtype)


def blocks(path: Path, dtype: np.dtype[Any]) -> Iterator[Rows]:
    """Yield the rows of a file a few at a time."""
    with path.open("rb") as stream:
        while content := stream.read(dtype.itemsize * BLOCK):
            yield np.frombuffer(content, dtype=dtype)


@dataclass(frozen=True, eq=False)
class _Moment:
    row: int
    score: float
    episode: int
    seen: Observation


class Worst:
    """Keeps a few moments of a bag.

    Args:
        folder: where their pictures are written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: list[_Moment] = []

    def offer(self, row: int, score: float, episode: int, seen: Observation) -> None:
        """Offer a moment; its pictures are kept only while it is among the worst."""
        if len(self._kept) == KEPT and score <= self._kept[-1].score:
            return
        rival = next(
            (each for each in self._kept if each.episode == episode and abs(each.seen.stamp - seen.stamp) < APART * NS),
            None,
        )
        if rival is not None:
            if score <= rival.score:
                return
            self._kept.remove(rival)
        self._kept.append(_Moment(row, score, episode, seen))
        self._kept.sort(key=lambda each: -each.score)
        del self._kept[KEPT:]

    def found(self) -> list[dict[str, Any]]:
        """Write the pictures and return what is kept, worst first."""
        return [
            {
                "row": each.row,
                "score": each.score,
                "episode": each.episode,
                "stamp": each.seen.stamp,
                "pictures": {slot: self._write(number, slot, picture) for slot, picture in each.seen.images.items()},
            }
            for number, each in enumerate(self._kept)
        ]

    def _write(self, number: int, slot: str, picture: NDArray[np.uint8]) -> str:
        from PIL import Image

        name = f"worst_{number}_{slot}.jpg"
        image = Image.fromarray(picture)
        image.thumbnail((WIDTH, WIDTH))
        image.save(self._folder / name, "JPEG", quality=QUALITY)
        return name
