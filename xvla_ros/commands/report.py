# SPDX-License-Identifier: Apache-2.0
"""``xvla report``: the page and the film of a run, from its bag: of a real arm, or of a demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from xvla_ros.commands.options import BagRobot, Command, Option, Positive
from xvla_ros.errors import SetupError
from xvla_ros.resources import output_folder

if TYPE_CHECKING:
    from xvla_ros.evaluation.report.figures import Report
    from xvla_ros.evaluation.report.recording import RunRecording
    from xvla_ros.robots.profile import Profile

AFTER_SUCCESS = 0.4  # s after a success at which the picture that stands for the film is taken


@dataclass(frozen=True, kw_only=True)
class MakeReport(Command):
    """Make the page and the film of a recorded run, of a real arm or of a demo.

    examples:
      xvla report recordings/so101_bimanual_20260101_120000.mcap
      xvla report xvla_out/demo/run.mcap --output again --no-film
    """

    bag: Annotated[str, Option(metavar="BAG", positional=True), "bag or its file"]
    robot: BagRobot = ""
    output: Annotated[str, "folder of the report page, the film and report.json"] = "xvla_out/report"
    duration: Annotated[Positive | None, "seconds to show, from the first command (default: to the end)"] = None
    film: Annotated[bool, "write only the page and report.json, no film"] = True

    def run(self) -> int:
        """Write the report's files, and print a summary and their names."""
        from xvla_ros.evaluation.report.figures import summary
        from xvla_ros.recordings.bag_recording import profile_of_bag
        from xvla_ros.robots import load_robot

        needed = ("jinja2", "matplotlib", *(["av"] if self.film else []))
        missing = [name for name in needed if find_spec(name) is None]
        if missing:
            raise SetupError(f"needs {', '.join(missing)}; install xvla_ros[replay], and xvla_ros[sim] for the film")
        bag, output = Path(self.bag), Path(self.output)
        profile = load_robot(self.robot) if self.robot else profile_of_bag(bag)
        made = write_report(bag, profile, output, duration=self.duration, film=self.film)
        files = ("report.html", *(["film.mp4"] if self.film else []), "report.json")
        print(f"{made.robot}\n{summary(made)}\n\n" + "\n".join(f"  {output / name}" for name in files))
        return 0


def write_report(
    bag: Path,
    profile: Profile,
    output: Path,
    *,
    duration: float | None = None,
    film: bool = True,
    assumed: Mapping[str, str] | None = None,
) -> Report:
    """Write ``report.json``, ``report.html`` and ``film.mp4`` of a run.

    Args:
        bag: of the run.
        profile: the robot.
        output: folder of the files.
        duration: s from the first command that count.
        film: whether one is made.
        assumed: diagnostics of the policy in the place of those of a run that ended before it had said any.

    Raises:
        BagError, EvaluationError, EvaluationError: see there.
    """
    from xvla_ros.evaluation.report.figures import make_report, write_json
    from xvla_ros.evaluation.report.film import FilmedRun, read_frame, write_film
    from xvla_ros.evaluation.report.page import write_html
    from xvla_ros.evaluation.report.recording import read_recording

    recording = read_recording(bag, profile, duration)
    if assumed and not recording.diagnostics:
        recording = replace(recording, diagnostics=dict(assumed))
    made = make_report(recording, profile)
    output_folder(output)
    write_json(made, output / "report.json")
    path, poster = output / "film.mp4", None
    if film:
        write_film(bag, recording, profile, FilmedRun.of(profile, trained=made.trained), path)
        poster = read_frame(path, _telling_moment(recording))
    write_html(made, recording, profile, output / "report.html", film=path if film else None, poster=poster)
    return made


def _telling_moment(recording: RunRecording) -> float:
    """Return the moment in s just after the first success; the middle of the run where there is none."""
    ends = [each.ended for each in recording.episodes if each.success and each.ended is not None]
    return min(ends[0] + AFTER_SUCCESS, recording.duration) if ends else recording.duration / 2
