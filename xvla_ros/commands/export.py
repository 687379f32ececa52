# SPDX-License-Identifier: Apache-2.0
"""``xvla export``: bags as a LeRobot data set."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from xvla_ros.commands.options import BagRobot, Command, Count, Option
from xvla_ros.errors import Interrupted, SetupError
from xvla_ros.resources import usable_cores

if TYPE_CHECKING:
    from xvla_ros.recordings.lerobot_export import Exported


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write a LeRobot v3.0 data set of the episodes of some bags, which LeRobot and ``xvla train`` read.

    examples:
      xvla export lerobot recordings/touch --output data/touch
      xvla export lerobot monday.mcap tuesday.mcap --output data/week --fps 30 --instruction "touch the red cube"
    """

    what: Annotated[Literal["lerobot"], Option(positional=True), "the format"]
    bags: Annotated[tuple[str, ...], Option(metavar="BAG", positional=True), "bag, its file, or a folder of bags"]
    output: Annotated[str, "folder of the data set, which must not be there"]
    robot: BagRobot = ""
    fps: Annotated[Count | None, "frames a second (default: the rate of slot 0)"] = None
    instruction: Annotated[str, "instruction in place of the recorded ones"] = ""
    actions: Annotated[
        Literal["auto", "commanded", "measured"],
        "what the actions are: what was commanded, or where the joints were; auto: commanded where all of it is",
    ] = "auto"
    all_episodes: Annotated[bool, "also the episodes that failed"] = False
    codec: Annotated[
        Literal["h264", "h264-444", "av1"],
        "how videos are coded; h264-444 keeps the colour of every pixel, av1 takes up to twice as long",
    ] = "h264"
    skip_bad: Annotated[bool, "leave out bags with problems instead of refusing them"] = False
    jobs: Annotated[Count | None, "processes, a bag each (default: one for each core)"] = None

    def run(self) -> int:
        """Write the data set; print what is in it, and what was left out."""
        if any(find_spec(name) is None for name in ("av", "pyarrow")):
            raise SetupError("data sets are written with pyarrow and PyAV: pip install 'xvla_ros[lerobot]'")
        from tqdm import tqdm

        from xvla_ros.commands.replay import find_bags
        from xvla_ros.recordings.lerobot_encoding import ExportOptions
        from xvla_ros.recordings.lerobot_export import export

        bags = find_bags(self.bags)
        jobs = self.jobs or min(usable_cores(), len(bags))
        options = ExportOptions(
            self.robot,
            self.fps,
            self.instruction,
            not self.all_episodes,
            self.actions,
            self.codec,
            self.skip_bad,
            jobs,
            max(1, usable_cores() // jobs) if jobs > 1 else 0,
        )
        with tqdm(unit="bag", disable=None) as bar, _ended_by_signals():

            def progress(what: str, done: int, total: int) -> None:
                bar.set_description(what, refresh=False)
                bar.total, bar.n = total, done
                bar.refresh()

            found = export(bags, Path(self.output), options, progress)
        print(summary(found, self.codec))
        return 0


def summary(found: Exported, codec: str) -> str:
    """Return what was written, and what was left out, in lines for the console."""
    cameras = ", ".join(f"{slot} {size[1]}x{size[0]}" for slot, size in found.cameras.items())
    size = sum(file.stat().st_size for file in found.folder.rglob("*") if file.is_file()) / 1e6
    lines = [
        f"{found.folder}: {found.episodes} episodes, {found.frames} frames at {found.fps} Hz "
        f"({found.frames / found.fps:.1f} s), {size:.1f} MB",
        f"  actions  {found.actions}",
        f"  cameras  {cameras or 'none'}; {codec}",
        f"  tasks    {len(found.tasks)}: {'; '.join(found.tasks[:3])}" + " …" * (len(found.tasks) > 3),
    ]
    if found.skipped:
        lines.append("  skipped  " + ", ".join(f"{count} {reason}" for reason, count in sorted(found.skipped.items())))
        lines += [f"    {line}" for line in found.faults.lines()]
    return "\n".join([*lines, *(f"  {note}" for note in found.notes)])


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a termination end the block as Ctrl-C does, so that what is half done is removed."""

    def end(number: int, _frame: Any) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
