# SPDX-License-Identifier: Apache-2.0
"""Real arms, from URDF to the first command: the robots of the packages example-robot-data and pybullet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pinocchio
import pytest

from xvla_ros.commands.check import check
from xvla_ros.control.pilot import Pilot
from xvla_ros.robots import ProfileError, load_robot
from xvla_ros.robots.new_robot import NewProfile, new_profile, write_profile
from xvla_ros.robots.new_robot.profile_text import MARK
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.urdf import read_urdf
from xvla_ros.types import ActionChunk

SECOND = 1_000_000_000
PERIOD = 1 / 30
PICTURE = np.zeros((48, 64, 3), np.uint8)
LEGS = "no arm was found, only a leg or a wheel, judging by the names"
LAPS = "is continuous, but a joint of a policy needs limits"


@dataclass(frozen=True)
class Row:
    """One robot: ``arms`` found in it as ``7+g``, joints and whether a gripper is there; or ``refused`` in these words.

    ``marked`` are words of marks, beyond the usual ones. ``tips`` answer a refusal; none needs them where it is mended.
    """

    file: str
    arms: tuple[str, ...] = ()
    marked: tuple[str, ...] = ()
    refused: str = ""
    tips: tuple[str, ...] = ()


def one(file: str, arms: str, *marked: str) -> Row:
    return Row(file, tuple(arms.split()), marked)


def asked(file: str, words: str, arms: str, *tips: str) -> Row:
    return Row(file, tuple(arms.split()), refused=words, tips=tips)


DATA = "example-robot-data"
ROWS = {
    DATA: [
        one("alex_description/urdf/alex_nub_hands.urdf", "6+g 6+g", "2 for a head"),
        one("alex_description/urdf/alex_psyonic_hands.urdf", "6 6", "part of a hand"),
        one("alex_description/urdf/alex_sake_hands.urdf", "6+g 6+g", "whether this joint opens the gripper"),
        one("anymal_b_simple_description/robots/anymal-kinova.urdf", "6", "12 for a leg or a wheel"),
        one("asr_twodof_description/urdf/TwoDofs.urdf", "2"),
        one("b1_description/urdf/b1-z1.urdf", "6+g", "12 for a leg or a wheel"),
        one("baxter_description/urdf/baxter.urdf", "7+g 7+g", "1 for a head"),
        one("borinot_description/urdf/borinot_flying_arm_2.urdf", "2", "gives 10000, which no arm reaches"),
        one("centauro_description/urdf/centauro.urdf", "6 6", "24 for a leg or a wheel", "the order of the arms"),
        one("g1_description/urdf/g1_29dof_rev_1_0.urdf", "7 7", "12 for a leg or a wheel"),
        one("g1_description/urdf/g1_29dof_with_hand_rev_1_0.urdf", "7 7", "14 for part of a hand"),
        one("hextilt_description/urdf/hextilt_flying_arm_5.urdf", "5", "gives 10000, which no arm reaches"),
        one("human_description/robots/human.urdf", "8 8", "3 for a head"),
        one("icub_description/robots/icub.urdf", "7 7", "3 for a head"),
        one("icub_description/robots/icub_reduced.urdf", "7 7", "12 for a leg or a wheel"),
        Row("kinova_description/robots/kinova.urdf", ("6",), refused=LAPS),
        one("panda_description/urdf/panda.urdf", "7+g"),
        one("panda_description/urdf/panda_collision.urdf", "7+g"),
        Row("pr2_description/urdf/pr2.urdf", ("7+g", "7+g"), refused=LAPS),
        one("romeo_description/urdf/romeo.urdf", "7+g 7+g", "4 for a head"),
        one("romeo_description/urdf/romeo_laas_small.urdf", "7+g 7+g", "12 for a leg or a wheel"),
        one("romeo_description/urdf/romeo_small.urdf", "7 7", "12 for a leg or a wheel"),
        one("simple_humanoid_description/urdf/simple_humanoid.urdf", "7 7", "12 for a leg or a wheel"),
        one("so_arm_description/urdf/so100.urdf", "5+g"),
        one("so_arm_description/urdf/so101.urdf", "5+g"),
        one("talos_data/robots/talos_full_v2.urdf", "7+g 7+g", "12 for a leg or a wheel, 2 for a head"),
        one("talos_data/robots/talos_left_arm.urdf", "6+g"),
        one("talos_data/robots/talos_reduced.urdf", "7+g 7+g", "12 for a leg or a wheel, 2 for a head"),
        one("tiago_description/robots/tiago.urdf", "8", "part of a hand", "whether torso_lift_joint is part"),
        one("tiago_description/robots/tiago_dual.urdf", "7 7", "part of a hand"),
        one("tiago_description/robots/tiago_no_hand.urdf", "8", "whether torso_lift_joint is part of the arm"),
        one("tiago_pro_description/robots/tiago_pro.urdf", "7+g 7+g", "2 for a head"),
        one("ur_description/urdf/ur3_robot.urdf", "6"),
        one("ur_description/urdf/ur3_gripper.urdf", "6"),
        one("ur_description/urdf/ur5_robot.urdf", "6"),
        one("ur_description/urdf/ur5_gripper.urdf", "6"),
        one("ur_description/urdf/ur5_joint_limited_robot.urdf", "6"),
        one("ur_description/urdf/ur10_robot.urdf", "6"),
        one("xarm_description/urdf/xarm7.urdf", "7"),
        one("z1_description/urdf/z1.urdf", "6+g"),
        asked("alexander_description/urdf/alexander_v1.lowerBodyOnly.urdf", LEGS, "6", "LEFT_FOOT"),
        asked("allegro_hand_description/urdf/allegro_left_hand.urdf", "4 branches could be arms", "4", "link_3.0_tip"),
        asked("anymal_c_simple_description/urdf/anymal.urdf", LEGS, "3", "LF_SHANK"),
        asked("finger_edu_description/robots/finger_edu.urdf", "only a gripper or a hand", "3", "finger_tip_link"),
        asked("solo_description/robots/solo12.urdf", LEGS, "3 3", "FL_LOWER_LEG", "FR_LOWER_LEG"),
    ],
    "pybullet": [
        one("franka_panda/panda.urdf", "7+g"),
        one("kuka_iiwa/model.urdf", "7", "gives 10, which no arm reaches"),
        one("kuka_iiwa/model_vr_limits.urdf", "7", "gives 10, which no arm reaches"),
        one("xarm/xarm6_robot.urdf", "6"),
        one("xarm/xarm6_with_gripper.urdf", "6+g"),
        one("TwoJointRobot_w_fixedJoints.urdf", "2"),
        asked("quadruped/vision60.urdf", "4 branches could be arms", "3", "lower0"),
        asked("a1/a1.urdf", LEGS, "3", "FR_lower"),
    ],
}
TABLE = [pytest.param(package, row, id=Path(row.file).stem) for package in ROWS for row in ROWS[package]]


def installed(package: str, file: str) -> Path:
    try:
        files = distribution(package).files or ()
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed; it has no wheel for every Python")
    return next(Path(str(each.locate())) for each in files if str(each).endswith(f"/{file}"))


@pytest.mark.parametrize(("package", "row"), TABLE)
def test_a_real_arm_moves_or_says_what_it_needs(tmp_path: Path, package: str, row: Row):
    file = installed(package, row.file)
    if row.refused:
        with pytest.raises(ProfileError) as refusal:
            new_profile(file, "robot", output=tmp_path / "robot.yaml")
        assert row.refused in str(refusal.value)
        assert all(f" {tip} (" in str(refusal.value) for tip in row.tips)
        if not row.tips:
            file = with_limits(file, tmp_path)
    new = new_profile(file, "robot", output=tmp_path / "robot.yaml", tip_links=row.tips)
    assert shapes(new) == row.arms
    marks = "\n".join(line for line in new.text.splitlines() if MARK in line)
    assert all(words in marks for words in row.marked), marks
    check_and_move(new, tmp_path / "robot.yaml")
    if all(arm.gripper is not None for arm in new.arms.arms):
        output = tmp_path / "tools.yaml"
        tools = new_profile(file, "robot", output=output, tip_links=row.tips, action_mode="ee6d")
        check_and_move(tools, output)


def with_limits(file: Path, folder: Path) -> Path:
    """Do what the refusal of a continuous joint asks for: edit a copy."""
    edited = folder / "edited.urdf"
    text = re.sub(r"<limit\b[^>]*/>|<limit\b.*?</limit>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    limit = '<limit lower="-3.1" upper="3.1" velocity="1"/></joint>'
    edited.write_text(text.replace('"continuous"', '"revolute"').replace("</joint>", limit), encoding="utf-8")
    return edited


def shapes(new: NewProfile) -> tuple[str, ...]:
    return tuple(f"{len(arm.joints)}{'+g' if arm.gripper is not None else ''}" for arm in new.arms.arms)


def check_and_move(new: NewProfile, path: Path) -> None:
    write_profile(new, path)
    report = check(path)
    assert report.ok, report.errors
    assert len(report.warnings) == new.text.count(MARK)
    profile = load_robot(path)
    assert profile == new.profile
    stand = Stand(profile)
    for _ in range(30):
        stand.tick()
    assert stand.windows, stand.pilot.status


@dataclass
class Clock:
    ros: int = 100 * SECOND
    steady: float = 5.0

    def ros_ns(self) -> int:
        return self.ros

    def steady_s(self) -> float:
        return self.steady


class Stand:
    """An arm that does as it is told, without ROS, and a policy that asks for one waypoint after the other nearby."""

    def __init__(self, profile: Profile) -> None:
        self.clock, self.profile, self.windows = Clock(), profile, 0
        self.pilot = Pilot(profile, self.clock, lambda raw, _: raw, "move a little")
        self.pilot.controller.start()
        joints = profile.joints.ordered
        self.lower, self.upper = np.array([each.lower for each in joints]), np.array([each.upper for each in joints])
        self.speed = np.array([each.max_velocity for each in joints])
        self.measured = self.lower + 0.45 * (self.upper - self.lower)

    def tick(self) -> None:
        self.clock.ros += round(PERIOD * SECOND)
        self.clock.steady += PERIOD
        for camera in self.profile.cameras.slots:
            self.pilot.add_image(camera, self.clock.ros, PICTURE)
        names = [joint.name for joint in self.profile.joints.ordered]
        self.pilot.add_joints("/joint_states", self.clock.ros, names, self.measured)
        window = self.pilot.tick()
        if window is not None:
            assert np.isfinite(window.positions).all()
            assert (window.positions >= self.lower - 1e-6).all() and (window.positions <= self.upper + 1e-6).all()
            assert (np.abs(window.positions[0] - self.measured) <= self.speed * (window.times[0] + PERIOD) + 1e-6).all()
            self.measured = window.position_at(self.clock.ros)
            self.windows += 1
        if self.pilot.wants_chunk() and (request := self.pilot.observe()) is not None:
            seen = request.observation
            actions = np.repeat(np.asarray(seen.state)[None], 30, axis=0)
            if not self.profile.action_spec.is_end_effector:
                actions += 0.01 * (self.upper - self.lower) * np.linspace(0.0, 1.0, 30)[:, None]
            assert self.pilot.deliver(request, ActionChunk.of(seen, actions.astype(np.float32), 1.0))


@pytest.mark.parametrize(("package", "row"), TABLE)
def test_the_tree_is_that_of_pinocchio(package: str, row: Row):
    file = installed(package, row.file)
    read = read_urdf(file)
    model = pinocchio.buildModelFromUrdf(str(file))
    assert {joint.name for joint in read.joints.values() if joint.moves} == set(model.names) - {"universe"}
    ours = pinocchio.buildModelFromXML(read.text)
    assert ours.names.tolist() == model.names.tolist()
    bodies = [read.body(frame.name) if frame.type == pinocchio.FrameType.BODY else frame.name for frame in model.frames]
    assert [frame.name for frame in ours.frames] == bodies
    for name in model.names:
        mine, theirs = (each.jointPlacements[each.getJointId(name)] for each in (ours, model))
        assert mine.isApprox(theirs)
    np.testing.assert_array_equal(ours.lowerPositionLimit, model.lowerPositionLimit)
    np.testing.assert_array_equal(ours.velocityLimit, model.velocityLimit)
