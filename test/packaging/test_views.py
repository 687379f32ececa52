# SPDX-License-Identifier: Apache-2.0
"""The Foxglove layout and the RViz configuration: they parse, hang together and name only what there is."""

import importlib
import json
import re

import pytest
import yaml

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")
pytest.importorskip("pinocchio", reason="needs the kinematics extra")

import rclpy

from xvla_ros.evaluation.processes import free_domain
from xvla_ros.nodes.node_clock import NodeClock
from xvla_ros.nodes.policy.node import PolicyNode
from xvla_ros.nodes.policy.robot_link import RobotLink
from xvla_ros.resources import config_dir
from xvla_ros.robots import load_profile
from xvla_ros.robots.tools import shown_arms

PROFILE = load_profile("so101_bimanual")["so101_bimanual"]
TYPES = {
    "Image": "sensor_msgs/msg/Image",
    "3D": "visualization_msgs/msg/MarkerArray",
    "DiagnosticSummary": "diagnostic_msgs/msg/DiagnosticArray",
}


@pytest.fixture(scope="module")
def node():
    """The policy node with the pair linked, and nobody else."""
    with free_domain() as domain:
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=domain)
        made = PolicyNode(context=context, enable_rosout=False)
        link = RobotLink(made, PROFILE, NodeClock(made))
        yield made
        link.close()
        made.destroy_node()
        rclpy.shutdown(context=context)


@pytest.fixture(scope="module")
def topics(node):
    """Topic → type of all that the node publishes and hears: its own, and the robot's."""
    name, namespace = node.get_name(), node.get_namespace()
    found = [
        *node.get_publisher_names_and_types_by_node(name, namespace),
        *node.get_subscriber_names_and_types_by_node(name, namespace),
    ]
    return {topic: types[0] for topic, types in found}


@pytest.fixture(scope="module")
def layout():
    return json.loads((config_dir() / "foxglove" / "xvla.json").read_text(encoding="utf-8"))


def get_message(kind):
    package, _, name = kind.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


def panels(layout):
    return {(name.split("!")[0], name): panel for name, panel in layout["configById"].items()}


def named(kind, panel):
    """What a panel names: topics, or paths that begin with one."""
    if kind == "Image":
        return [panel["imageMode"]["imageTopic"]]
    if kind == "3D":
        return list(panel["topics"])
    if kind in ("Plot", "StateTransitions"):
        return [path["value"] for path in panel["paths"]]
    return [panel[key] for key in ("topicPath", "topicToRender", "topicName") if key in panel]


def test_every_panel_has_a_place_and_every_place_a_panel(layout):
    placed = []

    def walk(place):
        if isinstance(place, str):
            placed.append(place)
            return
        assert place["direction"] in ("row", "column") and 0 < place["splitPercentage"] < 100
        walk(place["first"])
        walk(place["second"])

    walk(layout["layout"])
    assert sorted(placed) == sorted(layout["configById"]) and len(set(placed)) == len(placed)


def test_panels_name_only_topics_of_the_node_and_the_robot(layout, topics):
    count = 0
    for (kind, name), panel in panels(layout).items():
        for path in named(kind, panel):
            topic = path.split(".")[0]
            assert topic in topics, f"{name}: {topic}"
            assert topics[topic] == TYPES.get(kind, topics[topic]), name
            count += 1
        if kind == "Publish":
            assert topics[panel["topicName"]] == panel["datatype"] and set(json.loads(panel["value"])) == {"data"}
    assert count > 30


def test_paths_lead_to_fields_of_the_messages(layout, topics):
    for (kind, name), panel in panels(layout).items():
        for path in named(kind, panel):
            topic, *fields = path.split(".")
            message = get_message(topics[topic])
            for field in fields:
                known = message.get_fields_and_field_types()
                plain, index = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", field).groups()
                assert plain in known, f"{name}: {path}"
                kind_of_field = known[plain].removeprefix("sequence<").removesuffix(">")
                if "/" in kind_of_field:
                    message = get_message(kind_of_field.replace("/", "/msg/"))
                if plain in ("position", "positions"):
                    assert int(index) < 6, f"{name}: {path}"


def test_every_joint_of_the_pair_is_plotted_measured_and_commanded(layout):
    for side, names in (("left", PROFILE.joints.policy_order[:6]), ("right", PROFILE.joints.policy_order[6:])):
        [paths] = [
            panel["paths"]
            for (kind, _), panel in panels(layout).items()
            if kind == "Plot" and panel["title"].startswith(side)
        ]
        plain = [name.removeprefix(f"{side}_") for name in names]
        assert [path["label"] for path in paths] == [*plain, *(f"{name} commanded" for name in plain)]
        measured, commanded = paths[:6], paths[6:]
        group = PROFILE.commands.by_name[f"{side}_arm"]
        assert list(group.joints) == list(names)
        for i in range(6):
            assert measured[i]["value"] == f"/{side}/joint_states.position[{i}]"
            assert commanded[i]["value"] == f"{group.topic}.points[0].positions[{i}]"


def test_buttons_call_services_of_the_node(layout, node):
    served = dict(node.get_service_names_and_types_by_node(node.get_name(), node.get_namespace()))
    called = [panel["serviceName"] for (kind, _), panel in panels(layout).items() if kind == "CallService"]
    assert called == ["/xvla/stop", "/xvla/clear_stop"]
    assert all(served[name] == ["std_srvs/srv/Trigger"] for name in called)


def test_both_show_the_frame_of_the_plan(layout):
    frames = {arm.frame for arm in shown_arms(PROFILE, {})}
    rviz = yaml.safe_load((config_dir() / "rviz" / "xvla.rviz").read_text(encoding="utf-8"))
    assert frames == {layout["configById"]["3D!plan"]["followTf"]}
    assert frames == {rviz["Visualization Manager"]["Global Options"]["Fixed Frame"]}


def test_rviz_shows_the_plan_and_every_camera_as_they_are_published(topics):
    rviz = yaml.safe_load((config_dir() / "rviz" / "xvla.rviz").read_text(encoding="utf-8"))
    displays = [display for display in rviz["Visualization Manager"]["Displays"] if "Topic" in display]
    kinds = {
        "rviz_default_plugins/Image": ("sensor_msgs/msg/Image", "Best Effort"),
        "rviz_default_plugins/MarkerArray": ("visualization_msgs/msg/MarkerArray", "Reliable"),
    }
    for display in displays:
        kind, reliability = kinds[display["Class"]]
        assert topics[display["Topic"]["Value"]] == kind and display["Enabled"]
        assert display["Topic"]["Reliability Policy"] == reliability
        assert display["Topic"]["Durability Policy"] == "Volatile"
    shown = {display["Topic"]["Value"] for display in displays}
    assert shown == {"/xvla/so101_bimanual/plan", *(camera.topic for camera in PROFILE.cameras.by_name.values())}
