# SPDX-License-Identifier: Apache-2.0
"""``xvla demo``: the policy drives a simulated robot over real ROS topics; a film and a report say what happened.

A policy that was trained for the robot is led through episodes of a task, another one has one instruction throughout.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from xvla_ros.commands.options import (
    HIDDEN,
    Checkpoint,
    Command,
    Device,
    Dtype,
    Positive,
    RealTime,
    Robot,
    Server,
    Words,
)
from xvla_ros.errors import Interrupted, SetupError
from xvla_ros.evaluation.graph import (
    THIS_MACHINE_ONLY,
    lead_command,
    policy_command,
    settings_in_simulation,
    sim_command,
    watch_command,
)
from xvla_ros.evaluation.processes import Child, ChildError, Supervisor, free_domain
from xvla_ros.evaluation.report.recording import in_words
from xvla_ros.nodes.process import read_progress
from xvla_ros.resources import output_folder
from xvla_ros.types import NS


class DemoProgress:
    """What the watching node, and the leading one where there is one, say about the run."""

    def __init__(self) -> None:
        self.time = 0
        self.start = 0
        self.elapsed = 0.0
        self.chunks = 0
        self.trajectories = 0
        self.done = False
        self.state = ""
        self.reason = ""
        self.detail = ""
        self.episodes: list[dict[str, Any]] = []
        self.failed = ""
        self._moved = time.monotonic()

    def hear(self, line: str) -> bool:
        """Read one line of the watching node; return False where it is an ordinary log line."""
        said = read_progress(line)
        if said is None:
            return False
        if said["time"] > self.time:
            self._moved = time.monotonic()
        for name, value in said.items():
            setattr(self, name, value)
        return True

    def hear_leader(self, line: str) -> bool:
        """Read one line of the leading node: only why it cannot go on; the watching node reports the episodes."""
        said = read_progress(line)
        if said is None:
            return False
        self.failed = said.get("failed", self.failed)
        return True

    @property
    def standing_still(self) -> float:
        """Seconds on the steady clock since ROS time last moved."""
        return time.monotonic() - self._moved

    def policy(self) -> str:
        """Return what the policy reports, in words."""
        return ", ".join(filter(None, (self.state or "silent", self.reason.replace("_", " "), self.detail)))


class Console:
    """Says what happens on stdout and passes on what the nodes say, on stderr.

    On a terminal the progress is one line that rewrites itself, and other lines go above it; elsewhere it is a line
    every few seconds.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._shown = -1.0
        self._told = 0

    def say(self, text: str) -> None:
        print(f"{self._clear()}{text}", flush=True)

    def echo(self, line: str) -> None:
        width = shutil.get_terminal_size((160, 24)).columns - 3
        text = line if len(line) <= width else line[: width - 1] + "…"
        print(f"{self._clear()}  {text}", file=sys.stderr, flush=True)

    def episodes(self, progress: DemoProgress) -> None:
        """Print a line for every episode that has ended since the last call."""
        for each in progress.episodes[self._told :]:
            self._told += 1
            outcome = in_words(each["task"], success=each["success"], wrong=each["wrong"])
            sign = "✓" if each["success"] else "✗"
            self.say(f"  {sign} “{each['instruction']}”: {outcome}, {each['elapsed']:.1f} s (seed {each['seed']})")

    def progress(self, progress: DemoProgress, duration: float) -> None:
        if progress.elapsed - self._shown < (0.2 if self._terminal else 5.0):
            return
        self._shown = progress.elapsed
        share = min(1.0, progress.elapsed / duration)
        bar = "━" * round(20 * share) + "╌" * (20 - round(20 * share))
        counts = f"{progress.chunks} chunks  {progress.trajectories} trajectories"
        text = f"  {bar} {progress.elapsed:5.1f} of {duration:.0f} s  {counts}  {progress.policy()}"
        width = shutil.get_terminal_size((120, 24)).columns - 1
        print(f"{self._clear()}{text[:width]}", end="" if self._terminal else "\n", flush=True)

    def _clear(self) -> str:
        return "\r\x1b[2K" if self._terminal and self._shown >= 0 else ""


if TYPE_CHECKING:
    from xvla_ros.evaluation.report.figures import Report
    from xvla_ros.robots.profile import Profile

DEFAULT_INSTRUCTION = "touch the red cube"
DEFAULT_TASK = "touch"
NO_TASK = "none"
# On the steady clock. Loading 0.9 B weights from a slow disk takes minutes, a simulation seconds.
CLOCK_LIMIT, POLICY_LIMIT, STALL_LIMIT = 300.0, 900.0, 900.0
# s of simulated time that an active policy may take until its first command.
COMMAND_LIMIT = 60.0
# s of simulated time for which the end of an episode is shown.
PAUSE = 0.8
BAG = "run.mcap"
RESULTS = ("report.json", "film.mp4", "report.html", BAG)
CHILDREN = ("watch", "sim", "policy", "lead")  # in the order of their start


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Drive a simulated robot over real ROS 2 topics; leave a film and a report.

    examples:
      xvla demo
      xvla demo --task pick_place --checkpoint my_checkpoint
      xvla demo --duration 20 --seed 7 --instruction 'touch the red cube'
    """

    robot: Robot = "so101_bimanual"
    checkpoint: Checkpoint = None
    server: Server = ""
    duration: Annotated[Positive, "seconds of simulated time from the first command"] = 20.0
    seed: Annotated[int, "seed of the scene and of the sampler's noise"] = 7
    task: Annotated[
        str | None,
        "run episodes of this task: touch, pick_place, …; none: one run with one instruction (default: touch, "
        "where the policy was trained for the robot)",
    ] = None
    instruction: Annotated[
        Words | None, "instruction (default: the one of each layout; without a task the profile's)"
    ] = None
    output: Annotated[str, "folder of the film and the report"] = "xvla_out/demo"
    device: Device = "cpu"
    dtype: Dtype = ""
    real_time: RealTime = False
    headless: Annotated[bool, HIDDEN] = False  # it always is; the flag is kept for scripts that pass it

    def run(self) -> int:
        """Run the nodes, which write the bag; then ``report.json``, ``film.mp4`` and ``report.html`` from it.

        The nodes run as processes on a ROS domain of their own and are gone when this returns, however it returns. The
        simulation waits for the policy, so that a slow machine shows what a fast one does, later. A run that ends early
        leaves film and report of what was recorded too.

        Returns:
            0; 1 or 128 + signal where the run ended early.
        """
        _require(self.duration)
        from xvla_ros.commands.report import write_report
        from xvla_ros.control.policy_source import ensure_device
        from xvla_ros.evaluation.report.recording import can_be_shown
        from xvla_ros.robots import load_robot

        console, ended, folder = Console(), None, Path(self.output)
        profile = load_robot(self.robot)
        task = choose_task(profile, self.checkpoint, self.instruction, self.task, self.server)
        instruction = self.instruction or ("" if task else profile.instruction or DEFAULT_INSTRUCTION)
        demo = replace(self, task=task, instruction=instruction)
        if self.device != "cpu" and not self.server:
            ensure_device(self.device)
        _prepare(folder)
        try:
            _drive(demo, profile, console)
        except (ChildError, Interrupted) as error:
            if not can_be_shown(folder / BAG, profile):
                raise
            ended = error
            said = "stopped" if isinstance(error, Interrupted) else f"ended early: {error}"
            print(f"\nxvla demo: {said}; the film and the report show what was recorded", file=sys.stderr, flush=True)
        console.say("writing the report and the film")
        assumed = {"trained": str(is_trained(profile, self.checkpoint, self.server)).lower(), "seed": str(self.seed)}
        report = write_report(folder / BAG, profile, folder, duration=self.duration, assumed=assumed)
        _say_end(console, report, folder)
        if ended is None:
            return 0
        if isinstance(ended, Interrupted):
            return ended.exit_code
        print(f"xvla demo: ended early; logs of the nodes: {folder / 'logs'}", file=sys.stderr)
        return 1


def choose_task(
    profile: Profile, checkpoint: str | None, instruction: str | None, wanted: str | None, server: str = ""
) -> str | None:
    """Return the task whose episodes are led; None for a run with one instruction from beginning to end.

    Args:
        profile: the robot.
        checkpoint: as on the command line.
        instruction: as on the command line: only tasks that may say it.
        server: as on the command line.
        wanted: a task, ``none``, or None: one of the scene's, where the policy was trained for the robot.

    Raises:
        SetupError: the task cannot be led here, or never says the instruction.
        SimulationError, SimulationError: the robot has no such task.
        CheckpointError: the checkpoint's record cannot be read.
    """
    if wanted == NO_TASK or (wanted is None and not is_trained(profile, checkpoint, server)):
        return None
    if find_spec("pinocchio") is None:
        if wanted is None:
            return None
        raise SetupError(f"the task {wanted} needs a package that is missing; install xvla_ros[kinematics]")
    from xvla_ros.simulation.tasks import load_task, task_names

    if wanted is None:
        there = sorted(task_names(profile), key=lambda name: name != DEFAULT_TASK)
        able = [name for name in there if not instruction or instruction in load_task(profile, name).instructions]
        return able[0] if able else None
    sentences = load_task(profile, wanted).instructions
    if instruction and instruction not in sentences:
        raise SetupError(
            f"the task {wanted} has no instruction {instruction!r}; expected one of: {', '.join(sentences)}; "
            f"or --task {NO_TASK}"
        )
    return wanted


def is_trained(profile: Profile, checkpoint: str | None, server: str = "") -> bool:
    """Say whether the policy that will run was trained for this robot, by its files; a hub id is not looked up.

    A policy server is asked.
    """
    if server := server or profile.policy.server:
        from xvla_ros.serving.remote import trained_at

        return trained_at(server, profile.policy.domain_id)
    from xvla_ros.control.policy_source import known_as, shipped_policy
    from xvla_ros.model.checkpoint.record import read_record
    from xvla_ros.resources import checkpoint_path

    name = checkpoint or profile.policy.checkpoint
    folder = checkpoint_path(name) if name else shipped_policy([profile])
    if folder is None or not folder.is_dir():
        return False
    record = read_record(folder)
    domains = record.training.trained_domains
    known = known_as(profile, record.robots.values()) is not None
    return known and (domains is None or profile.policy.domain_id in domains)


def _require(duration: float) -> None:
    """Check before anything starts for what would fail only at the end.

    Raises:
        SetupError: the duration is no positive number, or something is not installed.
    """
    if not 0 < duration < float("inf"):
        raise SetupError(f"the duration is {duration} s; expected a number of seconds above 0")
    missing = [name for name in ("av", "jinja2", "matplotlib", "mujoco", "rclpy") if find_spec(name) is None]
    if missing:
        raise SetupError(f"a demo needs {', '.join(missing)}; install xvla_ros with its extras ros and sim")


def _prepare(folder: Path) -> None:
    """Remove what an earlier demo left, so that nothing of it is taken for this one's.

    Raises:
        SetupError: the folder cannot be written, or has files of these names that no demo wrote.
    """
    output_folder(folder)
    logs = folder / "logs"
    there = [name for name in RESULTS if (folder / name).exists()]
    if there and not (logs / f"{CHILDREN[0]}.log").exists():
        raise SetupError(
            f"--output {folder} contains {', '.join(there)}, but no logs/{CHILDREN[0]}.log, which every demo writes: "
            "name another folder, or remove these files"
        )
    for file in (*(folder / name for name in RESULTS), *(logs / f"{name}.log" for name in CHILDREN)):
        file.unlink(missing_ok=True)


def _drive(demo: Demo, profile: Profile, console: Console) -> None:
    """Bring the graph up, wait until the watched time is over, take the graph down."""
    from xvla_ros.ros_env import child_environment

    folder, progress = Path(demo.output), DemoProgress()
    with free_domain() as domain:
        environment = {**child_environment(), **THIS_MACHINE_ONLY, "ROS_DOMAIN_ID": str(domain)}
        console.say(f"{profile.name}, seed {demo.seed}: {_asked(demo)}")
        if settings_in_simulation(profile, demo.checkpoint or demo.server or None):
            console.say("no checkpoint: random weights; the first command may be anywhere (safety.first_step 1.0)")
        console.say(f"ROS_DOMAIN_ID={domain}, logs in {folder / 'logs'}")
        with Supervisor(folder / "logs", environment, echo=console.echo) as supervisor:
            watch = watch_command(profile, folder / BAG, duration=demo.duration, paced=not demo.real_time)
            watcher = supervisor.start("watch", watch, on_line=progress.hear, may_end=True)
            sim = supervisor.start("sim", sim_command(profile, seed=demo.seed))
            policy = supervisor.start("policy", _policy(demo, profile))
            leaders = []
            if demo.task is not None:
                leaders = [supervisor.start("lead", _leader(demo, profile), on_line=progress.hear_leader)]
            _await_first_command(supervisor, progress, console)
            supervisor.verbose = False
            _follow(supervisor, progress, console, demo.duration)
            _take_down(supervisor, [watcher, *leaders, policy], sim)


def _asked(demo: Demo) -> str:
    said = f"“{demo.instruction}”" if demo.instruction else "each with a new instruction"
    return said if demo.task is None else f"episodes of {demo.task}, {said}"


def _leader(demo: Demo, profile: Profile) -> list[str]:
    return lead_command(profile, demo.task or "", seed=demo.seed, pause=PAUSE, instruction=demo.instruction or None)


def _policy(demo: Demo, profile: Profile) -> list[str]:
    overridden = settings_in_simulation(profile, demo.checkpoint or demo.server or None)
    return policy_command(
        profile,
        checkpoint=demo.checkpoint,
        server=demo.server,
        instruction=demo.instruction or None,
        seed=demo.seed,
        device=demo.device,
        dtype=demo.dtype,
        sim_time=True,
        paced=not demo.real_time,
        autostart=demo.task is None,
        settings=overridden,
    )


def _await_first_command(supervisor: Supervisor, progress: DemoProgress, console: Console) -> None:
    def each() -> None:
        _require_leader(progress)

    supervisor.wait_for(lambda: progress.time > 0, CLOCK_LIMIT, "the simulation's /clock")
    console.say("the simulation runs; waiting for the policy")
    supervisor.wait_for(
        lambda: progress.state not in ("", "inactive"),
        POLICY_LIMIT,
        lambda: f"the policy node to become active; its state is {progress.policy()}",
        each=each,
    )
    active_since = progress.time

    def each_until_first() -> None:
        each()
        if progress.time - active_since > COMMAND_LIMIT * NS:
            raise ChildError(
                f"no command within {COMMAND_LIMIT:.0f} s of simulated time; the policy is {progress.policy()}; "
                f"its log: {supervisor.logs / 'policy.log'}"
            )
        if progress.standing_still > STALL_LIMIT:
            raise _stalled(supervisor)

    supervisor.wait_for(lambda: progress.start > 0, None, "the first command", each=each_until_first)
    console.say("first command; measuring")


def _follow(supervisor: Supervisor, progress: DemoProgress, console: Console, duration: float) -> None:
    def each() -> None:
        _require_leader(progress)
        console.episodes(progress)
        console.progress(progress, duration)
        if progress.standing_still > STALL_LIMIT:
            raise _stalled(supervisor)

    supervisor.wait_for(lambda: progress.done, None, "the end", each=each)
    console.episodes(progress)


def _stalled(supervisor: Supervisor) -> ChildError:
    return ChildError(
        f"simulated time has stood still for {STALL_LIMIT:.0f} s; {supervisor.logs / 'sim.log'} names the node that "
        "it waits for"
    )


def _require_leader(progress: DemoProgress) -> None:
    if progress.failed:
        raise ChildError(f"episode {len(progress.episodes) + 1}: {progress.failed}; see logs/lead.log")


def _take_down(supervisor: Supervisor, others: Sequence[Child], sim: Child) -> None:
    """Stop the policy before the simulation, so that it never sees its robot disappear."""
    for child in others:
        supervisor.stop(child)
    codes = supervisor.stop(sim)
    if codes["sim"] != 0:
        raise ChildError(sim.describe_end())


def _say_end(console: Console, report: Report, folder: Path) -> None:
    from xvla_ros.evaluation.report.figures import summary

    files = "\n".join(f"  {folder / name}" for name in ("report.html", "film.mp4", "report.json", BAG))
    console.say(f"\n{summary(report)}\n\n{files}")
