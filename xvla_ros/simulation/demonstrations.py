# SPDX-License-Identifier: Apache-2.0
"""Demonstrations: episodes of a task that its scripted expert does, as bags.

What is recorded on the command topics is clean: at every picture the plan that the expert has from the state of that
instant, its waypoints on the profile's own times. What is executed in the simulator has noise added. So a recording
shows how to come back from where noise has led, and nowhere the noise itself as something to be imitated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros import limits
from xvla_ros.errors import SimulationError
from xvla_ros.recordings import cdr
from xvla_ros.recordings.bag_writer import BagWriter, Compression
from xvla_ros.resources import write_whole
from xvla_ros.robots.interfaces import FLOAT_ARRAY, JOINT_STATE, JOINT_TRAJECTORY
from xvla_ros.robots.joints import JointLimits
from xvla_ros.robots.profile import Profile, profile_document
from xvla_ros.simulation.controllers import JointTrajectory, JointTrajectoryController, TrajectoryPoint
from xvla_ros.simulation.stepper import JointStates, Pictures, Stepper
from xvla_ros.simulation.tasks import ExpertPlan, Layout, Outcome, Task, load_task
from xvla_ros.simulation.tasks.hands import OutOfReachError
from xvla_ros.simulation.tasks.plan import ExecutionNoise
from xvla_ros.simulation.world import World
from xvla_ros.types import NS, Floats

WAYPOINTS = 30  # in a recorded plan, as X-VLA predicts
JUDGE_RATE = 100.0  # Hz at which the episode is judged: a touch lasts longer than a period
START = NS  # stamp of an episode's first picture; 0 would mean "now" in a trajectory
AFTERWARDS = 0.5  # s that an episode goes on after its success, to show that the arm stays there
MANIFEST, SCHEMA_VERSION = "demos.json", 1

# message type → (stamp ns, names, ns after it, positions [K, J], of setpoints [1, J]) → the message, serialized
WRITERS: Mapping[str, Callable[[int, Sequence[str], NDArray[np.int64], Floats], bytes]] = {
    JOINT_TRAJECTORY: cdr.joint_trajectory,
    FLOAT_ARRAY: lambda stamp, names, due, positions: cdr.float_array(positions[0]),
    JOINT_STATE: lambda stamp, names, due, positions: cdr.joint_state(stamp, names, positions[0]),
}


@dataclass(frozen=True)
class DemoSettings:
    """What is recorded.

    Attributes:
        profile: the robot.
        task: its name.
        seed: of the first layout; the next layouts have the next seeds.
        variants: instructions for each layout, one episode each.
        rate: pictures and plans a second.
        width, height: pixels.
        noise: of the execution, 0 none, 1 as usual.
        variation: of light, colours and cameras, 0 none, 1 as usual.
    """

    profile: Profile
    task: str
    seed: int = 0
    variants: int = 2
    rate: float = 20.0
    width: int = 256
    height: int = 256
    noise: float = 1.0
    variation: float = 1.0

    def of_episode(self, index: int) -> tuple[int, int]:
        """Return the layout's seed and the variant of an episode."""
        return self.seed + index // self.variants, index % self.variants

    def to_mapping(self) -> dict[str, Any]:
        """Return what decides the contents of the bags, as it is in the manifest."""
        return {
            "schema_version": SCHEMA_VERSION,
            "robot": self.profile.name,
            "profile": self.profile.to_mapping(),
            "task": self.task,
            "seed": self.seed,
            "variants": self.variants,
            "rate": self.rate,
            "image_size": [self.width, self.height],
            "noise": self.noise,
            "variation": self.variation,
        }


@dataclass(frozen=True)
class Demonstration:
    """One recorded episode; ``duration`` in s of simulated time."""

    path: Path
    instruction: str
    outcome: Outcome
    duration: float


class Demonstrator:
    """Records episodes of one task, one after the other, in any order; each depends on its number alone."""

    def __init__(self, settings: DemoSettings) -> None:
        """Make the world.

        Raises:
            SimulationError, KinematicsError: naming what is missing.
        """
        self._settings, profile = settings, settings.profile
        self._task: Task = load_task(profile, settings.task, variation=settings.variation)
        self._world = World(profile)
        self._stepper = Stepper(
            self._world,
            width=settings.width,
            height=settings.height,
            image_rate=settings.rate,
            others={"plan": settings.rate, "judge": JUDGE_RATE},
        )
        policy = profile.policy
        order = profile.joints.policy_order
        self._groups = {
            name: (
                np.array([order.index(joint) for joint in group.joints]),
                tuple(profile.joints.by_name[joint].name for joint in group.joints),
            )
            for name, group in profile.commands.by_name.items()
        }
        self._limits = JointLimits.of(profile)
        self._times = policy.first_waypoint_offset + np.arange(WAYPOINTS) * policy.waypoint_dt
        transports = {camera.transport for camera in profile.cameras.by_name.values()}
        sends = {profile.commands.kind_of(group).sends for group in self._groups}
        self._recorded = "planned" if sends == {"window"} else "commanded"
        self._compression: Compression = "lz4" if "raw" in transports else "none"

    def record(self, index: int, path: Path) -> Demonstration:
        """Record episode ``index`` to ``path``, which exists only once it is complete.

        Raises:
            BagWriteError: naming the file.
            SimulationError: the task's regions leave no room.
        """
        seed, variant = self._settings.of_episode(index)
        self._world.restart()
        layout = self._task.reset(self._world, np.random.default_rng(seed), variant)
        draft = path.with_name(path.name + ".part")
        document = profile_document([self._settings.profile])
        with BagWriter(draft, document, stamp_ns=START, compression=self._compression) as bag:
            mark = {"robot": layout.robot, "instruction": layout.instruction, "task": layout.task, "seed": seed}
            bag.episode({"event": "start", **mark, "success": None, "actions": self._recorded}, START)
            outcome = self._play(bag, layout, np.random.default_rng([seed, variant, 1]))
            end = START + self._world.time
            bag.episode({"event": "end", **mark, "success": outcome.success}, end)
        draft.replace(path)
        return Demonstration(path, layout.instruction, outcome, self._world.time / NS)

    def close(self) -> None:
        """Free what drawing holds."""
        self._stepper.close()

    def _play(self, bag: BagWriter, layout: Layout, rng: np.random.Generator) -> Outcome:
        settings, world, task = self._settings, self._world, self._task
        expert = task.expert(world, layout)
        noise = ExecutionNoise(settings.profile, world.scene.robot, 1.0 / settings.rate, rng, settings.noise)
        events, outcome, end = self._stepper.events(), Outcome(False, False), round(task.time_limit * NS)
        while world.time < end:
            event = next(events)
            if isinstance(event, JointStates | Pictures):
                self._write(bag, event)
            elif event.what == "plan":
                try:
                    plan = expert.plan(world)
                except OutOfReachError:  # it was knocked away: nothing more can be shown
                    return outcome
                self._write_plan(bag, event.time, plan)
                self._execute(plan, noise.next(plan))
            elif not outcome.done:
                outcome = task.outcome(world)
                if outcome.done:
                    end = min(end, event.time + round(AFTERWARDS * NS) * outcome.success)
        return outcome

    def _write(self, bag: BagWriter, event: JointStates | Pictures) -> None:
        stamp = START + event.time
        if isinstance(event, JointStates):
            for reading in event.readings:
                data = cdr.joint_state(stamp, reading.names, reading.positions, reading.velocities)
                bag.write(reading.topic, JOINT_STATE, stamp, data)
            return
        for slot, rgb in event.images.items():
            camera = self._settings.profile.cameras.by_name[slot]
            if camera.transport == "raw":
                bag.write(camera.topic, cdr.IMAGE, stamp, cdr.image(stamp, rgb, slot))
            else:
                data = cdr.compressed_image(stamp, rgb, slot)
                bag.write(camera.topic, cdr.COMPRESSED_IMAGE, stamp, data)

    def _write_plan(self, bag: BagWriter, time: int, plan: ExpertPlan) -> None:
        """Write the clean plan, on the topic of each group: waypoints, or the setpoint that is due after the lead."""
        profile, stamp = self._settings.profile, START + time
        waypoints = np.concatenate([[0.0], self._times])
        due, positions = np.rint(waypoints * NS).astype(np.int64), plan.at(waypoints)
        setpoint = plan.at([profile.timing.lead])
        for group, (columns, names) in self._groups.items():
            topic, kind = profile.commands.by_name[group].topic, profile.commands.kind_of(group)
            told = positions if kind.sends == "window" else setpoint
            data = WRITERS[kind.message_type](stamp, names, due, told[:, columns])
            bag.write(topic, kind.message_type, stamp, data)

    def _execute(self, plan: ExpertPlan, astray: Floats) -> None:
        """Command the plan with the noise to the controllers, until the next plan and a little beyond."""
        period = 1.0 / self._settings.rate
        positions = np.clip(plan.at([period, 2 * period]) + astray, self._limits.lower, self._limits.upper)
        for group, (columns, names) in self._groups.items():
            if isinstance(self._world.controllers[group], JointTrajectoryController):
                points = tuple(
                    TrajectoryPoint(round(period * NS) * number, tuple(row[columns].tolist()))
                    for number, row in enumerate(positions, start=1)
                )
                refused = self._world.command(group, JointTrajectory(names, points))
            else:
                refused = self._world.set_positions(group, names, positions[0, columns].tolist())
            if refused is not None:
                raise SimulationError(f"the simulated controller refused the expert's plan: {refused.reason}")


def record_all(settings: DemoSettings, episodes: int, folder: Path, jobs: int = 1) -> Iterator[Demonstration | None]:
    """Record episodes 0 … ``episodes`` − 1 into ``folder``, one bag each; yield each, None for one already there.

    Args:
        settings: of all episodes; a folder that already has demonstrations must have the same.
        episodes: how many there will be.
        folder: of the bags ``episode_000000.mcap`` … and of the manifest.
        jobs: number of processes that record in parallel.

    Raises:
        SimulationError: the folder holds demonstrations of other settings.
        SimulationError, KinematicsError: naming what is missing.
        BagWriteError: naming the file.
    """
    load_task(settings.profile, settings.task)  # a task that cannot be loaded leaves no folder
    folder.mkdir(parents=True, exist_ok=True)
    agree(settings.to_mapping(), folder / MANIFEST)
    paths = {index: folder / f"episode_{index:06d}.mcap" for index in range(episodes)}
    missing = [index for index, path in paths.items() if not path.exists()]
    yield from [None] * (episodes - len(missing))
    if jobs > 1 and len(missing) > 1:
        yield from _in_processes(settings, [(index, paths[index]) for index in missing], jobs)
        return
    demonstrator = Demonstrator(settings)
    try:
        for index in missing:
            yield demonstrator.record(index, paths[index])
    finally:
        demonstrator.close()


def agree(settings: Mapping[str, Any], manifest: Path) -> None:
    """Write the manifest, or compare with the one that is there.

    Raises:
        SimulationError: it has other settings, or cannot be read.
    """
    wanted = json.loads(json.dumps(settings))
    if not manifest.exists():
        write_whole(manifest, json.dumps(wanted, indent=1) + "\n")
        return
    with limits.edge(SimulationError, partial(_unreadable, manifest)):
        found = dict(limits.read_json(manifest))
    different = [key for key in wanted if found.get(key) != wanted[key]]
    if different:
        said = "; ".join(f"{key} is {_short(found.get(key))}, now {_short(wanted[key])}" for key in different)
        raise SimulationError(
            f"{manifest.parent} contains demonstrations with other settings: {said}; name another folder, or delete it"
        )


def _unreadable(manifest: Path, why: str) -> SimulationError:
    return SimulationError(
        f"{manifest} cannot be read: {why}; name another folder, or delete the file if there are no bags beside it"
    )


def _short(value: Any) -> str:
    return "another" if isinstance(value, Mapping) else repr(value)


_demonstrator: Demonstrator | None = None


def _in_processes(settings: DemoSettings, work: list[tuple[int, Path]], jobs: int) -> Iterator[Demonstration]:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    with context.Pool(min(jobs, len(work)), _begin, (settings,)) as pool:
        yield from pool.imap_unordered(_record_one, work, chunksize=1)


def _begin(settings: DemoSettings) -> None:
    global _demonstrator
    _demonstrator = Demonstrator(settings)


def _record_one(work: tuple[int, Path]) -> Demonstration:
    if _demonstrator is None:
        raise RuntimeError("a process received work before it was initialised")
    return _demonstrator.record(*work)
