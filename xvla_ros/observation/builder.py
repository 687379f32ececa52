# SPDX-License-Identifier: Apache-2.0
"""Messages in, observations out: the one place where an observation is built, live, from a bag or for training."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.observation.align import (
    Alignment,
    JointSource,
    RecentMessages,
    Stamped,
    TopicSource,
    align,
    joint_topics,
    shown,
)
from xvla_ros.observation.faults import CAMERA_MISSING, JOINTS_INVALID, Fault
from xvla_ros.observation.images import view_of
from xvla_ros.observation.measured import MeasuredJoints, MeasuredTopic, together
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Camera
from xvla_ros.types import NS, Floats, Observation

Raw = TypeVar("Raw")
Picture = NDArray[np.uint8]

KEPT_SECONDS = 1.0  # of every topic, at least
KEPT_FRAMES = 256
CLOCK_BACK = 0.1  # s; less is the jitter of a simulated clock, more is a simulation that began again


@dataclass(frozen=True, eq=False)
class _Decoded:
    frame: Stamped[Any]
    picture: Picture


class ObservationBuilder(Generic[Raw]):
    """Builds the observations of one robot from its messages.

    A picture is handed over undecoded, of whatever type ``decode_image`` takes, and decoded only when an observation
    uses it. ``build`` and ``check`` never raise, whatever the messages hold: what is wrong comes back as a ``Fault``.
    Messages and builds may come from different threads; decoding happens outside of the lock.

    Args:
        profile: the robot.
        decode_image: (raw, camera that sent it) → uint8 [H, W, 3] RGB, as it was sent; may raise. What its ``rotate``
            and ``crop`` leave of it goes into observations.
        encoded: (raw, camera that sent it) → the JPEG or PNG that its message holds, None where it holds pixels; goes
            into observations beside the picture, where that is all of it. None leaves it out.
        encoder: of that robot; None makes one from the URDFs the profile names.
        leads_arm: whether an arm is led by what is measured, as ``measured.MeasuredTopic`` takes it.

    Raises:
        KinematicsError: the action mode has tool poses, and no encoder can be made.
    """

    def __init__(
        self,
        profile: Profile,
        decode_image: Callable[[Raw, Camera], Picture],
        encoder: StateEncoder | None = None,
        encoded: Callable[[Raw, Camera], bytes | None] | None = None,
        *,
        leads_arm: bool = False,
    ) -> None:
        self._encoder = encoder or StateEncoder(profile)
        self._profile = profile
        self._decode, self._encoded = decode_image, encoded
        self._embodiment = profile.embodiment()
        self._cameras = {slot: profile.cameras.by_name[slot] for slot in profile.cameras.slots}
        timing = profile.timing
        oldest_frame = max(camera.max_age for camera in self._cameras.values())
        horizon = max(KEPT_SECONDS, timing.observation_timeout + oldest_frame)
        self._lock = threading.Lock()
        self._frames: dict[str, RecentMessages[Raw]] = {
            slot: RecentMessages(horizon, KEPT_FRAMES) for slot in self._cameras
        }
        self._joints = {
            topic: MeasuredTopic(layout, profile, horizon, leads_arm=leads_arm)
            for topic, layout in joint_topics(profile).items()
        }
        self._undecodable: dict[str, tuple[int, str]] = {}  # of a slot, the stamp of the frame, and what is wrong
        self._decoded: dict[str, _Decoded] = {}
        self._last_call: tuple[float, int] | None = None
        self._clock_resets = 0

    @property
    def profile(self) -> Profile:
        """The robot whose observations these are."""
        return self._profile

    @property
    def clock_resets(self) -> int:
        """How often ROS time was found to have jumped back, and everything received before was forgotten."""
        return self._clock_resets

    def add_image(self, camera: str, stamp: int, raw: Raw, received: float) -> None:
        """Take a picture of ``camera`` (its name in the profile), undecoded.

        Args:
            stamp: its header stamp, ns of ROS time.
            raw: what ``decode_image`` takes.
            received: steady clock, s.
        """
        message = Stamped(stamp, received, raw)
        with self._lock:
            self._frames[camera].add(message, getattr(raw, "nbytes", 0) or (len(raw) if isinstance(raw, bytes) else 0))

    def add_joints(self, topic: str, stamp: int, names: Sequence[str], positions: ArrayLike, received: float) -> None:
        """Take a joint state of ``topic``: names in any order, further joints allowed, positions in rad or m.

        A message that cannot be used, or that physics forbids, makes the observation invalid until messages of that
        topic have been well for half a second (``measured``).
        """
        with self._lock:
            self._joints[topic].add(stamp, names, positions, received)

    def concerns(self, topic: str, names: Sequence[str], positions: ArrayLike) -> bool:
        """Return whether a joint state of ``topic`` has positions of the robot's joints."""
        return self._joints[topic].concerns(names, positions)

    def clear(self) -> None:
        """Forget all messages, as after a jump of ROS time."""
        with self._lock:
            self._forget()

    def trust_joints(self) -> None:
        """Believe where the joints are: while nobody drove the robot, a hand or a reset may have moved it.

        Whoever publishes leaping joints still does so, and is found by the next message.
        """
        with self._lock:
            for topic in self._joints.values():
                topic.trust()

    def measured(self) -> MeasuredJoints | None:
        """Return where the joints were last believed to be; None until each has been in a message."""
        with self._lock:
            return together(list(self._joints.values()), len(self._profile.joints.policy_order))

    def check(self, now: int, steady_now: float) -> Fault | None:
        """Return the fault that ``build`` would return, without decoding: cheap enough for every command.

        A picture that could not be decoded counts for ``max_age``, and on while no newer one has come: where none is
        asked for, none is decoded, and a good one ends nothing.
        """
        found = self._align(now, steady_now)
        if isinstance(found, Fault):
            return found
        with self._lock:
            broken = [
                text
                for slot, (stamp, text) in self._undecodable.items()
                if (camera := self._cameras[slot]).required
                and (now - stamp <= camera.max_age * NS or found.frames[slot].stamp <= stamp)
            ]
        return Fault(CAMERA_MISSING, "; ".join(broken)) if broken else None

    def aligned_stamp(self, now: int, steady_now: float) -> int | None:
        """Return the stamp that an observation built now would have; None where ``build`` would return a fault."""
        found = self._align(now, steady_now)
        return None if isinstance(found, Fault) else found.stamp

    def build(
        self,
        now: int,
        steady_now: float,
        instruction: str,
        commanded: Floats | None = None,
        *,
        not_after: int | None = None,
    ) -> Observation | Fault:
        """Return the newest observation for which every required part is there, or what is wrong.

        Args:
            now: ROS time, ns.
            steady_now: steady clock, s.
            instruction: what to do, in words.
            commanded: float64 [J] in policy order, rad or m: the state for ``proprio_source: commanded``. None takes
                the measured one, as before the first command.
            not_after: ns; the observation is to be no newer than this.
        """
        found = self._align(now, steady_now, not_after)
        if isinstance(found, Fault):
            return found
        if self._profile.policy.proprio_source == "measured" or commanded is None:
            state = self._state(found.positions)
        else:
            state = self._state(commanded)
        if isinstance(state, Fault):
            return state
        pictures = self._pictures(found)
        if isinstance(pictures, Fault):
            return pictures
        absent = found.frames.keys() - pictures.keys()
        age = {part: seconds for part, seconds in found.age.items() if part not in absent}
        encoded = self._as_given(found, pictures)
        return Observation(self._embodiment, found.stamp, pictures, state, instruction, age, encoded)

    def _align(self, now: int, steady_now: float, not_after: int | None = None) -> Alignment | Fault:
        timing = self._profile.timing
        with self._lock:
            self._follow_clock(now, steady_now)
            frames = {slot: messages.snapshot() for slot, messages in self._frames.items()}
            parts = [
                (topic.layout.topic, topic.fault, part) for topic in self._joints.values() for part in topic.parts()
            ]
        cameras = [
            TopicSource(
                slot,
                camera.topic,
                frames[slot],
                camera.max_age,
                max(camera.max_age, timing.clock_timeout),
                required=camera.required,
            )
            for slot, camera in self._cameras.items()
        ]
        max_silence = max(timing.observation_timeout, timing.clock_timeout)
        joints = [
            JointSource(
                part.name,
                topic,
                part.messages,
                timing.observation_timeout,
                max_silence,
                fault=fault,
                heard=part.heard,
                places=part.places,
            )
            for topic, fault, part in parts
        ]
        return align(cameras, joints, now, steady_now, timing.observation_timeout, not_after)

    def _follow_clock(self, now: int, steady_now: float) -> None:
        # a thread that read its clocks earlier may get here later; that is no jump
        if self._last_call is not None and steady_now < self._last_call[0]:
            return
        if self._last_call is not None and now < self._last_call[1] - CLOCK_BACK * NS:
            self._forget()
            self._clock_resets += 1
        self._last_call = (steady_now, now)

    def _forget(self) -> None:
        for frames in self._frames.values():
            frames.clear()
        for joints in self._joints.values():
            joints.clear()
        self._undecodable.clear()
        self._decoded.clear()

    def _state(self, positions: ArrayLike) -> NDArray[np.float32] | Fault:
        order = self._profile.joints.policy_order
        positions = np.asarray(positions, dtype=np.float64)
        if positions.shape != (len(order),):
            return Fault(JOINTS_INVALID, f"commanded joints have shape {positions.shape}; expected ({len(order)},)")
        with np.errstate(over="ignore", invalid="ignore"):
            state = self._encoder.state(positions).astype(np.float32)
        bad = [name for name, value in zip(self._profile.channels, state, strict=True) if not np.isfinite(value)]
        if bad:
            return Fault(JOINTS_INVALID, f"{shown(bad)}: not a finite number in the policy's units")
        state.flags.writeable = False
        return state

    def _pictures(self, found: Alignment) -> dict[str, Picture] | Fault:
        """Decode the frames; optional ones that cannot be decoded are left out."""
        pictures: dict[str, Picture] = {}
        broken: list[str] = []
        for slot, frame in found.frames.items():
            try:
                pictures[slot] = self._picture(slot, frame)
            except Exception as error:  # a decoder may raise anything on broken data, which means hold
                text = f"{slot}: image on {self._cameras[slot].topic} cannot be used: {error}"
                with self._lock:
                    self._undecodable[slot] = frame.stamp, text
                if self._cameras[slot].required:
                    broken.append(text)
        return Fault(CAMERA_MISSING, "; ".join(broken)) if broken else pictures

    def _as_given(self, found: Alignment, pictures: Mapping[str, Picture]) -> dict[str, bytes]:
        """Return the pictures that their cameras compressed and that are used whole."""
        if self._encoded is None:
            return {}
        whole = {slot: camera for slot, camera in self._cameras.items() if not (camera.rotate or camera.crop)}
        given = {slot: self._encoded(found.frames[slot].value, whole[slot]) for slot in pictures if slot in whole}
        return {slot: data for slot, data in given.items() if data is not None}

    def _picture(self, slot: str, frame: Stamped[Raw]) -> Picture:
        kept = self._decoded.get(slot)
        if kept is not None and kept.frame is frame:
            return kept.picture
        camera = self._cameras[slot]
        picture = self._decode(frame.value, camera)
        if not (
            isinstance(picture, np.ndarray)
            and picture.dtype == np.uint8
            and picture.ndim == 3
            and picture.shape[2] == 3
            and picture.size
        ):
            raise ValueError(f"decoded to {_described(picture)}; expected uint8 [H, W, 3]")
        picture = view_of(picture, camera).view()
        picture.flags.writeable = False
        with self._lock:
            self._decoded[slot] = _Decoded(frame, picture)
            self._undecodable.pop(slot, None)
        return picture


def _described(thing: object) -> str:
    if isinstance(thing, np.ndarray):
        return f"{thing.dtype} {list(thing.shape)}"
    return type(thing).__name__
