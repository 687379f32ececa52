"""``xvla demo``: the policy drives a simulated robot over real ROS topics; a film and a report say what happened.

A policy that was trained for the robot is led through episodes of a task, another one has one instruction throughout.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvla_ros.commands.demo_console import Console, Progress
from xvla_ros.commands.demo_task import choose_task, is_trained
from xvla_ros.evaluation.episodes import NANOSECONDS
from xvla_ros.evaluation.graph import (
    THIS_MACHINE_ONLY,
    SetupError,
    lead_command,
    policy_command,
    settings_in_simulation,
    sim_command,
    watch_command,
)
from xvla_ros.evaluation.processes import Child, ChildError, Interrupted, Supervisor, free_domain

if TYPE_CHECKING:
    from xvla_ros.evaluation.recorder import Recording
    from xvla_ros.evaluation.report import Report
    from xvla_ros.robots.profile import Profile

DEFAULT_INSTRUCTION = "touch the red cube"
FILM_RATE = 15
# On the steady clock. Loading 0.9 B weights from a slow disk takes minutes, a simulation seconds.
CLOCK_LIMIT, POLICY_LIMIT, STALL_LIMIT = 300.0, 900.0, 900.0
# s of simulated time that a policy which is active may take to command.
COMMAND_LIMIT = 60.0
# s of simulated time that the end of an episode stays to be seen.
PAUSE = 0.8
RECORDING, STATS = "recording", "sim.json"


@dataclass(frozen=True)
class DemoSettings:
    """What a demo runs with.

    Attributes:
        duration: s of simulated time from the first command.
        instruction: from beginning to end, or with a task the only one its episodes have; empty there for any.
        task: whose episodes are led; None leads none.
        dtype: what the policy computes in; empty takes the fastest here.
        real_time: simulated time goes on while a policy too slow for it computes.
    """

    profile: Profile
    duration: float
    seed: int
    instruction: str
    task: str | None
    output: Path
    checkpoint: str | None
    device: str
    window: bool | None
    dtype: str = ""
    real_time: bool = False


def demo(
    robot: str = "so101_bimanual",
    duration: float = 20.0,
    seed: int = 7,
    instruction: str | None = None,
    output: Path | str | None = None,
    checkpoint: str | None = None,
    window: bool | None = None,
    device: str = "cpu",
    task: str | None = None,
    dtype: str = "",
    real_time: bool = False,
) -> int:
    """Run the policy against a simulated robot and write ``report.json``, ``film.mp4`` and ``report.html``.

    The nodes run as processes on a ROS domain of their own and are gone when this returns, however it returns. The
    simulation waits for the policy, so that a slow machine shows what a fast one does, later. A run that ends early
    leaves film and report of what was recorded too.

    Args:
        robot: name of a profile, or a profile file with one robot.
        duration: s of simulated time from the first command to the end.
        seed: of the scene and of the sampler's noise.
        instruction: what to do; None takes what the task's layouts ask for, without a task the profile's.
        output: folder of the results; None is ``xvla_out/demo``.
        checkpoint: folder or hub id; None takes the profile's.
        window: show the film while it is made; None does so where there is a display.
        device: of the policy, "cpu" or "cuda".
        task: whose episodes are led, one after the other; "none" leads none; None leads those of touch or another task
            of the scene, where the policy was trained for the robot.
        dtype: what the policy computes in: float32, bfloat16, int8; empty takes the fastest here.
        real_time: let simulated time go on while a policy too slow for it computes.

    Returns:
        0; 1 after an error (said on stderr); 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        _require(duration)
    except SetupError as error:
        print(f"xvla demo: {error}", file=sys.stderr)
        return 1
    from xvla_ros.commands.live_window import WindowError, require_display
    from xvla_ros.errors import CheckpointError
    from xvla_ros.evaluation.film import FilmError
    from xvla_ros.evaluation.recorder import RecordingError, can_be_shown
    from xvla_ros.robots import ProfileError, load_robot
    from xvla_ros.simulation.scenes import UnknownSceneError
    from xvla_ros.simulation.tasks.catalogue import UnknownTaskError

    console, ended = Console(), None
    try:
        if window:
            require_display()
        profile = load_robot(robot)
        led = choose_task(profile, checkpoint, instruction, task)
        wording = instruction or ("" if led else profile.instruction or DEFAULT_INSTRUCTION)
        folder = Path(output) if output is not None else Path("xvla_out/demo")
        settings = DemoSettings(
            profile, float(duration), seed, wording, led, folder, checkpoint, device, window, dtype, real_time
        )
        _prepare(folder)
        try:
            _drive(settings, console)
        except (ChildError, Interrupted) as error:
            if not can_be_shown(folder / RECORDING):
                raise
            ended = error
            said = "stopped" if isinstance(error, Interrupted) else f"ended early: {error}"
            print(f"\nxvla demo: {said}; film and report show what was recorded", file=sys.stderr, flush=True)
        console.say("writing the report and the film")
        report = write_results(settings)
    except (Interrupted, KeyboardInterrupt) as stop:
        print("\nstopped; no process is left", file=sys.stderr)
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    except (
        CheckpointError,
        ChildError,
        FilmError,
        OSError,
        ProfileError,
        RecordingError,
        SetupError,
        UnknownSceneError,
        UnknownTaskError,
        WindowError,
    ) as error:
        print(f"xvla demo: {error}", file=sys.stderr)
        return 1
    _say_end(console, report, folder)
    if ended is None:
        return 0
    if isinstance(ended, Interrupted):
        return ended.exit_code
    print(f"xvla demo: ended early; what the nodes said: {folder / 'logs'}", file=sys.stderr)
    return 1


def write_results(settings: DemoSettings) -> Report:
    """Turn the recording in the output folder into the three files; the recording is deleted."""
    from xvla_ros.evaluation.film import read_frame, write_film
    from xvla_ros.evaluation.film_frame import Scene
    from xvla_ros.evaluation.page import write_html
    from xvla_ros.evaluation.recorder import read_recording
    from xvla_ros.evaluation.report import make_report, write_json

    output, profile = settings.output, settings.profile
    recording = read_recording(output / RECORDING, profile, settings.duration)
    if not recording.diagnostics:  # ended before the policy had said anything of itself
        told = str(is_trained(profile, settings.checkpoint)).lower()
        recording = replace(recording, diagnostics={"trained": told})
    report = make_report(recording, profile, _read_stats(output / STATS), settings.seed)
    write_json(report, output / "report.json")
    film = output / "film.mp4"
    write_film(output / RECORDING, recording, Scene.of(profile, trained=report.trained), film, FILM_RATE)
    poster = read_frame(film, _telling_moment(recording))
    write_html(report, recording, profile, output / "report.html", film=film, poster=poster)
    shutil.rmtree(output / RECORDING)
    (output / STATS).unlink(missing_ok=True)
    return report


def _telling_moment(recording: Recording) -> float:
    """The end of the first episode that succeeded, else the middle."""
    ends = [each.ended for each in recording.episodes if each.success and each.ended is not None]
    return min(ends[0] + PAUSE / 2, recording.duration) if ends else recording.duration / 2


def _require(duration: float) -> None:
    """Say before anything starts what would fail at the end."""
    if not 0 < duration < float("inf"):
        raise SetupError(f"the duration is {duration} s; expected a number of seconds above 0")
    missing = [name for name in ("av", "matplotlib", "mujoco", "rclpy") if find_spec(name) is None]
    if missing:
        raise SetupError(f"a demo needs {', '.join(missing)}; install xvla_ros with its extras ros and sim")


def _prepare(folder: Path) -> None:
    for name in ("report.json", "film.mp4", "report.html", STATS):
        (folder / name).unlink(missing_ok=True)
    for name in (RECORDING, "logs"):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    folder.mkdir(parents=True, exist_ok=True)


def _drive(settings: DemoSettings, console: Console) -> None:
    """Bring the graph up, wait until the watched time is over, take the graph down."""
    from xvla_ros.commands.live_window import open_window
    from xvla_ros.ros_env import child_environment

    folder, profile = settings.output, settings.profile
    progress = Progress()
    with free_domain() as domain:
        environment = {**child_environment(), **THIS_MACHINE_ONLY, "ROS_DOMAIN_ID": str(domain)}
        console.say(f"{profile.name}, seed {settings.seed}: {_asked(settings)}")
        if settings_in_simulation(profile, settings.checkpoint):
            console.say("no checkpoint: random weights, which may begin anywhere (safety.first_step 1.0)")
        console.say(f"ROS_DOMAIN_ID={domain}, logs in {folder / 'logs'}")
        with Supervisor(folder / "logs", environment, echo=console.echo) as supervisor:
            recording = folder / RECORDING
            watch = watch_command(
                profile, recording, duration=settings.duration, film_rate=FILM_RATE, paced=not settings.real_time
            )
            watcher = supervisor.start("watch", watch, on_line=progress.hear, may_end=True)
            sim = supervisor.start("sim", sim_command(profile, seed=settings.seed, stats=folder / STATS))
            policy = supervisor.start("policy", _policy(settings))
            leaders = []
            if settings.task is not None:
                leaders = [supervisor.start("lead", _leader(settings), on_line=progress.hear_leader)]
            _await_first_command(supervisor, progress, console)
            supervisor.verbose = False
            with open_window(settings.window, recording, profile) as refresh:
                _follow(supervisor, progress, console, settings.duration, refresh)
            _take_down(supervisor, [watcher, *leaders, policy], sim)


def _asked(settings: DemoSettings) -> str:
    said = f"“{settings.instruction}”" if settings.instruction else "a new instruction each"
    return said if settings.task is None else f"episodes of {settings.task}, {said}"


def _leader(settings: DemoSettings) -> list[str]:
    return lead_command(
        settings.profile,
        settings.task or "",
        seed=settings.seed,
        pause=PAUSE,
        instruction=settings.instruction or None,
    )


def _policy(settings: DemoSettings) -> list[str]:
    overridden = settings_in_simulation(settings.profile, settings.checkpoint)
    return policy_command(
        settings.profile,
        checkpoint=settings.checkpoint,
        instruction=settings.instruction or None,
        seed=settings.seed,
        device=settings.device,
        dtype=settings.dtype,
        sim_time=True,
        paced=not settings.real_time,
        autostart=settings.task is None,
        settings=overridden,
    )


def _await_first_command(supervisor: Supervisor, progress: Progress, console: Console) -> None:
    def each() -> None:
        _require_leader(progress)

    supervisor.wait_for(lambda: progress.time > 0, CLOCK_LIMIT, "the simulation's /clock")
    console.say("the simulation runs; waiting for the policy")
    supervisor.wait_for(
        lambda: progress.state not in ("", "inactive"),
        POLICY_LIMIT,
        lambda: f"the policy node to become active; it is {progress.policy()}",
        each=each,
    )
    active_since = progress.time

    def each_until_first() -> None:
        each()
        if progress.time - active_since > COMMAND_LIMIT * NANOSECONDS:
            raise ChildError(
                f"no command within {COMMAND_LIMIT:.0f} s of simulated time; the policy is {progress.policy()}; "
                f"its log: {supervisor.logs / 'policy.log'}"
            )
        if progress.standing_still > STALL_LIMIT:
            raise _stalled(supervisor)

    supervisor.wait_for(lambda: progress.start > 0, None, "the first command", each=each_until_first)
    console.say("first command; measuring")


def _follow(
    supervisor: Supervisor, progress: Progress, console: Console, duration: float, refresh: Callable[[], None]
) -> None:
    def each() -> None:
        refresh()
        _require_leader(progress)
        console.episodes(progress)
        console.progress(progress, duration)
        if progress.standing_still > STALL_LIMIT:
            raise _stalled(supervisor)

    supervisor.wait_for(lambda: progress.done, None, "the end", each=each)
    console.episodes(progress)


def _stalled(supervisor: Supervisor) -> ChildError:
    return ChildError(
        f"simulated time has stood still for {STALL_LIMIT:.0f} s; {supervisor.logs / 'sim.log'} says for whom it waits"
    )


def _require_leader(progress: Progress) -> None:
    if progress.failed:
        raise ChildError(f"episode {len(progress.episodes) + 1}: {progress.failed}; see logs/lead.log")


def _take_down(supervisor: Supervisor, others: Sequence[Child], sim: Child) -> None:
    """Stop the policy before the simulation, so that it never sees its robot disappear."""
    for child in others:
        supervisor.stop(child)
    codes = supervisor.stop(sim)
    if codes["sim"] != 0:
        raise ChildError(sim.describe_end())


def _read_stats(path: Path) -> dict[str, Any]:
    """What the simulation counted; nothing where it was killed."""
    try:
        stats: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return stats


def _say_end(console: Console, report: Report, folder: Path) -> None:
    from xvla_ros.evaluation.report import summary

    files = "\n".join(f"  {folder / name}" for name in ("report.html", "film.mp4", "report.json"))
    console.say(f"\n{summary(report)}\n\n{files}")
