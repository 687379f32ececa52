# SPDX-License-Identifier: Apache-2.0
"""The node ``xvla_record``: a robot's topics, byte by byte as they come, into one mcap file with CRCs.

Keys where standard input is a terminal: s start, e end (success), f end (failed), d discard, q quit. Marks on
``/xvla/episode`` count as well. What is written is flushed every second, so that neither a full disk nor a killed
process costs more than the last one. Where a simulation is reset, its time would come twice: the recording continues
in the next file. Twice a second the reader of the policy's node is asked what it makes of it.

No executor is woken by a message: the queues are emptied a hundred times a second, and the middleware knows when each
message came. So a busy machine neither loses messages nor shifts their times.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import threading
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rosgraph_msgs.msg import Clock

from xvla_ros.errors import BagWriteError, MessageError
from xvla_ros.nodes.graph import CLOCK_TOPIC, clock_rivals
from xvla_ros.nodes.messages import message_class
from xvla_ros.nodes.parameters import given_parameters
from xvla_ros.nodes.record_check import check_of
from xvla_ros.recordings.bag_writer import BagWriter, Compression
from xvla_ros.recordings.cdr import peek_stamp, read_string
from xvla_ros.recordings.marks import (
    COMMAND,
    EPISODE_TOPIC,
    LATCHED,
    SENSOR,
    EpisodeMarks,
    RecordedTopic,
    recorded_topics,
)
from xvla_ros.recordings.observations import RESTART, SEVERAL
from xvla_ros.robots.profile import Profile, profile_document
from xvla_ros.types import NS


class Keyboard:
    """Reads keys from standard input where that is a terminal; else there are none.

    In a ``with`` block the terminal hands over each key at once and does not show it; afterwards it is as it was.
    """

    def __init__(self) -> None:
        self.present = sys.stdin is not None and sys.stdin.isatty()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Keyboard:
        if self.present:
            self._stack.enter_context(_single_keys(sys.stdin.fileno()))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def pressed(self) -> str:
        """Return the keys pressed since the last call, in order."""
        keys = b""
        while self.present and select.select([sys.stdin], [], [], 0.0)[0]:
            some = os.read(sys.stdin.fileno(), 64)
            if not some:  # the terminal has gone
                self.present = False
            keys += some
        return keys.decode(errors="ignore")


@contextlib.contextmanager
def _single_keys(descriptor: int) -> Iterator[None]:
    import termios
    import tty

    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


FLUSH_PERIOD, TAKE_PERIOD, SPIN = 0.25, 0.01, 0.02  # s
SILENT_AFTER = 3.0  # s; a topic without a message by then is named
FULL_BELOW = 200 << 20  # bytes free at which the recording ends by itself
HELP = "keys: s start, e end (success), f end (failed), d discard, q quit"
DEPTH = 100  # messages of a topic, more than a publisher or a controller keeps: none is lost while a picture is written


def _quality(reliability: ReliabilityPolicy, durability: DurabilityPolicy = DurabilityPolicy.VOLATILE) -> QoSProfile:
    return QoSProfile(depth=DEPTH, history=HistoryPolicy.KEEP_LAST, reliability=reliability, durability=durability)


CLOCKS_KEPT = 2000  # messages of /clock, ten seconds at its usual rate
EVERY_CLOCK = QoSProfile(depth=CLOCKS_KEPT, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT)
MODEST = _quality(ReliabilityPolicy.BEST_EFFORT)
QUALITY = {
    SENSOR: MODEST,
    COMMAND: _quality(ReliabilityPolicy.RELIABLE),
    LATCHED: _quality(ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL),
}


@dataclass(frozen=True)
class RecordOptions:
    """How to record.

    Attributes:
        folder: receives ``<robot>_<date>_<time>.mcap``.
        instruction: of the episodes, where marks give no other; empty takes the profile's.
        policy: full name of the policy node, whose instructions, chunks and status are recorded.
        extra: further topics, of whatever types are published there.
        sim_time: whether log times follow ``/clock``.
        compression: of the file.
        duration: s after which the recording ends; None goes on until asked.
        file: to write, instead of one in ``folder``.
        simulation: full name of a simulation, which judges episodes.
        checked: whether the recording is checked with the reader of the policy node.
    """

    folder: Path
    instruction: str = ""
    policy: str = "/xvla"
    extra: tuple[str, ...] = ()
    sim_time: bool = False
    compression: Compression = "none"
    duration: float | None = None
    file: Path | None = None
    simulation: str = "/sim"
    checked: bool = True


class _TakenByHand(ReentrantCallbackGroup):
    """The group of subscriptions that no executor empties; their events are handled as usual."""

    def can_execute(self, entity: Any) -> bool:
        return not isinstance(entity, Subscription) and bool(super().can_execute(entity))


def _taken(subscription: Any) -> Iterator[tuple[int, bytes]]:
    """Yield what waits in a queue: when it came, ns of the system's clock, and its bytes."""
    with subscription.handle:
        while (found := subscription.handle.take_message(subscription.msg_type, True)) is not None:
            yield found[1]["received_timestamp"] or time.time_ns(), bytes(found[0])


class RosTime:
    """ROS time when a message came: the system's clock, or the newest ``/clock`` by then, 0 before the first.

    Attributes:
        begun: when it last began again, ns of the system's clock; 0 where it never did.
        takes_turns: whether what looked like a new beginning was another clock, as the time before it goes on.
    """

    def __init__(self, clock: Any = None) -> None:
        self._clock, self.begun, self.takes_turns = clock, 0, False
        self._since = 0  # messages of /clock since it last fell back
        self._before: int | None = None  # the last of them before that, ns of ROS time
        self._came: deque[int] = deque(maxlen=CLOCKS_KEPT)
        self._said: deque[int] = deque(maxlen=CLOCKS_KEPT)

    def look(self) -> None:
        """Take what has come on ``/clock`` since."""
        for came, data in _taken(self._clock) if self._clock is not None else ():
            said, last = peek_stamp(data), self.now()
            if said < last - RESTART * NS:
                # two clocks that take turns begin nothing
                self.begun = came if self._since >= SEVERAL else self.begun
                self._since, self._before = 0, last
            elif self._before is not None and said > last + RESTART * NS and said > self._before - RESTART * NS:
                self.takes_turns = True
            self._since += 1
            self._came.append(came)
            self._said.append(said)

    def at(self, came: int) -> int:
        """Return ROS time in ns at a time of the system's clock."""
        if self._clock is None:
            return came
        place = bisect_right(self._came, came)
        return self._said[place - 1] if place else 0

    def now(self) -> int:
        """Return ROS time in ns."""
        if self._clock is None:
            return time.time_ns()
        return self._said[-1] if self._said else 0


class RecordNode(Node):
    """Writes what its subscriptions receive.

    Args:
        profile: the robot.
        options: see ``RecordOptions``.
        say: called with each line for the user.

    Raises:
        BagWriteError: the file cannot be made.
    """

    def __init__(self, profile: Profile, options: RecordOptions, say: Callable[[str], None]) -> None:
        # with it rclpy would wake this node at every message of /clock
        super().__init__("xvla_record", parameter_overrides=[Parameter("use_sim_time", value=False)])
        self.done, self.failed = False, False
        self.counts: Counter[str] = Counter()
        self.marks = EpisodeMarks(profile.name, options.instruction or profile.instruction)
        self._say, self._options, self._profile = say, options, profile
        self._bag = self._made(options.file or _free_name(options.folder, profile.name))
        self._unended: tuple[BagWriter, int] | None = None  # a file before this one, and the time of its open episode
        self._written, self._run = 0, 0  # bytes of the files before; when ROS time began again for this one
        self._latched: dict[str, bytes] = {}
        self._begun = time.monotonic()
        self._first_ns = self._last_ns = 0  # ROS times of messages
        self._told_silent = False
        self.rivals = ""  # who published /clock together
        self._waiting = set(options.extra)
        self._topics: dict[str, RecordedTopic] = {}
        self._subscribed: dict[str, Any] = {}
        self._by_hand = _TakenByHand()
        clock = self._subscription(Clock, CLOCK_TOPIC, EVERY_CLOCK) if options.sim_time else None
        self._ros_time = RosTime(clock)
        for topic in recorded_topics(profile, options.policy, options.simulation):
            self._subscribe(topic, QUALITY[topic.kind])
        self.check = None
        if options.checked:
            self.check = check_of(profile, self._ros_time.now, say)
        self._thread = threading.Thread(target=self.check.run, daemon=True) if self.check is not None else None
        if self._thread is not None:
            self._thread.start()
        steady = rclpy.clock.Clock(clock_type=rclpy.clock.ClockType.STEADY_TIME)
        self.create_timer(TAKE_PERIOD, self._take, clock=steady)
        self.create_timer(FLUSH_PERIOD, self._watch, clock=steady)

    def _made(self, path: Path) -> BagWriter:
        return BagWriter(path, profile_document([self._profile]), compression=self._options.compression)

    @property
    def path(self) -> Path:
        """The file that is written, the last one of several."""
        return self._bag.path

    @property
    def seconds(self) -> float:
        """Wall time since the beginning."""
        return time.monotonic() - self._begun

    def press(self, key: str) -> None:
        """Do what a key says."""
        actions: dict[str, Callable[[], dict[str, Any] | None]] = {
            "s": self.marks.start,
            "e": partial(self.marks.end, True),
            "f": partial(self.marks.end, False),
            "d": self.marks.discard,
        }
        if key == "q":
            self.done = True
        elif key in actions and not self._ros_time.now():
            self._say("/clock has not begun, so an episode has no time: press it again then")
        elif key in actions:
            mark = actions[key]()
            if mark is None:
                self._say("no episode is open; press s to start one")
                return
            self._write_mark(mark)
        elif not key.isspace():
            self._say(HELP)

    def close(self) -> None:
        """Write what has come, end an open episode without a judgement, and finish the file."""
        self._take()
        mark = None if self.failed else self.marks.end(None)
        if mark is not None:
            self._write_mark(mark)
        if self.check is not None and self._thread is not None:
            self.check.stop()
            self._thread.join()
            self._tell()
        for bag in (self._bag, *(self._unended or ())[:1]):
            self._end(bag)

    def _end(self, bag: BagWriter) -> None:
        try:
            bag.close()
        except BagWriteError as error:
            self._fail(error)

    def state(self) -> str:
        """Return one line about the recording so far."""
        episodes = self.marks.episodes
        size = self._written + (self.path.stat().st_size if self.path.exists() else 0)
        ends = {True: "succeeded", False: "failed", None: "unjudged"}
        judged = [f"{episodes.ended.count(success)} {word}" for success, word in ends.items()]
        judged += [f"{episodes.discarded} discarded"] if episodes.discarded else []
        judged += ["one open"] if episodes.open else []
        return (
            f"{self.seconds:.0f} s, {sum(self.counts.values())} messages, {size / 1e6:.1f} MB, {len(episodes.ended)} "
            f"episodes ({', '.join(judged)})"
        )

    def silent(self) -> list[str]:
        """Return the required topics on which nothing has come."""
        return [name for name, topic in self._topics.items() if topic.required and not self.counts[name]]

    def rates(self) -> dict[str, float]:
        """Return the messages per second of each topic, over the whole recording; of ROS time under ``/clock``."""
        seconds = (self._last_ns - self._first_ns) / NS if self._options.sim_time else self.seconds
        return {name: self.counts[name] / max(seconds, 1e-3) for name in self._topics}

    def _subscribe(self, topic: RecordedTopic, quality: QoSProfile) -> None:
        if topic.name in self._topics:
            return
        try:
            kind = message_class(topic.type)
            self._bag.add_topic(topic.name, topic.type)
        except (ImportError, BagWriteError) as error:  # our own messages may not have been built
            self._say(f"{topic.name} is not recorded: {error}")
            return
        self._topics[topic.name] = topic
        events = SubscriptionEventCallbacks(incompatible_qos=partial(self._on_incompatible, topic))
        self._subscribed[topic.name] = self._subscription(kind, topic.name, quality, event_callbacks=events)

    def _subscription(self, kind: Any, topic: str, quality: QoSProfile, **settings: Any) -> Any:
        return self.create_subscription(
            kind, topic, lambda _: None, quality, raw=True, callback_group=self._by_hand, **settings
        )

    def _on_incompatible(self, topic: RecordedTopic, _event: object) -> None:
        """Ask for less, once, as a publisher offers less than was asked for."""
        old = self._subscribed.pop(topic.name, None)
        if old is not None:
            self.destroy_subscription(old)
            self._subscribed[topic.name] = self._subscription(message_class(topic.type), topic.name, MODEST)

    def _take(self) -> None:
        """Write what has come since, in order of arrival."""
        came = [(when, name, data) for name, topic in self._subscribed.items() for when, data in _taken(topic)]
        self._ros_time.look()
        for when, name, data in sorted(came, key=itemgetter(0)):
            now = self._ros_time.at(when)
            if self._run < self._ros_time.begun <= when and not self.failed:
                self._run = self._ros_time.begun
                self._begin_file(now)
            if now and not self.failed:  # under sim time before the first /clock there is none
                self._first_ns, self._last_ns = self._first_ns or now, now
                self._on_message(self._topics[name], now, data)

    def _begin_file(self, now: int) -> None:
        """Continue in the next file, as ROS time began again; not where one was asked for, or clocks take turns.

        That two publish the clock does not tell: one that was killed is listed for another 20 s.
        """
        seconds, self._first_ns = self._last_ns - self._first_ns, now - (self._last_ns - self._first_ns)
        if self._options.file is not None or (self._ros_time.takes_turns and self.count_publishers(CLOCK_TOPIC) > 1):
            return
        before = self._bag
        try:
            before.flush()
            self._bag = self._made(_free_name(self._options.folder, self._profile.name))
            for topic in self._topics.values():
                self._bag.add_topic(topic.name, topic.type)
            if self.marks.episodes.open or self.marks.episodes.ended or self.marks.episodes.discarded:
                # a bag without a mark would be one episode
                self._bag.episode({"event": "discard", "robot": self.marks.robot}, now)
            for name, data in self._latched.items():
                self._bag.write(name, self._topics[name].type, now, data)
        except BagWriteError as error:
            self._fail(error)
            self._end(before)
            return
        self._written += before.path.stat().st_size
        self._say(f"ROS time began again after {seconds / NS:.0f} s: the recording continues in {self.path}")
        if self.marks.episodes.open and self._unended is None:
            self._unended = before, self._last_ns
        else:
            self._end(before)

    def _on_message(self, topic: RecordedTopic, now: int, data: bytes) -> None:
        if topic.name == EPISODE_TOPIC:
            try:
                self._write_mark(self.marks.read(read_string(data)))
            except MessageError as error:
                self._say(f"{EPISODE_TOPIC}: not recorded: {error}")
            return
        try:
            self._bag.write(topic.name, topic.type, now, data)
            self.counts[topic.name] += 1
        except BagWriteError as error:
            self._fail(error)
            return
        if topic.kind == LATCHED:
            self._latched[topic.name] = data
        if self.check is not None:
            self.check.take(topic.name, data)

    def _write_mark(self, mark: dict[str, Any]) -> None:
        bag, now = self._bag, self._ros_time.now()
        is_ours = mark["robot"] == self.marks.robot
        if self._unended is not None and is_ours and mark["event"] != "start":
            bag, now = self._unended  # the episode began before ROS time began again
        try:
            bag.episode(mark, now)
            self.counts[EPISODE_TOPIC] += 1
            bag.flush()
        except BagWriteError as error:
            self._fail(error)
            return
        told = f" {mark['success']}" if mark.get("success") is not None else ""
        self._say(f"episode {mark['event']}{told}: {self.state()}")
        if self._unended is not None and is_ours:
            self._end(self._unended[0])
            self._unended = None
        if self.check is not None and is_ours:
            self.check.mark(mark["event"])
            self._tell()

    def _tell(self) -> None:
        for line in self.check.lines() if self.check is not None else ():
            self._say(line)

    def _watch(self) -> None:
        """Flush, look for topics and for space."""
        if self.failed:
            return
        try:
            self._bag.flush_if_due()
        except BagWriteError as error:
            self._fail(error)
            return
        self._look_for_extra()
        if self._ros_time.takes_turns and not self.rivals:
            self.rivals = clock_rivals(self)
            if not self.rivals and self.count_publishers(CLOCK_TOPIC) < 2:
                self.rivals = f"several publishers of {CLOCK_TOPIC}, one of which is gone; expected one"
            if self.rivals:
                self._say(f"{self.rivals}. Meanwhile no new file is begun")
        self._tell()
        if not self._told_silent and self.seconds > SILENT_AFTER:
            self._told_silent = True
            for topic in self.silent():
                self._say(f"no message has arrived on {topic} ({self._topics[topic].type}) yet")
        if shutil.disk_usage(self.path.parent).free < FULL_BELOW:
            self._say(
                f"{self.path.parent}: less than {FULL_BELOW >> 20} MiB of disk space are free: the recording stops"
            )
            self.done, self.failed = True, True
        if self._options.duration is not None and self.seconds >= self._options.duration:
            self.done = True

    def _look_for_extra(self) -> None:
        if self._waiting:
            types = dict(self.get_topic_names_and_types())
            for name in sorted(self._waiting & types.keys()):
                self._waiting.discard(name)
                self._subscribe(RecordedTopic(name, types[name][0], COMMAND), QUALITY[COMMAND])

    def _fail(self, error: BagWriteError) -> None:
        if not self.failed:
            self._say(f"error: {error}")
        self.done, self.failed = True, True


def record(profile: Profile, options: RecordOptions, stopped: Callable[[], bool] = lambda: False) -> int:
    """Record until a key, a signal, ``stopped`` or the duration says so; return the exit code.

    Exit code 1 where the file could not be written to its end, a required topic never came, no observation could be
    built of what came, the check of that ended too early, or several clocks took turns on ``/clock``.
    """
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = RecordNode(profile, options, _say)
    except BagWriteError as error:
        print(f"xvla record: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    with Keyboard() as keyboard:
        _say(f"recording {profile.name} to {node.path}" + (f"; {HELP}" if keyboard.present else "; Ctrl-C stops it"))
        status = _StatusLine(node)
        try:
            while not (node.done or stopped()):
                executor.spin_once(timeout_sec=SPIN)
                for key in keyboard.pressed():
                    node.press(key)
                status.show()
        except (KeyboardInterrupt, ExternalShutdownException):
            pass
        status.clear()
    executor.shutdown()  # before what it waits for goes
    silent = node.silent()
    node.close()
    _say(f"{node.path}: {node.state()}")
    for topic, rate in node.rates().items():
        _say(f"  {topic}: {node.counts[topic]} messages, {rate:.1f} Hz")
    for topic in silent:
        print(f"xvla record: no message arrived on {topic}, so the bag contains no usable samples", file=sys.stderr)
    for line in node.check.summary() if node.check is not None else ():
        _say(f"  {line}")
    if not (node.marks.episodes.ended or node.marks.episodes.discarded):
        _say("  no episode was marked, so it has no instruction: press s where one begins, or name it to xvla replay")
        _say("  by --instruction, to xvla train by datasets.0.instruction")
    useless = node.check is not None and node.check.useless
    if useless:
        print(
            "xvla record: no observation could be built from the recording, so the bag contains no usable samples",
            file=sys.stderr,
        )
    unchecked = "" if node.check is None else node.check.broken
    if unchecked:
        print(f"xvla record: the recording was written, but not checked completely: {unchecked}", file=sys.stderr)
    if node.rivals:
        print(f"xvla record: the log times follow several clocks: {node.rivals}", file=sys.stderr)
    node.destroy_node()  # last: DDS may crash in it where a peer was killed just before, and all has been said
    rclpy.try_shutdown()
    return 1 if node.failed or silent or useless or unchecked or node.rivals else 0


class _StatusLine:
    """A line that is rewritten in place, where standard error is a terminal."""

    def __init__(self, node: RecordNode) -> None:
        self._node, self._due, self._shown = node, 0.0, sys.stderr.isatty()

    def show(self) -> None:
        if self._shown and self._node.seconds >= self._due:
            self._due = self._node.seconds + 1.0
            print(f"\r\x1b[K{self._node.state()}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    print(text, flush=True)


def _free_name(folder: Path, robot: str) -> Path:
    begun = time.strftime("%Y%m%d_%H%M%S")
    for number in range(1000):
        path = folder / f"{robot}_{begun}{f'_{number}' if number else ''}.mcap"
        if not path.exists():
            return path
    return folder / f"{robot}_{begun}_{time.time_ns()}.mcap"


def main(arguments: Sequence[str] | None = None) -> int:
    """Record as ROS parameters say; return the exit code.

    Parameters of the node: ``profile`` (name or file), ``robot`` (name in it), ``folder``, ``instruction``, ``policy``,
    ``use_sim_time``, ``compression``.
    """
    from xvla_ros.nodes.process import StopRequest
    from xvla_ros.robots import load_profile

    stop = StopRequest()
    rclpy.init(args=None if arguments is None else list(arguments), signal_handler_options=SignalHandlerOptions.NO)
    values = given_parameters("xvla_record_parameters")
    rclpy.try_shutdown()
    profiles = load_profile(values.get("profile") or values["robot"])
    profile = profiles[values["robot"]] if values.get("robot") else next(iter(profiles.values()))
    options = RecordOptions(
        Path(values.get("folder", "xvla_out/record")),
        values.get("instruction", ""),
        values.get("policy", "/xvla"),
        sim_time=bool(values.get("use_sim_time", False)),
        compression=values.get("compression", "none"),
    )
    return record(profile, options, lambda: stop.made)


if __name__ == "__main__":
    sys.exit(main())
