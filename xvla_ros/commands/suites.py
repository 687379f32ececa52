# SPDX-License-Identifier: Apache-2.0
"""``xvla evaluate --suite``: a policy on a benchmark that others wrote, with its own judge."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xvla_ros.errors import SetupError
from xvla_ros.resources import write_whole
from xvla_ros.simulation.suites.joints import SUITES as JOINT_SUITES
from xvla_ros.simulation.suites.joints import JointArena, JointProtocol
from xvla_ros.simulation.suites.libero import LiberoArena, ensure_suite
from xvla_ros.simulation.suites.libero_expert import ORIGINAL
from xvla_ros.simulation.suites.protocols import CAMERAS, PROTOCOLS, EvaluationProtocol, SuiteProtocol, original_of

if TYPE_CHECKING:
    from xvla_ros.commands.evaluate import Evaluate
    from xvla_ros.evaluation.suites.drivers import Driver, Predict
    from xvla_ros.evaluation.suites.running import ProcessShare, TaskJob
    from xvla_ros.model.policy import Policy
    from xvla_ros.simulation.suites.suite import Arena, Pixels
    from xvla_ros.types import Embodiment

    Look = Callable[[], Mapping[str, Pixels]]
    AnyArena = LiberoArena | JointArena

POLICY, EXPERT, OWN = "policy", "expert", "own"
Drivers = Callable[[], AbstractContextManager[Callable[["Arena"], "Driver"]]]


@dataclass(frozen=True)
class _Driven:
    """What drives, and what results say of it; how the policy computes may be known only once it has driven."""

    name: str
    drivers: Drivers
    checkpoint: str = ""
    digest: str = ""
    trained: bool | None = None
    computing: dict[str, str] = field(default_factory=dict)


def evaluate_suite(command: Evaluate) -> int:
    """Run the episodes that are not there yet, and write report, page and table.

    Raises:
        SetupError, CheckpointError: what does not fit, before the first simulator is built where that can be known.
        SimulationError: a simulator ended.
    """
    from xvla_ros.evaluation.suites.page import write_suite_page
    from xvla_ros.evaluation.suites.results import REPLAY, REPORT, EpisodeStore, SuiteResult, SuiteRun, parse_tasks
    from xvla_ros.evaluation.suites.running import MOST_EPISODES, EpisodeRunner, ProcessShare, plan

    share = ProcessShare.of_environment()
    _check(command, share)
    protocol = _protocol(command).changed(command.overrides)
    count = command.episodes or protocol.episodes
    if count > MOST_EPISODES:
        raise SetupError(f"{count} episodes of each task were requested, expected at most {MOST_EPISODES}")
    first = _arena(command, protocol)
    try:
        tasks = parse_tasks(command.tasks, first.tasks)
        driven = _driven(command, protocol, share)
        run = SuiteRun(
            command.suite, protocol, driven.name, command.through, driven.checkpoint, driven.digest, command.seed,
            driven.computing.get("dtype", command.dtype), first.versions,
        )  # fmt: skip
        store = EpisodeStore(Path(command.output), run)
    finally:
        first.close()
    if driven.name != REPLAY:
        done = {(each.task, each.episode) for each in store.episodes() if each.driver == driven.name}
        runner = EpisodeRunner(command.suite, protocol, driven.name, store, command.films)
        _run(command, protocol, runner, driven.drivers, plan(tasks, count, command.jobs, share, done), driven.name)
    baseline_of = (command.replay_of or OWN) if command.baseline else ""
    if baseline_of:
        store.claim_baseline(baseline_of)
        runner = EpisodeRunner(command.suite, protocol, REPLAY, store)
        _run_baseline(command, protocol, runner, tasks, count, share)
    result = SuiteResult(
        run, tasks, tuple(store.episodes()), driven.trained, driven.computing, baseline_of
    )  # fmt: skip
    folder = store.folder
    write_whole(folder / REPORT, json.dumps(result.to_mapping(), indent=2) + "\n")
    write_suite_page(result, folder / "report.html")
    print(f"{result.summary()}\n  {folder / REPORT}\n  {folder / 'report.html'}")
    return 0


def _protocol(command: Evaluate) -> SuiteProtocol:
    if command.suite in JOINT_SUITES:
        from xvla_ros.evaluation.suites.joints import own_protocol

        return own_protocol(command.suite)
    return PROTOCOLS[command.protocol]


def _arena(command: Evaluate, protocol: SuiteProtocol) -> AnyArena:
    if isinstance(protocol, JointProtocol):
        return JointArena(command.suite, protocol, command.libero)
    assert isinstance(protocol, EvaluationProtocol)
    return LiberoArena(command.suite, protocol, command.libero)


def _check(command: Evaluate, share: ProcessShare) -> None:
    """Refuse options that do not go together, or that need more than is installed."""
    ensure_suite(command.suite, also=JOINT_SUITES)
    joints = JOINT_SUITES.get(command.suite)
    if joints is not None and command.protocol != type(command).protocol:
        raise SetupError(f"--protocol {command.protocol} applies to LIBERO only; {command.suite} has its own protocol")
    needed = {"jinja2": "sim", **({"av": "sim"} if command.films else {})}
    needed |= {"pinocchio": "kinematics"} if command.through != "policy" and joints is None else {}
    if command.through == "ros" and joints is not None:
        raise SetupError(f"--through ros works for LIBERO only; {command.suite} accepts policy or control")
    if command.through == "ros":
        needed |= {"rclpy": "ros", "mujoco": "sim", **({"aiohttp": "serve"} if command.expert else {})}
        if command.jobs > 1:
            raise SetupError(
                f"--jobs is {command.jobs}, and --through ros has one policy node with one arm; expected 1"
            )
    if missing := sorted({extra for module, extra in needed.items() if find_spec(module) is None}):
        raise SetupError(f"this evaluation needs packages that are missing; install xvla_ros[{','.join(missing)}]")
    defaults = type(command)
    for name in ("robot", "task", "in_process", "real_time", "delay", "variation", "image_size"):
        if getattr(command, name) != getattr(defaults, name):
            flag = f"--{name.replace('_', '-')}"
            raise SetupError(
                f"{flag} applies to this package's own tasks only; {command.suite} has its own robot, tasks and scene"
            )
    if command.server:
        raise SetupError(
            f"--server is {command.server}, but the policy of a benchmark runs in this process, so that latency has "
            "no effect; name it with --checkpoint"
        )
    if command.expert and command.checkpoint:
        raise SetupError("--expert and --checkpoint both name what drives the arm; give only one of them")
    knows = original_of(command.suite) == ORIGINAL if joints is None else joints.has_controller
    if command.expert and not knows:
        also = ", ".join(name for name, suite in JOINT_SUITES.items() if suite.has_controller)
        raise SetupError(
            f"the scripted expert supports {ORIGINAL} and its variations, not {command.suite}; "
            f"{also} has its own expert"
        )
    drives = command.checkpoint or command.expert
    if not drives and not command.baseline:
        raise SetupError(
            f"nothing drives the arm in {command.suite}: name a policy with --checkpoint, or --expert, or --baseline "
            "replay with --replay-of"
        )
    if not drives and not command.replay_of:
        raise SetupError("--baseline replay has nothing to replay: name a --checkpoint, or a folder with --replay-of")
    if command.replay_of and not command.baseline:
        raise SetupError("--replay-of needs --baseline replay, which is not given")
    if command.baseline and not command.replay_of and share.world > 1:
        raise SetupError(
            f"WORLD_SIZE is {share.world}: a baseline from this evaluation's own paths needs all of its episodes; run "
            "it afterwards in one process, with the same --output"
        )


def _driven(command: Evaluate, protocol: SuiteProtocol, share: ProcessShare) -> _Driven:
    from xvla_ros.evaluation.suites.drivers import executed, inspect_for, shared
    from xvla_ros.evaluation.suites.results import REPLAY
    from xvla_ros.model.checkpoint.inspection import digest_of

    if command.expert:
        if command.through == "ros":
            assert isinstance(protocol, EvaluationProtocol)
            return _Driven(EXPERT, lambda: _expert_over_ros(command, protocol))
        return _Driven(EXPERT, lambda: nullcontext(lambda arena: _expert(command, protocol, arena)))
    if not command.checkpoint:
        return _Driven(REPLAY, lambda: nullcontext(_no_driver))
    device = f"cuda:{share.local}" if command.device == "cuda" and share.world > 1 else command.device
    if command.through == "ros":
        assert isinstance(protocol, EvaluationProtocol)
        embodiment, trained = inspect_for(command.checkpoint, protocol)
        said: dict[str, str] = {}
        return _Driven(
            POLICY,
            lambda: _policy_over_ros(command, protocol, embodiment, device, said),
            command.checkpoint,
            digest_of(command.checkpoint),
            trained,
            said,
        )
    policy, embodiment = _loaded(command, protocol, device)
    if policy.precision.is_slow:
        print(f"xvla evaluate: warning: the policy {policy.precision}", file=sys.stderr)
    count, predict = executed(protocol, policy), shared(policy, command.seed)

    def make(arena: Arena) -> Driver:
        return _driver(command, predict, embodiment, protocol, count, arena.look)

    return _Driven(
        POLICY,
        lambda: nullcontext(make),
        command.checkpoint,
        digest_of(command.checkpoint),
        policy.is_trained(embodiment.domain_id),
        policy.computing(),
    )


@contextmanager
def _policy_over_ros(
    command: Evaluate, protocol: EvaluationProtocol, embodiment: Embodiment, device: str, said: dict[str, str]
) -> Iterator[Callable[[Any], Driver]]:
    from xvla_ros.evaluation.suites.over_ros import policy_over_ros

    with policy_over_ros(
        protocol, embodiment, Path(command.output) / "logs", seed=command.seed, checkpoint=command.checkpoint,
        device=device, dtype=command.dtype, said=said,
    ) as driver_of:  # fmt: skip
        yield lambda arena: driver_of(arena.look)


@contextmanager
def _expert_over_ros(command: Evaluate, protocol: EvaluationProtocol) -> Iterator[Callable[[Any], Driver]]:
    """Let the expert answer the node as a policy server does; it sees the scene of the arena that is driven."""
    from xvla_ros.evaluation.suites.drivers import ExpertPolicy, embodiment_of
    from xvla_ros.evaluation.suites.over_ros import policy_over_ros, served_script

    arenas: list[Any] = []
    embodiment = embodiment_of(protocol)
    with (
        served_script(ExpertPolicy(lambda: arenas[-1].shapes(), protocol.rot6d).predict, embodiment) as server,
        policy_over_ros(
            protocol, embodiment, Path(command.output) / "logs", seed=command.seed, server=server
        ) as driver_of,
    ):

        def make(arena: Any) -> Driver:
            arenas.append(arena)
            return driver_of(_unseen(protocol))

        yield make


def _loaded(command: Evaluate, protocol: SuiteProtocol, device: str) -> tuple[Policy, Embodiment]:
    """Return the policy, and how it is asked."""
    if isinstance(protocol, JointProtocol):
        from xvla_ros.control.policy_source import load_policy
        from xvla_ros.evaluation.suites.joints import profile_in

        profile = profile_in(command.suite, protocol)
        return load_policy(profile, command.checkpoint or "", device=device, dtype=command.dtype), profile.embodiment()
    from xvla_ros.evaluation.suites.drivers import load_suite_policy

    assert isinstance(protocol, EvaluationProtocol)
    return load_suite_policy(command.checkpoint or "", protocol, device=device, dtype=command.dtype)


def _driver(
    command: Evaluate, predict: Predict, embodiment: Embodiment, protocol: SuiteProtocol, execute: int, look: Look
) -> Driver:
    from xvla_ros.evaluation.suites.drivers import PolicyDriver

    if isinstance(protocol, JointProtocol):
        from xvla_ros.evaluation.suites.joints import JointControlDriver, JointDriver, profile_in

        profile = profile_in(command.suite, protocol)
        if command.through == "control":
            return JointControlDriver(predict, profile, protocol, look)
        return JointDriver(predict, profile, protocol, execute)
    assert isinstance(protocol, EvaluationProtocol)
    if command.through == "control":
        from xvla_ros.evaluation.suites.control import ControlDriver

        return ControlDriver(predict, embodiment, protocol, look)
    return PolicyDriver(predict, embodiment, protocol, execute)


def _expert(command: Evaluate, protocol: SuiteProtocol, arena: Any) -> Driver:
    from xvla_ros.evaluation.suites.drivers import EXPERT_WAYPOINTS, ExpertPolicy, embodiment_of

    if isinstance(protocol, JointProtocol):
        return _controller(command, protocol, arena)
    assert isinstance(protocol, EvaluationProtocol)
    predict = ExpertPolicy(arena.shapes, protocol.rot6d).predict
    driver = _driver(command, predict, embodiment_of(protocol), protocol, EXPERT_WAYPOINTS, _unseen(protocol))
    driver.looks = False
    return driver


def _unseen(protocol: EvaluationProtocol) -> Look:
    """Return the cameras of a driver that looks at no picture: none is drawn."""
    black = np.zeros((protocol.pixels, protocol.pixels, 3), np.uint8)
    return dict.fromkeys(CAMERAS, black).copy


def _controller(command: Evaluate, protocol: JointProtocol, arena: JointArena) -> Driver:
    """Return what lets the package's own controller drive."""
    from xvla_ros.evaluation.suites.joints import ControllerPolicy, JointControlDriver, profile_in

    if command.through == "policy":
        from xvla_ros.evaluation.suites.drivers import ReplayDriver

        return ReplayDriver(lambda _: arena.plan().held(protocol.rate))
    profile = profile_in(command.suite, protocol)
    policy, black = ControllerPolicy(arena.plan, profile), np.zeros((protocol.pixels, protocol.pixels, 3), np.uint8)
    look = dict.fromkeys(profile.cameras.slots, black).copy  # it looks at no picture, so none is drawn
    return JointControlDriver(policy.predict, profile, protocol, look, on_begin=policy.begin)


def _no_driver(arena: Arena) -> Driver:
    raise SetupError("only a baseline was requested")


def _run_baseline(
    command: Evaluate, protocol: SuiteProtocol, runner: Any, tasks: tuple[Any, ...], count: int, share: ProcessShare
) -> None:
    """Replay in each task the first path that succeeded; where it is this evaluation's own, not in its own episode."""
    from xvla_ros.evaluation.suites.drivers import ReplayDriver
    from xvla_ros.evaluation.suites.results import REPLAY, first_successes
    from xvla_ros.evaluation.suites.running import plan

    own = not command.replay_of
    if own and not any(each.success for each in runner.store.episodes() if each.driver != REPLAY):
        print("no path to replay: no episode succeeded")
        return
    found = first_successes(runner.store.folder if own else Path(command.replay_of))
    known = tuple(task for task in tasks if task.index in found)
    if left := [str(task.index) for task in tasks if task.index not in found]:
        print(f"no path to replay, because no episode succeeded: task {', '.join(left)}")
    done = {(each.task, each.episode) for each in runner.store.episodes() if each.driver == REPLAY}
    if own:
        done |= {(episode.task, episode.episode) for episode, _ in found.values()}
    paths = {task: actions for task, (_, actions) in found.items()}
    jobs = plan(known, count, command.jobs, share, done) if known else []
    _run(command, protocol, runner, lambda: nullcontext(lambda arena: ReplayDriver(paths.__getitem__)), jobs, REPLAY)


def _run(
    command: Evaluate, protocol: SuiteProtocol, runner: Any, drivers: Drivers, jobs: list[TaskJob], name: str
) -> None:
    """Run the jobs with a bar that counts episodes, successes and the time left."""
    from tqdm import tqdm

    from xvla_ros.evaluation.suites.running import run_jobs

    total = sum(len(job.episodes) for job in jobs)
    if not total:
        return
    succeeded = 0
    with tqdm(total=total, desc=f"{command.suite} {name}", unit="episode", disable=None) as bar:

        def handle(arena: Any, driver: Driver, task: Any, episode: int) -> None:
            nonlocal succeeded
            result = runner.run(arena, driver, task, episode)
            with bar.get_lock():
                succeeded += result.success
                bar.set_postfix_str(f"{succeeded} succeeded", refresh=False)
                bar.update()

        with drivers() as driver_of:
            run_jobs(jobs, lambda: _arena(command, protocol), driver_of, handle, command.jobs)
