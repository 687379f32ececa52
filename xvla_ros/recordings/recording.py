# SPDX-License-Identifier: Apache-2.0
"""What every kind of recording gives, whatever format it is in: episodes with their paths, and frames to decode.

What is wrong with recorded joints is seen from their extremes: values in other units than the profile says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import KinematicsError, Problem, ProfileError
from xvla_ros.observation.faults import JOINTS_IMPLAUSIBLE, Fault, FaultTally
from xvla_ros.recordings.action_path import ActionPath, Plans, Times
from xvla_ros.robots.joints import JointLimits
from xvla_ros.robots.kinematics import RobotDescription
from xvla_ros.robots.profile import Profile
from xvla_ros.types import Floats

ActionSource = Literal["planned", "commanded", "measured"]

FAR = 0.5  # of a joint's range; calibrations differ by less, other units by a factor
DEGREES = 180.0 / np.pi
NAME_ROBOT = "name the robot, or its profile file, with --robot"  # of the commands that take recordings
STILL = 1e-4  # of a joint's range
NEAR_ZERO = 2.0  # degrees; no arm stays that close to zero with most of its joints
MOST = 0.75  # of the joints; grippers have units of their own
# What of a profile does not change a frame, a state or a path. The instruction counts where nothing else says one.
BESIDE = {"instruction", "smoothing", "schema_version"}
BESIDE_OF_POLICY = {
    "checkpoint",
    "revision",
    "server",
    "domain_id",
    "waypoint_dt",
    "first_waypoint_offset",
    "denoising_steps",
    "image_pipeline",
}


class SamplesError(ProfileError):
    """Data that cannot be trained on. ``problems`` holds everything that was found."""

    page = "docs/reference/samples.md#what-is-refused"


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
        changes: (ROS time ns, instruction) in order of time: what was to be done instead from then on.
        place: of a simulated one, [3] m in the hand's frame: where the named thing lies at its start.
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
    changes: tuple[tuple[int, str], ...] = ()
    place: tuple[float, ...] | None = None

    def instruction_at(self, stamp: int) -> str:
        """Return what was to be done at a ROS time in ns."""
        begun = [text for time, text in self.changes if time <= stamp]
        return begun[-1] if begun else self.instruction

    @property
    def instructions(self) -> tuple[str, ...]:
        """Everything that was to be done, each once."""
        return tuple(dict.fromkeys([self.instruction, *(text for _, text in self.changes)]))

    def waypoints(self, stamp: int, due: Times) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the actions of an observation, and which of them are recorded; the others repeat the last one.

        Args:
            stamp: of the observation, ns.
            due: int64 [..., T], when its waypoints are, ns.

        Returns:
            actions [..., T, D], known [..., T].
        """
        plan = self.plans.newest(stamp) if self.plans is not None else None
        if plan is None:
            return self.path.at(due), (due >= self.start) & (due <= self.end)
        return plan.at(due), (due >= stamp) & (due <= plan.times[-1])


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
class LostEpisode:
    """An episode whose frames cannot be read to the end: none of them must be used.

    Attributes:
        episode: index of it in the recording.
        problem: why.
    """

    episode: int
    problem: Problem


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
        left_out: episodes that are not used for what is wrong with each of them alone.
    """

    episodes: tuple[Episode, ...]
    problems: tuple[Problem, ...] = ()
    frame_rate: float = 0.0
    actions: ActionSource = "measured"
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    left_out: tuple[Problem, ...] = ()


def joint_leaps(faults: FaultTally, survey: Survey) -> str:
    """Return why a recording whose joints leap must not be used; empty where leaving those observations out is enough.

    Commands say what was to be done. Without them the measured path says it, and no arm can follow leaps.
    """
    found = [(fault, count) for fault, count in faults.commonest() if fault.reason == JOINTS_IMPLAUSIBLE]
    if not found or survey.actions != "measured":
        return ""
    return (
        f"at {sum(count for _, count in found)} instants joints leap faster than a joint can move, and the measured "
        f"joints are used as actions: {found[0][0].detail}. Find the node that publishes wrong joint states, and "
        "record again"
    )


class Recording(Protocol):
    """A bag or a LeRobot data set of one robot."""

    @property
    def source(self) -> str:
        """Its path, for a message to a person."""

    @property
    def profile(self) -> Profile:
        """Its robot."""

    def opened(self) -> AbstractContextManager[object]:
        """Return a context in which the files stay open from one call to the next."""

    def survey(self) -> Survey:
        """Return what it holds, and its problems; only what cannot be read at all raises ``SamplesError``."""

    def frames(self, survey: Survey) -> Iterator[Frame | Fault | LostEpisode]:
        """Yield the observations of the episodes of a survey, decoded; a fault where there is none."""

    def fingerprint(self) -> str:
        """Return hex digits that change when anything the frames or the survey depend on does."""


def joint_problems(source: str, profile: Profile, low: Floats, high: Floats) -> list[Problem]:
    """Return what looks wrong with the units of recorded positions, given their extremes [J] read as rad or m."""
    if outside := joints_outside(source, profile, low, high):
        return [outside]
    limits = JointLimits.of(profile)
    lower, upper = limits.lower, limits.upper
    if ((high - low) < STILL * (upper - lower)).all():
        return [
            Problem(
                source,
                "joints",
                float((high - low).max()),
                "a recording in which the robot moves",
                "no joint moves in the whole recording",
            )
        ]
    reach = np.maximum(np.abs(low), np.abs(high))
    turning = upper - lower > 1.0
    near = turning & (reach < NEAR_ZERO / DEGREES)
    if turning.sum() > 1 and near.sum() >= MOST * turning.sum():
        return [
            Problem(
                source,
                "joints",
                float(reach[near].max()),
                "positions that are in rad after their scales are applied",
                f"{near.sum()} of {turning.sum()} joints are never further than {reach[near].max():.3g} rad "
                "from zero: these are radians that were interpreted as degrees; set the scales, or units, to those of "
                "the recording",
            )
        ]
    return []


def joints_outside(source: str, profile: Profile, low: Floats, high: Floats) -> Problem | None:
    """Return that positions with these extremes [J] are far outside the joints' limits, and which; None where not."""
    limits = JointLimits.of(profile)
    lower, upper = limits.lower, limits.upper
    margin = FAR * (upper - lower)
    outside = np.flatnonzero((low < lower - margin) | (high > upper + margin))
    if not outside.size:
        return None
    names = [profile.joints.policy_order[i] for i in outside]
    spans = ", ".join(f"{name} {low[i]:.4g} … {high[i]:.4g}" for name, i in zip(names[:3], outside[:3], strict=True))
    fits = ((low / DEGREES >= lower - margin) & (high / DEGREES <= upper + margin)).all()
    hint = ": they fit as degrees, but ROS uses radians; convert them in the node that publishes them" if fits else ""
    turns = 2 * np.pi * np.round((low + high - lower - upper) / 2 / (2 * np.pi))
    if (turns[outside] != 0).all() and ((low - turns >= lower - margin) & (high - turns <= upper + margin)).all():
        hint = (
            ": they are whole turns (2π) away, so their zero is elsewhere; correct it in the node that publishes them"
        )
    first = outside[0]
    return Problem(
        source,
        ".".join(("joints", names[0])),
        [float(low[first]), float(high[first])],
        f"about {lower[first]:g} … {upper[first]:g}",
        f"{len(names)} joints are recorded far outside their limits ({spans}), probably in other units{hint}",
    )


def path_problems(source: str, key: str, path: ActionPath, channels: tuple[str, ...]) -> list[Problem]:
    """Return a problem that names the channels of a path with numbers that are not finite; none without such."""
    bad = [channels[i] for i in np.flatnonzero(~np.isfinite(path.values).all(axis=0))]
    if not bad:
        return []
    return [Problem(source, key, "NaN", "finite numbers", f"{', '.join(bad)}: not a finite number in the actions")]


def profile_essence(profile: Profile) -> dict[str, Any]:
    """Return the settings of a profile that frames, states and paths depend on, its URDFs among them."""
    settings = {key: value for key, value in profile.to_mapping().items() if key not in BESIDE}
    settings["policy"] = {key: value for key, value in settings["policy"].items() if key not in BESIDE_OF_POLICY}
    beside = profile.source.parent if profile.source is not None else None
    urdfs = {}
    for name, tool in profile.tools.items():
        try:
            urdfs[name] = RobotDescription.from_file(tool.urdf, beside).text if tool.urdf else ""
        except KinematicsError:  # named where the arm is needed
            urdfs[name] = ""
    return {**settings, "urdfs": urdfs}
