"""Plots of a replay, each as the bytes of a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.evaluation.replay.rows import Rows
from xvla_ros.evaluation.report.plots import COMMANDED, LIMIT, MEASURED, PREDICTED, figure, png
from xvla_ros.robots.joints import from_policy
from xvla_ros.robots.profile import Profile

Floats = NDArray[np.float64]
NS = 1_000_000_000
SECOND = "#7a4fb5"
STILL = "#8d97a5"
MOST_CHUNKS = 40


@dataclass(frozen=True, eq=False)
class Course:
    """One channel over an episode.

    Attributes:
        name, unit: of it.
        times: [N] s since the first row.
        recorded: [N, T]; predicted: [N, T]; mask: [N, T].
        due: [T] s from a row to its waypoints.
        limits: lowest and highest position; None for tools.
    """

    name: str
    unit: str
    times: Floats
    recorded: Floats
    predicted: Floats
    mask: NDArray[np.bool_]
    due: Floats
    limits: tuple[float, float] | None = None


def courses(rows: Rows, profile: Profile) -> list[Course]:
    """Return every joint over the rows of one episode; of tool poses the positions and the gripper of each tool."""
    policy = profile.policy
    due = policy.first_waypoint_offset + np.arange(rows["recorded"].shape[1]) * policy.waypoint_dt
    times = (rows["stamp"] - rows["stamp"][0]) / NS
    predicted = rows["predicted"][:, 0].astype(np.float64)
    recorded = rows["recorded"].astype(np.float64)
    if profile.action_spec.is_end_effector:
        names = [(column, name) for column, name in enumerate(profile.channels)
                 if "rot6d" not in name and not name.startswith("unused")]
        return [
            Course(name, "" if name.endswith("gripper") else "m", times, recorded[..., column],
                   predicted[..., column], rows["mask"], due)
            for column, name in names
        ]
    ours, theirs = from_policy(predicted, profile), from_policy(recorded, profile)
    return [
        Course(name.replace("_", " "), "rad", times, theirs[..., column], ours[..., column], rows["mask"], due,
               (joint.lower, joint.upper))
        for column, (name, joint) in enumerate(
            zip(profile.joints.policy_order, profile.joints.ordered, strict=True))
    ]


def course_plot(course: Course) -> bytes:
    """Recorded against predicted: the first waypoint of every chunk, and whole chunks in grey."""
    drawn, axes = figure(4.4, 2.3)
    step = max(1, len(course.times) // MOST_CHUNKS)
    for index in range(0, len(course.times), step):
        known = course.mask[index]
        axes.plot(course.times[index] + course.due[known], course.predicted[index][known], color=PREDICTED, lw=0.7,
                  zorder=1)
    instants = course.times + course.due[0]
    axes.plot(instants, course.recorded[:, 0], color=MEASURED, lw=1.8, zorder=3)
    axes.plot(instants, course.predicted[:, 0], color=COMMANDED, lw=1.2, ls=(0, (4, 2)), zorder=4)
    low, high = axes.get_ylim()
    for limit in course.limits or ():
        if low <= limit <= high:
            axes.axhline(limit, color=LIMIT, lw=1.0)
    axes.set_title(course.name, loc="left", fontsize=10)
    axes.set_xlabel("s")
    axes.set_ylabel(course.unit, fontsize=8)
    return png(drawn)


def horizon_plot(horizon: Mapping[str, Any], labels: Sequence[str]) -> bytes:
    """Error against how far ahead a waypoint lies, with the baselines."""
    drawn, axes = figure(4.4, 2.3)
    times = _floats(horizon["times"])
    lines = [*zip(labels, horizon["runs"], (COMMANDED, SECOND), strict=False),
             ("stays where it is", horizon["persistence"], STILL),
             ("mean of the recording", horizon["mean"], "#c9ced6")]
    for label, values, colour in lines:
        axes.plot(times, _floats(values), color=colour, lw=1.8 if colour in (COMMANDED, SECOND) else 1.3, label=label)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("s from the observation to the waypoint")
    axes.set_ylabel(horizon["unit"])
    axes.set_title("error by how far ahead", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=7)
    return png(drawn)


def shift_plot(shifts: Sequence[Mapping[str, Any]], unit: str) -> bytes:
    """Error when everything predicted happens later or earlier."""
    drawn, axes = figure(4.4, 2.3)
    axes.plot([each["shift_s"] for each in shifts], _floats([each["mae"] for each in shifts]), "o-", ms=3.5,
              color=COMMANDED)
    axes.axvline(0.0, color=STILL, lw=0.8)
    axes.set_xlabel("s late")
    axes.set_ylabel(unit)
    axes.set_title("error of a robot that is late", loc="left", fontsize=10)
    return png(drawn)


def episodes_plot(episodes: Sequence[Mapping[str, Any]], labels: Sequence[str], unit: str) -> bytes:
    """Error of every episode, of each policy and of staying still."""
    drawn, axes = figure(4.4, 2.3)
    places = np.arange(len(episodes))
    for run, (label, colour) in enumerate(zip(labels, (COMMANDED, SECOND), strict=False)):
        axes.plot(places, _floats([each["mae"][run] for each in episodes]), "o", ms=4, color=colour, label=label)
    axes.plot(places, _floats([each["persistence"] for each in episodes]), "_", ms=9, color=STILL)
    axes.set_ylim(bottom=0.0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("episode")
    axes.set_ylabel(unit)
    axes.set_title("error by episode; grey: staying still", loc="left", fontsize=10)
    return png(drawn)


def _floats(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
