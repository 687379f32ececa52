# SPDX-License-Identifier: Apache-2.0
"""A demo of a policy that was trained for the robot: episodes of a task, told in words, judged, and shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from xvla_ros.commands.demo import Console, DemoProgress, choose_task, is_trained
from xvla_ros.errors import SetupError, SimulationError
from xvla_ros.evaluation.report.figures import joint_travel, make_report
from xvla_ros.evaluation.report.film import DONE_COLOUR, FAILED_COLOUR, Composer, FilmedRun, read_frame
from xvla_ros.evaluation.report.recording import RunRecording, read_recording
from xvla_ros.recordings.cdr import STRING, string
from xvla_ros.robots.profile import Profile, load_robot
from xvla_ros.simulation.tasks import load_task
from xvla_ros.simulation.world import World

sys.path.insert(0, str(Path(__file__).parent))
from recorded_run import RecordedRun
from steadfast import save_steadfast

pytest.importorskip("pinocchio")

ROBOT = "so101_bimanual"
LIMIT = 300.0  # s, only ends a hang
DURATION = 3.0
VIEW = (97, 200)  # a pixel on the upper edge of the first camera's picture, where nothing says "untrained"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_robot(ROBOT)


@pytest.fixture(scope="module")
def trained(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """A checkpoint whose record says that it was trained for the pair, and the seed of a layout that it succeeds in."""
    folder = tmp_path_factory.mktemp("trained")
    return str(folder), save_steadfast(profile, folder, trained=True)


@pytest.fixture(scope="module")
def untrained(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("untrained")
    save_steadfast(profile, folder)
    return str(folder)


def test_a_policy_that_was_trained_for_the_robot_is_led_through_a_task(
    profile: Profile, trained: tuple[str, int], untrained: str
) -> None:
    assert is_trained(profile, trained[0]) and not is_trained(profile, untrained)
    assert not is_trained(profile, "someone/checkpoint") and not is_trained(load_robot("widowx"), trained[0])
    assert choose_task(profile, trained[0], None, None) == "touch"
    assert choose_task(profile, untrained, None, None) is None
    assert choose_task(profile, trained[0], None, "none") is None
    assert choose_task(profile, untrained, None, "pick_place") == "pick_place"
    assert choose_task(profile, trained[0], "touch the red cube", None) == "touch"
    assert choose_task(profile, trained[0], "put the red cube in the bowl", None) == "pick_place"
    assert choose_task(profile, trained[0], "dance", None) is None


def test_a_task_that_cannot_be_led_is_named(profile: Profile) -> None:
    with pytest.raises(SimulationError, match="no task 'juggle'"):
        choose_task(profile, None, None, "juggle")
    with pytest.raises(
        SetupError, match="the task touch has no instruction 'dance'; expected one of: touch the red cube"
    ):
        choose_task(profile, None, "dance", "touch")


def test_layouts_are_found_that_an_instruction_can_be_given_in(profile: Profile) -> None:
    task, world, wanted = load_task(profile, "touch"), World(profile), "touch the blue cube with the left arm"
    found = list(islice(task.layouts_saying(world, wanted, 7), 3))
    assert len({seed for seed, _ in found}) == 3 and min(found)[0] >= 7
    for seed, variant in found:
        assert task.reset(world, np.random.default_rng(seed), variant).instruction == wanted
    with pytest.raises(ValueError, match="touch of so101_bimanual has no instruction 'dance'"):
        next(task.layouts_saying(world, "dance", 7))


@pytest.fixture(scope="module")
def recording(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> RunRecording:
    """Two episodes of two seconds, in each of which every joint goes 0.5 rad on from 0, and one that is cut short."""
    bag = tmp_path_factory.mktemp("recorded") / "run.mcap"
    with RecordedRun(bag, profile) as run:
        run.command(10.0, [0.0] * 6)
        run.diagnostics(10.0, {"trained": "true"})
        run.outcome(1, 9.9, 9.9)
        run.outcome(1, 9.9, 11.9, over=True, success=True)
        run.outcome(2, 11.995, 11.995)
        run.outcome(2, 11.995, 13.9, over=True, wrong=True)
        run.outcome(3, 13.995, 13.995)
        run.outcome(3, 13.995, 15.5, over=True, success=True)
        for tick in range(1000, 1500):
            run.joints(tick / 100, [0.25 * ((tick / 100) % 2.0)] * 6)
        for time, holds in ((11, 1), (12, 3), (13, 0), (14, 2)):
            run.status(time, holds=holds, instruction="touch cube 1")
    return read_recording(bag, profile, 5.0)


def test_episodes_are_read_out_of_a_recording(recording: RunRecording, profile: Profile) -> None:
    first, second, third = recording.episodes
    assert (first.begun, first.ended, first.outcome) == (pytest.approx(-0.1), pytest.approx(1.9), "touched")
    assert (second.instruction, second.outcome) == ("touch cube 2", "did something else")
    assert (third.ended, third.success, third.outcome) == (None, False, "")
    mapping = make_report(recording, profile).to_mapping()
    assert mapping["task"] == "touch" and mapping["success_rate"] == 0.5
    assert mapping["episodes"] == [
        {"seed": 7, "instruction": "touch cube 1", "success": True, "wrong": False, "duration": 2.0},
        {"seed": 8, "instruction": "touch cube 2", "success": False, "wrong": True, "duration": 1.905},
    ]
    assert mapping["holds"] == 5


def test_outcomes_of_an_older_bag_are_read_too(recording: RunRecording, profile: Profile, tmp_path: Path) -> None:
    """They were JSON in a String."""
    said = {"robot": ROBOT, "task": "touch", "episode": 1, "seed": 7, "variant": 0, "instruction": "touch cube 1",
            "success": True, "wrong": False, "elapsed": 2.0, "over": True, "begun": 9_900_000_000,
            "stamp": 11_900_000_000}  # fmt: skip
    with RecordedRun(tmp_path / "run.mcap", profile) as run:
        run.command(10.0, [0.0] * 6)
        run.write(f"/sim/{ROBOT}/outcome", STRING, 11.9, string(json.dumps(said)))
    assert read_recording(tmp_path / "run.mcap", profile).episodes == recording.episodes[:1]


def test_a_reset_is_no_motion(recording: RunRecording, profile: Profile) -> None:
    parts = recording.measured[profile.joints.policy_order[0]].stretches(recording.resets)
    assert [len(part.time) for part in parts[1:]] == [200, 200, 100]
    # five joints and no gripper
    assert joint_travel(recording, profile)[profile.commands.groups[0]] == pytest.approx(5 * (0.4975 * 2 + 0.2475))


def test_the_film_marks_what_an_episode_came_to(recording: RunRecording, profile: Profile) -> None:
    composer = Composer(FilmedRun.of(profile, trained=True))

    def edge(time: float) -> tuple[int, ...]:
        return tuple(composer.frame(time, {}, None, recording.measured, {}, recording.episodes)[VIEW].tolist())

    assert edge(1.95) == DONE_COLOUR
    assert edge(3.95) == FAILED_COLOUR
    assert edge(1.0) not in (DONE_COLOUR, FAILED_COLOUR) and edge(2.5) == edge(4.5) == edge(1.0)


def test_the_console_has_a_line_for_every_episode(capsys: pytest.CaptureFixture[str]) -> None:
    progress, console = DemoProgress(), Console()
    console.episodes(progress)
    for ended in ({"success": True}, {"wrong": True}, {}):
        number = len(progress.episodes) + 1
        told = {"task": "touch", "seed": 6 + number, "instruction": f"touch cube {number}", "elapsed": 2.25}
        progress.episodes.append({**told, "success": False, "wrong": False, **ended})
        console.episodes(progress)
    assert capsys.readouterr().out.splitlines() == [
        "  ✓ “touch cube 1”: touched, 2.2 s (seed 7)",
        "  ✗ “touch cube 2”: did something else, 2.2 s (seed 8)",
        "  ✗ “touch cube 3”: time limit, 2.2 s (seed 9)",
    ]
    assert progress.hear_leader('PROGRESS {"failed": "no clock"}') and progress.failed == "no clock"


@pytest.fixture(scope="module")
def finished(trained: tuple[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Output folder and console output of one short demo."""
    pytest.importorskip("rclpy")
    folder = tmp_path_factory.mktemp("demo")
    ended = subprocess.run(
        [sys.executable, "-m", "xvla_ros", "demo", "--checkpoint", trained[0], "--seed", str(trained[1]),
         "--duration", f"{DURATION:g}", "--headless", "--output", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    yield folder, ended.stdout


def test_over_ros_topics_the_pair_does_what_it_is_told(finished: tuple[Path, str], trained: tuple[str, int]) -> None:
    folder, console = finished
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    first = report["episodes"][0]
    assert report["trained"] and report["task"] == "touch"
    assert (first["seed"], first["success"], first["wrong"]) == (trained[1], True, False)
    assert 0.0 < first["duration"] < DURATION
    assert report["success_rate"] == sum(each["success"] for each in report["episodes"]) / len(report["episodes"])
    told = [line for line in console.splitlines() if "(seed" in line]
    assert len(told) == len(report["episodes"])
    assert f"“{first['instruction']}”: touched" in told[0]
    assert "untrained" not in console


def test_film_and_page_show_it_done(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"<td>{report['episodes'][0]['instruction']}</td><td>✓ touched</td>" in page
    frame = read_frame(folder / "film.mp4", report["episodes"][0]["duration"] + 0.4)
    np.testing.assert_allclose(frame[VIEW].astype(int), DONE_COLOUR, atol=40)
    assert "Traceback" not in "".join(log.read_text(encoding="utf-8") for log in (folder / "logs").glob("*.log"))
