# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node ``/xvla``: cameras and joints in, one policy for all its robots, trajectory commands out.

Configure loads the policy and warms it up, so that inactive means ready; activate starts the inference thread and the
commands; deactivate brings the arms to rest; cleanup frees the memory.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from xvla_ros import ros_env
from xvla_ros.control.engine import INFERENCE_THREAD, Engine
from xvla_ros.control.policy_source import load_policy
from xvla_ros.control.state import UNTRAINED
from xvla_ros.errors import CheckpointError, KinematicsError, ProfileError, RequestError, SetupError, UnreachableError
from xvla_ros.model.imports import collector_paused
from xvla_ros.nodes import messages, qos
from xvla_ros.nodes.lifecycle import GuardedLifecycleNode, TransitionError
from xvla_ros.nodes.node_clock import TIME_LIMIT_TOPIC, NodeClock, TimeLimit
from xvla_ros.nodes.parameters import read_profile
from xvla_ros.nodes.policy.commands import require_outlets
from xvla_ros.nodes.policy.robot_link import RobotLink, bring_to_rest
from xvla_ros.nodes.policy.surroundings import DescriptionTopics, StopTopics, robot_diagnostics
from xvla_ros.observation.faults import Fault
from xvla_ros.resources import usable_cores
from xvla_ros.robots.kinematics import RobotDescription
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.tools import tool_arms
from xvla_ros.types import ActionChunk, Observation, Prefix

if TYPE_CHECKING:
    from xvla_ros.model.policy import Policy
    from xvla_ros.serving.remote import RemotePolicy

NODE_PARAMETERS: tuple[tuple[str, Any, str], ...] = (
    ("robots", ["so101_bimanual"], "Names of the robots to drive; the parameters of each profile are under its name."),
    ("device", "cpu", "Device of the policy, as torch names it: cpu, cuda, cuda:1."),
    (
        "dtype",
        "",
        "Number format of the policy: float32, bfloat16, int8 (CPU only); empty chooses the fastest on this machine.",
    ),
    ("threads", 0, "Processor threads of the policy; 0 uses half of the cores and leaves the rest for the topics."),
    ("autostart", False, "Whether the node configures and activates itself; a launch file does this from outside."),
    ("checkpoint", "", "Folder or hub id of the checkpoint; empty uses the one that the profiles name."),
    ("server", "", "Addresses of policy servers instead of a checkpoint; empty uses those that the profiles name."),
    ("server_token_file", "", "File with the servers' token; empty uses $XVLA_SERVER_TOKEN_FILE."),
    (
        "server_ca",
        "",
        "File of the certificate authority (CA) of the servers; empty uses $XVLA_SERVER_CA, else the system's.",
    ),
    ("server_certificate", "", "File with this node's certificate and key, if the servers require one."),
    ("instruction", "", "Instruction until one arrives on a topic; empty uses the profiles' instructions."),
    ("paced", False, "Whether the simulation of xvla_ros waits for this node; needs use_sim_time."),
    (
        "batch_wait",
        0.01,
        "Maximum time, s, that a robot waits for the requests of other robots, to share one pass of the policy.",
    ),
    ("seed", -1, "Seed of the sampler's noise; a negative value draws a new seed for every chunk."),
)
# what a loaded policy depends on
LOADED_WITH = (
    "robots", "device", "dtype", "threads", "checkpoint", "paced",
    "server", "server_token_file", "server_ca", "server_certificate",
)  # fmt: skip
SETTABLE_IN = ("unconfigured", "configuring", "inactive")  # states; activate reads all parameters again
PROGRESS_PERIOD_S = 5.0
ANSWER_TIMEOUT_S = 2.0
LONGEST_BATCH_WAIT_S = 1.0
POLL_S = 0.05
SIMULATION_WAIT_S = 120.0  # s; on a busy machine a simulation takes long to start
END_POLL_S = 0.2
LOADING_THREAD = "loading"
BROKEN_AFTER, BROKEN_AFTER_S = 10, 0.3  # callbacks that fail in a row, and s: the executor itself is broken


class PolicyNode(GuardedLifecycleNode):
    """Drives every robot of the parameter ``robots`` with one policy."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("xvla", **kwargs)
        for name, default, description in NODE_PARAMETERS:
            self.declare_parameter(name, default, ParameterDescriptor(description=description))
        self._clock_of_robots = NodeClock(self)
        self._profiles: dict[str, Profile] = {}
        self._links: list[RobotLink] = []
        self._linked_for: tuple[dict[str, Any], str] = ({}, "")
        self._description_topics = DescriptionTopics(self)
        self._descriptions: dict[str, RobotDescription | None] = {}
        self._policy: Policy | RemotePolicy | None = None
        self._remote: RemotePolicy | None = None  # the policy, where it runs on other machines
        self._digest = ""  # of its checkpoint
        self._engine: Engine | None = None
        self._time_limit: TimeLimit | None = None
        self._stops = StopTopics(self, lambda: self._links, lambda: self.state_label() == "active")
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.EVENTS)
        self.create_timer(1.0, self._publish_diagnostics, clock=RosClock(clock_type=ClockType.STEADY_TIME))
        self.add_on_set_parameters_callback(self._on_set_parameters)

    def set_up(self) -> None:
        self._clock_of_robots.paced = self._paced()
        self._profiles = self._read_profiles()
        self._descriptions = self._hear_descriptions()
        self._policy = self._load()
        self._make_links()

    def start(self) -> None:
        self._profiles = self._read_profiles()
        known, there = self._linked_for[0], self._to_link()[0]
        if self._policy is None or (self._remote is not None and known != there):
            self._disconnect()  # the servers were told of the robots as they were
            self._policy = self._load()
        if self._linked_for != self._to_link():
            self._close_links()
            self._make_links()
        self._refuse_untrained()
        self._engine = Engine(self._predict, self._links, self._batch_wait())
        self._require_simulation()
        for link in self._links:
            link.remote = self._remote
            link.start(on_tick=self._say_time_limit, engine_death=self._engine.death)
        self._engine.start()

    def halt(self) -> None:
        # the arms first: a pass of the network may take seconds to end
        for link in self._links:
            link.stop()
        self._say_time_limit()
        bring_to_rest(self._links)
        self._say_time_limit()
        if self._engine is not None and not self._engine.stop():
            self.get_logger().warning("the policy is still in a forward pass; its chunk will be discarded")
        self._engine = None

    def tear_down(self) -> None:
        if self._time_limit is not None:
            self._time_limit.close()
            self._time_limit = None
        self._close_links()
        self._disconnect()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _disconnect(self) -> None:
        if self._remote is not None:
            self._remote.close()
        self._policy = self._remote = None

    def _close_links(self) -> None:
        for link in self._links:
            link.close()
        self._links = []

    def _read_profiles(self) -> dict[str, Profile]:
        robots = list(self.get_parameter("robots").value)
        if not robots or len(set(robots)) != len(robots):
            raise TransitionError(f"parameter robots is {robots}; expected at least one name, and no name twice")
        try:
            profiles = {robot: self._with_server(read_profile(self, robot)) for robot in robots}
            for profile in profiles.values():
                require_outlets(profile)
            self._refuse_shared_topics(profiles)
        except (ProfileError, SetupError) as error:
            raise TransitionError(str(error)) from error
        return profiles

    def _refuse_shared_topics(self, profiles: Mapping[str, Profile]) -> None:
        """Refuse robots that would command one arm, each of which would hold because of the other."""
        owners: dict[str, str] = {}
        for robot, profile in profiles.items():
            for group in profile.commands.groups:
                topic = self.resolve_topic_name(profile.commands.by_name[group].topic)
                other = owners.setdefault(topic, robot)
                if other != robot and (profile.safety.exclusive or profiles[other].safety.exclusive):
                    raise TransitionError(
                        f"the robots {other} and {robot} both publish commands on {topic}; expected a topic of its own "
                        f"for each: set {robot}.namespace, or safety.exclusive of both to false"
                    )

    def _with_server(self, profile: Profile) -> Profile:
        """Return the profile with the policy servers of the parameter, where it names any."""
        named = str(self.get_parameter("server").value)
        if not named:
            return profile
        return profile.model_copy(update={"policy": profile.policy.model_copy(update={"server": named})})

    def _servers(self) -> str:
        """Return the policy servers that the profiles agree on; empty where the policy runs here."""
        named = {name: profile.policy.server for name, profile in self._profiles.items()}
        if len(set(named.values())) > 1:
            listed = ", ".join(f"{robot}: {server or 'none'}" for robot, server in named.items())
            raise SetupError(
                f"the profiles name different policy servers ({listed}), but one node uses one policy; name the "
                "servers with the parameter server, or start a node for each"
            )
        return next(iter(named.values()))

    def _hear_descriptions(self) -> dict[str, RobotDescription | None]:
        """Return the published URDFs of robots whose actions are tool poses, checked before a long load."""
        with_tools = [profile for profile in self._profiles.values() if profile.action_spec.is_end_effector]
        heard = self._description_topics.newest(profile.namespace for profile in with_tools)
        for profile in with_tools:
            description = heard[profile.namespace]
            try:
                arms = tool_arms(profile, description)
            except KinematicsError as error:
                hint = (
                    ""
                    if description is None
                    else (
                        f"; if {description.origin} belongs to another robot, set {profile.name}.namespace, or remap "
                        "robot_description to the right one"
                    )
                )
                raise TransitionError(f"{error}{hint}") from error
            origins = ", ".join(dict.fromkeys(arm.chain.description.origin for arm in arms.values()))
            self.get_logger().info(f"{profile.name}: kinematics of {origins}")
        return {profile.name: heard[profile.namespace] for profile in with_tools}

    def _paced(self) -> bool:
        paced = bool(self.get_parameter("paced").value)
        if paced and not self.get_parameter("use_sim_time").value:
            raise TransitionError(
                "parameter paced is true and use_sim_time is false; expected both true, because "
                "only simulated time can wait"
            )
        return paced

    def _refuse_untrained(self) -> None:
        """Refuse to let random weights move an arm outside a simulation, unless its profile allows that.

        Raises:
            TransitionError: naming every robot the policy was not trained for, and what to do.
        """
        policy = self._policy
        if policy is None or self.get_parameter("use_sim_time").value:
            return
        refused = []
        for link in self._links:
            profile = link.profile
            if policy.is_trained(profile.policy.domain_id) or profile.safety.allow_untrained:
                continue
            detail = untrained(profile, policy)
            link.refuse(Fault(UNTRAINED, detail))
            refused.append(f"{profile.name}: {UNTRAINED}: {detail}")
        if refused:
            raise TransitionError("; ".join(refused))

    def _require_simulation(self) -> None:
        """Check that simulated time waits for this node, so that no watchdog counts time without it.

        Raises:
            TransitionError: nobody listens to how far time may run.
        """
        if not self._clock_of_robots.paced:
            return
        if self._time_limit is None:
            self._time_limit = TimeLimit(self, self._allowed_until)
        deadline = time.monotonic() + SIMULATION_WAIT_S
        while not self._time_limit.is_heard:
            if time.monotonic() > deadline or self.cancelled.is_set():
                raise TransitionError(
                    f"parameter paced is true, but no simulation of xvla_ros subscribes to {TIME_LIMIT_TOPIC}: start "
                    "the simulation, or set paced to false"
                )
            time.sleep(POLL_S)

    def _look_for_the_simulation(self) -> None:
        """Tick the robots where the simulation is gone, as their timers do not fire any more."""
        limit = self._time_limit
        self._clock_of_robots.alone = limit is not None and not limit.is_heard
        if self._clock_of_robots.alone and self.state_label() == "active":
            for link in list(self._links):
                link.tick()

    def _allowed_until(self) -> int | None:
        """Return the ns up to which simulated time may run; None for ever."""
        limits = (link.allowed_until() for link in self._links)
        return min((limit for limit in limits if limit is not None), default=None)

    def _say_time_limit(self) -> None:
        if self._time_limit is not None:
            self._time_limit.say()

    def _batch_wait(self) -> float:
        wait = float(self.get_parameter("batch_wait").value)
        if not 0.0 <= wait <= LONGEST_BATCH_WAIT_S:
            raise TransitionError(
                f"parameter batch_wait is {wait:g}; expected 0 (no waiting) … {LONGEST_BATCH_WAIT_S:g} s"
            )
        return wait

    def _instruction(self) -> str:
        return str(self.get_parameter("instruction").value)

    def _to_link(self) -> tuple[dict[str, Any], str]:
        """Return what links depend on; not the profiles' files, which profiles read from parameters do not know."""
        return {name: profile.to_mapping() for name, profile in self._profiles.items()}, self._instruction()

    def _make_links(self) -> None:
        instruction = self._instruction()
        try:
            self._links = [
                RobotLink(
                    self,
                    profile,
                    self._clock_of_robots,
                    instruction,
                    self._descriptions.get(name),
                    lambda: self._digest,
                )
                for name, profile in self._profiles.items()
            ]
        except KinematicsError as error:
            raise TransitionError(str(error)) from error
        self._linked_for = self._to_link()
        self._stops.hand_on()

    def _load(self) -> Policy | RemotePolicy:
        """Load and warm up in a thread of its own, so that a shutdown can cancel the wait."""
        outcome: list[Any] = []

        def work() -> None:
            try:
                policy = self._load_and_warm_up()
                self._digest = policy.computing().get("checkpoint_digest", "")  # waits until the files are read
                outcome.append(policy)
            except BaseException as error:
                outcome.append(error)

        worker = threading.Thread(target=work, name=LOADING_THREAD, daemon=True)
        begun = time.monotonic()
        said = begun
        worker.start()
        while worker.is_alive():
            worker.join(POLL_S)
            if self.cancelled.is_set():
                raise TransitionError("loading was cancelled by a shutdown")
            if time.monotonic() - said > PROGRESS_PERIOD_S:
                said = time.monotonic()
                self.get_logger().info(f"still loading the policy, {said - begun:.0f} s")
        result = outcome[0]
        if isinstance(result, CheckpointError | SetupError | ProfileError | UnreachableError | RequestError):
            raise TransitionError(str(result)) from result
        if isinstance(result, BaseException):
            raise RuntimeError(f"loading the policy raised {type(result).__name__}: {result}") from result
        self.get_logger().info(f"policy ready after {time.monotonic() - begun:.1f} s")
        policy: Policy | RemotePolicy = result
        return policy

    def _load_and_warm_up(self) -> Policy | RemotePolicy:
        if servers := self._servers():
            return self._connect(servers)
        with collector_paused():
            from xvla_ros.model.runtime.fast import warm_up

        log, checkpoint = self.get_logger(), str(self.get_parameter("checkpoint").value)
        log.info(f"loading the policy: {checkpoint or 'the one that the profiles name'}")
        self._choose_threads()
        policy = load_policy(
            self._profiles,
            checkpoint,
            device=str(self.get_parameter("device").value),
            dtype=str(self.get_parameter("dtype").value),
            descriptions=self._descriptions,
            log=log.info,
            for_good=True,
        )
        self._warn_of_untrained(policy)
        if policy.precision.is_slow:
            log.warning(f"parameter dtype: the policy {policy.precision}; leave dtype empty for the fastest")
        log.info("warming up")
        warm_up(policy, [blank_observation(profile) for profile in self._profiles.values()])
        policy.on_remark = log.warning
        return policy

    def _connect(self, servers: str) -> RemotePolicy:
        log = self.get_logger()
        checkpoint = str(self.get_parameter("checkpoint").value)
        if checkpoint:
            raise SetupError(
                f"checkpoint is {checkpoint} and server {servers}; expected only one of them: leave the other empty"
            )
        try:
            from xvla_ros.serving.remote import Credentials, RemotePolicy
        except ImportError as error:
            raise SetupError(
                f"a policy server needs packages that are missing ({error}); install xvla_ros[serve]"
            ) from error
        files = [str(self.get_parameter(f"server_{name}").value) for name in ("token_file", "ca", "certificate")]
        log.info(f"connecting to {servers}")
        policy = RemotePolicy(self._profiles, servers, Credentials.of_files(*files), log=log.warning)
        self._remote = policy
        try:
            self._warn_of_untrained(policy)
            log.info(f"warming up {policy.source}")
            policy.warm_up([blank_observation(profile) for profile in self._profiles.values()])
        except Exception:
            policy.close()
            self._remote = None
            raise
        return policy

    def _warn_of_untrained(self, policy: Policy | RemotePolicy) -> None:
        for profile in self._profiles.values():
            if not policy.is_trained(profile.policy.domain_id):
                self.get_logger().warning(f"{profile.name}: {UNTRAINED}: {untrained(profile, policy)}")

    def _choose_threads(self) -> None:
        # OpenMP threads that wait for each other spin: on cores that other work needs they make a pass ten times
        # slower, and keep back the very callbacks that bring the observations
        import torch

        threads = int(self.get_parameter("threads").value)
        torch.set_num_threads(threads if threads > 0 else max(1, usable_cores() // 2))

    def _predict(self, observations: list[Observation], prefixes: list[Prefix | None]) -> list[ActionChunk]:
        policy = self._policy
        if policy is None:
            raise RuntimeError("the policy was freed while its engine ran")
        seed = int(self.get_parameter("seed").value)
        return policy.predict(observations, seed=None if seed < 0 else seed, prefix=prefixes)

    def _on_set_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        state = self.state_label()
        changes = [parameter.name for parameter in parameters if self.has_parameter(parameter.name)]  # others are new
        if state not in SETTABLE_IN and changes:
            what = "deactivate /xvla first" if state == "active" else f"/xvla is {state}, expected inactive"
            return SetParametersResult(successful=False, reason=f"{', '.join(changes)}: {what}")
        loaded_with = [name for name in changes if name in LOADED_WITH]
        if state != "unconfigured" and loaded_with:
            reason = f"{', '.join(loaded_with)}: the loaded policy depends on it; clean up /xvla first"
            return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _publish_diagnostics(self) -> None:
        self._look_for_the_simulation()
        message = DiagnosticArray()
        message.header.stamp = messages.stamp_message(self._clock_of_robots.ros_ns())
        policy = self._policy
        message.status = [
            robot_diagnostics(
                link,
                node=self.get_name(),
                policy=policy,
                stop=self._stops.cause,
                seed=int(self.get_parameter("seed").value),
            )
            for link in list(self._links)
        ]
        if failure := self.failure:
            level = DiagnosticStatus.ERROR
            message.status.append(DiagnosticStatus(level=level, name=f"{self.get_name()}: transition", message=failure))
        self._diagnostics.publish(message)


def blank_observation(profile: Profile) -> Observation:
    """Return an observation of the right shape with nothing in it, to warm a policy up."""
    return Observation.blank(profile.embodiment(), profile.state_width, profile.instruction)


def untrained(profile: Profile, policy: Policy | RemotePolicy) -> str:
    """Say what an untrained policy would do with the robot, and what to do about it."""
    return (
        f"domain {profile.policy.domain_id} is not trained in {policy.source}: the arm would move at random, which is "
        "allowed in a simulation only (use_sim_time). Train the policy for this robot, or name a checkpoint and the "
        f"domain_id that it was trained with; {profile.name}.safety.allow_untrained: true lets the arm move anyway"
    )


def serve(stop: Callable[[], bool], args: list[str] | None = None) -> int:
    """Run the node until ``stop`` says so, then bring the arms to rest before the node goes.

    Returns:
        0; 1 where ``autostart`` did not get the node active, as nobody is there to try again.
    """
    # rclpy's own handlers would shut the graph down before the last command is sent
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = PolicyNode()
    who, warning = ros_env.reach()
    node.get_logger().info(who)
    if warning:
        node.get_logger().warning(warning)
    ended, failed = threading.Event(), threading.Event()
    # with rclpy's multi-threaded executor the same topics cost three times the processor time
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinning = threading.Thread(target=_spin, args=(node, executor, ended), name="executor", daemon=True)
    spinning.start()
    if node.get_parameter("autostart").value:
        threading.Thread(target=_autostart, args=(node, stop, failed), name="autostart", daemon=True).start()
    while not (stop() or failed.is_set() or ended.is_set() or node.state_label() == "finalized"):
        ended.wait(END_POLL_S)
        if not (spinning.is_alive() or ended.is_set()):  # nothing is heard any more: no stop either
            node.get_logger().fatal("the callback thread has ended: the arms stop, and the node ends")
            failed.set()
    if node.state_label() == "finalized":
        node.wait_until_answered(ANSWER_TIMEOUT_S)
    else:
        node.change_state(Transition.TRANSITION_ACTIVE_SHUTDOWN)
    ended.set()
    spinning.join(ANSWER_TIMEOUT_S)
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    return 1 if failed.is_set() else 0


def network_is_busy() -> bool:
    """Say whether an abandoned thread is still inside the network."""
    return any(thread.name in (LOADING_THREAD, INFERENCE_THREAD) for thread in threading.enumerate())


def _autostart(node: PolicyNode, stop: Callable[[], bool], failed: threading.Event) -> None:
    is_active = False
    try:
        is_active = all(
            node.change_state(transition)
            for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
        )
    finally:
        if not (is_active or stop() or node.cancelled.is_set()):
            failed.set()


def _spin(node: PolicyNode, executor: SingleThreadedExecutor, ended: threading.Event) -> None:
    failures, well = 0, time.monotonic()
    while not ended.is_set():
        try:
            executor.spin_once(timeout_sec=0.1)
            failures, well = 0, time.monotonic()
        except ExternalShutdownException:
            ended.set()
        except BaseException as error:  # rclpy raises here where a client has gone before its answer, for one
            node.get_logger().error(f"a callback failed: {type(error).__name__}: {error}", throttle_duration_sec=1.0)
            failures += 1
            if failures >= BROKEN_AFTER and time.monotonic() - well > BROKEN_AFTER_S:
                raise  # nothing gets through any more: who started this thread sees that it has ended
