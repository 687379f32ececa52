"""At which instant a robot's cameras and joints can be seen together, and what is wrong when they cannot.

Every stamp is ROS time in ns. Two clocks judge a source: ROS time, by its stamps, and the steady clock, by when its
messages came in, so that a source that stops is noticed even while ROS time stands still.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from xvla_ros.observation.buffer import Stamped, in_order, neighbours, newest_at
from xvla_ros.observation.faults import (
    CAMERA_MISSING,
    CAMERA_STALE,
    JOINTS_MISSING,
    JOINTS_STALE,
    Fault,
)
from xvla_ros.observation.joints import interpolate
from xvla_ros.types import NS

T = TypeVar("T")

FUTURE_TOLERANCE = 0.1  # s; a simulator's messages may overtake its /clock, and two machines' clocks differ a little
OTHER_CLOCK = 60.0  # s; a stamp this far from now comes from another clock rather than from a slow source


@dataclass(frozen=True)
class TopicSource(Generic[T]):
    """What is known of one topic at one moment.

    Attributes:
        name: the camera, or the joint topic.
        topic: its ROS topic.
        messages: what has lately arrived, in any order.
        max_age: s, ROS time, within which the newest message, and the one used, must lie.
        max_silence: s, steady clock, within which a new message must have come in.
        required: without it there is no observation.
        missing, stale: the reasons of its faults.
        fault: why its messages are not to be used; None while they are.
        heard: what came instead where there are no messages; empty for nothing.
    """

    name: str
    topic: str
    messages: Sequence[Stamped[T]]
    max_age: float
    max_silence: float
    required: bool = True
    missing: str = CAMERA_MISSING
    stale: str = CAMERA_STALE
    fault: Fault | None = None
    heard: str = ""


@dataclass(frozen=True)
class JointSource(TopicSource[NDArray[np.float64]]):
    """Joints of one topic that come in the same messages; ``places``: theirs in policy order."""

    missing: str = JOINTS_MISSING
    stale: str = JOINTS_STALE
    places: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, dtype=np.intp))


@dataclass(frozen=True)
class Alignment:
    """A common stamp, the frame of each camera at or before it, the joints of each topic at it.

    Attributes:
        stamp: the common stamp.
        frames: camera → its newest frame at or before the stamp. Optional cameras without one have no entry.
        positions: float64 [J], rad or m, interpolated to the stamp, in policy order.
        age: camera or joint source → s between its newest message at or before the stamp, and the stamp.
    """

    stamp: int
    frames: dict[str, Stamped[Any]]
    positions: NDArray[np.float64]
    age: dict[str, float]


def align(
    cameras: Sequence[TopicSource[Any]],
    joints: Sequence[JointSource],
    now: int,
    steady_now: float,
    timeout: float,
    not_after: int | None = None,
) -> Alignment | Fault:
    """Return what can be seen together at the newest instant for which every required source has answered.

    That instant is the oldest among the newest stamps of the required cameras and the joint topics, or ``not_after``
    where that is older.

    Args:
        now: ROS time, ns. Messages stamped more than ``FUTURE_TOLERANCE`` later are left aside.
        steady_now: steady clock, s.
        timeout: s by which that instant may lie before ``now``, and by which two joint messages may lie apart to be
            interpolated between.
    """
    latest = now + round(FUTURE_TOLERANCE * NS)
    ordered = {source.name: in_order(source.messages, latest) for source in (*cameras, *joints)}
    faults = {source.name: fault for source in (*joints, *cameras)
              if (fault := _fault_of(source, ordered[source.name], now, steady_now))}
    if fault := _gathered(faults[source.name] for source in (*joints, *cameras)
                          if source.required and source.name in faults):
        return fault
    fresh = [camera for camera in cameras if camera.name not in faults]
    awaited = [source for source in (*fresh, *joints) if source.required]
    slowest = min(awaited, key=lambda source: ordered[source.name][-1].stamp)
    stamp = ordered[slowest.name][-1].stamp
    if now - stamp > timeout * NS:
        return Fault(slowest.stale, f"{slowest.name}: newest message on {slowest.topic} is {_ago(now - stamp)} old; "
                                    f"expected at most observation_timeout {timeout:g} s")
    stamp = stamp if not_after is None else min(stamp, not_after)
    return _gather_at(stamp, fresh, joints, ordered, timeout)


def _fault_of(source: TopicSource[Any], ordered: Sequence[Stamped[Any]], now: int, steady_now: float) -> Fault | None:
    """Return what is wrong with one source taken by itself."""
    if source.fault is not None:
        return source.fault
    if not source.messages:
        return Fault(source.missing, f"{source.name}: {source.heard or f'nothing received on {source.topic}'}")
    if not ordered:
        ahead = min(message.stamp for message in source.messages) - now
        return Fault(source.stale, f"{source.name}: messages on {source.topic} are stamped {_ago(ahead)} ahead of ROS "
                                   f"time; expected at most {FUTURE_TOLERANCE:g} s. Synchronise the clocks, or set "
                                   "use_sim_time alike everywhere")
    newest = ordered[-1]
    silence, age = steady_now - newest.received, now - newest.stamp
    if age > source.max_age * NS:
        still_coming = steady_now - source.messages[-1].received <= source.max_silence
        hint = ("; messages still come in, so their clock is not this node's: synchronise the clocks, or set "
                "use_sim_time alike everywhere" if age > OTHER_CLOCK * NS and still_coming else "")
        return Fault(source.stale, f"{source.name}: newest message on {source.topic} is {_ago(age)} old; expected at "
                                   f"most {source.max_age:g} s{hint}")
    if silence > source.max_silence:
        return Fault(source.stale, f"{source.name}: nothing new on {source.topic} for {silence:.2f} s of wall time; "
                                   f"expected within {source.max_silence:g} s")
    return None


def _gather_at(
    stamp: int,
    cameras: Sequence[TopicSource[Any]],
    joints: Sequence[JointSource],
    ordered: dict[str, list[Stamped[Any]]],
    timeout: float,
) -> Alignment | Fault:
    result = Alignment(stamp, {}, np.empty(sum(source.places.size for source in joints)), {})
    faults: list[Fault] = []
    for source in joints:
        found = _joints_at(stamp, source, ordered[source.name], timeout)
        if isinstance(found, Fault):
            faults.append(found)
            continue
        result.positions[source.places], result.age[source.name] = found
    for camera in cameras:
        frame = newest_at(ordered[camera.name], stamp)
        fault = _frame_fault(stamp, camera, frame)
        if frame is not None and fault is None:
            result.frames[camera.name] = frame
            result.age[camera.name] = (stamp - frame.stamp) / NS
        elif fault is not None and camera.required:
            faults.append(fault)
    return _gathered(faults) or result


def _joints_at(
    stamp: int, source: JointSource, ordered: Sequence[Stamped[NDArray[np.float64]]], timeout: float
) -> tuple[NDArray[np.float64], float] | Fault:
    enclosing = neighbours(ordered, stamp)
    if enclosing is None:
        return Fault(JOINTS_MISSING, f"{source.name}: the first message came {_ago(ordered[0].stamp - stamp)} after "
                                     "the newest picture; waiting for the next one")
    before, after = enclosing
    gap = after.stamp - before.stamp
    if gap > timeout * NS:
        return Fault(JOINTS_STALE, f"{source.name}: {_ago(gap)} between two messages; expected at most "
                                   f"observation_timeout {timeout:g} s to interpolate between them")
    share = (stamp - before.stamp) / gap if gap else 0.0
    return interpolate(before.value, after.value, share), (stamp - before.stamp) / NS


def _frame_fault(stamp: int, camera: TopicSource[Any], frame: Stamped[Any] | None) -> Fault | None:
    if frame is None:
        return Fault(CAMERA_MISSING, f"{camera.name}: no picture yet at or before the newest joint states and pictures "
                                     "of the others; waiting for them")
    if stamp - frame.stamp > camera.max_age * NS:
        return Fault(CAMERA_STALE, f"{camera.name}: picture on {camera.topic} is {_ago(stamp - frame.stamp)} older "
                                   f"than the joint states it goes with; expected at most {camera.max_age:g} s")
    return None


def _gathered(faults: Iterable[Fault]) -> Fault | None:
    """Return the first fault with the details of all faults of its reason."""
    found = list(faults)
    if not found:
        return None
    return Fault(found[0].reason, "; ".join(fault.detail for fault in found if fault.reason == found[0].reason))


def _ago(ns: int) -> str:
    return f"{ns / NS:.2f} s"
