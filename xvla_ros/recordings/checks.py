"""What is wrong with recorded joints, seen from their extremes: values in other units than the profile says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import Problem
from xvla_ros.recordings.action_path import ActionPath
from xvla_ros.robots.profile import Profile

Floats = NDArray[np.float64]

FAR = 0.5  # of a joint's range: calibration differs from robot to robot, units do by a factor
DEGREES = 180.0 / np.pi
STILL = 1e-4  # of a joint's range
NEAR_ZERO = 2.0  # degrees; no arm stays that close to zero with most of its joints
MOST = 0.75  # of the joints; grippers have units of their own


def joint_problems(source: str, profile: Profile, low: Floats, high: Floats) -> list[Problem]:
    """Return what the extremes [J] of recorded positions, read as rad or m, say of their units."""
    joints = profile.joints.ordered
    lower, upper = np.array([j.lower for j in joints]), np.array([j.upper for j in joints])
    margin = FAR * (upper - lower)
    outside = np.flatnonzero((low < lower - margin) | (high > upper + margin))
    if outside.size:
        return [_outside(source, profile, outside, low, high, lower, upper, margin)]
    if ((high - low) < STILL * (upper - lower)).all():
        return [Problem(source, "joints", float((high - low).max()), "a recording in which the robot moves",
                        "no joint moves: every one of them stays where it is")]
    reach = np.maximum(np.abs(low), np.abs(high))
    turning = np.array([(j.upper - j.lower) > 1.0 for j in joints])
    near = turning & (reach < NEAR_ZERO / DEGREES)
    if turning.sum() > 1 and near.sum() >= MOST * turning.sum():
        return [Problem(source, "joints", float(reach[near].max()), "positions in rad once read by their scales",
                        f"{near.sum()} of {turning.sum()} joints are never further than {reach[near].max():.3g} rad "
                        "from zero: these are radians taken for degrees; set the scales, or units, to what was "
                        "recorded")]
    return []


def _outside(
    source: str, profile: Profile, outside: NDArray[np.intp], low: Floats, high: Floats, lower: Floats, upper: Floats,
    margin: Floats,
) -> Problem:
    names = [profile.joints.policy_order[i] for i in outside]
    spans = ", ".join(f"{name} {low[i]:.4g} … {high[i]:.4g}" for name, i in zip(names[:3], outside[:3], strict=True))
    fits = ((low / DEGREES >= lower - margin) & (high / DEGREES <= upper + margin)).all()
    hint = ": they fit as degrees, ROS has radians; convert them where they are published" if fits else ""
    first = outside[0]
    return Problem(source, ".".join(("joints", names[0])), [float(low[first]), float(high[first])],
                   f"about {lower[first]:g} … {upper[first]:g}",
                   f"{len(names)} joints are recorded far outside of their limits ({spans}), as in other units{hint}")


def path_problems(source: str, key: str, path: ActionPath, channels: tuple[str, ...]) -> list[Problem]:
    """Return whether a path holds numbers that are not finite, by channel."""
    bad = [channels[i] for i in np.flatnonzero(~np.isfinite(path.values).all(axis=0))]
    if not bad:
        return []
    return [Problem(source, key, "NaN", "finite numbers", f"{', '.join(bad)}: not a finite number in the actions")]
