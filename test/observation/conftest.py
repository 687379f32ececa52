# SPDX-License-Identifier: Apache-2.0
"""A robot whose messages a test feeds by hand: pictures of one colour, joints on a straight line in time."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest

from xvla_ros.observation.builder import ObservationBuilder
from xvla_ros.observation.faults import Fault
from xvla_ros.robots.profile import Profile, load_profile
from xvla_ros.types import Observation

MS = 1_000_000
START = 1_000_000 * MS
SIDES = ("left", "right")
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CAMERAS = ("front", "left_wrist", "right_wrist")


@cache
def changed_pair(*changes: tuple[str, Any]) -> Profile:
    """The SO-101 pair with settings changed: ``changed_pair(("cameras.front.max_age", 0.5))``."""
    settings = deepcopy(load_profile("so101_bimanual")["so101_bimanual"].to_mapping())
    for path, value in changes:
        *sections, last = path.split(".")
        node = settings
        for section in sections:
            node = node[section]
        node[last] = list(value) if isinstance(value, tuple) else value
    return Profile.from_mapping("so101_bimanual", settings)


@dataclass
class Rig:
    """A builder and what a driver would send it. Times are ms after START; the steady clock runs along."""

    profile: Profile
    decoded: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.builder: ObservationBuilder[Any] = ObservationBuilder(self.profile, self._decode)

    def _decode(self, raw: Any, transport: str) -> Any:
        self.decoded.append(raw)
        if isinstance(raw, Exception):
            raise raw
        return raw if isinstance(raw, np.ndarray) else np.full((4, 6, 3), raw, np.uint8)

    def image(self, camera: str, ms: float, raw: Any = 7, received_ms: float | None = None) -> None:
        received = ms if received_ms is None else received_ms
        self.builder.add_image(camera, START + round(ms * MS), raw, received / 1e3)

    def joints(self, side: str, ms: float, value: float = 0.5, received_ms: float | None = None) -> None:
        received = ms if received_ms is None else received_ms
        self.builder.add_joints(f"/{side}/joint_states", START + round(ms * MS), JOINTS, [value] * 6, received / 1e3)

    def everything(self, ms: float, raw: Any = 7, value: float = 0.5) -> None:
        for camera in CAMERAS:
            self.image(camera, ms, raw)
        for side in SIDES:
            self.joints(side, ms, value)

    def build(self, ms: float, steady_ms: float | None = None, **options: Any) -> Observation | Fault:
        steady = ms if steady_ms is None else steady_ms
        return self.builder.build(START + round(ms * MS), steady / 1e3, "fold the cloth", **options)

    def seen(self, ms: float, **options: Any) -> Observation:
        found = self.build(ms, **options)
        assert isinstance(found, Observation), found
        return found

    def fault(self, ms: float, steady_ms: float | None = None) -> Fault:
        found = self.build(ms, steady_ms)
        assert isinstance(found, Fault), found
        return found


@pytest.fixture(scope="session")
def make_rig() -> Callable[..., Rig]:
    return lambda **changes: Rig(changed_pair(*changes.items()))


@pytest.fixture
def rig() -> Rig:
    return Rig(changed_pair())
