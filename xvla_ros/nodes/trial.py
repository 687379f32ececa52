"""A robot's messages in the reader of the node ``/xvla`` for a moment, with no policy and no command."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

from sensor_msgs.msg import JointState

from xvla_ros.control.clock import Clock, ClockGuard
from xvla_ros.control.state import CLOCK_STOPPED
from xvla_ros.nodes import messages
from xvla_ros.nodes.graph import Reading
from xvla_ros.observation.builder import ObservationBuilder
from xvla_ros.observation.faults import BuildTally, Fault
from xvla_ros.robots.profile import Profile
from xvla_ros.types import Observation

LOOK_PERIOD_S = 1 / 30
# A process that was kept from running for longer has messages waiting: it takes those before it calls a robot silent.
LATE_S = 0.1


class Trial:
    """Builds the observations of one robot as the node would, and counts what comes of them.

    Not thread-safe: messages and looks come from one thread.

    Args:
        profile: the robot.
        clock: where time is read.

    Raises:
        KinematicsError: the action mode has tool poses, and no encoder can be made.
    """

    def __init__(self, profile: Profile, clock: Clock) -> None:
        self.profile = profile
        self.has_seen = False
        self._clock = clock
        self._builder: ObservationBuilder[bytes] = ObservationBuilder(profile, messages.decode_image)
        self._guard = ClockGuard(profile.timing.clock_timeout)
        self._looked = self._due = clock.steady_s()
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self._tally, self._absent = BuildTally(), Counter[str]()

    def add_image(self, slot: str, serialized: bytes) -> None:
        """Take a picture of a camera, as it came."""
        with suppress(ValueError):  # the node logs it and goes on; what is missing then is a fault
            self._builder.add_image(slot, messages.peek_stamp(serialized), serialized, self._clock.steady_s())

    def add_joints(self, topic: str, message: JointState) -> None:
        """Take a joint state."""
        self._builder.add_joints(topic, *messages.joint_positions(message), self._clock.steady_s())

    def look(self) -> None:
        """Build an observation if one is due."""
        steady = self._clock.steady_s()
        if steady - self._looked > LATE_S:
            self._due = steady + LATE_S
        self._looked = steady
        if steady >= self._due:
            self._due = steady + LOOK_PERIOD_S
            self._count(self._build(steady))

    def reading(self) -> Reading:
        """Return what was counted; one observation is tried where none was due."""
        tally = self._tally
        if not tally.tried:
            self._count(self._build(self._clock.steady_s()))
        return Reading(tally.tried, tally.built, tuple(tally.faults.commonest()), dict(self._absent))

    def _build(self, steady: float) -> Observation | Fault:
        now = self._clock.ros_ns()
        self._guard.update(now, steady)
        if stood := self._guard.stopped_for(steady):
            return Fault(CLOCK_STOPPED, f"ROS time has stood still for {stood:.1f} s")
        return self._builder.build(now, steady, self.profile.instruction)

    def _count(self, found: Observation | Fault) -> None:
        self._tally.add(found)
        if isinstance(found, Observation):
            self.has_seen = True
            self._absent.update(set(self.profile.cameras.slots) - found.images.keys())
