# SPDX-License-Identifier: Apache-2.0
"""The SO-101 profiles that differ in units, joint names, controllers or the number of arms."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.robots import Profile, load_profile
from xvla_ros.robots.joints import from_policy, to_policy
from xvla_ros.robots.profile import shipped_files

PAIR = "so101_bimanual"
VARIANTS = tuple(path.stem for path in shipped_files() if path.stem.startswith(f"{PAIR}_"))
ARM = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
GRIPPERS = (5, 11)


@cache
def load(robot: str) -> Profile:
    return load_profile(robot)[robot]


def ends(robot: str, side: int) -> np.ndarray:
    """Policy values of the lowest (0) or highest (1) position of every joint."""
    profile = load(robot)
    limits = [(joint.lower, joint.upper)[side] for joint in profile.joints.ordered]
    return to_policy(np.array([limits]), profile)[0]


def test_the_variants_that_the_documentation_names_are_there():
    assert {name.removeprefix(f"{PAIR}_") for name in VARIANTS} == set(DIFFERENCES)


def joints(key: str, *values: float | str) -> dict[str, float | str]:
    """A setting of the joints of both arms, or of their first few."""
    named = list(zip(ARM, values, strict=False))
    return {f"joints.{side}_{joint}.{key}": value for side in ("left", "right") for joint, value in named}


def grippers(**settings: float) -> dict[str, float]:
    return {f"joints.{side}_gripper.{key}": value for side in ("left", "right") for key, value in settings.items()}


def split(side: str) -> dict[str, object]:
    return {
        f"commands.{side}_arm.joints": [f"{side}_{joint}" for joint in ARM[:-1]],
        f"commands.{side}_gripper": {
            "topic": f"/{side}/gripper_controller/joint_trajectory",
            "joints": [f"{side}_gripper"],
            "interface": "",
            "min_change": 0.05,
            "max_effort": 0.0,
            "tool": "",
        },
    }


# Everything in which a variant is not the pair, by dotted key.
DIFFERENCES: dict[str, dict[str, object]] = {
    "forward": {
        "commands.interface": "forward_command",
        "commands.left_arm.topic": "/left/forward_controller/commands",
        "commands.right_arm.topic": "/right/forward_controller/commands",
        "timing.command_rate": 50.0,
    },
    "lerobot": {"policy.action_mode": "auto", **grippers(scale=52.0870500, offset=9.0909091)},
    "numbered": joints("name", *"123456"),
    "radians": joints("scale", 1.0, 1.0, 1.0, 1.0, 1.0),
    "range": {
        **joints("scale", 52.08713135, 57.29575496, 59.17159763, 60.31144832, 35.80982120),
        "joints.left_wrist_roll.offset": -1.74322210,
        "joints.right_wrist_roll.offset": -1.74322210,
    },
    "split": {
        **joints(
            "name", "shoulder_pan_joint", "shoulder_lift_joint", "elbow_joint", "wrist_pitch_joint",
            "wrist_roll_joint", "jaw_joint",
        ),
        "commands.groups": ["left_arm", "left_gripper", "right_arm", "right_gripper"],
        **split("left"), **split("right"),
    },
}  # fmt: skip


@pytest.mark.parametrize("robot", VARIANTS)
def test_a_variant_is_the_pair_but_for_what_it_is_named_after(robot: str):
    """Value for value, and its entries in the order of their lists."""
    expected = load(PAIR).to_mapping()
    for path, value in DIFFERENCES[robot.removeprefix(f"{PAIR}_")].items():
        *sections, key = path.split(".")
        node = expected
        for section in sections:
            node = node[section]
        node[key] = value
    found = load(robot)
    assert found.to_mapping() == expected
    assert tuple(found.joints.by_name) == found.joints.policy_order
    assert tuple(found.commands.by_name) == found.commands.groups


@pytest.mark.parametrize("robot", [PAIR, *VARIANTS, "so101"])
@given(shares=st.lists(st.floats(0.0, 1.0), min_size=12, max_size=12))
def test_units_go_to_the_policy_and_back(robot: str, shares: list[float]):
    profile = load(robot)
    lower, upper = np.transpose([(joint.lower, joint.upper) for joint in profile.joints.ordered])
    positions = lower + np.array(shares[: len(lower)]) * (upper - lower)
    np.testing.assert_allclose(from_policy(to_policy(positions[None], profile), profile)[0], positions, atol=1e-6)


def test_range_takes_the_limits_to_a_hundred():
    low, high = ends(f"{PAIR}_range", 0), ends(f"{PAIR}_range", 1)
    arm = [i for i in range(12) if i not in GRIPPERS]
    np.testing.assert_allclose(low[arm], -100.0, atol=1e-5)
    np.testing.assert_allclose(high[arm], 100.0, atol=1e-5)


@pytest.mark.parametrize("robot", [PAIR, f"{PAIR}_lerobot", "so101"])
def test_degrees_are_degrees(robot: str):
    assert ends(robot, 1)[0] == pytest.approx(np.degrees(1.91986), abs=1e-5)


@pytest.mark.parametrize(
    ("robot", "opened"),
    [(f"{PAIR}_radians", 1.0), (f"{PAIR}_range", 1.0), (f"{PAIR}_lerobot", 100.0), ("so101", 100.0)],
)
def test_grippers_go_from_closed_at_zero_to_open(robot: str, opened: float):
    grippers = [i for i in GRIPPERS if i < len(ends(robot, 0))]
    np.testing.assert_allclose(ends(robot, 0)[grippers], 0.0, atol=1e-4 * opened)
    np.testing.assert_allclose(ends(robot, 1)[grippers], opened, atol=1e-4 * opened)


def test_joint_names_are_the_drivers():
    assert [joint.name for joint in load(f"{PAIR}_numbered").joints.ordered] == list("123456") * 2
    split = load(f"{PAIR}_split")
    assert {joint.name for joint in split.joints.ordered} >= {"elbow_joint", "wrist_pitch_joint", "jaw_joint"}
    assert split.commands.by_name["left_gripper"].topic == "/left/gripper_controller/joint_trajectory"
    assert [len(group.joints) for group in split.commands.by_name.values()] == [5, 1, 5, 1]


def test_a_single_arm_has_six_joints_under_the_followers_controller():
    profile = load("so101")
    assert profile.joints.policy_order == ARM
    assert profile.action_spec.decoded_width is None
    assert profile.commands.by_name["arm"].topic == "/follower/trajectory_controller/joint_trajectory"
