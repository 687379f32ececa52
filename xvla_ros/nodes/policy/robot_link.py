# SPDX-License-Identifier: Apache-2.0
"""One robot of the policy node: its topics in, its commands out, and the engine's view of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from xvla_ros.control.engine import ChunkRequest
from xvla_ros.control.motion import CommandWindow
from xvla_ros.control.pilot import Pilot
from xvla_ros.control.state import (
    CONTROLLER_LOST,
    HOLDING,
    INACTIVE,
    INTERNAL_ERROR,
    POLICY_ERROR,
    RUNNING,
    ControlStatus,
)
from xvla_ros.limits import INSTRUCTION
from xvla_ros.nodes import messages, qos
from xvla_ros.nodes.graph import endpoint_of
from xvla_ros.nodes.node_clock import NodeClock
from xvla_ros.nodes.policy.commands import (
    MATCHING_S,
    command_messages,
    command_type,
    gripper_outlet,
    has_gripper_outlet,
)
from xvla_ros.nodes.policy.run_policy import RunPolicyServer
from xvla_ros.nodes.policy.surroundings import PlanMarkers
from xvla_ros.observation.faults import JOINTS_IMPLAUSIBLE, Fault
from xvla_ros.robots.kinematics import RobotDescription
from xvla_ros.robots.profile import Profile
from xvla_ros.types import NS, ActionChunk

from xvla_ros.msg import ActionChunk as ActionChunkMsg  # isort: skip
from xvla_ros.msg import PolicyStatus  # isort: skip

if TYPE_CHECKING:
    from xvla_ros.serving.remote import RemotePolicy

POLL_PERIOD_S = 0.2


class Rivals:
    """Watches the command topics of one robot for publishers that are not its own.

    A node of the same name is a rival too, so publishers are counted and names serve to tell who it is. Counting
    takes 3 µs a topic, asking for names 20 µs; both read what discovery has found already.

    Args:
        node: whose graph is looked at.
        publishers: the robot's own, by command group.
    """

    def __init__(self, node: Node, publishers: Mapping[str, Any]) -> None:
        self._node = node
        self._own: dict[str, int] = {}
        for publisher in publishers.values():
            self._own[publisher.topic_name] = self._own.get(publisher.topic_name, 0) + 1
        self._due_s = 0.0
        self._fault: Fault | None = None
        self._awaits_names = True

    def fault(self, steady_s: float) -> Fault | None:
        """Return what is wrong on the command topics at steady time ``steady_s``, looked up a few times a second."""
        if steady_s >= self._due_s:
            self._due_s = steady_s + POLL_PERIOD_S
            self._fault = self._look()
        return self._fault

    def _look(self) -> Fault | None:
        shared = [topic for topic, own in self._own.items() if self._node.count_publishers(topic) > own]
        if not shared:
            self._awaits_names = True
            return None
        rivals = {topic: self._rivals_on(topic) for topic in shared}
        if self._awaits_names and not all(rivals.values()):
            # a publisher is discovered before its node's name, which has until the next look to come
            self._awaits_names = False
            return self._fault
        said = [f"{', '.join(names) or 'another node'} also publishes {topic}" for topic, names in rivals.items()]
        return Fault(CONTROLLER_LOST, f"{'; '.join(said)}; stop it, or set safety.exclusive to false")

    def _rivals_on(self, topic: str) -> list[str]:
        """Return the names of the nodes that publish there beside this one, as far as they are known."""
        ours = self._node.get_fully_qualified_name()
        found = list(map(endpoint_of, self._node.get_publishers_info_by_topic(topic)))
        names = {endpoint.node for endpoint in found if endpoint.is_named and endpoint.node != ours}
        if sum(endpoint.node == ours for endpoint in found) > self._own[topic]:
            names.add(f"a second {ours}")
        return sorted(names)


def publishers_of(node: Node, topic: str) -> list[str]:
    """Return the full names of the nodes that publish a topic, as far as they are known."""
    found = map(endpoint_of, node.get_publishers_info_by_topic(topic))
    return sorted({endpoint.node for endpoint in found if endpoint.is_named})


STATUS_PERIOD_S = 0.1
# Where simulated time waits: how much of it a chunk takes at most, as on a machine that is fast enough, and how far it
# may run beyond the next command, so that every command is reached.
CHUNK_S, AHEAD_S = 0.1, 0.01
TWICE_S = 0.2  # s within which the two subscriptions of the instruction hear the same message
BRAKE_SHARE = 2.0  # of lookahead, in wall time, that setpoints have to come to rest; simulated time may be slow


@dataclass
class FrameCount:
    """Frames of one camera that reached the node, and the ROS stamps in ns of the first and the newest."""

    received: int = 0
    first_stamp: int = 0
    last_stamp: int = 0

    def add(self, stamp: int) -> None:
        if not self.received:
            self.first_stamp = stamp
        self.received += 1
        self.last_stamp = stamp


def bring_to_rest(links: Sequence[RobotLink]) -> None:
    """Send setpoints of robots that were stopped until they are at rest; not from the executor, which must go on."""
    while braking := [link for link in links if link.is_braking]:
        time.sleep(min(1.0 / link.profile.timing.command_rate for link in braking))
        for link in braking:
            link.brake()


class RobotLink:
    """Joins a robot's topics to its ``Pilot``.

    The inference thread calls the engine's side (``wants_chunk``, ``due_in``, ``observe``, ``deliver``,
    ``policy_failed``), the executor calls ``tick``. What goes out is encoded for every group before any is published,
    so that both arms of a pair move together or not at all. One thread at a time works out a command and sends it; the
    locks and their order are told in ``xvla_ros.control``.
    """

    def __init__(
        self,
        node: Node,
        profile: Profile,
        clock: NodeClock,
        instruction: str = "",
        description: RobotDescription | None = None,
        digest: Callable[[], str] = str,
    ) -> None:
        self.profile = profile
        self.frames = {camera: FrameCount() for camera in profile.cameras.slots}
        encoded = messages.encoded_image if profile.policy.server else None
        self.pilot: Pilot[bytes] = Pilot(profile, clock, messages.decode_image, instruction, description, encoded)
        self.remote: RemotePolicy | None = None  # the policy, where it runs on other machines
        self._node = node
        self._clock = clock
        self._digest = digest  # of the checkpoint, at once
        self._sending = threading.Lock()
        self._missed: list[str] = []  # groups that the last window was not sent to
        self._unheard: dict[str, tuple[float, float]] = {}  # by group: since when, and when last, nobody took windows
        self._last_status: tuple[str, str] = ("", "")
        self._told = ""
        self._heard = "", float("-inf")  # the last instruction, and steady s
        self._refused: Fault | None = None
        self._status_due = 0.0
        self._group = MutuallyExclusiveCallbackGroup()
        self._publishers = self._make_publishers()
        self._plan = PlanMarkers(node, profile, self.pilot.arms)
        self._rivals = Rivals(node, {name: self._publishers[name] for name in profile.commands.groups})
        self._runs = RunPolicyServer(node, self.pilot, clock, self._group)
        self._timer: Any = None
        # while braking: how far on the last window, and when that was sent, in ns; until which steady s
        self._braking: tuple[int, int, float] | None = None
        self._due_ns: int | None = None  # since when the inference thread has had a chunk to ask for
        self._asked_ns: int | None = None
        self._on_tick: Callable[[], None] = lambda: None
        self._engine_death: Callable[[], str] = str
        self._broken: Fault | None = None  # what the newest tick raised
        self._subscriptions = self._make_subscriptions()  # last: messages come at once, to a thread of its own
        self._publish_status()

    # what the node calls

    def start(self, on_tick: Callable[[], None] = lambda: None, engine_death: Callable[[], str] = str) -> None:
        """Begin to command the robot.

        Args:
            on_tick: called after every tick.
            engine_death: says why the inference thread has ended though nobody asked it to; empty while it has not.
        """
        self._on_tick, self._engine_death, self._refused, self._broken = on_tick, engine_death, None, None
        self._due_ns, self._asked_ns = None, None
        self.pilot.builder.trust_joints()
        if (speed := self.profile.safety.speed) < 1.0:
            self._node.get_logger().info(
                f"{self.profile.name}: moves at {speed:.0%} of its normal speed (safety.speed)"
            )
        self.pilot.start()
        period = 1.0 / self.profile.timing.command_rate
        self._timer = self._node.create_timer(
            period, self._tick_guarded, callback_group=self._group, clock=self._clock.of_timers
        )

    def refuse(self, cause: Fault) -> None:
        """Say in the status why the robot was not started, until it is."""
        self._refused = cause
        self._publish_status()

    @property
    def status(self) -> ControlStatus:
        """State and counters; also why an inactive robot was refused, who publishes joints that leap, what is sent.

        While ticks raise, the state machine does not advance: the hold that comes of it is told here.
        """
        status = self.pilot.status
        if status.state == INACTIVE:
            return status.to(INACTIVE, self._refused)
        if self._broken is not None and status.state in (RUNNING, HOLDING):
            return replace(status, state=HOLDING, reason=self._broken.reason, detail=self._broken.detail)
        if status.state == RUNNING and self.remote is not None:
            return replace(status, detail=f"sends {self.remote.bytes_per_second() / 1e3:.0f} kB/s to the policy server")
        if status.reason != JOINTS_IMPLAUSIBLE:
            return status
        topics = self.profile.joints.topics
        names = {
            topic: publishers_of(self._node, topic) or ["an unknown node"] for topic in topics if topic in status.detail
        }
        published = "; ".join(f"{topic} is published by {', '.join(nodes)}" for topic, nodes in names.items())
        return replace(status, detail=f"{status.detail} {published}")

    def stop(self) -> None:
        """Send the window that brings the arm to rest on its path; ``bring_to_rest`` sends the setpoints on it."""
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None
        self._due_ns, self._asked_ns = None, None
        with self._sending:
            begun, window = self._clock.steady_s(), self.pilot.controller.stop()
            if window is not None:
                self._publish(window, begun)
                if self._setpoint_groups():
                    until = time.monotonic() + BRAKE_SHARE * self.profile.timing.lookahead
                    self._braking = window.stamp, window.stamp, until
            self._plan.clear()
        self._publish_status()
        self._runs.abort(INACTIVE)

    @property
    def is_braking(self) -> bool:
        """Whether setpoints are still to come after ``stop``."""
        return self._braking is not None

    def brake(self) -> None:
        """Send the next setpoints on the way to rest, to the groups that take one at a time.

        They go on by a command period at most, whatever the clocks do: no setpoint leaps.
        """
        with self._sending:
            last = self.pilot.controller.last_window
            if self._braking is None or last is None:
                self._braking = None
                return
            (at, before, until), now = self._braking, self._clock.ros_ns()
            at += min(max(now - before, 0), round(NS / self.profile.timing.command_rate))
            rest = replace(last.seen_from(at), stamp=now)
            outgoing = self._outgoing(rest)
            for group in self._setpoint_groups():
                if group not in self._unheard:
                    self._publishers[group].publish(outgoing[group])
            is_at_rest = not np.ptp(rest.positions, axis=0).any()
            self._braking = None if is_at_rest or time.monotonic() > until else (at, now, until)
        self._on_tick()

    def _setpoint_groups(self) -> list[str]:
        commands = self.profile.commands
        return [group for group in commands.groups if commands.kind_of(group).sends != "window"]

    def close(self) -> None:
        """Release every topic."""
        self.stop()
        self._runs.close()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        for publisher in self._publishers.values():
            if not self._node.destroy_publisher(publisher):
                publisher.destroy()
        self._subscriptions, self._publishers = [], {}
        self._plan.close()

    def latch_stop(self, reason: str, detail: str) -> None:
        """Stop the arm at once and until ``clear_stop``."""
        if self.pilot.controller.latch_stop(reason, detail):
            self.tick()

    def clear_stop(self) -> bool:
        """End a stop; return whether there was one."""
        cleared = self.pilot.controller.clear_stop()
        self._publish_status()
        return cleared

    # what the engine calls

    def wants_chunk(self) -> bool:
        return self.pilot.wants_chunk()

    def due_in(self) -> float | None:
        return self.pilot.due_in()

    def observe(self) -> ChunkRequest | None:
        begun = self._clock.ros_ns()
        request = self.pilot.observe()
        self._due_ns, self._asked_ns = None, None if request is None else begun
        return request

    def deliver(self, request: ChunkRequest, chunk: ActionChunk) -> None:
        is_accepted = self.pilot.deliver(request, chunk)
        self._due_ns, self._asked_ns = None, None
        if not is_accepted:
            return
        self.tick()
        with self._sending:
            self._plan.show(self.pilot.controller, self._clock.ros_ns())
        accepted = self.pilot.chunk
        if accepted is not None:
            self._publishers["action_chunk"].publish(messages.chunk_message(accepted))

    def policy_failed(self, error: BaseException) -> None:
        self.pilot.policy_failed(error)
        self._due_ns, self._asked_ns = None, None

    def allowed_until(self) -> int | None:
        """Return the ns up to which simulated time may run: a little ahead, and no further than a chunk may take.

        None while the robot is not commanded.
        """
        if self.pilot.status.state == INACTIVE and not self.is_braking:
            return None
        period = 1.0 / self.profile.timing.command_rate
        ahead = self._clock.ros_ns() + round((period + AHEAD_S) * NS)
        if self._engine_death():
            return ahead  # nobody asks any more
        # a chunk that was due may not be wanted any more, for example after a stop
        due = self._due_ns if self.pilot.wants_chunk() else None
        begun = [since for since in (due, self._asked_ns) if since is not None]
        return min([ahead, *(since + round(CHUNK_S * NS) for since in begun)])

    # every command period

    def tick(self) -> None:
        """Look for faults, send the next window, report."""
        steady = self._clock.steady_s()
        with self._sending:
            window = self.pilot.tick(self._engine_fault() or self._controller_fault(steady))
            if window is not None:
                self._publish(window, steady)
            self._report(steady)
        if self._asked_ns is not None or not self.pilot.wants_chunk():
            self._due_ns = None
        elif self._due_ns is None:
            self._due_ns = self._clock.ros_ns()
        self._on_tick()

    def _tick_guarded(self) -> None:
        """Tick; where that raises, say so in the status: the arm comes to rest where its last window ends."""
        try:
            self.tick()
        except BaseException as error:
            was_well = self._broken is None
            self._broken = Fault(INTERNAL_ERROR, f"a command was not sent: {type(error).__name__}: {error}")
            if was_well:
                self.pilot.tick_failed(self._broken.detail)
            self._node.get_logger().error(f"{self.profile.name}: {self._broken.detail}", throttle_duration_sec=1.0)
            with self._sending:
                self._report(self._clock.steady_s())
        else:
            self._broken = None

    def _engine_fault(self) -> Fault | None:
        death = self._engine_death()
        return Fault(POLICY_ERROR, f"{death}; deactivate and activate {self._node.get_name()}") if death else None

    def _controller_fault(self, steady: float) -> Fault | None:
        for group in self.profile.commands.groups:
            since, last = self._unheard.get(group, (steady, steady))
            if not self._publishers[group].get_subscription_count():
                self._unheard[group] = since, steady
            elif steady - last > MATCHING_S:
                self._unheard.pop(group, None)
        if any(last - since > self.profile.timing.controller_timeout for since, last in self._unheard.values()):
            topics = ", ".join(self._publishers[group].topic_name for group in sorted(self._unheard))
            return Fault(CONTROLLER_LOST, f"no node subscribes to {topics}")
        return self._rivals.fault(steady) if self.profile.safety.exclusive else None

    def _publish(self, window: CommandWindow, begun: float) -> None:
        """Send a window made at steady time ``begun``; not to groups for which it is too late, as this process slept.

        A controller counts the window from its receipt, so a late one would lead the arm back to where it was due. A
        window that nobody subscribes to counts as not sent, too; nor is one sent to a controller that has only just
        come, as it has not heard those before.
        """
        outgoing, lead = self._outgoing(window), self.profile.timing.lead
        before, self._missed, interrupted = self._missed, [], []
        for group in sorted(outgoing, key=lambda name: name not in before):  # groups that got no window last time first
            if group in self._unheard:
                self._missed.append(group)
                continue
            if (late := self._late(window, begun)) > lead:
                self._missed.append(group)
                self._node.get_logger().warning(
                    f"{self.profile.name}: a command was ready {late:.2f} s late and was not sent; expected at most "
                    f"lead, {lead:g} s. The process was paused, or the machine is overloaded",
                    throttle_duration_sec=1.0,
                )
                continue
            self._publishers[group].publish(outgoing[group])
            if not self._publishers[group].get_subscription_count():
                self._missed.append(group)
            elif self._late(window, begun) > lead:
                interrupted.append(group)
        if missed := self._missed:
            joints = None if len(missed) == len(outgoing) else [j for group in missed for j in self._columns(group)]
            self.pilot.controller.not_sent(window, joints)
        if interrupted:
            self._send_rest(window, begun, interrupted)

    def _send_rest(self, window: CommandWindow, begun: float, groups: Sequence[str]) -> None:
        """Send what is left of a window whose sending a pause interrupted.

        It left before the pause, and this changes nothing, or it leaves only now, and would lead the arm back. While
        the clocks differ, ROS time under ``/clock`` has not come along, so what is left is not known.
        """
        last, now = self.pilot.controller.last_window, self._clock.ros_ns()
        passed = self._clock.steady_s() - begun
        if last is not None and abs(passed - (now - window.stamp) / NS) <= self.profile.timing.lead:
            outgoing = self._outgoing(last.seen_from(now))
            for group in groups:
                self._publishers[group].publish(outgoing[group])

    def _outgoing(self, window: CommandWindow) -> dict[str, Any]:
        """Return a window's messages by group, serialised: as little as possible is left to do when they are sent."""
        return {
            group: serialize_message(message) if isinstance(self._publishers[group], Publisher) else message
            for group, message in command_messages(self.profile, window, self.pilot.encoder).items()
        }

    def _late(self, window: CommandWindow, begun: float) -> float:
        """Return the seconds since a window was made, by the clock that says more."""
        return max(self._clock.steady_s() - begun, (self._clock.ros_ns() - window.stamp) / NS)

    def _columns(self, group: str) -> list[int]:
        """Return the indices of a group's joints in ``policy_order``."""
        settings = self.profile.commands.by_name[group]
        tool = self.pilot.arms.get(settings.tool)
        return list(map(self.profile.joints.policy_order.index, settings.joints)) if tool is None else [*tool.columns]

    def _report(self, steady: float) -> None:
        status = self.status
        edge = (status.state, status.reason)
        if edge == self._last_status and steady < self._status_due:
            return
        if edge != self._last_status:
            self._log_edge(status)
            self._last_status, self._told = edge, status.detail
            if status.state != RUNNING:
                self._plan.clear()
        elif status.detail and not Fault(status.reason, status.detail).is_like(self._told):
            self._told = status.detail  # another detail of the same reason: a missing picture comes, but is unusable
            if status.reason:
                self._node.get_logger().warning(
                    f"{self.profile.name}: {status.reason}: {status.detail}", throttle_duration_sec=1.0
                )
            else:
                self._log_edge(status)
        # counted from when it was due: ticks that do not divide the period would stretch it otherwise
        self._status_due = max(self._status_due + STATUS_PERIOD_S, steady)
        self._publish_status()

    def _log_edge(self, status: ControlStatus) -> None:
        log = self._node.get_logger()
        if status.reason:
            log.warning(f"{self.profile.name}: {status.state}: {status.reason}: {status.detail}")
        elif status.state == RUNNING:
            log.info(f"{self.profile.name}: running: {self.pilot.instruction!r}")
        elif status.detail:
            log.info(f"{self.profile.name}: {status.state}: {status.detail}")

    def _publish_status(self) -> None:
        publisher = self._publishers.get("status")
        if publisher is None:
            return
        status, latency, chunk = self.status, self.pilot.inference_ms, self.pilot.chunk
        now = self._clock.ros_ns()
        message = PolicyStatus(
            robot=self.profile.name,
            state=status.state,
            reason=status.reason,
            detail=status.detail,
            instruction=self.pilot.instruction,
            chunks=status.chunks,
            trajectories=status.trajectories,
            dropped_chunks=status.dropped_chunks,
            holds=status.holds,
            limited_points=status.limited_points,
            checkpoint_digest=self._digest(),
        )
        message.header.stamp = messages.stamp_message(now)
        message.observation_age = float("nan") if chunk is None else (now - chunk.stamp) / 1e9
        message.inference_p50_ms = latency.p50 if status.chunks else float("nan")
        message.inference_p99_ms = latency.p99 if status.chunks else float("nan")
        publisher.publish(message)

    # topics

    def _make_publishers(self) -> dict[str, Any]:
        base, create = f"~/{self.profile.name}", self._node.create_publisher
        publishers: dict[str, Any] = {
            "action_chunk": create(ActionChunkMsg, f"{base}/action_chunk", qos.EVENTS),
            "status": create(PolicyStatus, f"{base}/status", qos.LATCHED),
        }
        for name in self.profile.commands.groups:
            if has_gripper_outlet(self.profile, name):
                publishers[name] = gripper_outlet(self._node, self.profile, name, self._group)
                continue
            topic = self.profile.commands.by_name[name].topic
            publishers[name] = create(command_type(self.profile, name), topic, qos.COMMAND)
        return publishers

    def _make_subscriptions(self) -> list[Any]:
        subscribe = partial(self._node.create_subscription, callback_group=self._group)
        on_instruction = self._guarded(self._on_instruction)
        told = f"~/{self.profile.name}/instruction"
        made = [subscribe(String, told, on_instruction, quality) for quality in (qos.LATCHED, qos.ANY)]
        for camera in self.profile.cameras.slots:
            source = self.profile.cameras.by_name[camera]
            kind = CompressedImage if source.transport == "compressed" else Image
            made.append(
                subscribe(kind, source.topic, self._guarded(partial(self._on_image, camera)), qos.SENSOR, raw=True)
            )
        for topic in self.profile.joints.topics:
            made.append(subscribe(JointState, topic, self._guarded(partial(self._on_joints, topic)), qos.SENSOR))
        return made

    def _on_instruction(self, message: String) -> None:
        text, steady = message.data.strip(), self._clock.steady_s()
        before, self._heard = self._heard, (text, steady)
        if before[0] == text and steady - before[1] < TWICE_S:
            return  # the other subscription has heard it too
        if len(text) > INSTRUCTION:
            self._node.get_logger().warning(
                f"{self.profile.name}: ignored an instruction of {len(text)} characters; expected at most {INSTRUCTION}"
            )
        elif self._runs.is_running:
            self._node.get_logger().warning(
                f"{self.profile.name}: ignored the instruction {text!r}: a run_policy goal is active"
            )
        elif not text:
            self._node.get_logger().warning(
                f"{self.profile.name}: ignored an empty instruction; the instruction is still "
                f"{self.pilot.instruction!r}"
            )
        elif text != self.pilot.instruction:
            self.pilot.instruction = text
            self._node.get_logger().info(f"{self.profile.name}: new instruction {text!r}")

    def _on_image(self, camera: str, serialized: bytes) -> None:
        stamp = messages.peek_stamp(serialized)
        self.frames[camera].add(stamp)
        self.pilot.add_image(camera, stamp, serialized)

    def _on_joints(self, topic: str, message: JointState) -> None:
        stamp, names, positions = messages.joint_positions(message)
        self.pilot.add_joints(topic, stamp, names, positions)

    def _guarded(self, callback: Callable[..., None]) -> Callable[..., None]:
        """Return the callback with its errors logged: rclpy would end the executor for them, and with it the node."""

        def run(*args: Any) -> None:
            try:
                callback(*args)
            except BaseException as error:
                self._node.get_logger().error(
                    f"{self.profile.name}: {type(error).__name__}: {error}", throttle_duration_sec=1.0
                )

        return run
