# SPDX-License-Identifier: Apache-2.0
"""``xvla check``: profile, checkpoint and graph against each other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xvla_ros.commands import graph_checks, main
from xvla_ros.commands.check import CheckReport, check, observe, text_of
from xvla_ros.nodes import graph as looks
from xvla_ros.nodes.graph import UNKNOWN_NODE, Endpoint, GraphSnapshot, NoGraph, Reading
from xvla_ros.observation.faults import Fault
from xvla_ros.robots import load_profile
from xvla_ros.robots.profile import Profile, profile_document, shipped_files
from xvla_ros.ros_env import child_environment

PAIR = load_profile("so101_bimanual")["so101_bimanual"]
SINGLE = load_profile("so101")["so101"]
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


def shipped_text(robot: str) -> str:
    source = load_profile(robot)[robot].source
    assert source is not None
    return source.read_text()


def errors_of(report: CheckReport) -> dict[str, Any]:
    return {problem.key.removeprefix("so101_bimanual."): problem for problem in report.errors}


def test_a_good_profile_in_a_good_graph_is_ok():
    report = check("so101_bimanual", graph=good_graph())
    assert report.ok and not report.warnings
    assert report.checked == ("profile", "checkpoint", "graph")
    assert report.complete and report.exit_code == 0


@pytest.mark.parametrize("file", shipped_files(), ids=lambda file: file.stem)
def test_the_shipped_profiles_are_fit_to_run(file: Path, capsys: pytest.CaptureFixture[str]):
    """By name and by file, with the exit code that a script sees."""
    for robot in (file.stem, str(file)):
        code = main(["check", "--robot", robot, "--offline"])
        said = capsys.readouterr().out
        if file.stem.endswith(("_lerobot", "_radians", "_range")):  # no policy of their units comes with the package
            assert code == 1 and "the shipped policy of xvla_ros" in said
            continue
        assert code == 3 and "0 errors, 0 warnings, incomplete" in said
        assert "incomplete: graph: skipped (--offline)" in said


def test_what_could_not_be_checked_is_no_success(capsys: pytest.CaptureFixture[str]):
    assert main(["check", "--robot", "so101", "--offline", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] and not document["complete"]
    weights, graph = document["missing"]
    assert weights.startswith("checkpoint: so101 names none") and "refuses to activate outside" in weights
    assert graph == "graph: skipped (--offline)"
    assert check("so101_bimanual", graph=NoGraph("no other node is up")).missing == ("graph: no other node is up",)


def test_weights_that_are_allowed_to_be_random_are_no_trained_ones(tmp_path: Path):
    path = tmp_path / "arm.yaml"
    path.write_text("/**: {ros__parameters: {arm: {like: so101, safety: {allow_untrained: true}}}}")
    (weights,) = check(path, graph=good_graph()).missing
    assert "at random, as safety.allow_untrained allows" in weights


def test_open_marks_make_a_check_incomplete(tmp_path: Path):
    path = tmp_path / "pair.yaml"
    path.write_text(shipped_text("so101_bimanual").replace("domain_id: 19 ", "domain_id: 19  # CHECK: whose?"))
    report = check(path, graph=good_graph())
    assert report.exit_code == 3
    assert report.missing == ("marks: 1 setting of so101_bimanual with an open CHECK mark",)


@pytest.mark.parametrize(
    ("instruction", "errors", "warnings"),
    [
        ("put the red cube in the bowl", [], []),
        ("touch the yellow cube", [], ["was not trained with 'yellow', so its behaviour is undefined there"]),
        ("put the red cube in the bowl " * 3, ["its end 'put the red cube in the bowl' would be cut off"], []),
    ],
)
def test_words_that_the_checkpoint_would_not_get_are_named(tmp_path: Path, instruction, errors, warnings):
    profile = Profile.from_mapping(PAIR.name, {**PAIR.to_mapping(), "instruction": instruction.strip()})
    file = tmp_path / "pair.yaml"
    file.write_text(profile_document([profile]))
    report = check(file)
    for found, wanted in ((report.errors, errors), (report.warnings, warnings)):
        told = [problem.message for problem in found if problem.key == "so101_bimanual.instruction"]
        assert len(told) == len(wanted) and all(words in text for words, text in zip(wanted, told, strict=True)), told


def test_errors_count_before_what_is_missing():
    assert check("so101_bimanual", graph=GraphSnapshot(topics={})).exit_code == 1
    assert check("no_such_robot").exit_code == 1 and not check("no_such_robot").complete


def test_why_the_node_would_hold_is_an_error_in_its_own_words():
    stale = Fault("camera_stale", "front: newest message on /front/image_raw is 0.31 s old")
    readings = {"so101_bimanual": Reading(60, 58, ((stale, 2),), {"right_wrist": 3})}
    report = check("so101_bimanual", graph=replace(good_graph(), readings=readings, clock="/clock"))
    (error,), (warning,) = report.errors, report.warnings
    assert error.key == "so101_bimanual.observations"
    assert error.message == f"{stale.reason}: {stale.detail}"
    assert error.value == "2 of 60 observations could not be built"
    assert warning.key == "so101_bimanual.cameras.right_wrist"
    assert "so101_bimanual: observations: 58 of 60 (ROS time: /clock)" in text_of(report).splitlines()
    assert report.to_json()["observations"] == {
        "so101_bimanual": {"tried": 60, "built": 58, "clock": "/clock", "faults": [{**vars(stale), "count": 2}]}
    }


def test_several_publishers_of_a_joint_topic_are_named():
    rivals = tuple(Endpoint(node, JOINTS) for node in ("/joint_state_publisher", "/arm"))
    report = check("so101_bimanual", graph=changed("publishers", "/left/joint_states", rivals))
    assert report.exit_code == 0
    (warning,) = report.warnings
    assert warning.message == "/left/joint_states has several publishers: /arm, /joint_state_publisher"


def test_json_has_the_agreed_form(tmp_path: Path):
    path = tmp_path / "widowx.yaml"
    path.write_text(shipped_text("widowx").replace("urdf: wx250s.urdf", "urdf: wx200.urdf"))
    document = check(path).to_json()
    assert document["ok"] is False and document["schema_version"] == 1
    assert [set(error) for error in document["errors"]] == [{"file", "key", "value", "expected", "message"}]
    assert document["errors"][0]["key"] == "widowx.tools"
    assert "wx200.urdf" in document["errors"][0]["message"]


def test_a_bad_profile_gives_every_problem(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text("/**: {ros__parameters: {arm: {schema_version: 0, polcy: {}}}}")
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
            "has no joint 'gripper'",
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


@pytest.mark.parametrize("node", ["/rosbag2_recorder", "/xvla_record"])
def test_who_only_writes_commands_down_is_no_controller(node: str):
    topic = "/left/arm_controller/joint_trajectory"
    found = errors_of(check("so101_bimanual", graph=changed("subscribers", topic, (Endpoint(node, TRAJECTORY),))))
    assert f"no controller subscribes to {topic}, only {node}" in found["commands.left_arm.topic"].message


RIVAL = "/left/arm_controller/joint_trajectory"


@pytest.mark.parametrize("others", [("/teleop", "/xvla"), ("/teleop",), ("/xvla", "/lab/xvla"), ("/xvla", "/xvla")])
def test_whoever_commands_the_same_controller_is_an_error(others: tuple[str, ...]):
    graph = changed("publishers", RIVAL, tuple(Endpoint(node, TRAJECTORY) for node in others))
    errors = errors_of(check("so101_bimanual", graph=graph))
    assert list(errors) == ["commands.left_arm.topic"]
    assert "another node also commands" in errors["commands.left_arm.topic"].message


@pytest.mark.parametrize("node", ["/xvla", f"_NODE_NAMESPACE_UNKNOWN_/{UNKNOWN_NODE}"])
def test_the_policy_node_is_no_rival_and_whose_name_is_not_known_yet_neither(node: str):
    assert check("so101_bimanual", graph=changed("publishers", RIVAL, (Endpoint(node, TRAJECTORY),))).ok


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
    assert json.loads(text_of(report, as_json=True)) == json.loads(json.dumps(report.to_json()))
    assert text_of(report).splitlines() == [
        "error: so101_bimanual.cameras.front.topic",
        "  /front/image_raw arrives at 2 Hz, so messages become stale in between",
        "  file:     ROS graph",
        "  found:    2.0",
        "  expected: more than 5 Hz (max_age is 0.2 s)",
        report.computing[0],
        "so101_bimanual: 1 error, 0 warnings (checked profile, checkpoint, graph)",
    ]


def test_the_shipped_robots_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["robots"]) == 0
    text = capsys.readouterr().out
    assert main(["robots", "--json"]) == 0
    document = capsys.readouterr().out
    names = [path.stem for path in shipped_files()]
    assert {"agibot", "so101", "so101_bimanual", "widowx"} < set(names)
    assert [line.split()[0] for line in text.splitlines()] == ["robot", *names]
    assert [robot["name"] for robot in json.loads(document)["robots"]] == names


WATCHED = 5.0  # s: of a process that stands still meanwhile most is seen even so
DEADLINE = 120.0  # s, only ends a hang
FOUND = ("DISCOVERY_SECONDS",)


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


def observed(
    environment: dict[str, str], robot: str = "so101_bimanual", *use_sim_time: bool, awaited: Collection[str] = FOUND
) -> dict[str, Any]:
    """What a fresh process sees; what is ``awaited``, bounds of the product, takes as long as a busy machine does."""
    code = (
        "import json, sys; from dataclasses import asdict; from xvla_ros.commands.check import check, observe\n"
        "from xvla_ros.nodes import graph as looks\n"
        "seconds, deadline, awaited, robot, *use_sim_time = json.loads(sys.argv[1])\n"
        "for each in awaited: assert hasattr(looks, each); setattr(looks, each, deadline)\n"
        "graph = observe(robot, seconds, *use_sim_time)\n"
        "report = check(robot, graph=graph).to_json()\n"
        "json.dump({'graph': asdict(graph), 'report': report}, sys.stdout)"
    )
    given = [WATCHED, DEADLINE, list(awaited), robot, *use_sim_time]
    command = [sys.executable, "-c", code, json.dumps(given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
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
            ["/left/joint_states", JOINTS, "reliable", 50.0, {"names": ARM_JOINTS}],
            ["/right/joint_states", JOINTS, "reliable", 50.0, {"names": [*ARM_JOINTS[:5], "jaw_joint"]}],
        ],
        "subscribe": [
            ["/left/arm_controller/joint_trajectory", TRAJECTORY, "volatile"],
            ["/right/arm_controller/joint_trajectory", TRAJECTORY, "transient_local"],
        ],
    }
    with running(plan, ros_environment):
        seen = observed(ros_environment)
    rates = seen["graph"]["rates"]
    # less than was asked for where the driver is kept waiting, and more where what waited here comes together
    assert rates["/front/image_raw"] > 0.0 and rates["/left/joint_states"] > 0.0
    assert seen["graph"]["publishers"]["/front/image_raw"] == [
        {"node": "/driver", "type": IMAGE, "reliability": "best_effort", "durability": "volatile"}
    ]
    assert seen["report"]["checked"] == ["profile", "checkpoint", "graph"]
    assert {error["key"].removeprefix("so101_bimanual.") for error in seen["report"]["errors"]} == {
        "cameras.right_wrist.topic",
        "joints.right_gripper.name",
        "commands.right_arm.topic",
        "observations",
    }


def test_each_message_counts_once_and_a_rate_is_of_the_time_between_them():
    pytest.importorskip("rclpy")
    heard: list[Callable[[Any], None]] = []
    publisher, clock = SimpleNamespace(topic_type=JOINTS), SimpleNamespace(ros_ns=lambda: now)
    node = SimpleNamespace(
        get_publishers_info_by_topic=lambda _: [publisher, publisher],
        create_subscription=lambda kind, topic, callback, *_, **__: heard.append(callback),
    )
    counter = looks._Counter(node, "/joint_states", {}, clock)
    (hear,) = heard
    for now in range(0, 1_000_000_000, 50_000_000):  # noqa: B007
        hear(SimpleNamespace(name=ARM_JOINTS))
    assert counter.rate(9.0) == pytest.approx(20.0) and list(counter.joints) == ARM_JOINTS
    counter.begin()
    assert counter.rate(2.0) == 0.0
    hear(SimpleNamespace(name=ARM_JOINTS))
    assert counter.rate(2.0) == 0.5


def test_a_command_line_that_is_not_utf_8_is_not_for_ros(ros_environment: dict[str, str]):
    ran = subprocess.run(
        [sys.executable, "-c", "from xvla_ros.commands.check import observe; observe('so101_bimanual', 0.1)", b"\xff"],
        env=ros_environment, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


def test_without_rclpy_the_graph_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "rclpy.context", None)
    seen = observe("so101_bimanual", 0.1)
    assert isinstance(seen, NoGraph) and "source a ROS distribution" in seen.why
    assert check("so101_bimanual", graph=seen).exit_code == 3


def test_a_graph_without_other_nodes_is_missing(ros_environment: dict[str, str]):
    seen = observed(ros_environment, awaited=())
    domain = ros_environment["ROS_DOMAIN_ID"]
    assert seen["report"]["missing"] == [f"graph: no other node is up (ROS_DOMAIN_ID {domain})"]
    assert seen["report"]["ok"] and not seen["report"]["complete"]


# What a robot's messages may be like → how the fault of the node begins, and words of it. Ages are in s.
HOUR = 3600.0
TRAITS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "whole": ({}, {}, "", ""),
    "unstamped": ({"age": None}, {"age": None}, "joints_stale", "messages still arrive"),
    "image_unstamped": ({"age": None}, {}, "camera_stale", "messages still arrive"),
    "late": ({"age": HOUR}, {}, "camera_stale", "36"),
    "ahead": ({"age": -HOUR}, {}, "camera_stale", "ahead of ROS time"),
    "nameless": ({"encoding": "8UC3"}, {}, "camera_missing", "8UC3"),
    "not_numbers": ({}, {"nan_every": 1}, "joints_invalid", "nan"),
    "prefixed": ({}, {"names": [f"robot1/{name}" for name in ARM_JOINTS]}, "joints_", ""),
    "empty": ({}, {"positions": []}, "joints_", ""),
    "flickering": ({}, {"nan_every": 2}, "joints_invalid", "nan"),
}
PATIENT = {
    "cameras": {"front": {"max_age": 60.0}, "wrist": {"max_age": 60.0}},
    "timing": {"observation_timeout": 60.0, "clock_timeout": 60.0},
}  # a busy machine is no odd trait


def fleet_file(folder: Path, robots: list[str]) -> Path:
    path = folder / "fleet.yaml"
    entries = {robot: {"like": "so101", "namespace": f"/{robot}", **PATIENT} for robot in robots}
    path.write_text(json.dumps({"/**": {"ros__parameters": entries}}))
    return path


def published(robot: str, image: dict[str, Any], joints: dict[str, Any]) -> list[list[Any]]:
    """What the drivers of a robot like ``so101`` send in its namespace, with these traits.

    So seldom that for six seconds nothing is lost: of a flickering joint only good messages might be left.
    """
    frame = {"age": 0.0, "encoding": "rgb8", **image}
    return [
        [f"/{robot}/front/image_raw", IMAGE, "best_effort", 5.0, frame],
        [f"/{robot}/wrist/image_raw", IMAGE, "best_effort", 5.0, frame],
        [f"/{robot}/follower/joint_states", JOINTS, "reliable", 5.0, {"age": 0.0, "names": ARM_JOINTS, **joints}],
    ]


def controllers(robot: str) -> list[list[Any]]:
    """Who takes the commands of a robot like ``so101`` in its namespace."""
    return [[f"/{robot}{group.topic}", TRAJECTORY, "volatile"] for group in SINGLE.commands.by_name.values()]


def test_messages_are_read_as_the_node_reads_them(ros_environment: dict[str, str], tmp_path: Path):
    plan = {
        "publish": [
            entry for robot, (image, joints, *_) in TRAITS.items() for entry in published(robot, image, joints)
        ],
        "subscribe": [entry for robot in TRAITS for entry in controllers(robot)],
    }
    with running(plan, ros_environment):
        seen = observed(ros_environment, str(fleet_file(tmp_path, list(TRAITS))))
    readings, errors = seen["report"]["observations"], seen["report"]["errors"]
    assert set(readings) == set(TRAITS)
    for robot, (_, _, reason, words) in TRAITS.items():
        reading, faults = readings[robot], readings[robot]["faults"]
        assert reading["clock"] == "system" and reading["tried"] > 1
        assert reading["built"] + sum(fault["count"] for fault in faults) == reading["tried"]
        odd = [fault for fault in faults if "waiting for" not in fault["detail"]]  # a busy machine may begin late
        assert bool(odd) == bool(reason), (robot, faults)
        for fault in odd:
            assert fault["reason"].startswith(reason) and words in fault["detail"], (robot, fault)
        told = [error["message"] for error in errors if error["key"] == f"{robot}.observations"]
        assert told == [f"{fault['reason']}: {fault['detail']}" for fault in faults]
        assert bool(reading["built"]) == (robot == "whole")


def test_ros_time_is_that_of_the_clock_where_somebody_publishes_it(ros_environment: dict[str, str], tmp_path: Path):
    file = str(fleet_file(tmp_path, ["arm"]))
    plan = {"publish": published("arm", {}, {}), "subscribe": controllers("arm"), "clock": 1000.0}
    with running(plan, ros_environment):
        simulated = observed(ros_environment, file, awaited=(*FOUND, "CLOCK_SECONDS", "SETTLING_SECONDS"))
        real = observed(ros_environment, file, False)
    reading = simulated["report"]["observations"]["arm"]
    assert reading["clock"] == "/clock" and reading["built"] == reading["tried"]
    reading = real["report"]["observations"]["arm"]
    assert reading["clock"] == "system" and not reading["built"]
    assert "use_sim_time" in reading["faults"][0]["detail"]


def test_every_publisher_of_the_joints_is_seen(ros_environment: dict[str, str], tmp_path: Path):
    other = [
        "/arm/follower/joint_states",
        JOINTS,
        "reliable",
        10.0,
        {"node": "joint_state_publisher", "age": 0.0, "names": ARM_JOINTS},
    ]
    plan = {"publish": [*published("arm", {}, {}), other], "subscribe": controllers("arm")}
    with running(plan, ros_environment):
        seen = observed(ros_environment, str(fleet_file(tmp_path, ["arm"])))
    told = [warning["message"] for warning in seen["report"]["warnings"]]
    assert told == ["/arm/follower/joint_states has several publishers: /driver, /joint_state_publisher"]
