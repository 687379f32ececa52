# SPDX-License-Identifier: Apache-2.0
"""Profiles: the shipped ones, and everything that is wrong with a bad one, at once."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.robots import Problem, Profile, ProfileError, load_profile, load_profiles, load_robot
from xvla_ros.robots.profile import shipped_files

SHIPPED = (
    "agibot",
    "aloha",
    "libero_panda",
    "so101",
    "so101_bimanual",
    "so101_bimanual_forward",
    "so101_bimanual_lerobot",
    "so101_bimanual_numbered",
    "so101_bimanual_radians",
    "so101_bimanual_range",
    "so101_bimanual_split",
    "widowx",
)


def mapping_of(robot: str) -> dict[str, Any]:
    return load_profile(robot)[robot].to_mapping()


def problems_of(robot: str, change: Callable[[dict[str, Any]], object]) -> dict[str, Problem]:
    raw = mapping_of(robot)
    change(raw)
    with pytest.raises(ProfileError) as caught:
        Profile.from_mapping(robot, raw, file="some.yaml")
    return {problem.key: problem for problem in caught.value.problems}


def write(path: Path, robots: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": robots}}, sort_keys=False))
    return path


def test_every_shipped_file_loads_and_holds_the_robot_it_is_named_after():
    assert [path.stem for path in shipped_files()] == list(SHIPPED)
    for robot in SHIPPED:
        profile = load_profile(robot)[robot]
        assert profile.name == robot
        assert profile.source is not None and profile.source.stem == robot
        others = {"so101_bimanual_forward": "forward_command", "libero_panda": "pose"}
        assert profile.commands.interface == others.get(robot, "joint_trajectory")


def test_so101_follows_the_agreed_interface():
    profile = load_profile("so101_bimanual")["so101_bimanual"]
    embodiment = profile.embodiment()
    assert (embodiment.domain_id, embodiment.waypoint_dt, embodiment.first_waypoint_offset) == (19, 0.0333, 0.0333)
    assert embodiment.slots == ("front", "left_wrist", "right_wrist")
    assert len(profile.joints.policy_order) == profile.action_spec.decoded_width == 12
    assert profile.joints.policy_order[5] == "left_gripper" and profile.joints.policy_order[11] == "right_gripper"
    assert profile.commands.by_name["right_arm"].topic == "/right/arm_controller/joint_trajectory"
    assert profile.commands.by_name["left_arm"].joints == profile.joints.policy_order[:6]


@pytest.mark.parametrize(("robot", "domain", "tools"), [("widowx", 0, ["arm"]), ("agibot", 9, ["left", "right"])])
def test_tool_pose_robots_state_their_rotation_layout(robot: str, domain: int, tools: list[str]):
    profile = load_profile(robot)[robot]
    assert profile.policy.domain_id == domain
    assert profile.policy.rot6d == profile.embodiment().rot6d == "interleaved"
    assert list(profile.tools) == tools


def test_a_profile_is_frozen_and_survives_pickling():
    profile = load_profile("widowx")["widowx"]
    assert pickle.loads(pickle.dumps(profile)) == profile
    with pytest.raises(ValueError, match="frozen"):
        profile.policy.domain_id = 3  # type: ignore[misc]


def test_every_error_is_reported_at_once_by_file_key_value_and_allowed():
    def spoil(raw: dict[str, Any]) -> None:
        raw["policy"]["waypont_dt"] = 0.1
        raw["policy"]["waypoint_dt"] = "fast"
        del raw["policy"]["domain_id"]
        raw["policy"]["image_pipeline"] = "letterbx"
        raw["cameras"]["slot"] = ["front"]
        raw["cameras"]["front"]["topic"] = "front//image"
        raw["cameras"]["front"] |= {"rotate": 45, "crop": [0, 0, 320.5, 240], "encoding": "rgb"}
        raw["joints"]["waist"]["scale"] = 0
        raw["joints"]["elbow"]["lower"] = 4.0
        raw["joints"]["shoulder"]["max_velocity"] = -1.0
        raw["timing"]["lead"] = 0.9
        raw["timing"]["command_rate"] = True
        raw["smoothing"]["method"] = "smooth"
        raw["policy"]["rot6d"] = ""

    found = problems_of("widowx", spoil)
    assert set(found) == {
        "widowx." + key
        for key in (
            "policy.waypont_dt",
            "policy.waypoint_dt",
            "policy.domain_id",
            "policy.image_pipeline",
            "policy.rot6d",
            "cameras.slot",
            "cameras.front.topic",
            "cameras.front.rotate",
            "cameras.front.crop",
            "cameras.front.encoding",
            "joints.waist.scale",
            "joints.elbow.lower",
            "joints.shoulder.max_velocity",
            "timing.lead",
            "timing.command_rate",
            "smoothing.method",
        )
    }
    assert {problem.file for problem in found.values()} == {"some.yaml"}
    assert "did you mean 'waypoint_dt'" in found["widowx.policy.waypont_dt"].message
    assert "did you mean 'slots'" in found["widowx.cameras.slot"].message
    assert found["widowx.policy.waypoint_dt"].value == "fast"
    assert found["widowx.policy.waypoint_dt"].expected == "a number in (0, 10], s"
    assert found["widowx.smoothing.method"].expected == "one of realtime_chunking, guided, ensemble, switch"
    assert found["widowx.policy.domain_id"].value is None
    assert found["widowx.cameras.front.rotate"].expected == "one of 0, 90, 180, 270"
    assert found["widowx.cameras.front.crop"].expected == "a list of integers, pixels"
    assert "did you mean 'rgb8'" in found["widowx.cameras.front.encoding"].message


def leave_out(commands: dict[str, Any], group: str) -> None:
    commands["groups"].remove(group)
    del commands[group]


def in_joints(raw: dict[str, Any]) -> dict[str, Any]:
    """Command the joints of libero_panda's arm instead of its tool's pose."""
    raw["commands"].update(interface="joint_trajectory")
    raw["commands"]["arm"].update(tool="", joints=list(raw["tools"]["arm"]["joints"]))
    return raw["commands"]


def one_group(raw: dict[str, Any], interface: str) -> dict[str, Any]:
    """Command both arms of so101_bimanual, whose joints have the same ROS names, in one group."""
    joints = [joint for group in raw["commands"]["groups"] for joint in raw["commands"][group]["joints"]]
    both = {"topic": "/both/commands", "joints": joints}
    raw["commands"] = {"interface": interface, "groups": ["both"], "both": both}
    return raw


def tools_of(raw: dict[str, Any]) -> list[dict[str, Any]]:
    return [raw["tools"][name] for name in raw["tools"]["order"]]


CONTRADICTIONS: list[tuple[str, str, Callable[[dict[str, Any]], object]]] = [
    ("so101_bimanual", "policy.action_mode", lambda raw: raw["policy"].update(action_mode="so101_bimanul")),
    ("so101_bimanual", "joints.policy_order", lambda raw: raw["policy"].update(action_mode="joint")),
    ("so101_bimanual", "policy.absolute", lambda raw: raw["policy"].update(absolute=["left_gripper"])),
    (
        "so101_bimanual",
        "policy.absolute",
        lambda raw: raw["policy"].update(action_mode="auto_relative", absolute=["gripper"]),
    ),
    ("so101_bimanual", "joints.left_gripper.scale", lambda raw: raw["joints"]["left_gripper"].update(scale=57.3)),
    ("so101_bimanual", "cameras.slots", lambda raw: raw["cameras"].update(slots=["front", "left_wrist", "right"])),
    ("so101_bimanual", "cameras.right_wrist", lambda raw: raw["cameras"].update(slots=["front", "left_wrist"])),
    ("so101_bimanual", "cameras.front.required", lambda raw: raw["cameras"]["front"].update(required=False)),
    (
        "so101_bimanual",
        "cameras.right_wrist.topic",
        lambda raw: raw["cameras"]["right_wrist"].update(topic="/front/image_raw"),
    ),
    (
        "so101_bimanual",
        "cameras.front.transport",
        lambda raw: raw["cameras"]["front"].update(topic="/front/compressed"),
    ),
    ("so101_bimanual", "cameras.front.crop", lambda raw: raw["cameras"]["front"].update(crop=[0, 0, 320])),
    ("so101_bimanual", "cameras.front.crop", lambda raw: raw["cameras"]["front"].update(crop=[0, -1, 320, 240])),
    ("so101_bimanual", "cameras.front.crop", lambda raw: raw["cameras"]["front"].update(crop=[0, 0, 320, 0])),
    (
        "so101_bimanual",
        "joints.left_wrist_roll.name",
        lambda raw: raw["joints"]["left_wrist_roll"].update(name="elbow_flex"),
    ),
    ("so101_bimanual", "commands.groups", lambda raw: raw["commands"]["left_arm"]["joints"].pop()),
    (
        "so101_bimanual",
        "commands.right_arm.joints",
        lambda raw: raw["commands"]["right_arm"]["joints"].append("left_gripper"),
    ),
    (
        "so101_bimanual",
        "commands.left_arm.joints",
        lambda raw: raw["commands"]["left_arm"].update(joints=["left_thumb"]),
    ),
    (
        "so101_bimanual",
        "commands.right_arm.topic",
        lambda raw: raw["commands"]["right_arm"].update(topic=raw["commands"]["left_arm"]["topic"]),
    ),
    ("so101_bimanual", "commands.both.joints", lambda raw: one_group(raw, "joint_trajectory")),
    ("so101_bimanual", "commands.both.joints", lambda raw: one_group(raw, "joint_state")),
    ("so101_bimanual", "commands.interface", lambda raw: raw["commands"].update(interface="pose")),
    ("so101_bimanual", "timing.lookahead", lambda raw: raw["timing"].update(lookahead=20.0)),
    ("so101_bimanual", "timing.lookahead", lambda raw: raw["timing"].update(lookahead=0.06)),
    (
        "so101_bimanual",
        "timing.command_rate",
        lambda raw: (raw["commands"].update(interface="joint_state"), raw["timing"].update(command_rate=5.0)),
    ),
    ("widowx", "tools", lambda raw: raw.update(tools={})),
    ("widowx", "tools", lambda raw: raw["policy"].update(action_mode="auto")),
    ("widowx", "policy.rot6d", lambda raw: raw["policy"].update(action_mode="auto")),
    ("widowx", "tools.order", lambda raw: raw["tools"].update(order=["arms"])),
    ("widowx", "tools.arm.gripper.joint", lambda raw: raw["tools"]["arm"]["gripper"].update(joint="griper")),
    ("widowx", "tools.arm.gripper.open_below", lambda raw: raw["tools"]["arm"]["gripper"].update(open_below=0.9)),
    ("widowx", "tools.arm.gripper.open_value", lambda raw: raw["tools"]["arm"]["gripper"].update(open_value=1.0)),
    ("widowx", "tools.arm.workspace_min", lambda raw: raw["tools"]["arm"].update(workspace_min=[0.5, 0.0, 0.0])),
    ("widowx", "commands.arm.tool", lambda raw: raw["commands"].update(interface="pose")),
    (
        "widowx",
        "tools.arm.gripper.open_position",
        lambda raw: raw["tools"]["arm"]["gripper"].update(open_position=37.0),
    ),
    (
        "widowx",
        "tools.arm.gripper.closed_position",
        lambda raw: raw["tools"]["arm"]["gripper"].update(closed_position=0.0),
    ),
    ("widowx", "tools.arm.policy_rpy", lambda raw: raw["tools"]["arm"].update(policy_rpy=[0.0, 90.0, 0.0])),
    ("widowx", "commands.arm.tool", lambda raw: raw["commands"]["arm"].update(tool="arm")),
    ("widowx", "commands.groups", lambda raw: leave_out(raw["commands"], "gripper")),
    ("libero_panda", "commands.groups", lambda raw: raw["commands"]["arm"].update(tool="")),
    ("libero_panda", "commands.groups", lambda raw: in_joints(raw)["arm"]["joints"].pop()),
    ("libero_panda", "tools.arm.gripper.joint", lambda raw: raw["tools"]["arm"]["gripper"].update(joint="joint7")),
    ("agibot", "tools.right.gripper.joint", lambda raw: raw["tools"]["right"]["gripper"].update(joint="left_gripper")),
    (
        "agibot",
        "tools.right.joints",
        lambda raw: [tool.update(joints=raw["commands"]["left_arm"]["joints"]) for tool in tools_of(raw)],
    ),
]


@pytest.mark.parametrize(
    ("robot", "key", "change"), CONTRADICTIONS, ids=[f"{i}-{c[1]}" for i, c in enumerate(CONTRADICTIONS)]
)
def test_a_contradiction_across_fields_is_named(robot: str, key: str, change: Callable[[dict[str, Any]], object]):
    found = problems_of(robot, change)
    assert f"{robot}.{key}" in found
    problem = found[f"{robot}.{key}"]
    assert problem.expected and problem.message


def test_joints_of_one_name_share_a_group_where_no_names_are_sent():
    raw = one_group(mapping_of("so101_bimanual"), "forward_command")
    assert len(Profile.from_mapping("so101_bimanual", raw).commands.by_name["both"].joints) == 12


@pytest.mark.parametrize(("key", "degrees"), [("lower", -110.0), ("upper", 110.0)])
def test_limits_in_degrees_are_refused(key: str, degrees: float):
    found = problems_of("so101", lambda raw: raw["joints"]["wrist_flex"].update({key: degrees}))
    assert found[f"so101.joints.wrist_flex.{key}"].expected == "a number in [-12.6, 12.6], rad or m"


def test_one_bad_value_hides_no_contradiction_of_the_others():
    def spoil(raw: dict[str, Any]) -> None:
        raw["joints"]["left_gripper"]["topic"] = 3
        raw["policy"]["waypoint_dt"] = None
        raw["joints"]["policy_order"].reverse()
        raw["timing"]["lead"] = 1.0

    found = problems_of("so101_bimanual", spoil)
    assert "so101_bimanual.joints.left_gripper.topic" in found
    assert "so101_bimanual.timing.lead" in found
    assert "so101_bimanual.joints.right_shoulder_lift.scale" not in found
    assert "so101_bimanual.joints.right_gripper.scale" not in found
    assert any(key.endswith(".scale") for key in found)  # an arm joint now stands where a gripper is expected


@pytest.mark.parametrize("section", ["policy", "cameras", "joints", "commands", "timing"])
@pytest.mark.parametrize("value", [None, 3, "text", []])
def test_a_section_of_the_wrong_type_is_named(section: str, value: object):
    found = problems_of("so101_bimanual", lambda raw: raw.update({section: value}))
    assert f"so101_bimanual.{section}" in found


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data(), junk=JUNK)
def test_whatever_stands_in_a_field_either_loads_or_is_a_profile_error(data: st.DataObject, junk: object):
    raw = copy.deepcopy(WIDOWX)
    node: Any = raw
    while True:
        key = data.draw(st.sampled_from(sorted(node)))
        if isinstance(node[key], dict) and data.draw(st.booleans()):
            node = node[key]
            continue
        node[key] = junk
        break
    try:
        profile = Profile.from_mapping("widowx", raw, file="junk.yaml")
    except ProfileError as error:
        assert error.problems
        assert all(problem.key.startswith("widowx") and problem.message for problem in error.problems)
    else:
        assert profile.name == "widowx"


WIDOWX = mapping_of("widowx")


def test_several_robots_in_one_file_and_several_files_merge(tmp_path: Path):
    pair = write(tmp_path / "pair.yaml", {"first": mapping_of("widowx"), "second": mapping_of("so101_bimanual")})
    profiles = load_profiles([pair, "agibot"])
    assert list(profiles) == ["first", "second", "agibot"]
    assert profiles["second"].source == pair


def test_where_one_robot_is_meant_a_file_of_several_names_them(tmp_path: Path):
    one = load_robot(write(tmp_path / "one.yaml", {"widowx": mapping_of("widowx")}))
    assert one.to_mapping() == load_robot("widowx").to_mapping()
    pair = write(tmp_path / "pair.yaml", {"first": mapping_of("widowx"), "second": mapping_of("so101_bimanual")})
    with pytest.raises(ProfileError, match=r"pair\.yaml: holds 2 robots \(first, second\).*expected one robot"):
        load_robot(pair)


def test_a_robot_in_two_files_is_refused_naming_both(tmp_path: Path):
    one = write(tmp_path / "one.yaml", {"widowx": mapping_of("widowx")})
    with pytest.raises(ProfileError, match=r"widowx.*is also in.*one\.yaml"):
        load_profiles([one, "widowx"])


def test_node_wide_parameters_stand_beside_robots(tmp_path: Path):
    robots = {"device": "cpu", "robots": ["widowx"], "use_sim_time": True, "widowx": mapping_of("widowx")}
    assert list(load_profile(write(tmp_path / "robot.yaml", robots))) == ["widowx"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("a: [1", "not valid YAML"),
        ("widowx: {schema_version: 1}", "no section"),
        ("/**: {ros__parameters: {device: cpu}}", "contains no robot"),
        ("/**: {ros__parameters: {devise: cpu}}", "did you mean 'device'"),
        ("/**: {ros__parameters: {2arms: {schema_version: 1}}}", "cannot be a robot's name"),
        ("- 1\n- 2\n", "no section"),
    ],
)
def test_a_file_of_another_form_says_what_it_lacks(tmp_path: Path, text: str, message: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ProfileError, match=message):
        load_profile(path)


def test_a_newer_profile_is_refused_by_its_version_alone(tmp_path: Path):
    newer = mapping_of("widowx") | {"schema_version": 2, "antennas": {"left": 1}}
    with pytest.raises(ProfileError) as refused:
        load_profile(write(tmp_path / "newer.yaml", {"widowx": newer}))
    (problem,) = refused.value.problems
    assert (problem.key, problem.value, problem.expected) == ("widowx.schema_version", 2, "1")
    assert "newer version of xvla_ros" in problem.message and "update xvla_ros" in problem.message


def test_what_earlier_versions_had_is_read(tmp_path: Path):
    """Settings that were retired without a new version of the schema are passed over."""
    older = mapping_of("widowx")
    older["smoothing"] = {**older.get("smoothing", {}), "followed": 0.2}
    older["safety"] = {**older.get("safety", {}), "deviation": 0.1}
    (found,) = load_profile(write(tmp_path / "older.yaml", {"widowx": older})).values()
    assert "followed" not in found.to_mapping()["smoothing"] and "deviation" not in found.to_mapping()["safety"]
    older["schema_version"] = 0
    with pytest.raises(ProfileError, match=r"widowx\.schema_version: 0 is not allowed; expected one of 1"):
        load_profile(write(tmp_path / "older.yaml", {"widowx": older}))


def test_a_key_given_twice_is_named_with_its_line(tmp_path: Path):
    path = write(tmp_path / "twice.yaml", {"widowx": mapping_of("widowx")})
    path.write_text(re.sub(r"\n( *)domain_id: 0\n", r"\n\1domain_id: 0\n\1domain_id: 4\n", path.read_text()))
    with pytest.raises(ProfileError, match=r"'domain_id' is given twice, again in line \d+"):
        load_profile(path)


def test_a_missing_file_and_an_unknown_robot_are_named(tmp_path: Path):
    with pytest.raises(ProfileError, match=r"nowhere\.yaml.*cannot be read"):
        load_profile(tmp_path / "nowhere.yaml")
    with pytest.raises(ProfileError, match=r"'so101_bimanul' is unknown \(did you mean 'so101_bimanual'\?\)"):
        load_profile("so101_bimanul")
