# SPDX-License-Identifier: Apache-2.0
"""Profiles begun from URDFs: what is recognised, what is marked, what is refused, and the how-to's own commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.commands import main
from xvla_ros.commands.check import check
from xvla_ros.errors import KinematicsError
from xvla_ros.model.random_policy import random_policy
from xvla_ros.robots import ProfileError, load_profile
from xvla_ros.robots.kinematics import Chain, RobotDescription
from xvla_ros.robots.new_robot import NewProfile, new_profile, summary, write_profile
from xvla_ros.robots.new_robot.profile_text import MARK, open_marks
from xvla_ros.robots.profile import shipped_files
from xvla_ros.types import Observation

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "add-an-arm.md"
PANDA = tuple(f"panda_joint{number}" for number in range(1, 8))
LIMIT = '<limit lower="-1.5" upper="2.5" velocity="3" effort="1"/>'


def joint(name: str, parent: str, child: str, kind: str = "revolute", inside: str = LIMIT) -> str:
    ends = f"<parent link={quoteattr(parent)}/><child link={quoteattr(child)}/>"
    return f'<joint name={quoteattr(name)} type="{kind}">{ends}<origin xyz="0 0 0.2"/>{inside}</joint>'


def robot(*joints: str, links: tuple[str, ...] = ()) -> str:
    named = dict.fromkeys(re.findall(r'link="([^"]*)"', "".join(joints)))
    bodies = "".join(f"<link name={quoteattr(link)}/>" for link in [*named, *links])
    return f'<robot name="r">{bodies}{"".join(joints)}</robot>'


def chain(count: int, prefix: str = "", base: str = "base") -> list[str]:
    links = [base, *(f"{prefix}l{index}" for index in range(1, count + 1))]
    return [joint(f"{prefix}j{i + 1}", links[i], links[i + 1]) for i in range(count)]


@pytest.fixture
def urdf(tmp_path: Path):
    def write(text: str, name: str = "arm.urdf") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def refusal(path: Path | str, **options: object) -> str:
    with pytest.raises(ProfileError) as caught:
        new_profile(path, "robot", **options)
    return str(caught.value)


def written(new: NewProfile, path: Path) -> Path:
    write_profile(new, path)
    return path


@pytest.mark.parametrize(
    ("file", "mode", "arms", "grippers"),
    [
        ("panda.urdf", "auto", [7], ["panda_finger_joint1"]),
        ("panda.urdf", "ee6d", [7], ["panda_finger_joint1"]),
        ("wx250s.urdf", "ee6d", [6], ["left_finger"]),
        ("so101.urdf", "auto", [5], ["gripper"]),
        ("so101_pair.urdf", "so101_bimanual", [5, 5], ["left_gripper", "right_gripper"]),
        ("agibot_g1.urdf", "agibot_ee6d", [7, 7], ["idx41_gripper_l_outer_joint1", "idx81_gripper_r_outer_joint1"]),
    ],
)
def test_arms_and_grippers_of_the_shipped_robots_are_recognised(
    tmp_path: Path, file: str, mode: str, arms: list[int], grippers: list[str]
):
    new = new_profile(file, "robot", action_mode=mode, output=tmp_path / "robot.yaml")
    assert [len(arm.joints) for arm in new.arms.arms] == arms
    assert [arm.gripper.name for arm in new.arms.arms if arm.gripper is not None] == grippers
    path = written(new, tmp_path / "robot.yaml")
    assert load_profile(path) == {"robot": new.profile}
    report = check(path)
    assert report.ok, report.errors
    assert len(report.warnings) == new.text.count(MARK)


def test_the_profile_says_what_the_urdf_says():
    profile = new_profile("panda.urdf", "franka", action_mode="franka_joint7").profile
    assert profile.joints.policy_order == PANDA
    fourth = profile.joints.by_name["panda_joint4"]
    assert (fourth.lower, fourth.upper, fourth.max_velocity) == (-3.0718, -0.0698, 2.175 / 2)
    assert profile.commands.by_name["arm"].joints == PANDA


def test_the_gripper_is_a_channel_of_auto_but_not_of_franka_joint7():
    new = new_profile("panda.urdf", "franka", action_mode="franka_joint7")
    assert "panda_finger_joint1: a gripper, for which franka_joint7 has no channel" in new.text
    assert "panda_finger_joint1, which the action mode does not use" in summary(new)
    own = new_profile("panda.urdf", "franka").profile
    assert own.joints.policy_order == (*PANDA, "panda_finger_joint1")
    assert own.commands.groups == ("arm", "gripper")


def test_joints_that_are_left_out_are_told_with_the_reason():
    text = new_profile("agibot_g1.urdf", "ag").text
    assert "idx01_body_joint1: carries more than one arm" in text
    assert "idx49_gripper_l_outer_joint2: follows idx41_gripper_l_outer_joint1" in text


def test_a_share_of_the_range_where_the_mode_has_probabilities():
    profile = new_profile("so101_pair.urdf", "pair", action_mode="so101_bimanual").profile
    gripper = profile.joints.by_name["left_gripper"]
    ends = [gripper.lower * gripper.scale + gripper.offset, gripper.upper * gripper.scale + gripper.offset]
    assert ends == pytest.approx([0.0, 1.0], abs=1e-6)


def test_links_asked_for_choose_arm_and_base():
    left = new_profile("agibot_g1.urdf", "ag", base_link="arm_base_link", tip_links=["arm_l_end_link"])
    assert [each.name for each in left.arms.arms] == ["arm"]
    assert len(left.profile.joints.policy_order) == 8
    with_body = new_profile("agibot_g1.urdf", "ag", tip_links=["arm_r_end_link"])
    assert with_body.profile.joints.policy_order[:2] == ("idx01_body_joint1", "idx02_body_joint2")
    swapped = new_profile("agibot_g1.urdf", "ag", tip_links=["arm_r_end_link", "arm_l_end_link"])
    assert [each.name for each in swapped.arms.arms] == ["right_arm", "left_arm"]


def test_short_branches_are_no_arms(urdf):
    head = [joint("pan", "base", "neck"), joint("tilt", "neck", "head")]
    servo = [joint("camera_tilt", "l4", "camera")]
    new = new_profile(urdf(robot(*chain(6), *head, *servo)), "robot")
    assert new.profile.joints.policy_order == tuple(f"j{number}" for number in range(1, 7))
    assert set(new.arms.left_out) == {"pan", "tilt", "camera_tilt"}


def test_a_pair_of_nameless_fingers_is_a_gripper(urdf):
    fingers = [joint("j7", "l6", "a", "prismatic"), joint("j8", "l6", "b", "prismatic")]
    (arm,) = new_profile(urdf(robot(*chain(6), *fingers)), "robot").arms.arms
    assert arm.gripper is not None and arm.gripper.name == "j7"
    assert len(arm.joints) == 6


def hand(place: str, fingers: int, joints: int, prefix: str = "p") -> list[str]:
    return [each for index in range(fingers) for each in chain(joints, f"{prefix}{index}", place)]


@pytest.mark.parametrize(
    ("joints", "words", "tip", "arm"),
    [
        (chain(4) + hand("l4", 4, 3), "4 branches begin at the end of 4 joints, j1 … j4: arms, or a hand", "l4", 4),
        (chain(6) + hand("l6", 2, 3), "2 branches begin at the end of 6 joints", "l6", 6),
        (chain(6) + chain(5, "t", "l6") + hand("l6", 2, 2), "3 branches begin at the end of 6 joints", "l6", 6),
        (hand("base", 4, 3), "4 branches could be arms", "p2l3", 3),
        (hand("base", 4, 2), "4 branches could be the arm, and none is longer than the others", "p2l2", 2),
        (chain(3, "left_hip_") + chain(3, "right_knee_"), "no arm was found, only a leg", "left_hip_l3", 3),
        (chain(2, "head_") + chain(2, "left_wheel_"), "only a head, a leg or a wheel, judging by", "head_l2", 2),
        (chain(2, "finger_"), "no arm was found, only a gripper or a hand", "finger_l2", 2),
    ],
)
def test_what_could_be_arms_or_not_is_asked(urdf, joints: list[str], words: str, tip: str, arm: int):
    path = urdf(robot(*joints))
    message = refusal(path)
    assert words in message
    assert f"{tip} ({arm} joints, " in message.partition("expected --tip-link for each arm, one of ")[2]
    (found,) = new_profile(path, "robot", tip_links=[tip]).arms.arms
    assert len(found.joints) == arm


@pytest.mark.parametrize(
    ("joints", "arms", "marks"),
    [
        (chain(6) + hand("l6", 3, 2), [6], ["6 for part of a hand"]),
        (chain(6) + hand("l6", 2, 2), [6], ["4 for part of a hand"]),
        (chain(6) + chain(2, "palm_", "l6") + chain(1, "finger_", "l6"), [6], ["2 for part of a hand"]),
        (chain(6) + chain(2, "a", "l6") + chain(1, "b", "l6"), [8], ["whether the arm continues with aj1, because"]),
        (
            chain(6) + chain(1, "servo_", "l3"),
            [6],
            ["whether the arm continues with j4, because servo_j1 also begins there"],
        ),
        (chain(6) + chain(3, "neck_"), [6], ["3 for a head"]),
        (chain(6) + [each for leg in "abcd" for each in chain(3, f"{leg}_thigh_")], [6], ["12 for a leg or a wheel"]),
        (chain(6, "a") + chain(6, "b"), [6, 6], ["the order of the arms"]),
        (chain(3, "waist_") + chain(6, "a", "waist_l3") + chain(6, "b", "waist_l3"), [6, 6], ["the order of the arms"]),
        (chain(3) + chain(6, "l_", "l3") + chain(6, "r_", "l3"), [6, 6], []),
        (chain(1, "torso_") + chain(6, "a", "torso_l1"), [7], ["whether torso_j1 is part of the arm"]),
    ],
)
def test_what_is_assumed_is_marked(urdf, joints: list[str], arms: list[int], marks: list[str]):
    new = new_profile(urdf(robot(*joints)), "robot")
    assert [len(arm.joints) for arm in new.arms.arms] == arms
    found = [line for line in new.text.splitlines() if MARK in line]
    assert all(any(words in line for line in found) for words in marks)
    assert len(new.arms.doubts) == len(marks)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_", "right_"),
        ("Left", "Right"),
        ("LEFT_", "RIGHT_"),
        ("l_", "r_"),
        ("L_", "R_"),
        ("arm_l_", "arm_r_"),
        ("arm_L_", "arm_R_"),
        ("LArm", "RArm"),
        ("LARM_", "RARM_"),
        ("larm_", "rarm_"),
        ("armLeft", "armRight"),
        ("LShoulder", "RShoulder"),
        ("robot/left/", "robot/right/"),
    ],
)
def test_sides_are_found_in_any_case(urdf, left: str, right: str):
    new = new_profile(urdf(robot(*chain(4, right), *chain(4, left))), "robot")
    assert [(arm.name, arm.joints[0].name) for arm in new.arms.arms] == [
        ("left_arm", f"{left}j1"),
        ("right_arm", f"{right}j1"),
    ]


def test_letters_that_are_no_side_are_none(urdf):
    new = new_profile(urdf(robot(*chain(4, "lbr_upright"), *chain(4, "rail_bright"))), "robot")
    assert [arm.name for arm in new.arms.arms] == ["arm_1", "arm_2"]


@pytest.mark.parametrize(
    ("limit", "kind", "words", "speed"),
    [
        ('lower="-1" upper="1" velocity="180"', "revolute", "for which the URDF gives 180, which no arm", 0.5),
        ('lower="-1" upper="1" velocity="10"', "revolute", "max_velocity, for which the URDF gives 10, which", 0.5),
        ('lower="0" upper="10" velocity="1"', "prismatic", "lower and upper, 0 and 10 m; are they millimetres?", 0.5),
        ('lower="0" upper="0.04" velocity="10"', "prismatic", "max_velocity, for which the URDF gives 10", 0.05),
        ('lower="-1" upper="1" velocity="-1"', "revolute", "max_velocity, for which the URDF gives no value", 0.5),
        ('lower="-6.2832" upper="6.2832" velocity="3.14"', "revolute", "", 1.57),
    ],
)
def test_ranges_and_speeds_that_no_arm_has_are_marked(urdf, limit: str, kind: str, words: str, speed: float):
    new = new_profile(urdf(robot(joint("j1", "base", "l1", kind, f"<limit {limit}/>"))), "robot")
    (row,) = [line for line in new.text.splitlines() if "name: j1" in line]
    assert words in row.partition(MARK)[2] and (MARK in row) == bool(words)
    assert new.profile.joints.by_name["j1"].max_velocity == speed


@pytest.mark.parametrize(
    ("limits", "kind", "found", "guess"),
    [
        ('lower="-1e16" upper="1e16"', "revolute", "-1e+16 … 1e+16 rad", "degrees"),
        ('lower="-90" upper="90"', "revolute", "-90 … 90 rad", "degrees"),
        ('lower="0" upper="40"', "prismatic", "0 … 40 m", "millimetres"),
    ],
)
def test_a_range_in_degrees_or_without_end_is_none(urdf, limits: str, kind: str, found: str, guess: str):
    message = refusal(urdf(robot(joint("j1", "base", "l1", kind, f'<limit {limits} velocity="1"/>'))))
    assert f"joint 'j1' has limits {found}, wider than profiles allow; expected the real limits" in message
    assert f"(are these {guess}?)" in message


def test_soft_limits_count_and_a_speed_of_zero_is_marked(urdf):
    soft = '<safety_controller soft_lower_limit="-1" soft_upper_limit="1.5"/>'
    inside = '<limit lower="-2" upper="2" velocity="0"/>'
    new = new_profile(urdf(robot(joint("j1", "base", "l1", inside=inside + soft))), "robot")
    (only,) = new.profile.joints.ordered
    assert (only.lower, only.upper, only.max_velocity) == (-1.0, 1.5, 0.5)
    assert f"{MARK} max_velocity, for which the URDF gives no value" in new.text


TEXT = st.text(st.characters(codec="utf-8") | st.sampled_from(" #:{}[],&*!|>'\"%@`\n\t\x85\u2028"), min_size=1)


@given(st.lists(TEXT, min_size=1, max_size=8), st.lists(TEXT, min_size=3, max_size=3, unique=True))
def test_any_name_survives(tmp_path_factory: pytest.TempPathFactory, names: list[str], ends: list[str]):
    names, (base, tip, file) = list(dict.fromkeys(names)), ends
    links = [base, *(f"{base}{tip}{index}" for index in range(len(names) - 1)), tip, f"{tip}{base} finger"]
    finger = joint("finger" * 30, *links[-2:], "prismatic", LIMIT)
    bodies = "".join(f"<link name={quoteattr(link)}/>" for link in links)
    stem = re.sub(r"[/\x00]", "", file)[:40]
    path = tmp_path_factory.mktemp("names") / f"a{stem}.urdf"
    joints = "".join(joint(name, *links[i : i + 2]) for i, name in enumerate(names))
    path.write_text(f'<robot name="r">{bodies}{joints}{finger}</robot>', encoding="utf-8")
    target = path.parent / "robot.yaml"
    new = new_profile(path, "robot", tip_links=[tip], output=target, action_mode="ee6d")
    assert {each.name for each in new.profile.joints.ordered} | set(new.arms.left_out) >= set(names)
    assert new.profile.tools["arm"].tip_link == tip and new.profile.tools["arm"].urdf == path.name
    assert load_profile(written(new, target))["robot"] == new.profile
    assert len(open_marks(new.profile)) == len(re.findall(rf"(?m)(?:^|\s){MARK}", new.text))


@pytest.mark.parametrize("length", range(1, 60))
def test_no_comment_is_glued_to_a_value(urdf, length: int):
    link, tip = "b" * length, "t" * length
    fingers = joint("finger", tip, "f", "prismatic", LIMIT)
    new = new_profile(urdf(robot(joint("j1", link, tip), fingers)), "robot", tip_links=[tip], action_mode="ee6d")
    tool = new.profile.tools["arm"]
    assert (tool.base_link, tool.tip_link) == (link, tip)
    assert not [line for line in new.text.splitlines() if re.search(r"[^\s]# ", line)]


def test_a_file_name_that_is_no_text_survives(tmp_path: Path):
    path = tmp_path / "arm\udcff.urdf"
    path.write_text(robot(*chain(6), joint("finger", "l6", "f")))
    target = tmp_path / "robot.yaml"
    new = new_profile(path, "robot", action_mode="ee6d", output=target)
    assert check(written(new, target)).ok


@pytest.mark.parametrize(("names", "policy_names"), [(["1", "2", "3"], ("joint_1", "joint_2", "joint_3"))])
def test_names_that_are_no_settings_are_made_so(urdf, names: list[str], policy_names: tuple[str, ...]):
    links = ["base", "a", "b", "c"]
    profile = new_profile(urdf(robot(*map(joint, names, links, links[1:]))), "robot").profile
    assert profile.joints.policy_order == policy_names
    assert [each.name for each in profile.joints.ordered] == names


@pytest.mark.parametrize("count", [1, 6, 7, 13, 20, 24])
def test_auto_runs_with_any_number_of_joints(urdf, count: int):
    profile = new_profile(urdf(robot(*chain(count))), "robot").profile
    zero, one = np.zeros(count), np.ones(count)
    policy = random_policy(
        [profile.embodiment()],
        state_mean={"robot": zero},
        state_std={"robot": one},
        action_mean={"robot": zero},
        action_std={"robot": one},
    )
    images = {slot: np.zeros((48, 64, 3), np.uint8) for slot in profile.cameras.slots}
    seen = Observation(profile.embodiment(), stamp=0, images=images, state=zero.astype(np.float32), instruction="go")
    (chunk,) = policy.predict([seen], steps=1, seed=0)
    assert chunk.actions.shape == (30, count)


BROKEN = {
    "no limits": (robot(joint("j1", "a", "b", inside="")), "j1: joint 'j1' has no limits; expected type"),
    "continuous": (robot(joint("j1", "a", "b", "continuous")), "joint 'j1' is continuous"),
    "floating": (robot(joint("j1", "a", "b", "floating")), "joint 'j1' is floating"),
    "empty range": (
        robot(joint("j1", "a", "b", inside='<limit velocity="1"/>')),
        "joint 'j1' has limits 0 … 0, which leave no range of motion",
    ),
    "words as numbers": (
        robot(joint("j1", "a", "b", inside='<limit lower="${-pi}" upper="1" velocity="1"/>')),
        "joint 'j1': lower of <limit> is '${-pi}'; expected a finite number",
    ),
    "zero axis": (
        robot(joint("j1", "a", "b", inside=LIMIT + '<axis xyz="0 0 0"/>')),
        "joint 'j1': <axis> has no direction; found 0 0 0; expected a direction",
    ),
    "empty axis": (robot(joint("j1", "a", "b", "prismatic", LIMIT + "<axis/>")), "joint 'j1': <axis> has no direction"),
    "unknown type": (robot(joint("j1", "a", "b", "hinge")), "joint 'j1' has type 'hinge'; expected one of revolute"),
    "two trees": (robot(joint("j1", "a", "b"), links=("c",)), "there are 2 trees, with the roots a, c"),
    "circle": (robot(joint("j1", "a", "b"), joint("j2", "b", "a")), "the joints form a circle"),
    "circle beside a tree": (
        robot(joint("j0", "z", "y"), joint("j1", "a", "b"), joint("j2", "b", "a")),
        "some joints form a circle",
    ),
    "two parents": (
        robot(joint("j1", "a", "b"), joint("j2", "a", "b")),
        "link 'b' has two parent joints, 'j1' and 'j2'",
    ),
    "unknown link": (
        robot(joint("j1", "a", "b")).replace('<link name="b"/>', ""),
        "child link 'b' of joint 'j1' does not exist",
    ),
    "joint twice": (robot(joint("j1", "a", "b"), joint("j1", "b", "c")), "joint 'j1' occurs 2 times"),
    "no joint moves": (robot(joint("j1", "a", "b", "fixed")), "no joint moves"),
    "no link": ("<robot name='r'/>", "the robot has no link"),
    "another format": ("<sdf><model/></sdf>", "the outermost element is <sdf>; expected <robot>"),
    "cut off": ("<robot name='r'><link", "is not valid XML: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_urdf_is_named(urdf, case: str):
    text, words = BROKEN[case]
    path = urdf(text)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert words in message


def test_every_joint_that_is_wrong_is_named_at_once(urdf):
    path = urdf(robot(joint("j1", "a", "b", inside=""), joint("j2", "b", "c", "continuous")))
    message = refusal(path)
    assert "'j1' has no limits" in message and "'j2' is continuous" in message


def test_what_is_asked_for_in_vain_is_named(tmp_path: Path):
    assert "'panda_hnad' is not a link of the robot (did you mean 'panda_hand'?)" in refusal(
        "panda.urdf", tip_links=["panda_hnad"]
    )
    assert "--base-link 'world' is not a link" in refusal("panda.urdf", base_link="world")
    assert "base link 'panda_hand' does not carry tip link 'panda_link4'" in refusal(
        "panda.urdf", base_link="panda_hand", tip_links=["panda_link4"]
    )
    assert "no joint of an arm leads only to 'panda_link0'" in refusal("panda.urdf", tip_links=["panda_link0"])
    assert "one of the shipped agibot_g1.urdf, libero_panda.urdf, panda.urdf" in refusal("pandaa.urdf")
    assert "action mode 'frnka_joint7' is unknown (did you mean 'franka_joint7'?)" in refusal(
        "panda.urdf", action_mode="frnka_joint7"
    )


@pytest.mark.parametrize(
    ("file", "mode", "expected", "found"),
    [
        ("so101.urdf", "franka_joint7", "an arm of 7 joints", "an arm of 5 joints with a gripper"),
        ("panda.urdf", "joint", "an arm of 6 joints with a gripper and", "an arm of 7 joints with a gripper"),
        ("agibot_g1.urdf", "franka_joint7", "an arm of 7 joints", "gripper and an arm of 7"),
    ],
)
def test_an_action_mode_for_other_arms_is_refused(file: str, mode: str, expected: str, found: str):
    message = refusal(file, action_mode=mode)
    assert f"action mode {mode} moves {expected}" in message
    assert found in message
    assert "--action-mode auto" in message


def test_tool_poses_need_joints_that_follow_no_other(urdf):
    joints = [*chain(6), joint("finger", "l6", "jaw", "prismatic"), joint("twin", "l6", "jaw_2", "prismatic")]
    joints[-1] = joints[-1].replace("</joint>", '<mimic joint="finger"/></joint>')
    assert new_profile(urdf(robot(*joints)), "robot", action_mode="ee6d").arms.arms[0].gripper.name == "finger"
    joints[3] = joints[3].replace("</joint>", '<mimic joint="j2"/></joint>')
    path = urdf(robot(*joints))
    assert "joint 'j4' between 'base' and 'l6' mimics 'j2'" in refusal(path, action_mode="ee6d")
    assert len(new_profile(path, "robot", action_mode="auto").arms.arms[0].joints) == 5
    with pytest.raises(KinematicsError, match=r"joint 'j4' between 'base' and 'l6' of .* mimics 'j2'; expected joints"):
        Chain(RobotDescription.from_file(path), "base", "l6")


def test_tool_poses_need_a_gripper(urdf):
    assert "each with a gripper, but an arm of 6 joints was found" in refusal(
        urdf(robot(*chain(6))), action_mode="ee6d"
    )


@pytest.mark.parametrize("name", ["my arm", "1", "yes", "a__b", ""])
def test_a_name_that_cannot_be_a_topic_is_refused(name: str):
    with pytest.raises(ProfileError, match="cannot be a robot's name"):
        new_profile("panda.urdf", name)


def test_tools_find_the_urdf_from_the_profile(tmp_path: Path, urdf):
    fingers = [joint("finger", "l6", "a", "prismatic", '<limit lower="0" upper="0.04" velocity="0.1" effort="1"/>')]
    source = urdf(robot(*chain(6), *fingers))
    folder = tmp_path / "profiles"
    folder.mkdir()
    new = new_profile(source, "robot", action_mode="ee6d", output=folder / "robot.yaml")
    assert new.profile.tools["arm"].urdf == "../arm.urdf"
    assert check(written(new, folder / "robot.yaml")).ok


def test_the_command_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "franka.yaml"
    arguments = ["new-robot", "--urdf", "panda.urdf", "--name", "franka", "--output", str(target)]
    assert main(arguments) == 0
    before = target.read_text()
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert f"xvla new-robot: {target}: already exists" in told.err
    assert target.read_text() == before
    assert main([*arguments[:-1], str(tmp_path / "nowhere" / "franka.yaml")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_mark_belongs_to_its_setting(tmp_path: Path):
    path = written(new_profile("panda.urdf", "franka"), tmp_path / "franka.yaml")
    lines = path.read_text().splitlines()
    for problem in open_marks(load_profile(path)["franka"]):
        number = int(re.search(r"line (\d+)", problem.message)[1])
        key = problem.key.rpartition(".")[2]
        assert any(line.strip().startswith(f"{key}:") for line in lines[number - 1 : number + 4])
        assert MARK in lines[number - 1]
    path.write_text(re.sub(rf" *{MARK}.*", "", path.read_text()))
    assert open_marks(load_profile(path)["franka"]) == []


def test_marks_are_told_of_the_robot_they_are_for(tmp_path: Path):
    both: dict[str, object] = {}
    for name in ("one", "two"):
        both |= yaml.safe_load(new_profile("panda.urdf", name).text)["/**"]["ros__parameters"]
    text = yaml.safe_dump({"/**": {"ros__parameters": both}}, sort_keys=False)
    head, _, tail = text.rpartition("domain_id: 28")
    path = tmp_path / "both.yaml"
    path.write_text(f"{head}domain_id: 28  {MARK} which?{tail}")
    profiles = load_profile(path)
    assert open_marks(profiles["one"]) == []
    assert [(problem.key, problem.value) for problem in open_marks(profiles["two"])] == [("two.policy.domain_id", "28")]


def test_shipped_profiles_have_nothing_left_to_check():
    for path in shipped_files():
        assert MARK not in path.read_text()


def test_the_how_to_prints_what_it_says(tmp_path: Path):
    blocks = re.findall(r"```console\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    steps = [step for block in blocks for step in split(block)]
    assert len(steps) >= 4
    for command, expected in steps:
        words = shlex.split(command)
        if words[0] == "xvla":
            words[:1] = [sys.executable, "-m", "xvla_ros"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        # without checkpoint and graph a check is incomplete
        assert done.returncode == (3 if words[3:4] == ["check"] else 0), f"{command}\n{done.stderr}"
        whole = "(?:.*\n)*?".join(re.escape(part) for part in re.split(r"(?m)^…\n", expected))
        assert re.fullmatch(whole, done.stdout), f"{command}\nprinted\n{done.stdout}\nexpected\n{expected}"


def split(block: str) -> list[tuple[str, str]]:
    """Return (command, output) of a console block whose commands begin with a dollar sign."""
    return [tuple(step.split("\n", 1)) for step in re.split(r"(?m)^\$ ", block)[1:]]
