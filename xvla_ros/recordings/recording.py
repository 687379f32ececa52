"""What every kind of recording gives, whatever format it is in: episodes with their paths, and frames to decode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import Problem, ProfileError
from xvla_ros.observation.faults import JOINTS_IMPLAUSIBLE, Fault, FaultTally
from xvla_ros.recordings.action_path import ActionPath, Plans, Times
from xvla_ros.robots.profile import Profile

ActionSource = Literal["planned", "commanded", "measured"]


class SamplesError(ProfileError):
    """Data that cannot be trained on. ``problems`` holds everything that was found."""


class NothingLeftError(SamplesError):
    """A recording whose every episode is left out for what it is: a failure, a discarded one.

    ``skipped``: why episodes were left out → how many, as in ``Survey``.
    """

    def __init__(self, problems: Sequence[Problem], skipped: Mapping[str, int]) -> None:
        super().__init__(problems)
        self.skipped = dict(skipped)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems, self.skipped)


@dataclass(frozen=True, eq=False)
class Episode:
    """One demonstration.

    Attributes:
        key: what tells it from the others of its recording.
        instruction: what was to be done.
        success: whether it was; None where nobody said.
        start, end: ROS time, ns.
        path: the actions over time.
        plans: what counts in the place of the path from the first of them on; None where the path counts.
        task: of a simulated one.
        seed: of a simulated one.
    """

    key: str
    instruction: str
    success: bool | None
    start: int
    end: int
    path: ActionPath
    task: str = ""
    seed: int | None = None
    plans: Plans | None = None

    def waypoints(self, stamp: int, due: Times) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the actions of an observation, and which of them are recorded; the others repeat the last one.

        Args:
            stamp: of the observation, ns.
            due: int64 [T], when its waypoints are, ns.

        Returns:
            actions [T, D], known [T].
        """
        plan = self.plans.newest(stamp) if self.plans is not None else None
        if plan is None:
            return self.path.at(due), due <= self.end
        return plan.at(due), due <= plan.times[-1]


@dataclass(frozen=True, eq=False)
class Frame:
    """One observation of an episode.

    Attributes:
        episode: index of its episode in the recording.
        stamp: ROS time, ns.
        state: float32 [P], the policy's units.
        images: slot → uint8 [H, W, 3] RGB; an absent camera has no entry.
    """

    episode: int
    stamp: int
    state: NDArray[np.float32]
    images: Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Survey:
    """What a recording holds, found without decoding a picture.

    Attributes:
        episodes: that samples are made of.
        problems: why they must not be used as they are.
        frame_rate: Hz of the pictures of slot 0; 0 where unknown.
        actions: what the paths are: whole plans, what was commanded, or what was measured.
        skipped: why episodes were left out → how many.
        notes: what a person should know, such as that the recording was cut short.
    """

    episodes: tuple[Episode, ...]
    problems: tuple[Problem, ...] = ()
    frame_rate: float = 0.0
    actions: ActionSource = "measured"
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def joint_leaps(faults: FaultTally, survey: Survey) -> str:
    """Return why a recording whose joints leap must not be used; empty where leaving those observations out is enough.

    Commands tell what was to be done; without them it is what was measured, and nobody can have done that.
    """
    found = [(fault, count) for fault, count in faults.commonest() if fault.reason == JOINTS_IMPLAUSIBLE]
    if not found or survey.actions != "measured":
        return ""
    return (f"at {sum(count for _, count in found)} instants joints leap as no joint can, and what was measured counts "
            f"as what was to be done: {found[0][0].detail}. Find out who publishes what is wrong, and record again")


class Recording(Protocol):
    """A bag or a LeRobot data set of one robot."""

    @property
    def source(self) -> str:
        """Its path, for a message to a person."""

    @property
    def profile(self) -> Profile:
        """Its robot."""

    def survey(self) -> Survey:
        """Return what it holds. Problems are returned; only what cannot be read at all raises ``SamplesError``."""

    def frames(self, survey: Survey) -> Iterator[Frame | Fault]:
        """Yield the observations of the episodes of a survey, decoded; a fault where there is none."""

    def fingerprint(self) -> str:
        """Return hex digits that change when anything the frames or the survey depend on does."""
