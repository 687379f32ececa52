# SPDX-License-Identifier: Apache-2.0
"""``xvla demos``: demonstrations of a task, made by its scripted expert in simulation, as bags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from xvla_ros.commands.options import Command, Count, ImageSize, Positive, Robot, Seed, Share, Task, Variation
from xvla_ros.errors import SetupError

if TYPE_CHECKING:
    from xvla_ros.simulation.demonstrations import Demonstration, DemoSettings


@dataclass(frozen=True, kw_only=True)
class Demos(Command):
    """Record demonstrations of a task in simulation, by a scripted expert, as bags; those that are there are kept.

    examples:
      xvla demos --task touch --episodes 400 --output demos/touch
      xvla demos --robot widowx --task pick_place --episodes 50 --image-size 128 --jobs 4 --output demos/pick
    """

    robot: Robot = "so101_bimanual"
    task: Task = "touch"
    episodes: Annotated[Count, "how many there shall be"] = 100
    seed: Annotated[Seed, "seed of the first layout"] = 0
    output: Annotated[str, "folder of the bags"]
    image_size: ImageSize = 256
    rate: Annotated[Positive, "pictures and plans per second"] = 20.0
    variants: Annotated[Count, "instructions for each layout"] = 2
    noise: Annotated[Share, "how much the execution is disturbed, 0 not at all"] = 1.0
    variation: Variation = 1.0
    jobs: Annotated[Count, "processes that record at once"] = 1

    def run(self) -> int:
        """Record, and print what was recorded; return 1 where more than one episode in twenty failed."""
        from xvla_ros.robots import load_robot
        from xvla_ros.simulation.offscreen import missing_extras

        if missing := missing_extras():
            raise SetupError(f"demonstrations need a simulator and kinematics; install xvla_ros[{','.join(missing)}]")
        from xvla_ros.simulation.demonstrations import DemoSettings

        settings = DemoSettings(
            load_robot(self.robot), self.task, self.seed, self.variants, self.rate, self.image_size, self.image_size,
            self.noise, self.variation,
        )  # fmt: skip
        tally = _record(settings, self.episodes, Path(self.output), self.jobs)
        return _say_end(tally, Path(self.output))


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
    print(f"{folder}: {made} episodes recorded ({tally.seconds:.0f} s){kept}; {size:.1f} MB in all")
    if tally.failed:
        shown = ", ".join(tally.failed[:5]) + (" …" if len(tally.failed) > 5 else "")
        print(f"{len(tally.failed)} of them failed, and say so (success: false): {shown}")
    return 1 if len(tally.failed) > made / 20 else 0
