# SPDX-License-Identifier: Apache-2.0
"""The policies of SROS 2 allow each node what it makes in the graph, and nothing else."""

from queue import SimpleQueue
from xml.etree import ElementTree

import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

import rclpy

from xvla_ros.commands.security import policy_document, rights_of
from xvla_ros.evaluation.processes import free_domain
from xvla_ros.nodes.node_clock import NodeClock
from xvla_ros.nodes.policy.node import PolicyNode
from xvla_ros.nodes.policy.robot_link import RobotLink
from xvla_ros.nodes.record_node import RecordNode, RecordOptions
from xvla_ros.nodes.view_node import ViewNode
from xvla_ros.resources import config_dir
from xvla_ros.robots import load_robot

ROBOTS = ("so101_bimanual", "widowx", "agibot")  # joints alone; tools; tools and grippers in groups of their own
ACTION = "/_action/"
KINDS = {
    "publish": "topic", "subscribe": "topic", "reply": "service", "request": "service", "execute": "action",
    "call": "action",
}  # fmt: skip


@pytest.fixture
def ros():
    with free_domain() as domain:
        rclpy.init(domain_id=domain)
        yield
        rclpy.try_shutdown()


def graph_of(node):
    """What a node makes, as ``NodeRights`` has it; what an action is made of is the action."""
    name, namespace = node.get_name(), node.get_namespace()
    listed = {
        "publish": node.get_publisher_names_and_types_by_node,
        "subscribe": node.get_subscriber_names_and_types_by_node,
        "reply": node.get_service_names_and_types_by_node,
        "request": node.get_client_names_and_types_by_node,
    }
    names = {kind: [each for each, _ in look(name, namespace)] for kind, look in listed.items()}
    made = {kind: {each for each in found if ACTION not in each} for kind, found in names.items()}
    made["execute"] = {each.partition(ACTION)[0] for each in names["reply"] if ACTION in each}
    made["call"] = {each.partition(ACTION)[0] for each in names["request"] if ACTION in each}
    return made


def allowed(rights):
    return {kind: set(getattr(rights, kind)) for kind in KINDS}


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_policy_node_may_do_what_it_does_and_nothing_else(ros, robot):
    profile = load_robot(robot)
    policy, *_ = rights_of(profile)
    node = PolicyNode()
    node._description_topics.newest([profile.namespace] if profile.action_spec.is_end_effector else [])
    link = RobotLink(node, profile, NodeClock(node))
    try:
        assert graph_of(node) == allowed(policy)
    finally:
        link.close()
        node.destroy_node()


def test_a_gripper_that_takes_actions_is_called_and_a_namespace_is_kept():
    profile = load_robot("agibot")
    named = profile.commands.by_name["left_gripper"].model_copy(update={"interface": "gripper_action"})
    commands = profile.commands.model_copy(update={"by_name": {**profile.commands.by_name, "left_gripper": named}})
    policy, *_ = rights_of(profile.model_copy(update={"commands": commands, "namespace": "second"}))
    assert policy.call == (named.topic,)
    assert named.topic not in policy.publish
    assert "/second/robot_description" in policy.subscribe


@pytest.mark.parametrize("robot", ROBOTS)
def test_recorder_and_viewer_may_listen_and_no_more(tmp_path, ros, robot):
    profile = load_robot(robot)
    _, recording, viewing, seeing, *_ = rights_of(profile)
    recorder = RecordNode(profile, RecordOptions(tmp_path, checked=False), print)
    viewer = ViewNode(profile, None, rate=1.0)
    try:
        assert graph_of(recorder) == allowed(recording)
        assert graph_of(viewer) == allowed(viewing)
        assert graph_of(viewer._polled) == allowed(seeing)
    finally:
        viewer.close()
        recorder.close()
        recorder.destroy_node()


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_page_with_control_may_also_instruct_stop_and_clear(ros, robot):
    profile = load_robot(robot)
    *_, controlling, seeing = rights_of(profile)
    viewer = ViewNode(profile, None, rate=1.0, requests=SimpleQueue())
    try:
        assert graph_of(viewer) == allowed(controlling)
        assert graph_of(viewer._polled) == allowed(seeing)
    finally:
        viewer.close()


def test_the_document_names_every_right_in_the_words_of_sros():
    rights = rights_of(load_robot("widowx"))
    root = ElementTree.fromstring(policy_document(rights))
    for each in rights:
        enclave = root.find(f"enclaves/enclave[@path='/{each.enclave or each.node}']")
        node = enclave.find(f"profiles/profile[@node='{each.node}']")
        for right, kind in KINDS.items():
            found = node.findall(f"{kind}s[@{right}='ALLOW']/{kind}")
            assert {element.text for element in found} == set(getattr(each, right))


@pytest.mark.parametrize("robot", ["agibot", "so101", "so101_bimanual", "widowx"])
def test_the_shipped_policies_are_those_of_the_shipped_profiles(robot):
    expected = policy_document(rights_of(load_robot(robot)))
    assert (config_dir() / "security" / f"{robot}.policy.xml").read_text(encoding="utf-8") == expected, (
        f"xvla security policy --robot {robot} --output config/security/{robot}.policy.xml"
    )
