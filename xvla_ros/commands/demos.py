"""``xvla demos``: demonstrations of a task, made by its scripted expert in simulation, as bags."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from xvla_ros.evaluation.graph import SetupError

if TYPE_CHECKING:
    from xvla_ros.simulation.demonstrations import Demonstration, DemoSettings


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


def demos(
    robot: str,
    task: str,
    episodes: int,
    output: str | Path,
    *,
    seed: int = 0,
    image_size: int = 256,
    rate: float = 20.0,
    variants: int = 2,
    noise: float = 1.0,
    variation: float = 1.0,
    jobs: int = 1,
) -> int:
    """Record demonstrations of a task; those that are there already are kept.

    Args:
        robot: name of a profile, or a profile file with one robot.
        task: of the robot's scene.
        episodes: how many there shall be.
        output: folder of the bags.
        seed, variants, rate, noise, variation: see ``DemoSettings``.
        image_size: width and height of the pictures.
        jobs: processes that record at once.

    Returns:
        0; 1 after an error (said on stderr), or where more than one episode of twenty failed.
    """
    from xvla_ros.observation.bag_writer import BagWriteError
    from xvla_ros.robots import ProfileError, load_robot
    from xvla_ros.robots.kinematics import KinematicsError
    from xvla_ros.simulation.requirements import missing_extras

    try:
        if missing := missing_extras():
            raise SetupError(f"demonstrations need a simulator and kinematics; install xvla_ros[{','.join(missing)}]")
        from xvla_ros.simulation.demonstrations import DemonstrationsError, DemoSettings
        from xvla_ros.simulation.offscreen import RenderingUnavailableError
        from xvla_ros.simulation.scenes import UnknownSceneError
        from xvla_ros.simulation.tasks import NoLayoutError, UnknownTaskError
        from xvla_ros.simulation.world import SceneMismatchError
    except SetupError as error:
        print(f"xvla demos: {error}", file=sys.stderr)
        return 1
    try:
        settings = DemoSettings(
            load_robot(robot), task, seed, variants, rate, image_size, image_size, noise, variation
        )
        tally = _record(settings, episodes, Path(output), jobs)
    except (
        BagWriteError,
        DemonstrationsError,
        KinematicsError,
        NoLayoutError,
        ProfileError,
        RenderingUnavailableError,
        SceneMismatchError,
        SetupError,
        UnknownSceneError,
        UnknownTaskError,
    ) as error:
        print(f"xvla demos: {error}", file=sys.stderr)
        return 1
    return _say_end(tally, Path(output))


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
    print(f"{folder}: {made} episodes recorded ({tally.seconds:.0f} s){kept}; {size:.1f} MB in all")
    if tally.failed:
        shown = ", ".join(tally.failed[:5]) + (" …" if len(tally.failed) > 5 else "")
        print(f"{len(tally.failed)} of them failed, and say so (success: false): {shown}")
    return 1 if len(tally.failed) > made / 20 else 0
