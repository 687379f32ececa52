"""``xvla check``: profile, checkpoint and graph against each other."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from xvla_ros.cli import main
from xvla_ros.evaluation import graph_checks
from xvla_ros.evaluation.check import CheckReport, check, list_robots, print_report, print_robots
from xvla_ros.nodes.graph import Endpoint, GraphSnapshot
from xvla_ros.robots import load_profile
from xvla_ros.robots.profile import shipped_files
from xvla_ros.ros_env import child_environment

PAIR = load_profile("so101_bimanual")["so101_bimanual"]
IMAGE = "sensor_msgs/msg/Image"
JOINTS = "sensor_msgs/msg/JointState"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
ARM_JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]


def good_graph() -> GraphSnapshot:
    cameras = [camera.topic for camera in PAIR.cameras.by_name.values()]
    states = ["/left/joint_states", "/right/joint_states"]
    controllers = [group.topic for group in PAIR.commands.by_name.values()]
    publishers = {topic: (Endpoint("/camera", IMAGE, "best_effort"),) for topic in cameras}
    publishers |= {topic: (Endpoint("/arm", JOINTS),) for topic in states}
    subscribers = {topic: (Endpoint("/arm_controller", TRAJECTORY),) for topic in controllers}
    return GraphSnapshot(
        topics={topic: (ends[0].type,) for topic, ends in (publishers | subscribers).items()},
        publishers=publishers,
        subscribers=subscribers,
        rates=dict.fromkeys(cameras, 30.0) | dict.fromkeys(states, 50.0),
        joint_names=dict.fromkeys(states, tuple(ARM_JOINTS)),
    )


def errors_of(report: CheckReport) -> dict[str, Any]:
    return {problem.key.removeprefix("so101_bimanual."): problem for problem in report.errors}


def test_a_good_profile_in_a_good_graph_is_ok():
    report = check("so101_bimanual", graph=good_graph())
    assert report.ok and not report.warnings
    assert report.checked == ("profile", "graph")


@pytest.mark.parametrize("file", shipped_files(), ids=lambda file: file.stem)
def test_the_shipped_profiles_are_fit_to_run(file: Path, capsys: pytest.CaptureFixture[str]):
    """By name and by file, with the exit code that a script sees."""
    for robot in (file.stem, str(file)):
        assert main(["check", "--robot", robot, "--offline"]) == 0, capsys.readouterr().out
        assert "0 errors, 0 warnings" in capsys.readouterr().out


def test_json_has_the_agreed_form(tmp_path: Path):
    shipped = load_profile("widowx")["widowx"].source.read_text()
    path = tmp_path / "widowx.yaml"
    path.write_text(shipped.replace("urdf: wx250s.urdf", "urdf: wx200.urdf"))
    document = check(path).to_json()
    assert document["ok"] is False and document["schema_version"] == 1
    assert [set(error) for error in document["errors"]] == [{"file", "key", "value", "expected", "message"}]
    assert document["errors"][0]["key"] == "widowx.tools"
    assert "wx200.urdf" in document["errors"][0]["message"]


def test_a_bad_profile_gives_every_problem(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text("/**: {ros__parameters: {arm: {schema_version: 2, polcy: {}}}}")
    report = check(path)
    assert not report.ok
    keys = {problem.key for problem in report.errors}
    assert {"arm.schema_version", "arm.polcy", "arm.policy", "arm.cameras", "arm.joints", "arm.commands"} <= keys
    assert not check("no_such_robot").ok


def test_an_empty_graph_names_every_topic_that_is_missing():
    errors = errors_of(check("so101_bimanual", graph=GraphSnapshot(topics={})))
    assert set(errors) == {
        "cameras.front.topic",
        "cameras.left_wrist.topic",
        "cameras.right_wrist.topic",
        "joints.left_shoulder_pan.topic",
        "joints.right_shoulder_pan.topic",
        "commands.left_arm.topic",
        "commands.right_arm.topic",
    }


def test_a_topic_of_almost_that_name_is_suggested():
    graph = good_graph()
    publishers = {topic: ends for topic, ends in graph.publishers.items() if topic != "/front/image_raw"}
    graph = replace(graph, publishers=publishers, topics=dict(graph.topics) | {"/front/image_rect": (IMAGE,)})
    problem = errors_of(check("so101_bimanual", graph=graph))["cameras.front.topic"]
    assert "did you mean '/front/image_rect'" in problem.message


def changed(kind: str, topic: str, value: Any) -> GraphSnapshot:
    graph = good_graph()
    return replace(graph, **{kind: {**getattr(graph, kind), topic: value}})


@pytest.mark.parametrize(
    ("graph", "key", "value", "words"),
    [
        (changed("rates", "/front/image_raw", 2.0), "cameras.front.topic", 2.0, "stale"),
        (changed("rates", "/front/image_raw", 0.0), "cameras.front.topic", 0.0, "silent"),
        (changed("rates", "/left/joint_states", 1.0), "joints.left_shoulder_pan.topic", 1.0, "stale"),
        (
            changed("publishers", "/front/image_raw", (Endpoint("/camera", "sensor_msgs/msg/CompressedImage"),)),
            "cameras.front.topic",
            "sensor_msgs/msg/CompressedImage",
            "as sensor_msgs/msg/CompressedImage",
        ),
        (
            changed("joint_names", "/left/joint_states", (*ARM_JOINTS[:5], "jaw_joint")),
            "joints.left_gripper.name",
            "gripper",
            "carries no joint 'gripper'",
        ),
        (
            changed("subscribers", "/left/arm_controller/joint_trajectory", (Endpoint("/c", "std_msgs/msg/String"),)),
            "commands.left_arm.topic",
            "std_msgs/msg/String",
            "as std_msgs/msg/String",
        ),
        (
            changed(
                "subscribers",
                "/left/arm_controller/joint_trajectory",
                (Endpoint("/c", TRAJECTORY, "reliable", "transient_local"),),
            ),
            "commands.left_arm.topic",
            "volatile offered, transient_local requested",
            "quality of service",
        ),
    ],
)
def test_what_does_not_fit_the_graph_is_named(graph: GraphSnapshot, key: str, value: object, words: str):
    errors = errors_of(check("so101_bimanual", graph=graph))
    assert list(errors) == [key]
    assert errors[key].value == value and words in errors[key].message


RIVAL = "/left/arm_controller/joint_trajectory"


@pytest.mark.parametrize("others", [("/teleop", "/xvla"), ("/teleop",), ("/xvla", "/lab/xvla"), ("/xvla", "/xvla")])
def test_whoever_commands_the_same_controller_is_an_error(others: tuple[str, ...]):
    graph = changed("publishers", RIVAL, tuple(Endpoint(node, TRAJECTORY) for node in others))
    errors = errors_of(check("so101_bimanual", graph=graph))
    assert list(errors) == ["commands.left_arm.topic"]
    assert "another node commands" in errors["commands.left_arm.topic"].message


def test_the_policy_node_itself_is_no_rival():
    assert check("so101_bimanual", graph=changed("publishers", RIVAL, (Endpoint("/xvla", TRAJECTORY),))).ok


def test_an_optional_camera_and_a_tolerated_rival_are_warnings(tmp_path: Path):
    raw = PAIR.to_mapping()
    raw["safety"]["exclusive"] = False
    raw["cameras"]["right_wrist"]["required"] = False
    path = tmp_path / "pair.yaml"
    path.write_text(json.dumps({"/**": {"ros__parameters": {"so101_bimanual": raw}}}))
    graph = good_graph()
    publishers = {topic: ends for topic, ends in graph.publishers.items() if topic != "/right_wrist/image_raw"}
    publishers[RIVAL] = (Endpoint("/teleop", TRAJECTORY), Endpoint("/xvla", TRAJECTORY))
    report = check(path, graph=replace(graph, publishers=publishers))
    assert report.ok
    assert {warning.key: warning.value for warning in report.warnings} == {
        "so101_bimanual.cameras.right_wrist.topic": "/right_wrist/image_raw",
        "so101_bimanual.commands.left_arm.topic": "/teleop",
    }


def test_quality_of_service_is_that_of_the_node():
    qos = pytest.importorskip("xvla_ros.nodes.qos", reason="needs rclpy")
    for ours, theirs in ((graph_checks.SENSOR_QOS, qos.SENSOR), (graph_checks.COMMAND_QOS, qos.COMMAND)):
        assert ours == (theirs.reliability.name.lower(), theirs.durability.name.lower())


def test_the_report_reads_as_text_and_as_json():
    report = check("so101_bimanual", graph=changed("rates", "/front/image_raw", 2.0))
    text, document = io.StringIO(), io.StringIO()
    print_report(report, stream=text)
    print_report(report, json_form=True, stream=document)
    assert json.loads(document.getvalue()) == json.loads(json.dumps(report.to_json()))
    assert text.getvalue().splitlines() == [
        "error: so101_bimanual.cameras.front.topic",
        "  /front/image_raw comes at 2 Hz and is stale in between",
        "  file:     ROS graph",
        "  found:    2.0",
        "  expected: more than 5 Hz (max_age is 0.2 s)",
        "so101_bimanual: 1 error, 0 warnings (checked profile, graph; not checked: checkpoint)",
    ]


def test_the_shipped_robots_are_listed():
    text, document = io.StringIO(), io.StringIO()
    print_robots(list_robots(), stream=text)
    print_robots(list_robots(), json_form=True, stream=document)
    names = [path.stem for path in shipped_files()]
    assert {"agibot", "so101", "so101_bimanual", "widowx"} < set(names)
    assert [line.split()[0] for line in text.getvalue().splitlines()] == ["robot", *names]
    assert [robot["name"] for robot in json.loads(document.getvalue())["robots"]] == names


@contextmanager
def running(plan: dict[str, Any], environment: dict[str, str]) -> Iterator[None]:
    script = Path(__file__).with_name("graph_of_a_pair.py")
    command = [sys.executable, str(script), json.dumps(plan)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "up\n"
            yield
        finally:
            process.terminate()


def observed(environment: dict[str, str]) -> dict[str, Any]:
    code = (
        "import json, sys; from dataclasses import asdict; from xvla_ros.evaluation.check import check, observe\n"
        "graph = observe('so101_bimanual', 1.5)\n"
        "report = graph and check('so101_bimanual', graph=graph).to_json()\n"
        "json.dump({'graph': graph and asdict(graph), 'report': report}, sys.stdout)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def ros_environment(ros_domain: int) -> dict[str, str]:
    pytest.importorskip("rclpy")
    return child_environment() | {"ROS_DOMAIN_ID": str(ros_domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}


def test_a_running_graph_is_seen_as_it_is(ros_environment: dict[str, str]):
    plan = {
        "publish": [
            ["/front/image_raw", IMAGE, "best_effort", 20.0, None],
            ["/left_wrist/image_raw", IMAGE, "reliable", 20.0, None],
            ["/right_wrist/image_raw", "sensor_msgs/msg/CompressedImage", "reliable", 0, None],
            ["/left/joint_states", JOINTS, "reliable", 50.0, ARM_JOINTS],
            ["/right/joint_states", JOINTS, "reliable", 50.0, [*ARM_JOINTS[:5], "jaw_joint"]],
        ],
        "subscribe": [
            ["/left/arm_controller/joint_trajectory", TRAJECTORY, "volatile"],
            ["/right/arm_controller/joint_trajectory", TRAJECTORY, "transient_local"],
        ],
    }
    with running(plan, ros_environment):
        seen = observed(ros_environment)
    rates = seen["graph"]["rates"]
    # a busy machine publishes less often than it was asked to, and never more often
    assert 0.0 < rates["/front/image_raw"] < 28.0
    assert 0.0 < rates["/left/joint_states"] < 70.0
    assert seen["graph"]["publishers"]["/front/image_raw"] == [
        {"node": "/driver", "type": IMAGE, "reliability": "best_effort", "durability": "volatile"}
    ]
    assert seen["report"]["checked"] == ["profile", "graph"]
    assert {error["key"].removeprefix("so101_bimanual.") for error in seen["report"]["errors"]} == {
        "cameras.right_wrist.topic",
        "joints.right_gripper.name",
        "commands.right_arm.topic",
    }


def test_a_graph_without_other_nodes_is_none(ros_environment: dict[str, str]):
    assert observed(ros_environment) == {"graph": None, "report": None}
