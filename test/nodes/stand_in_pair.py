# SPDX-License-Identifier: Apache-2.0
"""Stand-in for a pair of SO-101 arms and their cameras: publishes them at will and follows the commands it gets.

Not a simulation: the arms go straight where they are told (commanded_arm.py), and every window is held against the one
before and the arm (window_monitor.py). Time is that of a ``/clock``: ``PacedTime`` runs as fast as the node and this
machine allow, so that a busy machine makes nothing late; ``SimulatedTime`` runs with the machine's, and the test may
stop and set it. Or it is ``MachineTime``, without a ``/clock``.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from contextlib import nullcontext, suppress

import rclpy
from commanded_arm import CommandedArm
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
from paced_time import PacedTime, uncertainty
from rcl_interfaces.msg import Log
from rcl_interfaces.srv import DescribeParameters, ListParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from xvla_ros.msg import ActionChunk, PolicyStatus
from xvla_ros.nodes import qos
from xvla_ros.robots import load_profile

ROBOT = "so101_bimanual"
BASE = f"/xvla/{ROBOT}"
DEADLINE = 240.0  # ends what hangs
RATE = 30.0
SIZE = (24, 32)
EVERY_ONE = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)  # however late this side looks at them
HOME = 0.1  # rad, of every joint
ANSWER = 5.0  # s; an answer sent before this side is known to the node is lost, so a first question is repeated
CLOCKS_APART = 1e-3  # s; two clocks that are read further apart, as this thread was interrupted, are read again
STATUS_TOPIC, CHUNK_TOPIC = f"{BASE}/status", f"{BASE}/action_chunk"


class MachineTime:
    """The system's clock, as beside a real arm: there is no ``/clock``."""

    runs = True
    ns = staticmethod(time.time_ns)

    def seconds_at(self, wall_ns):
        """The machine's steady time in s when its wall clock had ``wall_ns``."""
        while True:
            before, wall, after = time.monotonic(), time.time_ns(), time.monotonic()
            if after - before < CLOCKS_APART:
                return before - (wall - wall_ns) / 1e9


class SimulatedTime(MachineTime):
    """The time of a simulator: runs as fast as the machine's, and can be stopped and set."""

    def __init__(self, start=1000.0):
        self._ahead_and_stood = start - time.monotonic(), None  # read by the publishing thread: one object, set whole

    def ns(self):
        ahead, stood = self._ahead_and_stood
        return round(((time.monotonic() if stood is None else stood) + ahead) * 1e9)

    @property
    def runs(self):
        return self._ahead_and_stood[1] is None

    def jump(self, seconds):
        ahead, stood = self._ahead_and_stood
        self._ahead_and_stood = ahead + seconds, stood

    def stop(self):
        self._ahead_and_stood = self._ahead_and_stood[0], time.monotonic()

    def go(self):
        ahead, stood = self._ahead_and_stood
        self._ahead_and_stood = ahead + stood - time.monotonic(), None


class StandInPair:
    """The arms, and all that a user of ``/xvla`` would ask of it. A thread of its own serves its topics."""

    def __init__(self, domain, simulated_time):
        self.simulated_time = simulated_time
        self.profile = load_profile(ROBOT)[ROBOT]
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("stand_in_pair", context=self.context)
        self.heard = defaultdict(list)
        self.arms = self._make_arms()
        self.names = {group: arm.names for group, arm in self.arms.items()}
        self.limits = {group: arm.limits for group, arm in self.arms.items()}
        self.commands = {group: arm.windows for group, arm in self.arms.items()}
        self.restore()
        self._ended = threading.Event()
        self._connect()
        self._services = {
            name: self.node.create_client(kind, f"/xvla/{name}")
            for name, kind in (
                ("change_state", ChangeState),
                ("set_parameters", SetParameters),
                ("describe_parameters", DescribeParameters),
                ("list_parameters", ListParameters),
                ("stop", Trigger),
                ("clear_stop", Trigger),
                ("get_state", GetState),  # found last: whom it answers, the others answer
            )
        }
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()
        if self.is_paced:
            self.simulated_time.start()

    @property
    def is_paced(self):
        return isinstance(self.simulated_time, PacedTime)

    @property
    def is_simulated(self):
        return isinstance(self.simulated_time, (PacedTime, SimulatedTime))

    def seconds(self):
        """Time in s: the simulated one where that waits for the node, else the machine's steady one."""
        return self.simulated_time.ns() / 1e9 if self.is_paced else time.monotonic()

    def stopped_time(self):
        """Let no time pass in a ``with`` block, where it is paced."""
        return self.simulated_time.stepping if self.is_paced else nullcontext()

    def pass_time(self, seconds):
        """Wait until so many seconds have passed."""
        end = self.seconds() + seconds
        self.wait_for(lambda: self.seconds() >= end, f"{seconds} s to pass")

    def wait_more(self, topic, more):
        """Wait for some more messages of a topic that is heard."""
        before = len(self.heard[topic])
        self.wait_for(lambda: len(self.heard[topic]) >= before + more, f"{more} messages on {topic}")

    def forget_limits(self):
        """Let time go on though the node that held it is gone."""
        self.simulated_time.forget_limits()

    def restore(self):
        """Let everything be as it should be."""
        self.cameras, self.joint_states = set(self.profile.cameras.slots), True
        self.make_image, self.make_positions = whole_image, lambda positions: positions
        self.make_names = lambda names: names
        self.be_alone()
        self.network, self._overtaken = None, {}
        self.lose_commands(False)
        self.power(True)
        for arm in self.arms.values():
            arm.monitor.misled = False

    def be_alone(self):
        """Let nobody else publish joint states after each of the pair's."""
        self.beside = lambda group, stamp, positions: None

    def _make_arms(self):
        profile, timing = self.profile, self.profile.timing
        # where time does not wait, nothing is sent that is older than lead, by a /clock that may have stood for as long
        inside = uncertainty(timing) if self.is_paced else (1 + self.is_simulated) * timing.lead
        joints = {
            name: [profile.joints.by_name[joint] for joint in profile.commands.by_name[name].joints]
            for name in profile.commands.groups
        }
        return {name: CommandedArm(name, mine, [HOME] * len(mine), timing, inside) for name, mine in joints.items()}

    def _connect(self):
        joints, node = self.profile.joints.by_name, self.node
        self._state_topics = {
            name: node.create_publisher(JointState, joints[group.joints[0]].topic, qos.SENSOR)
            for name, group in self.profile.commands.by_name.items()
        }
        self._image_topics = {
            slot: node.create_publisher(Image, self.profile.cameras.by_name[slot].topic, qos.SENSOR)
            for slot in self.profile.cameras.slots
        }
        self._instructions = node.create_publisher(String, f"{BASE}/instruction", qos.LATCHED)
        self._estop = node.create_publisher(Bool, "/estop", qos.LATCHED)
        self._controllers = {}
        for name in self.arms:
            self.connect_controller(name)
        for kind, topic, quality in (
            (PolicyStatus, STATUS_TOPIC, qos.LATCHED),
            (ActionChunk, CHUNK_TOPIC, qos.EVENTS),
            (DiagnosticArray, "/diagnostics", qos.EVENTS),
            (Log, "/rosout", EVERY_ONE),
        ):
            node.create_subscription(kind, topic, self.heard[topic].append, quality)
        if self.is_paced:
            self.simulated_time.join(node, self._publish, RATE)
            return
        if self.is_simulated:
            self._clock = node.create_publisher(Clock, "/clock", qos.EVENTS)
            node.create_timer(0.01, self._publish_clock)
        node.create_timer(1.0 / RATE, self._publish)

    def home(self):
        """Be moved by hand to where the arms stood at first, whatever was commanded before."""
        for arm in self.arms.values():
            arm.go_home(self.seconds())

    def lose_commands(self, lost):
        """Let commands get lost on their way to the arms, or arrive."""
        for arm in self.arms.values():
            arm.loses = lost

    def power(self, on):
        """Cut the arms' power or give it back."""
        for arm in self.arms.values():
            arm.power(on, self.seconds())

    @property
    def state_topics(self):
        """The topic of the joint states, by group."""
        return {group: publisher.topic_name for group, publisher in self._state_topics.items()}

    def connect_controller(self, group):
        topic = self.profile.commands.by_name[group].topic
        self._controllers[group] = self.node.create_subscription(
            JointTrajectory, topic, lambda message, info: self._obey(group, message, info), EVERY_ONE
        )

    def lose_controller(self, group):
        self.node.destroy_subscription(self._controllers.pop(group))

    def _spin(self):
        while not self._ended.is_set():
            with suppress(Exception):  # rclpy's, of many types, where a topic is given back while it is looked at
                self.executor.spin_once(timeout_sec=0.05)

    def _obey(self, group, message, info):
        sent = self.simulated_time.seconds_at(info["source_timestamp"])
        self.arms[group].receive(message, sent, self.seconds(), info["publication_sequence_number"])

    def now(self):
        """ROS time in ns, as the node should see it."""
        return self.simulated_time.ns()

    def _moment(self):
        """ROS time in ns and ``seconds`` of one moment."""
        while True:
            before, now, after = self.seconds(), self.now(), self.seconds()
            if after - before < CLOCKS_APART:
                return now, before

    def _publish_clock(self):
        self._clock.publish(Clock(clock=Time(nanoseconds=self.now()).to_msg()))

    def _publish(self):
        if not (self.is_paced or self.simulated_time.runs):
            return
        stamp, seconds = self._moment()  # where the arms are at the stamp, however long this thread waits for them
        now = Time(nanoseconds=stamp).to_msg()
        for group, publisher in self._state_topics.items():
            if self.joint_states:
                position = self.make_positions(self.arms[group].say(seconds)).tolist()
                named = dict(zip(self.names[group], position, strict=True))
                names = self.make_names(self.names[group])
                message = JointState(name=names, position=[named.get(name, 0.0) for name in names])
                message.header.stamp = now
                self._send(publisher, message)
                self.beside(group, now, named)
        for slot in list(self.cameras):
            message = self.make_image()
            message.header.stamp = now
            self._send(self._image_topics[slot], message)

    def be_on_a_bad_network(self, seed):
        """Let half of what the arms and cameras say get lost, and half of the rest be overtaken by what comes next."""
        self.network = random.Random(seed)

    def _send(self, publisher, message):
        late = self._overtaken.pop(publisher, None)
        if self.network is not None and self.network.random() < 0.5:
            pass  # lost
        elif self.network is not None and late is None and self.network.random() < 0.5:
            self._overtaken[publisher] = message
        else:
            publisher.publish(message)
        if late is not None:
            publisher.publish(late)

    def position(self, group):
        """Where a group is now, on the window that came last."""
        return self.arms[group].position(self.seconds())

    def wait_for(self, condition, what):
        """Wait until something is true; return what it was."""
        deadline = time.monotonic() + DEADLINE
        while not (found := condition()):
            assert time.monotonic() < deadline, f"waited {DEADLINE:g} s for {what}; last status {self.status}"
            time.sleep(0.01)
        return found

    def meet(self):
        """Wait until the node answers: from then on no question is repeated."""

        def answered():
            future, until = self.call_async("get_state", GetState.Request()), time.monotonic() + ANSWER
            while not future.done() and time.monotonic() < until:
                time.sleep(0.01)
            return future.done()

        for service, client in self._services.items():
            self.wait_for(client.service_is_ready, f"the service {service}")
        self.wait_for(answered, "a first answer")

    def call_async(self, service, request):
        return self._services[service].call_async(request)

    def call(self, service, request):
        future = self.call_async(service, request)
        self.wait_for(future.done, f"an answer of {service}")
        return future.result()

    def ask(self, transition):
        request = ChangeState.Request()
        request.transition.id = transition
        return self.call_async("change_state", request)

    def make(self, transition):
        future = self.ask(transition)
        self.wait_for(future.done, f"transition {transition}")
        return future.result().success

    def state(self):
        return self.call("get_state", GetState.Request()).current_state.label

    def set(self, **values):
        parameters = [
            Parameter(name.replace("__", "."), value=value).to_parameter_msg() for name, value in values.items()
        ]
        return self.call("set_parameters", SetParameters.Request(parameters=parameters)).results

    def press(self, pressed):
        """Say on ``/estop`` whether it is pressed; return when, as ``seconds`` has it."""
        self._estop.publish(Bool(data=pressed))
        return self.seconds()

    def instruct(self, text):
        self._instructions.publish(String(data=text))

    @property
    def status(self):
        heard = self.heard[STATUS_TOPIC]
        return heard[-1] if heard else None

    def wait_status(self, state, reason="", detail=""):
        """Wait for a status that is sent from now on; return it."""
        begin = len(self.heard[STATUS_TOPIC])

        def reached():
            return next(
                (
                    status
                    for status in self.heard[STATUS_TOPIC][begin:]
                    if (status.state, status.reason) == (state, reason) and detail in status.detail
                ),
                None,
            )

        return self.wait_for(reached, f"status {state} {reason} {detail}")

    def wait_chunks(self, count, **fields):
        """Wait for some chunks that are sent from now on, with the fields given."""
        begin = len(self.heard[CHUNK_TOPIC])

        def found():
            return [
                chunk
                for chunk in self.heard[CHUNK_TOPIC][begin:]
                if all(getattr(chunk, name) == value for name, value in fields.items())
            ]

        self.wait_for(lambda: len(found()) >= count, f"{count} chunks {fields}")
        return found()

    def count(self):
        """How many commands have come, by group."""
        return {group: len(self.commands[group]) for group in self.names}

    def wait_commands(self, more):
        """Wait for some more commands of each group; return those."""
        before = self.count()
        self.wait_for(lambda: all(len(self.commands[g]) >= n + more for g, n in before.items()), f"{more} commands")
        return {group: [message for _, message in self.commands[group][n:]] for group, n in before.items()}

    def last(self, group):
        return self.commands[group][-1][1]

    def log(self):
        return [entry.msg for entry in self.heard["/rosout"]]

    def close(self):
        self._ended.set()
        if self.is_paced:
            self.simulated_time.stop()
        self._thread.join(DEADLINE)
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


def whole_image():
    height, width = SIZE
    return Image(height=height, width=width, encoding="rgb8", step=3 * width, data=bytes(range(96)) * height)


def short_image():
    image = whole_image()
    image.height = SIZE[0] + 9
    return image


def deep_image():
    image = whole_image()
    image.encoding = "16UC1"
    return image
