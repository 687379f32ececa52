# SPDX-License-Identifier: Apache-2.0
"""``xvla export``: bags as a LeRobot data set, a checkpoint as graphs for other engines."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from xvla_ros.commands.options import Command, Count, Option, Words
from xvla_ros.errors import Interrupted, SetupError
from xvla_ros.resources import usable_cores

if TYPE_CHECKING:
    from xvla_ros.recordings.lerobot_export import Exported


OF_DATA_SETS = ("fps", "instruction", "actions", "all_episodes", "codec", "skip_bad", "jobs")
OF_ENGINES = ("inputs",)


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write a LeRobot v3.0 data set of the episodes of bags, or a checkpoint with graphs that other engines run.

    lerobot is read by LeRobot and ``xvla train``. onnx, openvino and tensorrt write a folder that is a checkpoint like
    the given one and also contains its network as graphs, for ONNX Runtime, OpenVINO, or TensorRT on this machine's
    GPU: name it as the checkpoint.

    examples:
      xvla export lerobot recordings/touch --output data/touch
      xvla export lerobot monday.mcap tuesday.mcap --output data/week --fps 30 --instruction "touch the red cube"
      xvla export openvino my_checkpoint --output my_checkpoint_openvino
    """

    what: Annotated[Literal["lerobot", "onnx", "openvino", "tensorrt"], Option(positional=True), "the format"]
    sources: Annotated[
        tuple[str, ...],
        Option(metavar="BAG|CHECKPOINT", positional=True),
        "for lerobot: a bag, its file, or a folder of bags; otherwise: a checkpoint's folder or hub id, or shipped",
    ]
    output: Annotated[
        str,
        "folder to write, which must not exist; to a folder with the same checkpoint, the graphs of another "
        "engine are added",
    ]
    robot: Annotated[
        str,
        "name of a profile, or a profile file (default: the profile recorded in the bag; for engines all robots "
        "of the checkpoint)",
    ] = ""
    fps: Annotated[Count | None, "frames per second (default: the rate of the main camera)"] = None
    instruction: Annotated[Words, "instruction to write instead of the recorded ones"] = ""
    actions: Annotated[
        Literal["auto", "commanded", "measured"],
        "source of the actions: the commands, or the measured joints; auto: the commands where they are complete",
    ] = "auto"
    all_episodes: Annotated[bool, "also export the failed episodes"] = False
    codec: Annotated[
        Literal["h264", "h264-444", "av1"],
        "video codec; h264-444 keeps the colour of every pixel, av1 takes up to twice as long",
    ] = "h264"
    skip_bad: Annotated[bool, "skip bags with problems instead of ending with an error"] = False
    jobs: Annotated[Count | None, "number of processes, one bag each (default: one for each core)"] = None
    inputs: Annotated[Count, "number of random inputs on which an engine is compared with the network"] = 100

    def run(self) -> int:
        """Write what was asked for; print what is in it, and what was left out."""
        self._refuse_others(OF_ENGINES if self.what == "lerobot" else OF_DATA_SETS)
        return self._write_data_set() if self.what == "lerobot" else self._write_engine()

    def _refuse_others(self, names: Sequence[str]) -> None:
        """Refuse options that the format does not have."""
        defaults = {each.name: each.default for each in fields(self)}
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) != defaults[name]]
        if given:
            raise SetupError(f"{', '.join(given)}: export {self.what} has no such option; leave it out")

    def _write_data_set(self) -> int:
        if any(find_spec(name) is None for name in ("av", "pyarrow")):
            raise SetupError("writing data sets needs pyarrow and PyAV: pip install 'xvla_ros[lerobot]'")
        from tqdm import tqdm

        from xvla_ros.commands.replay import find_bags
        from xvla_ros.recordings.lerobot_encoding import ExportOptions
        from xvla_ros.recordings.lerobot_export import export

        bags = find_bags(self.sources)
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
            found = export(bags, Path(self.output), options, _shown_on(bar))
        print(summary(found, self.codec))
        return 0

    def _write_engine(self) -> int:
        if len(self.sources) != 1:
            raise SetupError(f"{len(self.sources)} checkpoints are given, expected one: {', '.join(self.sources)}")
        from tqdm import tqdm

        from xvla_ros.evaluation.graph import choose_profiles
        from xvla_ros.model.runtime.graphs import export_checkpoint

        robots = [profile.embodiment() for profile in choose_profiles(self.robot)] if self.robot else []
        with tqdm(disable=None) as bar, _ended_by_signals():
            report = export_checkpoint(
                self.sources[0], Path(self.output), self.what, robots, inputs=self.inputs, progress=_shown_on(bar)
            )
        numerics = report["numerics"]
        print(
            f"{self.output}: a checkpoint, with graphs for {' and '.join(map(str, report['views']))} views in "
            f"{self.what}\n"
            f"  against the network, over {numerics['inputs']} inputs of {numerics['steps']} steps, in the network's "
            f"units: rms {numerics['rms']:.1e}, largest {numerics['largest']:.1e} (allowed {numerics['bound']:.0e})"
        )
        return 0


def _shown_on(bar: Any) -> Callable[[str, int, int], None]:
    """Return what shows progress on a tqdm bar."""

    def progress(what: str, done: int, total: int) -> None:
        bar.set_description(what, refresh=False)
        bar.total, bar.n = total, done
        bar.refresh()

    return progress


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
