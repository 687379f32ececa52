# SPDX-License-Identifier: Apache-2.0
"""Fleets of equal arms: one profile taken over by others, and a namespace for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from xvla_ros.robots import Profile, ProfileError, load_profile
from xvla_ros.robots.profile.parameters import parameters, profile_of_parameters

SO101 = load_profile("so101")["so101"]


def read(folder: Path, **robots: Any) -> dict[str, Profile]:
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": robots}}), encoding="utf-8")
    return load_profile(path)


def topics(profile: Profile) -> list[str]:
    sources = [*profile.cameras.by_name.values(), *profile.joints.ordered, *profile.commands.by_name.values()]
    return [source.topic for source in sources]


def test_a_robot_takes_what_it_does_not_say_from_the_one_it_is_like(tmp_path: Path):
    arm = read(tmp_path, arm_a={"like": "so101", "namespace": "/a", "policy": {"domain_id": 7}})["arm_a"]
    assert (arm.name, arm.like, arm.policy.domain_id) == ("arm_a", "so101", 7)
    assert topics(arm) == [f"/a{topic}" for topic in topics(SO101)]
    assert {arm.joints.by_name[joint].name for joint in arm.joints.policy_order} == {
        joint.name for joint in SO101.joints.ordered
    }
    assert arm.timing == SO101.timing and arm.policy.waypoint_dt == SO101.policy.waypoint_dt
    assert SO101.namespace == "" and topics(SO101)[0] == "/front/image_raw"


def test_neighbours_come_first_and_may_be_like_others(tmp_path: Path):
    robots = read(
        tmp_path,
        so101={"like": "so101", "timing": {"lead": 0.1}},
        left={"like": "so101", "namespace": "/left"},
        far_left={"like": "left", "namespace": "/far/left", "instruction": "wave"},
    )
    assert [robot.timing.lead for robot in robots.values()] == [0.1, 0.1, 0.1]
    assert robots["far_left"].cameras.by_name["front"].topic == "/far/left/front/image_raw"


def test_a_shipped_robot_that_is_like_another_is_like_the_shipped_one(tmp_path: Path):
    """A profile that a user copied from the package is another's base, whatever its file calls the same."""
    pair = load_profile("so101_bimanual")["so101_bimanual"]
    robots = read(
        tmp_path,
        so101_bimanual={"like": "so101_bimanual_split", "timing": {"lead": 0.1}},
        so101_bimanual_split={"like": "so101_bimanual_split", "namespace": "/b"},
    )
    assert [robot.timing.lead for robot in robots.values()] == [0.1, pair.timing.lead]
    for robot in robots.values():
        assert robot.joints.by_name["left_gripper"].name == "jaw_joint"
        assert robot.commands.groups == ("left_arm", "left_gripper", "right_arm", "right_gripper")
        assert robot.cameras.slots == pair.cameras.slots


def test_entries_stand_in_the_order_of_their_list(tmp_path: Path):
    slots = ["left_wrist", "side", "front"]
    arm = read(tmp_path, arm={"like": "so101_bimanual", "cameras": {"slots": slots, "side": {"topic": "/side"}}})
    assert list(arm["arm"].cameras.by_name) == slots


def test_a_list_of_names_leaves_out_the_others(tmp_path: Path):
    arm = read(tmp_path, arm={"like": "so101", "cameras": {"slots": ["front", "side"], "side": {"topic": "/side"}}})
    assert list(arm["arm"].cameras.by_name) == ["front", "side"]


def test_what_is_written_out_stands_by_itself(tmp_path: Path):
    arm = read(tmp_path, arm_a={"like": "so101", "namespace": "/a"})["arm_a"]
    mapping = arm.to_mapping()
    assert mapping["like"] == "" and mapping["cameras"]["front"]["topic"] == "/front/image_raw"
    again = read(tmp_path, arm_a=mapping)["arm_a"]
    assert topics(again) == topics(arm) and again.to_mapping() == mapping


def test_parameters_lead_back_to_the_same_profile(tmp_path: Path):
    arm = read(tmp_path, arm_a={"like": "so101", "namespace": "/a"})["arm_a"]
    values = {spec.name: spec.value for spec in parameters(arm)}
    assert values["arm_a.like"] == "so101" and values["arm_a.commands.arm.topic"] == SO101.commands.by_name["arm"].topic
    back = profile_of_parameters("arm_a", values)
    assert back.model_copy(update={"source": arm.source}) == arm


@pytest.mark.parametrize(
    ("robots", "key", "words"),
    [
        ({"arm": {"like": "so100"}}, "arm.like", "like names 'so100', and there is no such robot"),
        ({"arm": {"like": "arm"}}, "arm.like", "arm is like arm"),
        ({"one": {"like": "two"}, "two": {"like": "one"}}, "two.like", "one is like two is like one"),
        ({"arm": {"like": "so101", "namespace": "a"}}, "arm.namespace", "'a' is not allowed"),
        ({"arm": {"like": "so101", "cameras": {"slots": ["fornt"]}}}, "arm.cameras.slots", "'fornt' is not declared"),
        ({"arm": {"like": 3}}, "arm.like", "3 is not allowed"),
        ({"arm": {"like": "so101", "cameras": 3}}, "arm.cameras", "3 is not a mapping"),
    ],
)
def test_what_cannot_be_taken_over_is_named(tmp_path: Path, robots: dict[str, Any], key: str, words: str):
    with pytest.raises(ProfileError, match=words) as caught:
        read(tmp_path, **robots)
    assert key in {problem.key for problem in caught.value.problems}
