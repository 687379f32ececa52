# SPDX-License-Identifier: Apache-2.0
"""Every odd trait of a robot through the node and through each tool: all say the same, and docs/reference/traits.md it.

The messages of all robots go over one graph, to the node's own links, ``xvla check``'s watch and ``xvla record``'s
check, and into a bag each, for ``xvla bag info``, ``replay`` and ``train``. ROS time is simulated and waits for all.
After a change: ``python -m pytest test/nodes/test_traits.py --write-docs`` writes the page.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

import rclpy
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.executors import SingleThreadedExecutor, TimeoutException
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from trajectory_msgs.msg import JointTrajectory

sys.path.append(str(Path(__file__).parent))

from odd_robots import (
    JOINT_PERIOD,
    MS,
    NAMES,
    PICTURE_PERIOD,
    POSE,
    START,
    STEP,
    SWAY,
    TRAITS,
    Sent,
    pose_at,
    profiles,
    sent,
)

from xvla_ros.commands.check import check
from xvla_ros.commands.graph_checks import topics_of
from xvla_ros.control.state import HOLDING, RUNNING
from xvla_ros.evaluation import bag_info
from xvla_ros.evaluation.processes import free_domain
from xvla_ros.evaluation.replay.bag import ReplaySettings, replay_bag
from xvla_ros.evaluation.replay.sources import HoldStill
from xvla_ros.nodes import qos
from xvla_ros.nodes.graph import Watch
from xvla_ros.nodes.messages import stamp_message
from xvla_ros.nodes.node_clock import NodeClock
from xvla_ros.nodes.policy.robot_link import RobotLink
from xvla_ros.nodes.record_check import RecordCheck
from xvla_ros.observation.faults import Fault, FaultTally
from xvla_ros.recordings import cdr
from xvla_ros.recordings.bag_writer import BagWriter
from xvla_ros.recordings.recording import SamplesError
from xvla_ros.robots.profile import profile_document
from xvla_ros.training.config import DatasetSettings
from xvla_ros.training.data.datasets import open_datasets
from xvla_ros.types import ActionChunk

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "traits.md"
NODE, CHECK, RECORD, INFO, REPLAY, TRAIN = "/xvla", "check", "record", "bag info", "replay", "train"
TOOLS = (CHECK, RECORD, INFO, REPLAY, TRAIN)
YES, IN_PART, NO = "yes", "in part", "no"

SECONDS, UP_BY = 3.8, 1.8  # s that are lived through; by when a robot has come up
ASK_PERIOD, RECORD_PERIOD = 50 * MS, 500 * MS
WAYPOINTS = 30
UNTOLD = SubscriptionEventCallbacks(use_default_callbacks=False)  # of services of quality: that costs every wait
AHEAD = (100 * MS, 200 * MS)  # of the points of what is commanded in a bag
ALMOST = 0.85  # share of the pictures of a bag of which there is an observation, if it is well: it begins and ends amid


@dataclass(frozen=True)
class Said:
    """What the node or a tool makes of a robot.

    Attributes:
        verdict: whether it takes the robot, or the bag: ``yes``, ``in part`` or ``no``.
        text: all that was said.
        faults: of the node, the commonest first.
        beside: what is warned of though nothing is wrong.
    """

    verdict: str
    text: str = ""
    faults: tuple[Fault, ...] = ()
    beside: tuple[str, ...] = ()

    def tells(self, fault: Fault) -> bool:
        """Whether it has the reason and the words of a fault, but for the numbers in them."""
        return fault.reason in self.text and _but_numbers(fault.detail) in _but_numbers(self.text)


def share(part: int, whole: int) -> str:
    """Whether there was an observation almost always, at times or never."""
    return NO if not part else YES if part >= ALMOST * whole else IN_PART


def _but_numbers(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", text)


class Graph:
    """All robots on one graph: their drivers, the node's links, and the watches of ``check`` and ``record``."""

    def __init__(self, context, robots):
        self.robots = robots
        self.nodes = {
            name: rclpy.create_node(
                name,
                context=context,
                parameter_overrides=[Parameter("use_sim_time", value=True)],
                enable_rosout=False,
                start_parameter_services=False,
            )
            for name in ("xvla", "xvla_check", "xvla_record")
        }
        self.drivers = [
            rclpy.create_node(name, context=context, enable_rosout=False, start_parameter_services=False)
            for name in ("driver", "second_driver")
        ]
        self.clocks = {name: NodeClock(node) for name, node in self.nodes.items()}
        for clock in self.clocks.values():
            clock.paced = True
        self.executor = SingleThreadedExecutor(context=context)
        for node in (*self.nodes.values(), *self.drivers):
            self.executor.add_node(node)
        self.time = self.drivers[0].create_publisher(Clock, "/clock", qos.EVENTS)
        self.publishers = {}
        self.traffic: list[Sent] = sorted(
            (each for name, profile in robots.items() for each in sent(profile, TRAITS[name], SECONDS)),
            key=lambda each: each.arrives,
        )
        for each in self.traffic:
            self._connect(each)
        self.commands: dict[str, list[JointTrajectory]] = defaultdict(list)
        self.recorded, self.tallies, self.ran = Counter(), {name: FaultTally() for name in robots}, Counter()
        for name, profile in robots.items():
            self.drivers[0].create_subscription(
                JointTrajectory,
                profile.commands.by_name["arm"].topic,
                self.commands[name].append,
                qos.COMMAND,
                event_callbacks=UNTOLD,
            )

    def _connect(self, each):
        key = each.topic, each.publisher
        if key not in self.publishers:
            self.publishers[key] = self.drivers[each.publisher].create_publisher(
                each.kind, each.topic, qos.EVENTS, event_callbacks=PublisherEventCallbacks(use_default_callbacks=False)
            )

    def deliver(self):
        """Let everybody take what has come, until there is nothing more."""
        while True:
            try:
                task, *_ = self.executor.wait_for_ready_callbacks(timeout_sec=0.0)
            except TimeoutException:
                return
            task()
            if task.exception() is not None:
                raise task.exception()

    def set_time(self, now):
        self.time.publish(Clock(clock=stamp_message(now)))
        self.deliver()
        assert {clock.ros_ns() for clock in self.clocks.values()} == {now}

    def run(self):
        """Live through the traffic; return robot → tool → what it said."""
        self.set_time(START - STEP)
        links = self._links()
        topics = sorted({topic for profile in self.robots.values() for topic in topics_of(profile)})
        watch = Watch(self.nodes["xvla_check"], topics, list(self.robots.values()), self.clocks["xvla_check"])
        records = self._records()
        self.deliver()
        for link in links.values():
            link.start()
        waiting, begun = iter([*self.traffic, None]), False
        following = next(waiting)
        for now in range(START, START + round(SECONDS * 1000) * MS, STEP):
            self.set_time(now)
            while following is not None and following.arrives <= now:
                self.publishers[following.topic, following.publisher].publish(following.data)
                following = next(waiting)
            self.deliver()
            watch.look()
            if now >= START + UP_BY * 1000 * MS and not begun:
                begun = True
                watch.begin()
            if (now - START) % ASK_PERIOD == 0:
                self._ask(links, begun)
            if (now - START) % RECORD_PERIOD == 0:
                for record in records.values():
                    record.look()
        checked = self._checked(watch)
        found = {
            name: {NODE: self._of_node(name), CHECK: checked[name], RECORD: self._of_record(records[name])}
            for name in self.robots
        }
        return found

    def _links(self):
        node, clock = self.nodes["xvla"], self.clocks["xvla"]
        return {name: RobotLink(node, profile, clock) for name, profile in self.robots.items()}

    def _records(self):
        node, clock = self.nodes["xvla_record"], self.clocks["xvla_record"]
        records = {name: RecordCheck(profile, clock.ros_ns, clock.steady_s) for name, profile in self.robots.items()}

        def take(name, topic, data):
            self.recorded[topic] += 1
            records[name].take(topic, data)

        kinds = {each.topic: each.kind for each in self.traffic}
        for name, profile in self.robots.items():
            for topic in topics_of(profile):
                if topic in kinds:
                    node.create_subscription(
                        kinds[topic], topic, _partial(take, name, topic), qos.SENSOR, raw=True, event_callbacks=UNTOLD
                    )
        return records

    def _ask(self, links, counts):
        """Let a policy that stays where the arm is answer whoever asks; count what states there are."""
        for name, link in links.items():
            if link.wants_chunk() and (request := link.observe()) is not None:
                link.deliver(request, stay(request.observation, link.profile))
            status = link.status
            if counts and status.state == RUNNING:
                self.ran[name] += 1
            elif counts:
                assert status.state == HOLDING
                self.tallies[name].add(Fault(status.reason, status.detail))

    def _of_node(self, name):
        tally = self.tallies[name]
        # who publishes joints that leap is known to a graph alone
        faults = tuple(
            Fault(fault.reason, re.sub(r" \S+ is published by .*", "", fault.detail)) for fault, _ in tally.commonest()
        )
        return Said(YES if not faults else IN_PART if self.ran[name] else NO, "\n".join(tally.lines(99)), faults)

    def _of_record(self, record):
        warnings = record.lines()
        verdict = NO if record.useless else IN_PART if warnings else YES
        return Said(verdict, "\n".join([*warnings, *record.summary()]))

    def _checked(self, watch):
        snapshot = watch.snapshot("/clock")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "robots.yaml"
            file.write_text(profile_document(list(self.robots.values())), encoding="utf-8")
            report = check(file, None, snapshot)
        assert {problem.key.partition(".")[0] for problem in (*report.errors, *report.warnings)} <= self.robots.keys()
        found = {}
        for name in self.robots:
            errors, warnings = (
                [each.message for each in problems if each.key.startswith(f"{name}.")]
                for problems in (report.errors, report.warnings)
            )
            found[name] = Said(NO if errors else YES, "\n".join(errors), beside=tuple(warnings))
        return found


def _partial(function: Callable[..., None], *arguments):
    return lambda message: function(*arguments, message)


def stay(seen, profile):
    """A chunk of waypoints where the arm is."""
    return ActionChunk.of(seen, np.tile(seen.state, (WAYPOINTS, 1)), 1.0)


def write_bag(path, profile, trait):
    """What a recorder beside the robot has on disk, with what a teacher commanded meanwhile."""
    kinds = {kind: f"sensor_msgs/msg/{kind.__name__}" for kind in {each.kind for each in sent(profile, trait, 0.5)}}
    messages = [(each.arrives, each.topic, kinds[each.kind], each.data) for each in sent(profile, trait, SECONDS, SWAY)]
    topic = profile.commands.by_name["arm"].topic
    for at in range(START, START + round(SECONDS * 1000) * MS, 100 * MS):
        poses = [pose_at(at + ahead, SWAY) for ahead in AHEAD]
        command = cdr.joint_trajectory(0, NAMES, AHEAD, poses)
        messages.append((at, topic, cdr.JOINT_TRAJECTORY, command))
    with BagWriter(path, profile_document([profile]), stamp_ns=START) as bag:
        for at, *message in sorted(messages, key=lambda each: each[0]):
            bag.write(message[0], message[1], at, message[2])
    return path


def of_bag_info(bag, profile):
    info = bag_info.inspect(bag, profile)
    found = info.observations
    assert found is not None and not info.missing
    verdict = share(found.built, found.asked)
    assert info.exit_code == (verdict == NO)
    return Said(verdict, bag_info.text_of(info))


def of_replay(bag, profile):
    record = replay_bag(bag, profile, [HoldStill()], ReplaySettings(baseline=True), bag.parent / "replay")
    skipped = FaultTally(record.skipped_details)
    text = "\n".join([record.error, *skipped.lines(99)])
    return Said(NO if record.error else share(record.frames, record.frames + len(skipped)), text)


def of_train(bag, profile):
    file = bag.parent / "robot.yaml"
    file.write_text(profile_document([profile]), encoding="utf-8")
    entry = DatasetSettings(paths=(str(bag),), robot=str(file), instruction="stay")
    try:
        samples = open_datasets([entry], waypoints=4, image_size=None, cache=bag.parent / "cache")
    except SamplesError as error:
        return Said(NO, str(error))
    store = samples.datasets[0].stores[0]
    return Said(share(len(store), len(store) + len(store.faults)), "\n".join(samples.left_out()))


@dataclass(frozen=True)
class Matrix:
    """What was found.

    Attributes:
        said: trait → the node or tool → what it said.
        sent, received: topic → messages.
        commands: trait → what its controller got.
    """

    said: dict[str, dict[str, Said]]
    sent: Counter[str]
    received: Counter[str]
    commands: dict[str, list[JointTrajectory]]


def find(folder: Path) -> Matrix:
    """Live through every trait, and read the bags of them, which lie in ``folder``."""
    robots = profiles()
    with free_domain() as domain:
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=domain)
        graph = Graph(context, robots)
        try:
            said = graph.run()
        finally:
            graph.executor.shutdown()
            for node in (*graph.nodes.values(), *graph.drivers):
                node.destroy_node()
            rclpy.shutdown(context=context)
    for name, profile in robots.items():
        bag = write_bag(folder / name / "bag.mcap", profile, TRAITS[name])
        said[name] |= {INFO: of_bag_info(bag, profile), REPLAY: of_replay(bag, profile), TRAIN: of_train(bag, profile)}
    return Matrix(said, Counter(each.topic for each in graph.traffic), graph.recorded, graph.commands)


# the page

HEAD = """# Traits of robots

This page lists unusual behaviour of drivers, and how the node and the tools react to it. The messages of each robot are
sent to the node and to the tools by `test/nodes/test_traits.py`. The test fails if a tool disagrees with the node, or
if this page is out of date; `--write-docs` writes the page.

Each robot is an SO-101 with {joints:g} joint states and {pictures:g} images of each camera per second. The trait
applies to its joints or to both of its cameras.

- The node *runs*, *pauses* for the [reason](faults.md) given, or *pauses at times* and then continues automatically.
- `xvla check`: *yes* if it finds no error in the graph; *warns* if there are also warnings.
- `xvla record`: *yes* if it gives no warning during the recording; with *no* its exit code is 1.
- `xvla bag info`, `xvla replay`, `xvla train`: whether the bag can be used. Of a bag that can be used *in part*, the
  other observations are skipped and counted. `replay` and `train` refuse a bag without commands in which joints leap.

For everything that is not *yes*, each tool prints the reason with the same text as the node (listed below). In a bag,
time stamps are compared with the log time, as the node compares them with ROS time.

| robot | node | {tools} |
|---|---|{lines}|
"""

WORDS = """
## The node's messages

If both cameras have the fault, the message names both; here only the first is shown. If joints leap, the node and
`xvla check` also name the publishers.

| robot | reason | detail |
|---|---|---|
"""

WARNINGS = """
## What `xvla check` warns of

| robot | warning |
|---|---|
"""


def page(said: dict[str, dict[str, Said]]) -> str:
    """Return docs/reference/traits.md."""
    head = HEAD.format(
        joints=1e9 / JOINT_PERIOD,
        pictures=1e9 / PICTURE_PERIOD,
        tools=" | ".join(f"`{tool}`" for tool in TOOLS),
        lines="|".join("---" for _ in TOOLS),
    )
    rows, words, warnings, notes = [], [], [], []
    for name, trait in TRAITS.items():
        of, cells = said[name], []
        for tool in TOOLS:
            cell = f"{of[tool].verdict}, warns" if of[tool].beside else of[tool].verdict
            if tool in trait.apart:
                notes.append(f"<sup>{len(notes) + 1}</sup> {trait.apart[tool][1].capitalize()}.")
                cell += f" <sup>{len(notes)}</sup>"
            cells.append(cell)
        rows.append(_row(trait.title, _of_node(of[NODE]), *cells))
        words += [_row(trait.title, f"`{fault.reason}`", _plain(name, fault.detail)) for fault in of[NODE].faults[:1]]
        warnings += [_row(trait.title, _plain(name, "; ".join(of[CHECK].beside)))] if of[CHECK].beside else []
    return "".join([head, *rows, "\n", *(f"{note}\n" for note in notes), WORDS, *words, WARNINGS, *warnings])


def _of_node(said: Said) -> str:
    how = {YES: "runs", IN_PART: "pauses at times", NO: "pauses"}[said.verdict]
    return f"{how}: `{said.faults[0].reason}`" if said.faults else how


def _plain(name: str, detail: str) -> str:
    """A detail without the robot's namespace, and of both cameras' the first."""
    return detail.partition("; wrist: ")[0].replace(f"/{name}/", "/").replace("|", "\\|")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    yield find(tmp_path_factory.mktemp("traits"))


@pytest.mark.parametrize("name", TRAITS)
def test_every_tool_says_what_the_node_says(found, name):
    of, apart = found.said[name], TRAITS[name].apart
    for tool in TOOLS:
        expected = apart[tool][0] if tool in apart else of[NODE].verdict
        assert of[tool].verdict == expected, (tool, of[tool].text, of[NODE].text)
        for fault in of[NODE].faults[:1]:
            assert of[tool].tells(fault), (tool, of[tool].text, fault)


def test_robots_with_nothing_odd_run(found):
    assert all(said.verdict == YES and not said.beside for said in found.said["well"].values())


def test_no_command_leads_away_from_where_the_arm_stands(found):
    for name, said in found.said.items():
        commands = found.commands[name]
        assert bool(commands) == (said[NODE].verdict != NO), name
        for command in commands:
            path = np.array([point.positions for point in command.points])
            order = [command.joint_names.index(joint) for joint in NAMES]
            assert np.abs(path[:, order] - POSE).max() < 0.01, name


def test_every_message_got_through(found):
    assert found.received == found.sent


def test_the_page_says_so(found, pytestconfig):
    """But for numbers, which the moment decides at which a fault is looked at."""
    expected = page(found.said)
    if pytestconfig.getoption("--write-docs"):
        PAGE.write_text(expected, encoding="utf-8")
    assert _but_numbers(PAGE.read_text(encoding="utf-8")) == _but_numbers(expected), "--write-docs writes it again"
