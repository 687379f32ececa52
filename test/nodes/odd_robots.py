# SPDX-License-Identifier: Apache-2.0
"""Robots with odd traits, one each: what their drivers send, message by message, to a graph or into a bag.

Each is an SO-101 in a namespace of its own. It stands, or with ``sway`` it moves, as a robot that is taught does.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import cv2
import numpy as np
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState

from xvla_ros.nodes.messages import stamp_message
from xvla_ros.robots import Profile, load_profile

MS = 1_000_000
START = 1_000_000 * MS  # ns of ROS time; nothing is sent before
STEP = 25 * MS  # between two instants at which something arrives
JOINT_PERIOD, PICTURE_PERIOD = 2 * STEP, 4 * STEP
PICTURE_DELAY, SECOND_DELAY = STEP, STEP  # from a picture's instant to its arrival; of a second publisher
WIDTH, HEIGHT = 16, 12
NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
POSE = (0.3, -0.5, 0.6, 0.4, -0.2, 0.5)  # rad
SWAY = 0.1  # rad, at 1 rad/s at most

Picture = Image | CompressedImage
Pose = Sequence[float]
Messages = list[tuple[int, JointState]]  # (publisher, message); publisher 0 is the driver, 1 a second one


@dataclass(frozen=True)
class Trait:
    """What is odd about a robot.

    Attributes:
        title: in words.
        joints: (number of the instant, where the arm is) → what is sent then.
        picture: what a camera sends.
        slots: cameras with the trait.
        joints_ahead, pictures_ahead: ms by which stamps are later than the instant; None for no stamp.
        cameras: their settings in the profile.
        two_cameras: whether a second publisher sends the same pictures.
        apart: tool → what it rightly makes of the robot where the node makes something else of it, and why.
    """

    title: str
    joints: Callable[[int, Pose], Messages] = field(default_factory=lambda: whole)
    picture: Callable[[], Picture] = field(default_factory=lambda: raw)
    slots: tuple[str, ...] = ("front", "wrist")
    joints_ahead: int | None = 0
    pictures_ahead: int | None = 0
    cameras: Mapping[str, Any] = field(default_factory=dict)
    two_cameras: bool = False
    apart: Mapping[str, tuple[str, str]] = field(default_factory=dict)


# joint states


def whole(k: int, pose: Pose) -> Messages:
    return [(0, state(NAMES, pose))]


def state(names: Sequence[str], positions: Pose, **others) -> JointState:
    return JointState(name=list(names), position=[float(each) for each in positions], **others)


def named(rename: Callable[[str], str]) -> Callable[[int, Pose], Messages]:
    return lambda k, pose: [(0, state([rename(name) for name in NAMES], pose))]


def measured(change: Callable[[np.ndarray], Sequence[float]], every: int = 1) -> Callable[[int, Pose], Messages]:
    """Every so many-th message has other positions."""
    return lambda k, pose: [(0, state(NAMES, pose if k % every else change(np.array(pose))))]


def beside(second: JointState, every: int = 1) -> Callable[[int, Pose], Messages]:
    """The driver's messages, and those of a second publisher."""
    return lambda k, pose: whole(k, pose) + ([] if k % every else [(1, deepcopy(second))])


def zeros_at_times(k: int, pose: Pose) -> Messages:
    """A second publisher for 0.4 s, from 2 s on."""
    return whole(k, pose) + ([(1, state(NAMES, [0.0] * 6))] if 2000 * MS <= k * JOINT_PERIOD < 2400 * MS else [])


def in_parts(k: int, pose: Pose) -> Messages:
    return [(0, state(NAMES[:5], pose[:5])), (1, state(NAMES[5:], pose[5:]))]


def slow_gripper(k: int, pose: Pose) -> Messages:
    return in_parts(k, pose)[: 1 if k % 5 else 2]


def shuffled(k: int, pose: Pose) -> Messages:
    order = np.random.default_rng(k).permutation(len(NAMES))
    return [(0, state([NAMES[i] for i in order], [pose[i] for i in order]))]


def with_wheels(k: int, pose: Pose) -> Messages:
    return [(0, state(("wheel_left", *NAMES, "wheel_right"), (math.nan, *pose, math.nan)))]


def without_positions(k: int, pose: Pose) -> Messages:
    return [(0, state(NAMES, (), velocity=[0.0] * 6))]


# pictures


def raw(encoding: str = "rgb8", pixel: int = 3, rows: int = HEIGHT) -> Image:
    """A picture in any encoding; of nv12 the rows of colours come after those of brightness."""
    values = np.arange(rows * WIDTH * pixel, dtype=np.uint8)
    return Image(height=HEIGHT, width=WIDTH, encoding=encoding, step=WIDTH * pixel, data=array("B", values.tobytes()))


def cut() -> Image:
    image = raw()
    image.data = image.data[:-WIDTH]
    return image


@cache
def packed(kind: str, lost: int = 0) -> CompressedImage:
    done, content = cv2.imencode(f".{kind}", np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3))
    assert done
    data = array("B", content.tobytes()[: content.size - lost])
    return CompressedImage(format=f"rgb8; {kind} compressed bgr8", data=data)


COMPRESSED = {"transport": "compressed"}

TRAITS = {
    "well": Trait("nothing odd"),
    "parts": Trait("arm and gripper from two publishers", in_parts),
    "slow_gripper": Trait("the gripper in messages of its own, at a fifth of the rate", slow_gripper),
    "zeros": Trait("a second publisher sends zeros for the same joints", beside(state(NAMES, [0.0] * 6), 2)),
    "zeros_at_times": Trait(
        "a second publisher sends zeros for the same joints, for 0.4 s",
        zeros_at_times,
        apart={"check": ("no", "a fault that pauses the arm is an error, however rare it is")},
    ),
    "efforts": Trait("a second publisher sends efforts alone", beside(state(NAMES, (), effort=[0.0] * 6))),
    "wheels": Trait("further joints, whose positions are NaN", with_wheels),
    "shuffled": Trait("joint names in another order in each message", shuffled),
    "prefix": Trait("joint names with a prefix", named(lambda name: f"robot1/{name}")),
    "no_positions": Trait("joint states without positions", without_positions),
    "empty": Trait("empty joint states", lambda k, pose: [(0, JointState())]),
    "nan": Trait("positions that are NaN", measured(lambda pose: [math.nan] * 6)),
    "nan_at_times": Trait("positions that are NaN in every fifth message", measured(lambda pose: [math.nan] * 6, 5)),
    "far": Trait("a joint at 1000 rad", measured(lambda pose: (*pose[:5], 1000.0))),
    "degrees": Trait("positions in degrees", measured(np.degrees)),
    "joints_unstamped": Trait("joint states without a stamp", joints_ahead=None),
    "joints_late": Trait("joint states stamped 0.5 s late", joints_ahead=-500),
    "joints_ahead": Trait("joint states stamped 2 s ahead", joints_ahead=2000),
    "yuyv": Trait("images in yuv422_yuy2", picture=partial(raw, "yuv422_yuy2", 2)),
    "uyvy": Trait("images in uyvy", picture=partial(raw, "uyvy", 2)),
    "nv12": Trait("images in nv12", picture=partial(raw, "nv12", 1, HEIGHT * 3 // 2)),
    "mono": Trait("images in mono8", picture=partial(raw, "mono8", 1)),
    "bayer": Trait("images in bayer_rggb8", picture=partial(raw, "bayer_rggb8", 1)),
    "open": Trait("images in 8UC3", picture=partial(raw, "8UC3")),
    "open_at_will": Trait(
        "images in 8UC3 of a camera with `required: false`",
        picture=partial(raw, "8UC3"),
        slots=("wrist",),
        cameras={"required": False},
    ),
    "answered": Trait("images in 8UC3, `encoding: bgr8`", picture=partial(raw, "8UC3"), cameras={"encoding": "bgr8"}),
    "deep": Trait("images in 16UC1", picture=partial(raw, "16UC1", 2)),
    "cut": Trait("images truncated", picture=cut),
    "jpeg": Trait("JPEG images", picture=partial(packed, "jpeg"), cameras=COMPRESSED),
    "jpeg_cut": Trait("JPEG images truncated", picture=partial(packed, "jpeg", 40), cameras=COMPRESSED),
    "png": Trait("PNG images", picture=partial(packed, "png"), cameras=COMPRESSED),
    "rotated": Trait("`rotate: 180`", cameras={"rotate": 180}),
    "cropped": Trait("a `crop` larger than the images", cameras={"crop": [0, 0, 2 * WIDTH, HEIGHT]}),
    "two_cameras": Trait("two publishers of the same cameras", two_cameras=True),
    "pictures_unstamped": Trait("images without a stamp", pictures_ahead=None),
    "pictures_late": Trait("images stamped 0.5 s late", pictures_ahead=-500),
    "pictures_ahead": Trait("images stamped 0.3 s ahead", pictures_ahead=300),
    "pictures_far_ahead": Trait("images stamped 2 s ahead", pictures_ahead=2000),
}


def profiles() -> dict[str, Profile]:
    """A profile for each trait, under its name."""
    plain = load_profile("so101")["so101"].to_mapping()
    del plain["view"]
    plain |= {"instruction": "stay"}
    plain["timing"] |= {"command_rate": 20.0}
    made = {}
    for name, trait in TRAITS.items():
        cameras = plain["cameras"]
        changed = {slot: cameras[slot] | dict(trait.cameras) for slot in trait.slots}
        made[name] = Profile.from_mapping(name, plain | {"cameras": cameras | changed, "namespace": f"/{name}"})
    return made


@dataclass(frozen=True)
class Sent:
    """A message on its way: when it arrives, ns of ROS time, where, who sent it, and itself, serialized."""

    arrives: int
    topic: str
    kind: type
    publisher: int
    data: bytes


def pose_at(instant: int, sway: float) -> list[float]:
    """Where the arm is at an instant in ns."""
    return [each + sway * math.sin((instant - START) / 1e9 / SWAY) for each in POSE]


def sent(profile: Profile, trait: Trait, seconds: float, sway: float = 0.0) -> list[Sent]:
    """What a robot sends within some seconds, in order of arrival; its joints sway by so many rad."""
    end = START + round(seconds * 1000) * MS
    return sorted((*_joints(profile, trait, end, sway), *_pictures(profile, trait, end)), key=lambda each: each.arrives)


def _joints(profile: Profile, trait: Trait, end: int, sway: float) -> Iterator[Sent]:
    topic = profile.joints.ordered[0].topic
    for k, instant in enumerate(range(START, end, JOINT_PERIOD)):
        for publisher, message in trait.joints(k, pose_at(instant, sway)):
            at = instant + publisher * SECOND_DELAY
            yield _stamped(message, topic, publisher, at, at, trait.joints_ahead)


def _pictures(profile: Profile, trait: Trait, end: int) -> Iterator[Sent]:
    for instant in range(START, end, PICTURE_PERIOD):
        for slot in profile.cameras.slots:
            topic, odd = profile.cameras.by_name[slot].topic, slot in trait.slots
            for publisher in range(2 if odd and trait.two_cameras else 1):
                at, picture = instant + publisher * SECOND_DELAY, trait.picture() if odd else raw()
                yield _stamped(picture, topic, publisher, at, at + PICTURE_DELAY, trait.pictures_ahead if odd else 0)


def _stamped(message: Any, topic: str, publisher: int, instant: int, arrives: int, ahead: int | None) -> Sent:
    message.header.stamp = stamp_message(0 if ahead is None else instant + ahead * MS)
    return Sent(arrives, topic, type(message), publisher, serialize_message(message))
