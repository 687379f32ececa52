# SPDX-License-Identifier: Apache-2.0
"""``xvla evaluate --suite``: a policy on a benchmark that others wrote, with its own judge."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xvla_ros.errors import SetupError
from xvla_ros.simulation.suites.libero import LiberoArena, ensure_suite
from xvla_ros.simulation.suites.libero_expert import ORIGINAL
from xvla_ros.simulation.suites.protocols import CAMERAS, PROTOCOLS, EvaluationProtocol, original_of

if TYPE_CHECKING:
    from xvla_ros.commands.evaluate import Evaluate
    from xvla_ros.evaluation.suites.drivers import Driver, Predict
    from xvla_ros.evaluation.suites.running import Job, Share
    from xvla_ros.simulation.suites.suite import Arena, Pixels
    from xvla_ros.types import Embodiment

    Look = Callable[[], Mapping[str, Pixels]]

POLICY, EXPERT, OWN = "policy", "expert", "own"


@dataclass(frozen=True)
class _Driven:
    """What drives, and what results say of it."""

    name: str
    make: Callable[[Arena], Driver]
    checkpoint: str = ""
    digest: str = ""
    trained: bool | None = None
    computing: tuple[tuple[str, str], ...] = ()


def evaluate_suite(command: Evaluate) -> int:
    """Run the episodes that are not there yet, and write report, page and table.

    Raises:
        SetupError, CheckpointError: what does not fit, before the first simulator is built where that can be known.
        SimulationError: a simulator ended.
    """
    from xvla_ros.evaluation.suites.page import write_suite_page
    from xvla_ros.evaluation.suites.results import (
        REPLAY,
        REPORT,
        EpisodeStore,
        SuiteResult,
        SuiteRun,
        parse_tasks,
        write_whole,
    )
    from xvla_ros.evaluation.suites.running import MOST_EPISODES, EpisodeRunner, Share, plan

    protocol = PROTOCOLS[command.protocol].changed(command.overrides)
    share = Share.of_environment()
    _check(command, share)
    count = command.episodes or protocol.episodes
    if count > MOST_EPISODES:
        raise SetupError(f"{count} episodes of each task were asked for, expected at most {MOST_EPISODES}")
    first = LiberoArena(command.suite, protocol, command.libero)
    try:
        tasks = parse_tasks(command.tasks, first.tasks)
        driven = _driven(command, protocol, share)
        run = SuiteRun(
            command.suite, protocol, driven.name, command.through, driven.checkpoint, driven.digest, command.seed,
            first.versions,
        )  # fmt: skip
        store = EpisodeStore(Path(command.output), run)
    finally:
        first.close()
    if driven.name != REPLAY:
        done = {(each.task, each.episode) for each in store.episodes() if each.driver == driven.name}
        runner = EpisodeRunner(command.suite, protocol, driven.name, store, command.films)
        _run(command, protocol, runner, driven.make, plan(tasks, count, command.jobs, share, done), driven.name)
    baseline_of = (command.replay_of or OWN) if command.baseline else ""
    if baseline_of:
        store.claim_baseline(baseline_of)
        runner = EpisodeRunner(command.suite, protocol, REPLAY, store)
        _run_baseline(command, protocol, runner, tasks, count, share)
    result = SuiteResult(
        run, tasks, tuple(store.episodes()), driven.trained, dict(driven.computing), baseline_of
    )  # fmt: skip
    folder = store.folder
    write_whole(folder / REPORT, json.dumps(result.to_mapping(), indent=2) + "\n")
    write_suite_page(result, folder / "report.html")
    print(f"{result.summary()}\n  {folder / REPORT}\n  {folder / 'report.html'}")
    return 0


def _check(command: Evaluate, share: Share) -> None:
    """Refuse options that do not go together, or that need more than is installed."""
    ensure_suite(command.suite)
    needed = {"jinja2": "sim", **({"av": "sim"} if command.films else {})}
    needed |= {"pinocchio": "kinematics"} if command.through == "control" else {}
    if missing := sorted({extra for module, extra in needed.items() if find_spec(module) is None}):
        raise SetupError(f"this evaluation needs more than is installed; install xvla_ros[{','.join(missing)}]")
    defaults = type(command)
    for name in ("robot", "task", "in_process", "real_time", "delay", "variation", "image_size"):
        if getattr(command, name) != getattr(defaults, name):
            flag = f"--{name.replace('_', '-')}"
            raise SetupError(
                f"{flag} is of this package's own tasks; {command.suite} has robot, tasks and scene of its own"
            )
    if command.expert and command.checkpoint:
        raise SetupError("--expert and --checkpoint both drive; give one of them")
    if command.expert and original_of(command.suite) != ORIGINAL:
        raise SetupError(f"the scripted expert knows {ORIGINAL} and its variations, and not {command.suite}")
    drives = command.checkpoint or command.expert
    if not drives and not command.baseline:
        raise SetupError(
            f"nothing drives in {command.suite}: name a policy with --checkpoint, or --expert, or --baseline replay "
            "with --replay-of"
        )
    if not drives and not command.replay_of:
        raise SetupError("--baseline replay has nothing to replay: name a --checkpoint, or a folder with --replay-of")
    if command.replay_of and not command.baseline:
        raise SetupError("--replay-of names paths for --baseline replay, which is not given")
    if command.baseline and not command.replay_of and share.world > 1:
        raise SetupError(
            f"WORLD_SIZE is {share.world}: a baseline of this evaluation's own paths waits for all of it; run it "
            "afterwards by one process, with the same --output"
        )


def _driven(command: Evaluate, protocol: EvaluationProtocol, share: Share) -> _Driven:
    from xvla_ros.evaluation.suites.drivers import executed, load_suite_policy, shared
    from xvla_ros.evaluation.suites.results import REPLAY
    from xvla_ros.model.checkpoint.inspection import digest_of

    if command.expert:
        return _Driven(EXPERT, lambda arena: _expert(command, protocol, arena))
    if not command.checkpoint:
        return _Driven(REPLAY, _no_driver)
    device = f"cuda:{share.local}" if command.device == "cuda" and share.world > 1 else command.device
    policy, embodiment = load_suite_policy(command.checkpoint, protocol, device=device, dtype=command.dtype)
    if policy.precision.is_slow:
        print(f"xvla evaluate: warning: the policy {policy.precision}", file=sys.stderr)
    count, predict = executed(protocol, policy), shared(policy, command.seed)

    def make(arena: Arena) -> Driver:
        return _driver(command, predict, embodiment, protocol, count, arena.look)

    return _Driven(
        POLICY,
        make,
        command.checkpoint,
        digest_of(command.checkpoint),
        policy.is_trained(embodiment.domain_id),
        tuple(policy.computing().items()),
    )


def _driver(
    command: Evaluate, predict: Predict, embodiment: Embodiment, protocol: EvaluationProtocol, execute: int, look: Look
) -> Driver:
    from xvla_ros.evaluation.suites.drivers import PolicyDriver

    if command.through == "control":
        from xvla_ros.evaluation.suites.control import ControlDriver

        return ControlDriver(predict, embodiment, protocol, look)
    return PolicyDriver(predict, embodiment, protocol, execute)


def _expert(command: Evaluate, protocol: EvaluationProtocol, arena: Any) -> Driver:
    from xvla_ros.evaluation.suites.drivers import EXPERT_WAYPOINTS, ExpertPolicy, embodiment_of

    predict = ExpertPolicy(arena.shapes, protocol.rot6d).predict
    black = np.zeros((protocol.pixels, protocol.pixels, 3), np.uint8)
    look = dict.fromkeys(CAMERAS, black).copy  # it looks at no picture, so none is drawn
    driver = _driver(command, predict, embodiment_of(protocol), protocol, EXPERT_WAYPOINTS, look)
    driver.looks = False
    return driver


def _no_driver(arena: Arena) -> Driver:
    raise SetupError("only a baseline was asked for")


def _run_baseline(
    command: Evaluate, protocol: EvaluationProtocol, runner: Any, tasks: tuple[Any, ...], count: int, share: Share
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
        print(f"no path to replay, as no episode succeeded: task {', '.join(left)}")
    done = {(each.task, each.episode) for each in runner.store.episodes() if each.driver == REPLAY}
    if own:
        done |= {(episode.task, episode.episode) for episode, _ in found.values()}
    paths = {task: actions for task, (_, actions) in found.items()}
    jobs = plan(known, count, command.jobs, share, done) if known else []
    _run(command, protocol, runner, lambda arena: ReplayDriver(paths), jobs, REPLAY)


def _run(
    command: Evaluate,
    protocol: EvaluationProtocol,
    runner: Any,
    driver_of: Callable[[Arena], Driver],
    jobs: list[Job],
    name: str,
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

        run_jobs(jobs, lambda: LiberoArena(command.suite, protocol, command.libero), driver_of, handle, command.jobs)
