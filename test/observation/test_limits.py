# SPDX-License-Identifier: Apache-2.0
"""What arrives is bounded: bytes that are kept of a topic, pixels, names of joints, marks."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from xvla_ros.errors import MessageError
from xvla_ros.limits import KEPT_BYTES, WIDTH
from xvla_ros.observation import align
from xvla_ros.observation.align import JointTopic, RecentMessages, Stamped
from xvla_ros.observation.builder import ObservationBuilder
from xvla_ros.observation.images import plain_rows, rgb_of_compressed
from xvla_ros.recordings.marks import read_mark
from xvla_ros.robots import load_robot

LARGE = 48_000_000


def test_kept_messages_are_bounded_by_their_bytes() -> None:
    kept: RecentMessages[int] = RecentMessages(horizon=10.0, capacity=256)
    for number in range(40):
        kept.add(Stamped(number, 0.1 * number, number), LARGE)
    assert [each.value for each in kept.snapshot()] == list(range(40 - KEPT_BYTES // LARGE, 40))
    kept.add(Stamped(40, 4.0, 40), 2 * KEPT_BYTES)
    assert [each.value for each in kept.snapshot()] == [40]
    kept.clear()
    for number in range(300):
        kept.add(Stamped(number, 0.0, number))
    assert len(kept.snapshot()) == 256


@pytest.mark.parametrize("raw", [bytes(1000), np.zeros(1000, np.uint8)], ids=["bytes", "array"])
def test_pictures_count_with_their_bytes(monkeypatch: pytest.MonkeyPatch, raw: bytes | np.ndarray) -> None:
    monkeypatch.setattr(align, "KEPT_BYTES", 3000)
    profile = load_robot("so101")
    builder: ObservationBuilder[bytes | np.ndarray] = ObservationBuilder(
        profile, lambda raw, camera: np.zeros((1, 1, 3))
    )
    slot = profile.cameras.slots[0]
    for stamp in range(10):
        builder.add_image(slot, stamp, raw, 0.0)
    assert len(builder._frames[slot].snapshot()) == 3


def test_names_of_joints_are_bounded() -> None:
    profile = load_robot("so101")
    topic = JointTopic(profile.joints.topics[0], profile)
    with pytest.raises(MessageError, match="70000 joint names; expected at most"):
        topic.read(["a"] * 70_000, np.zeros(70_000))
    assert WIDTH < 70_000


def test_pixels_are_bounded_before_they_are_decoded() -> None:
    with pytest.raises(MessageError, match="30000x30000 pixels; expected at most"):
        plain_rows("mono8", 30_000, 30_000, 30_000, b"")
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", 25_000, 25_000)
    with pytest.raises(MessageError, match="a PNG of 25000x25000; expected at most"):
        rgb_of_compressed(head + bytes(100))


@pytest.mark.parametrize("text", ["[" * 5000, '{"event": "start", "event": "end"}', "9" * 5000, '{"event": ["start"]}'])
def test_mark_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(MessageError):
        read_mark(text)
