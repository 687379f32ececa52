# SPDX-License-Identifier: Apache-2.0
"""``xvla demos``: demonstrations of a task, made by its scripted expert in simulation, as bags."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from xvla_ros.commands.options import Command, Count, ImageSize, Positive, Robot, Seed, Share, Task, Variation
from xvla_ros.errors import SetupError
from xvla_ros.resources import output_folder, write_whole

if TYPE_CHECKING:
    from xvla_ros.simulation.demonstrations import Demonstration, DemoSettings
    from xvla_ros.simulation.suites.suite import SuiteTask

RATE, SUITE_RATE = 20.0, 4.0  # pictures a second; of a suite they take most of the time
OF_SUITES = ("tasks", "layouts", "init_states", "seconds", "libero")
NOT_OF_SUITES = ("robot", "task", "variants", "variation")


@dataclass(frozen=True, kw_only=True)
class Demos(Command):
    """Record demonstrations of a task in simulation, by a scripted expert, as bags; those that are there are kept.

    examples:
      xvla demos --task touch --episodes 400 --output demos/touch
      xvla demos --robot widowx --task pick_place --episodes 50 --image-size 128 --jobs 4 --output demos/pick
      xvla demos --suite libero_object --tasks 4,7 --layouts shuffled --episodes 40 --output demos/object

    with --suite, the benchmark's own tasks and success checks replace robot and task; episodes that fail are not kept
    """

    robot: Robot = "so101_bimanual"
    task: Task = "touch"
    episodes: Annotated[Count, "number of episodes in the folder; with --suite: number of attempts for each task"] = 100
    seed: Annotated[Seed, "seed of the first layout"] = 0
    output: Annotated[str, "folder of the bags"]
    image_size: ImageSize = 256
    rate: Annotated[Positive | None, "images and plans per second (default 20; with --suite 4 images)"] = None
    variants: Annotated[Count, "number of instructions for each layout"] = 2
    noise: Annotated[Share, "strength of the disturbance of the motion; 0: none"] = 1.0
    variation: Variation = 1.0
    jobs: Annotated[Count, "number of processes that record in parallel"] = 1
    suite: Annotated[
        str, "suite of a benchmark with a scripted expert: libero_object and its variations (libero_object_swap, …)"
    ] = ""
    tasks: Annotated[str, "tasks of the suite: 0,3 or 2-5 (default: all)"] = ""
    layouts: Annotated[
        Literal["recorded", "shuffled"],
        "places of the objects of a suite: as in its init states, or shuffled among them",
    ] = "recorded"
    init_states: Annotated[
        str, "init states of a suite to start from; the default keeps the first ten for evaluation"
    ] = "10-49"
    seconds: Annotated[
        Share, "record only the first seconds of each episode of a suite, without a verdict; 0 records all"
    ] = 0.0
    libero: Annotated[str, "Python interpreter with LIBERO (default: the one that `make libero` installs)"] = ""

    def run(self) -> int:
        """Record, and print what was recorded; return 1 where more than one episode in twenty failed."""
        from xvla_ros.robots import load_robot
        from xvla_ros.simulation.offscreen import missing_extras

        _check(self)
        if self.suite:
            return _record_suite(self)
        if missing := missing_extras():
            raise SetupError(f"demonstrations need a simulator and kinematics; install xvla_ros[{','.join(missing)}]")
        from xvla_ros.simulation.demonstrations import DemoSettings
        from xvla_ros.simulation.tasks import load_task

        profile = load_robot(self.robot)
        load_task(profile, self.task)  # refused before there is a folder
        settings = DemoSettings(
            profile, self.task, self.seed, self.variants, self.rate or RATE, self.image_size,
            self.image_size, self.noise, self.variation,
        )  # fmt: skip
        folder = output_folder(self.output)
        return _say_end(_record(settings, self.episodes, folder, self.jobs), folder)


def _check(command: Demos) -> None:
    """Refuse options that do not go with a suite, or only with one."""
    foreign = NOT_OF_SUITES if command.suite else OF_SUITES
    given = next((name for name in foreign if getattr(command, name) != getattr(Demos, name)), None)
    if given is None:
        return
    flag = f"--{given.replace('_', '-')}"
    if command.suite:
        raise SetupError(
            f"{flag} applies to this package's own tasks only; {command.suite} has its own robot, tasks and "
            "instructions"
        )
    raise SetupError(f"{flag} applies to benchmarks only; name one with --suite")


@dataclass
class _Tally:
    """What has been recorded so far."""

    there: int = 0
    succeeded: int = 0
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)

    def add(self, demonstration: Demonstration | None) -> None:
        if demonstration is None:
            self.there += 1
            return
        self.seconds += demonstration.duration
        if demonstration.outcome.success:
            self.succeeded += 1
        else:
            self.failed.append(demonstration.path.name)


def _record(settings: DemoSettings, episodes: int, folder: Path, jobs: int) -> _Tally:
    from tqdm import tqdm

    from xvla_ros.simulation.demonstrations import record_all

    tally = _Tally()
    label = f"{settings.profile.name} {settings.task}"
    with tqdm(total=episodes, desc=label, unit="episode", disable=None) as bar:
        for demonstration in record_all(settings, episodes, folder, jobs):
            tally.add(demonstration)
            bar.update()
    return tally


def _say_end(tally: _Tally, folder: Path) -> int:
    made = tally.succeeded + len(tally.failed)
    size = sum(path.stat().st_size for path in folder.glob("*.mcap")) / 1e6
    kept = f", {tally.there} were there" if tally.there else ""
    print(f"{folder}: {made} episodes recorded ({tally.seconds:.0f} s of simulated time){kept}; {size:.1f} MB in all")
    if tally.failed:
        shown = ", ".join(tally.failed[:5]) + (" …" if len(tally.failed) > 5 else "")
        print(f"{len(tally.failed)} of them failed and are marked success: false: {shown}")
    return 1 if len(tally.failed) > made / 20 else 0


def _record_suite(command: Demos) -> int:
    """Record what is not there yet and has not failed before; return 1 where more than half of the episodes failed."""
    from tqdm import tqdm

    from xvla_ros.evaluation.suites.results import parse_tasks
    from xvla_ros.evaluation.suites.running import ProcessShare, plan, run_jobs
    from xvla_ros.simulation.demonstrations import MANIFEST, agree
    from xvla_ros.simulation.suites.libero import LiberoArena, ensure_suite
    from xvla_ros.simulation.suites.libero_demos import SuiteDemonstrator, SuiteDemoSettings
    from xvla_ros.simulation.suites.protocols import HARNESS

    ensure_suite(command.suite)
    settings = SuiteDemoSettings(
        command.suite, command.seed, command.rate or SUITE_RATE, command.image_size, command.noise, command.layouts,
        _states(command.init_states), command.seconds,
    )  # fmt: skip
    # seeded by the episode: seeded by the task, each episode would repeat the resets of those before it
    protocol, folder = replace(HARNESS, pixels=settings.pixels, seeded="episode"), Path(command.output)
    first = LiberoArena(command.suite, protocol, command.libero)
    try:
        tasks = parse_tasks(command.tasks, first.tasks)
    finally:
        first.close()
    for task in tasks:
        settings.beginning(task, 0, 0)
    output_folder(folder)
    agree(settings.to_mapping(), folder / MANIFEST)
    before = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    failed = {(task, episode) for task, episode in before.get("failed", ())}
    wanted = {(task.index, episode) for task in tasks for episode in range(command.episodes)}
    there = {each for each in wanted if _suite_bag(folder, *each).exists()}
    jobs = plan(tasks, command.episodes, command.jobs, ProcessShare(), there | failed)
    tally, lock = _Tally(there=len(there)), threading.Lock()
    with tqdm(total=len(wanted - there - failed), desc=command.suite, unit="episode", disable=None) as bar:

        def handle(arena: Any, demonstrator: SuiteDemonstrator, task: SuiteTask, episode: int) -> None:
            made = demonstrator.record(task, episode, _suite_bag(folder, task.index, episode))
            with lock:
                if made.outcome.success:
                    tally.add(made)
                else:
                    failed.add((task.index, episode))
                    noted = {**before, "failed": sorted(failed)}
                    write_whole(folder / MANIFEST, json.dumps(noted, indent=1) + "\n")
                bar.update()

        run_jobs(
            jobs,
            lambda: LiberoArena(command.suite, protocol, command.libero),
            lambda arena: SuiteDemonstrator(settings, arena),
            handle,
            command.jobs,
        )
    size = sum(path.stat().st_size for path in folder.glob("*.mcap")) / 1e6
    kept = f", {tally.there} were there" if tally.there else ""
    length = f"{tally.seconds:.0f} s of simulated time"
    print(f"{folder}: {tally.succeeded} episodes recorded ({length}){kept}; {size:.1f} MB in all")
    for task in tasks:
        lost = [episode for number, episode in sorted(failed & wanted) if number == task.index]
        if lost:
            print(f"task {task.index}, {task.instruction}: {len(lost)} of {command.episodes} failed and were not kept")
    return 1 if len(failed & wanted) > len(wanted) / 2 else 0


def _suite_bag(folder: Path, task: int, episode: int) -> Path:
    return folder / f"task_{task:02d}_episode_{episode:06d}.mcap"


def _states(text: str) -> tuple[int, int]:
    """Return the first and last of ``10-49``, or of ``7``.

    Raises:
        SetupError: it is neither.
    """
    first, dash, last = text.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()) or int(last or first) < int(first):
        raise SetupError(f"--init-states is {text!r}, expected a number or a range, such as 10-49")
    return int(first), int(last or first)
