# SPDX-License-Identifier: Apache-2.0
"""A profile as node parameters and back."""

from __future__ import annotations

import array
import json
import subprocess
import sys

import pytest

from xvla_ros.robots import ProfileError, load_profile
from xvla_ros.robots.profile import profile_document, profiles_of_document
from xvla_ros.robots.profile.parameters import parameters, profile_of_parameters
from xvla_ros.ros_env import child_environment

TYPES = {
    "bool": bool,
    "integer": int,
    "double": float,
    "string": str,
    "string_array": list,
    "integer_array": list,
    "double_array": list,
}


@pytest.mark.parametrize("robot", ["so101_bimanual", "widowx", "agibot"])
def test_parameters_lead_back_to_the_same_profile(robot: str):
    profile = load_profile(robot)[robot]
    specs = parameters(profile)
    assert all(type(spec.value) is TYPES[spec.type] for spec in specs)
    assert all(spec.name.startswith(f"{robot}.") and spec.description for spec in specs)
    assert len({spec.name for spec in specs}) == len(specs)
    back = profile_of_parameters(robot, {spec.name: spec.value for spec in specs})
    assert back.to_mapping() == profile.to_mapping()


def test_ranges_are_those_of_the_schema():
    specs = {spec.name: spec for spec in parameters(load_profile("widowx")["widowx"])}
    assert specs["widowx.policy.waypoint_dt"].floating_range == (0.0, 10.0)
    assert specs["widowx.policy.denoising_steps"].integer_range == (1, 100)
    assert specs["widowx.cameras.front.topic"].floating_range is None
    assert specs["widowx.tools.arm.policy_rpy"].type == "double_array"


def test_arrays_of_ros_and_names_without_the_robot_are_understood():
    profile = load_profile("widowx")["widowx"]
    values = {spec.name.removeprefix("widowx."): spec.value for spec in parameters(profile)}
    values["tools.arm.workspace_min"] = array.array("d", [0.1, -0.15, -0.1])
    assert profile_of_parameters("widowx", values).to_mapping() == profile.to_mapping()


def test_what_is_said_of_a_camera_survives_parameters_and_documents():
    profile = load_profile("widowx")["widowx"]
    specs = {spec.name: spec for spec in parameters(profile)}
    assert specs["widowx.cameras.front.crop"].type == "integer_array"
    assert specs["widowx.cameras.front.rotate"].type == "integer"
    values = {name: spec.value for name, spec in specs.items()} | {
        "widowx.cameras.front.crop": array.array("q", [8, 0, 320, 240]),
        "widowx.cameras.front.rotate": 270,
        "widowx.cameras.front.encoding": "bgr8",
    }
    changed = profile_of_parameters("widowx", values)
    again = profiles_of_document(profile_document([changed]), "bag")["widowx"]
    for one in (changed, again):
        camera = one.cameras.by_name["front"]
        assert (camera.crop, camera.rotate, camera.encoding) == ((8, 0, 320, 240), 270, "bgr8")
    assert {spec.name: spec.value for spec in parameters(again)} == values | {
        "widowx.cameras.front.crop": [8, 0, 320, 240]
    }


def test_bad_parameters_are_refused_by_name():
    values = {spec.name: spec.value for spec in parameters(load_profile("widowx")["widowx"])}
    values["widowx.policy.domain_id"] = -1
    values["widowx.timing.lead"] = 2.0
    with pytest.raises(ProfileError) as caught:
        profile_of_parameters("widowx", values)
    assert [problem.key for problem in caught.value.problems] == ["widowx.policy.domain_id", "widowx.timing.lead"]


def test_a_parameter_that_is_a_section_elsewhere_is_refused_by_name():
    values = {spec.name: spec.value for spec in parameters(load_profile("widowx")["widowx"])}
    with pytest.raises(ProfileError, match=r"widowx\.policy: 'x-vla' is not a mapping"):
        profile_of_parameters("widowx", {"widowx.policy": "x-vla"} | values)


def test_a_list_that_ros_does_not_read_is_refused_by_name(tmp_path):
    file = tmp_path / "mine.yaml"
    settings = "{schema_version: 1, like: widowx, safety: {workspace_min: [-0.5, -0.5, 0]}}"
    file.write_text(f"/**:\n  ros__parameters:\n    mine: {settings}\n")
    with pytest.raises(ProfileError, match=r"mine\.safety\.workspace_min mixes integers and decimals.*write 0 as 0\.0"):
        load_profile(str(file))


def test_ros_reads_the_shipped_files_as_we_do():
    pytest.importorskip("rclpy")
    code = (
        "import json, sys, rclpy\n"
        "context = rclpy.Context()\n"
        "context.init(['x', '--ros-args', '--params-file', sys.argv[1]])\n"
        "node = rclpy.create_node('xvla', context=context, automatically_declare_parameters_from_overrides=True)\n"
        "values = {name: value.value for name, value in node.get_parameters_by_prefix(sys.argv[2]).items()}\n"
        "json.dump({name: value if isinstance(value, (bool, int, float, str)) else list(value)\n"
        "           for name, value in values.items()}, sys.stdout)\n"
    )
    for robot in ("so101_bimanual", "so101_bimanual_split", "widowx", "agibot"):
        profile = load_profile(robot)[robot]
        command = [sys.executable, "-c", code, str(profile.source), robot]
        done = subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        assert profile_of_parameters(robot, json.loads(done.stdout)).to_mapping() == profile.to_mapping()
