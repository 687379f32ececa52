# SPDX-License-Identifier: Apache-2.0
"""The watching node against known publishers over DDS, and what is read out of its bag."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.commands import main
from xvla_ros.commands.demo import DemoProgress
from xvla_ros.errors import EvaluationError
from xvla_ros.evaluation.graph import THIS_MACHINE_ONLY, watch_command
from xvla_ros.evaluation.processes import Supervisor, free_domain
from xvla_ros.evaluation.report.figures import (
    TRAVEL_DEADBAND,
    Frames,
    count_frames,
    make_report,
    summary,
    travel,
    write_json,
)
from xvla_ros.evaluation.report.film import (
    HEIGHT,
    WIDTH,
    Composer,
    FilmedRun,
    _plot_boxes,
    _view_boxes,
    caption,
    read_frame,
    write_film,
)
from xvla_ros.evaluation.report.page import write_html
from xvla_ros.evaluation.report.recording import RunRecording, Series, read_recording
from xvla_ros.recordings.bag_writer import BagWriter
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.marks import DIAGNOSTICS, beside_topic
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.joints import gripper_joints
from xvla_ros.robots.profile import Profile, load_robot
from xvla_ros.ros_env import child_environment
from xvla_ros.types import Percentiles

sys.path.insert(0, str(Path(__file__).parent))
from recorded_run import RecordedRun, message

ROBOT = "so101_bimanual"
DURATION = 4.0  # s, of which the watching node may lose half a second each time that it stands for a while
STAND_IN = Path(__file__).with_name("stand_in_robot.py")


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_robot(ROBOT)


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory, profile: Profile) -> Iterator[Path]:
    """A bag of the stand-in robot, made over DDS by the real node."""
    output = tmp_path_factory.mktemp("watched")
    progress = DemoProgress()
    with free_domain() as domain:
        environment = {**child_environment(), **THIS_MACHINE_ONLY, "ROS_DOMAIN_ID": str(domain)}
        with Supervisor(output / "logs", environment) as supervisor:
            command = watch_command(profile, output / "run.mcap", duration=DURATION, paced=True)
            watcher = supervisor.start("watch", command, on_line=progress.hear, may_end=True)
            supervisor.start("robot", [sys.executable, str(STAND_IN)])
            supervisor.wait_for(lambda: not watcher.running, 300, "the end of the watched time")
            assert watcher.process.returncode == 0
    yield output / "run.mcap"


@pytest.fixture(scope="module")
def recording(bag: Path, profile: Profile) -> RunRecording:
    return read_recording(bag, profile, DURATION)


def test_joints_are_read_by_time_and_policy_name(recording: RunRecording, profile: Profile) -> None:
    first = recording.start / 1e9
    for index, joint in enumerate(profile.joints.policy_order):
        series = recording.measured[joint]
        assert len(series.time) > 0.5 * DURATION * 100
        np.testing.assert_allclose(series.position, 0.5 * np.sin(series.time + first + index % 6), atol=1e-9)


def test_commands_lie_where_they_are_due(recording: RunRecording, profile: Profile) -> None:
    for index, joint in enumerate(profile.joints.policy_order):
        series = recording.commanded[joint]
        expected = 0.5 * np.sin(series.time + recording.start / 1e9 + index % 6)
        # Time of receipt is the newest /clock, one tick of 10 ms apart at most but for a busy machine.
        assert np.median(np.abs(series.position - expected)) < 0.011
    assert all(count > 0.5 * DURATION * 100 / 3 for count in recording.trajectories.values())


def test_chunks_come_back_in_joint_units(recording: RunRecording) -> None:
    # what a node lost that stood is sent to it again seconds later, when this one may have ended
    assert 1 <= len(recording.chunks) <= 9
    for chunk in recording.chunks:
        assert chunk.position is not None
        expected = 0.5 * np.sin(chunk.time + recording.start / 1e9)
        np.testing.assert_allclose(chunk.position[:, 0], expected, atol=1e-4)
        np.testing.assert_allclose(chunk.position[:, 6], expected, atol=1e-4)


def test_chunks_of_tool_poses_become_joints_from_where_the_arm_was_sent(tmp_path: Path) -> None:
    pytest.importorskip("pinocchio")
    profile = load_robot("widowx")
    # inside the box, pointing down
    home = np.array([0.0, 0.1, 0.3, 0.0, 1.17, 0.0, 0.037])
    ways = np.linspace(0.01, 0.05, 5)
    actions = np.tile(StateEncoder(profile).state(home), (len(ways), 1))
    actions[:, 0] += ways
    times = profile.policy.waypoint_dt * (1 + np.arange(len(ways)))
    with RecordedRun(tmp_path / "run.mcap", profile) as run:
        run.picture(8.0, profile.cameras.slots[0])
        run.joints(9.0, home)
        run.chunk(9.1, 9.0, times, actions, "ee6d")
        run.chunk(9.2, 9.0, times, actions * np.nan, "ee6d")
    chunk, broken = read_recording(tmp_path / "run.mcap", profile).chunks
    due = 1.0 + profile.policy.waypoint_dt * (1 + np.arange(5))
    np.testing.assert_allclose(chunk.time[::5], due)
    assert chunk.position is not None and np.abs(np.diff(chunk.position, axis=0)).max() < 0.1
    begun, reached = (StateEncoder(profile).tool_poses(where)["arm"] for where in (home, chunk.position))
    along = begun.positions[0] + np.interp(chunk.time, due, ways)
    np.testing.assert_allclose(reached.positions[:, 0], along, atol=1e-4)
    assert broken.position is None


def test_pictures_are_kept_for_every_camera(recording: RunRecording, profile: Profile) -> None:
    for camera in profile.cameras.slots:
        assert len(recording.stamps[camera]) > 0.5 * DURATION * 15


def test_the_three_outputs_agree_and_say_untrained(
    recording: RunRecording, bag: Path, profile: Profile, tmp_path: Path
) -> None:
    stamps = {camera: list(range(-3, 103)) for camera in profile.cameras.slots}
    recording = replace(recording, stamps=stamps, simulation={"real_time_factor": "1.0"})
    report = make_report(recording, profile)
    write_json(report, tmp_path / "report.json")
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["schema_version"] == 1
    assert (figures["trained"], figures["weights"]) == (False, "untrained")
    assert figures["duration"] == DURATION
    assert (figures["frames_sent"], figures["frames_received"], figures["frames_dropped"]) == (300, 297, 3)
    assert figures["holds"] == 1
    assert figures["overhead_ms"] == {"p50": 3.1, "p95": 4.0, "p99": 5.5, "max": 9.0}
    assert 80 <= figures["inference_ms"]["p50"] <= 86
    assert "answer_ms" not in figures, "no policy server was asked"
    # five joints without the gripper, each 0.5 * |cos| integrated
    assert all(0.6 * DURATION < way < 2.5 * DURATION for way in figures["joint_travel_rad"].values())

    film = tmp_path / "film.mp4"
    write_film(bag, recording, profile, FilmedRun.of(profile, trained=report.trained), film, rate=5)
    frame = read_frame(film, 2.0)
    assert frame.shape == (HEIGHT, WIDTH, 3)
    red, green, blue = frame[70, 20].astype(int)
    assert red > 150 > max(green, blue), "the untrained banner is missing"

    write_html(report, recording, profile, tmp_path / "report.html", film=film, poster=frame)
    page = (tmp_path / "report.html").read_text()
    assert "Untrained." in page
    assert page.count("data:image/png;base64,") == len(profile.joints.policy_order) + 2
    assert "http" not in page
    assert "untrained" in summary(report)


def test_how_late_a_policy_server_answers_is_told_where_one_was_asked(
    recording: RunRecording, profile: Profile, tmp_path: Path
) -> None:
    said = {
        f"answer_ms_{name}": value for name, value in (("p50", "91"), ("p95", "120"), ("p99", "230"), ("max", "410"))
    }
    report = make_report(replace(recording, diagnostics={**recording.diagnostics, **said}), profile)
    assert report.to_mapping()["answer_ms"] == {"p50": 91.0, "p95": 120.0, "p99": 230.0, "max": 410.0}
    assert "answers           median 91.0 ms, 99 % below 230.0 ms" in summary(report)
    write_html(report, recording, profile, tmp_path / "report.html")
    assert "230.0 ms" in (tmp_path / "report.html").read_text()


def test_holding_is_in_the_timeline(recording: RunRecording) -> None:
    held = [record for record in recording.statuses if record.state == "holding"]
    assert held
    assert {record.reason for record in held} == {"camera_stale"}


def test_a_policy_that_never_says_what_it_is_is_an_error(bag: Path, profile: Profile, tmp_path: Path) -> None:
    with BagWriter(tmp_path / "run.mcap", "") as writer:
        for message in Bag(bag).messages():
            if message.type != DIAGNOSTICS:
                writer.write(message.topic, message.type, message.log_time, message.data)
    with pytest.raises(EvaluationError, match="trained"):
        make_report(read_recording(tmp_path / "run.mcap", profile), profile)


def test_a_bag_of_a_real_arm_gives_page_and_film_of_what_it_holds(
    profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Demonstrations of a person: no policy, no simulation, episodes by marks."""
    with RecordedRun(tmp_path / "run.mcap", profile) as run:
        run.mark(10.0, event="start", instruction="pick up the cup")
        for tick in range(300):
            time = 10.0 + 0.02 * tick
            for topic in profile.joints.topics:
                run.joints(time, [0.01 * tick] * 6, topic)
            run.command(time, [0.01 * tick] * 6)
            run.picture(time, "front", shade=tick % 256)
            if tick == 100:
                run.mark(time, event="end", success=True)
            if tick in (150, 200):
                run.mark(time, event="start" if tick == 150 else "end", instruction="pick up the plate")
    assert main(["report", str(tmp_path / "run.mcap"), "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "  no policy" in told and "1 of 1 succeeded, 1 not judged" in told and "inference" not in told
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (figures["robot"], figures["trained"], figures["seed"]) == (ROBOT, None, None)
    assert figures["duration"] == pytest.approx(5.98) and figures["real_time_factor"] is None
    assert figures["joint_travel_rad"]["left_arm"] == pytest.approx(5 * 2.99, rel=0.01)
    assert figures["success_rate"] == 1.0, "of those that were judged"
    assert [(each["success"], each["seed"], each["duration"]) for each in figures["episodes"]] == [
        (True, None, 2.0),
        (None, None, 1.0),
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<td>pick up the cup</td><td>✓ succeeded</td>" in page
    assert "<td>pick up the plate</td><td>– not judged</td>" in page
    assert page.count("data:image/png;base64,") == len(profile.joints.policy_order) + 1
    for absent in ("weights", "Latency", "simulated", "frames dropped", "Untrained", "X-VLA"):
        assert absent not in page, absent
    early, late = (read_frame(tmp_path / "out" / "film.mp4", second) for second in (0.2, 4.0))
    views = slice(130, 400)
    assert late[views, 100].mean() > early[views, 100].mean() + 50
    assert main(["report", str(tmp_path / "none.mcap")]) == 1
    assert "xvla report: " in capsys.readouterr().err


def test_a_film_shows_the_view_from_beside_and_nothing_of_the_episode_before(profile: Profile, tmp_path: Path) -> None:
    """After the reset at 2 s the right wrist sends nothing more: its last picture is of the other episode."""
    import cv2

    beside = beside_topic(profile)
    with RecordedRun(tmp_path / "run.mcap", profile) as run:
        for tick in range(40):
            time = 10.0 + 0.1 * tick
            run.command(time, [0.0] * 6)
            begun = 10.0 if tick < 20 else 12.0
            run.outcome(1 if tick < 20 else 2, begun, time, over=tick == 19)
            for slot in profile.cameras.slots if tick < 20 else ("front", "left_wrist"):
                run.picture(time, slot, shade=200)
            jpeg = cv2.imencode(".jpg", np.full((90, 160, 3), 250, np.uint8))[1]
            picture = message(beside.type, stamp=time, format="rgb8; jpeg compressed bgr8", data=jpeg)
            run.write(beside.name, beside.type, time, picture)
    recording = read_recording(tmp_path / "run.mcap", profile)
    assert recording.beside == "/sim/so101_bimanual/beside"
    film = tmp_path / "film.mp4"
    write_film(tmp_path / "run.mcap", recording, profile, FilmedRun.of(profile, trained=None), film, rate=5)
    boxes = _view_boxes(FilmedRun("arm", None, tuple(profile.cameras.slots), profile.joints.policy_order, beside=True))

    def shade(time: float, view: str) -> float:
        x, y, _, height = boxes[view]
        return float(read_frame(film, time)[y + 20 : y + height - 20, x + 20 : x + 60].mean())

    assert [shade(1.0, view) > 150 for view in boxes] == [True] * 4
    assert [shade(3.0, view) > 150 for view in boxes] == [True, True, True, False]
    assert "no picture" not in caption("right_wrist") and caption("right_wrist") == "right wrist camera"


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("cameras", "joints"), [(1, 7), (2, 6), (3, 12), (3, 18), (4, 24)])
def test_views_and_their_captions_share_the_room_of_a_frame(
    cameras: int, joints: int, trained: bool, beside: bool
) -> None:
    names, axes = tuple(f"camera_{n}" for n in range(cameras)), tuple(f"joint_{n}" for n in range(joints))
    scene = FilmedRun("arm", trained, names, axes, beside=beside)
    boxes, plots = _view_boxes(scene), _plot_boxes(scene)
    taken = np.zeros((HEIGHT, WIDTH), int)
    for x, y, width, height in plots.values():
        taken[y - 30 : y + height, x : x + width] |= 1
    for x, y, width, height in boxes.values():
        assert width > 120 and x >= 0 and x + width <= WIDTH and y - 22 >= (64 if trained else 108)
        part = taken[y - 22 : y + height, x : x + width]
        assert not part.any()
        part += 1
    assert len(boxes) == cameras + beside


def test_a_trained_film_has_no_banner(profile: Profile) -> None:
    frame = Composer(FilmedRun.of(profile, trained=True)).frame(0.0, {}, None, {}, {})
    assert frame[70, 20].max() < 60


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=50))
def test_travel_is_never_longer_than_the_way_and_hardly_shorter(positions: list[float]) -> None:
    series = Series(np.arange(len(positions), dtype=float), np.array(positions))
    way = float(np.abs(np.diff(positions)).sum())
    assert way - len(positions) * 2 * TRAVEL_DEADBAND <= travel(series) <= way + 1e-9


def test_standing_still_with_noise_is_no_travel() -> None:
    noise = np.random.default_rng(7).uniform(-0.0004, 0.0004, 10_000)
    assert travel(Series(np.arange(noise.size, dtype=float), noise)) == 0.0


def test_grippers_follow_from_the_action_mode(profile: Profile) -> None:
    order = profile.joints.policy_order
    assert [order[index] for index in gripper_joints(profile)] == ["left_gripper", "right_gripper"]


def test_frames_before_the_policy_listened_do_not_count() -> None:
    values = {"frames_received/front": "3", "first_stamp/front": "20", "last_stamp/front": "50"}
    assert count_frames(values, {"front": [0, 10, 20, 30, 40, 50, 60]}, ("front", "wrist"), {}) == {
        "front": Frames(4, 3),
        "wrist": Frames(0, 0),
    }


def test_frames_of_a_part_of_a_run_are_those_of_the_part(profile: Profile, tmp_path: Path) -> None:
    """The node counts on: 20 frames a second of each camera since it began, of which one in ten was lost."""
    slots = profile.cameras.slots
    with RecordedRun(tmp_path / "run.mcap", profile) as run:
        for tick in range(200):
            time = 10.0 + 0.05 * tick
            for slot in slots:
                run.picture(time, slot)
            if tick >= 40:
                run.command(time, [0.0] * 6)
            if tick % 20 == 19:
                stamps = {f"last_stamp/{slot}": str(round(time * 1e9)) for slot in slots}
                stamps |= {f"first_stamp/{slot}": "1000000000" for slot in slots}
                received = {f"frames_received/{slot}": str(1000 + (tick + 1) * 9 // 10) for slot in slots}
                run.diagnostics(time + 0.01, {"trained": "true", **received, **stamps})
    part = make_report(read_recording(tmp_path / "run.mcap", profile, 4.0), profile)
    assert part.frames == dict.fromkeys(slots, Frames(80, 72))
    whole = make_report(read_recording(tmp_path / "run.mcap", profile), profile)
    assert {frames.received for frames in whole.frames.values()} == {1162}


def test_percentiles_of_nothing_are_not_numbers() -> None:
    assert np.isnan(Percentiles.of([]).max)
    assert Percentiles.of([5.0]).p99 == 5.0
