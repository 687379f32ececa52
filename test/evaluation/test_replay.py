# SPDX-License-Identifier: Apache-2.0
"""Replay: figures against an independent computation, a source that repeats the recording, what bags may look like."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer

from xvla_ros.commands import main
from xvla_ros.commands.replay import find_bags
from xvla_ros.evaluation.replay.bag import RECORD, BagRecord, ReplaySettings, replay_bag
from xvla_ros.evaluation.replay.jobs import Policies, make_jobs
from xvla_ros.evaluation.replay.metrics import Figures, Part, metrics, write_metrics
from xvla_ros.evaluation.replay.rows import SHIFTS
from xvla_ros.evaluation.replay.sources import Answer, swapped
from xvla_ros.evaluation.replay.sums import EpisodeSums, interval_of
from xvla_ros.recordings import cdr
from xvla_ros.recordings.bags import Bag

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from recorded import MS, START, Session, changed, curve

pytest.importorskip("pinocchio")

T = 10


class Off:
    """Answers with what was recorded, off by a constant, and a few ms of its own making."""

    name, trained, waypoints, policy = "off", True, T, None

    def __init__(self, by: float = 0.0) -> None:
        self.by = by

    def answer(self, questions):
        return [Answer((each.recorded + np.float32(self.by)).astype(np.float32), 5.0) for each in questions]


class Noisy(Off):
    """Answers with what was recorded and noise, which depends on the stamp alone."""

    name = "noisy"

    def answer(self, questions):
        return [
            Answer(
                each.recorded
                + np.random.default_rng(each.seen.stamp).normal(0, 0.05, each.recorded.shape).astype(np.float32),
                5.0,
            )
            for each in questions
        ]


def pair(*changes):
    return changed("so101_bimanual", ("instruction", "fold the cloth"), *changes)


def document_of(profile, bags, sources, tmp_path, **settings):
    told = ReplaySettings(**settings)
    parts = [
        Part(replay_bag(bag, profile, sources, told, tmp_path / f"part{i}"), tmp_path / f"part{i}")
        for i, bag in enumerate(bags)
    ]
    figures = Figures(profile, parts, len(sources))
    return figures, metrics(figures, parts, [(source.name, True) for source in sources], {})


@pytest.mark.parametrize("robot", ["so101_bimanual", "widowx"])
def test_a_source_that_repeats_the_recording_scores_zero(robot, tmp_path):
    profile = changed(robot, ("instruction", "go"))
    session = Session(profile, end=2.0)
    if robot == "widowx":  # within reach, so that decoding has something to follow
        session.joints_of = lambda seconds: gentle(profile, seconds)
        session.commands = False
    _, found = document_of(profile, [session.record().write(tmp_path / "bag.mcap")], [Off()], tmp_path, every=4)

    assert found["frames"] > 5
    assert found["headline"]["mae"] == 0.0
    # joints of tool poses are decoded, by inverse kinematics and a gripper that is open or closed
    exact = (
        found["per_joint"].values()
        if robot == "so101_bimanual"
        else [kind for tool in found["per_tool"].values() for kind in tool.values()]
    )
    assert all((part["mae"], part["rmse"]) == (0.0, 0.0) for part in exact)
    if robot == "widowx":
        assert found["per_joint"]["waist"]["mae"] < 1e-5
    assert all(each["f1"] == 1.0 and each["missed"] == 0 == each["spurious"] for each in found["gripper"].values())
    assert next(each["mae"] for each in found["latency_shift"] if each["shift_s"] == 0.0) == 0.0
    assert all(each["mae"] > 0 for each in found["latency_shift"] if each["shift_s"] != 0.0)
    assert found["beats_persistence"]["holds"]
    assert found["baselines"]["persistence"]["headline"]["mae"] > 0.0
    json.dumps(found, allow_nan=False)


def gentle(profile, seconds):
    middle = np.array([0.0, -0.2, 0.3, 0.0, 0.9, 0.0, 0.026])
    t = np.asarray(seconds, dtype=np.float64)[..., None]
    return middle + np.array([0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01]) * np.sin(t + np.arange(7))


def test_figures_equal_an_independent_computation(tmp_path):
    """From the known curve itself, without any of the code that reads paths and adds up."""
    profile = pair()
    session = Session(profile, commands=False, end=3.0).record()
    figures, found = document_of(profile, [session.write(tmp_path / "bag.mcap")], [Noisy()], tmp_path, every=3)
    rows = figures.parts[0].rows()

    scale = np.array([joint.scale for joint in profile.joints.ordered])
    offset = np.array([joint.offset for joint in profile.joints.ordered])
    dt, first = profile.policy.waypoint_dt, profile.policy.first_waypoint_offset
    grid = np.arange(0.0, 3.0, 1 / 50)
    knots = np.round(grid * 1000) / 1000
    joints = curve(profile, grid)

    def at(seconds):
        return np.stack([np.interp(seconds, knots, column) for column in joints.T], axis=-1)

    stamps = (rows["stamp"] - START) / 1e9
    due = stamps[:, None] + first + np.arange(T) * dt
    known = due <= knots[-1] + 1e-9
    truth = at(due) * scale + offset
    guess = truth.astype(np.float32) + np.stack(
        [np.random.default_rng(int(stamp)).normal(0, 0.05, (T, 12)).astype(np.float32) for stamp in rows["stamp"]]
    )
    off = np.abs(guess - truth.astype(np.float32)) / scale

    mae, rmse = off[known].mean(axis=0), np.sqrt((off[known] ** 2).mean(axis=0))
    for column, name in enumerate(profile.joints.policy_order):
        assert found["per_joint"][name]["mae"] == pytest.approx(mae[column], rel=1e-4)
        assert found["per_joint"][name]["rmse"] == pytest.approx(rmse[column], rel=1e-4)
        assert found["per_joint"][name]["mae_degrees"] == pytest.approx(np.degrees(mae[column]), rel=1e-4)
    arms = [i for i, name in enumerate(profile.joints.policy_order) if not name.endswith("gripper")]
    assert found["headline"]["mae"] == pytest.approx(mae[arms].mean(), rel=1e-4)
    by_time = [off[known[:, k], k][:, arms].mean() for k in range(T)]
    np.testing.assert_allclose(found["by_horizon"]["runs"][0], by_time, rtol=1e-4)

    still = np.abs(at(stamps)[:, None] - at(due))[known][:, arms].mean()
    assert found["baselines"]["persistence"]["headline"]["mae"] == pytest.approx(still, rel=1e-4)
    mean = at(due)[known].mean(axis=0)
    assert found["baselines"]["mean"]["headline"]["mae"] == pytest.approx(
        np.abs(mean - at(due))[known][:, arms].mean(), rel=1e-4
    )

    for shift in found["latency_shift"]:
        later = due + shift["shift_s"]
        there = (later <= knots[-1] + 1e-9) & (later >= 0)
        apart = np.abs((guess - offset) / scale - at(later))[there][:, arms].mean()
        assert shift["mae"] == pytest.approx(apart, rel=1e-4)
    assert [shift["shift_s"] for shift in found["latency_shift"]] == list(SHIFTS)

    predicted = (guess - offset) / scale
    jerk = np.diff(predicted, n=3, axis=1)[known[:, 3:]] / dt**3
    name = profile.joints.policy_order[2]
    assert found["jerk_rms"][name]["predicted"] == pytest.approx(np.sqrt((jerk[:, 2] ** 2).mean()), rel=1e-4)
    low, high = (np.array([getattr(joint, end) for joint in profile.joints.ordered]) for end in ("lower", "upper"))
    clipped = ((predicted < low) | (predicted > high)).mean(axis=(0, 1))
    np.testing.assert_allclose(list(found["limit_clip_rate"]["beyond_position"].values()), clipped, atol=1e-6)
    jumps = []
    for before, after, gap in zip(predicted[:-1], predicted[1:], np.diff(stamps), strict=True):
        then = np.stack([np.interp(gap / dt, np.arange(T), column) for column in before.T])
        jumps.append(np.abs(then - after[0])[arms].mean())
    assert found["boundary_jump"]["mean"] == pytest.approx(np.mean(jumps), rel=1e-4)


def test_tools_are_measured_in_mm_degrees_and_shares(tmp_path):
    profile = changed("widowx", ("instruction", "go"))
    session = Session(profile, end=2.0, commands=False, joints_of=lambda s: gentle(profile, s)).record()

    class Moved(Off):
        def answer(self, questions):
            found = []
            for each in questions:
                actions = each.recorded.astype(np.float64).copy()
                actions[:, 0] += 0.003
                actions[:, 1] += 0.004
                turn = np.array([[np.cos(0.1), -np.sin(0.1), 0], [np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]])
                columns = actions[:, 3:9].reshape(-1, 3, 2)  # interleaved: rows of the first two columns
                actions[:, 3:9] = (turn @ columns).reshape(-1, 6)
                actions[:, 9] = 1.0 - actions[:, 9]
                found.append(Answer(actions.astype(np.float32), 1.0))
            return found

    _, found = document_of(profile, [session.write(tmp_path / "bag.mcap")], [Moved()], tmp_path, every=5)
    tool = found["per_tool"]["arm"]
    assert (tool["position"]["unit"], tool["rotation"]["unit"]) == ("mm", "degrees")
    assert tool["position"]["mae"] == pytest.approx(5.0, rel=1e-3)
    assert tool["rotation"]["mae"] == pytest.approx(np.degrees(0.1), rel=1e-3)
    assert found["headline"] == {**found["headline"], "unit": "mm", "mae": pytest.approx(5.0, rel=1e-3)}
    assert found["per_joint"]["waist"]["unit"] == "rad" and found["per_joint"]["gripper"]["unit"] == "mm"


def test_a_gripper_that_closes_late_is_timed(tmp_path):
    profile = pair()
    joints = profile.joints.ordered

    def closing(seconds):
        found = curve(profile, np.asarray(seconds, float) * 0)
        for column in (5, 11):
            way = np.clip((np.asarray(seconds) - 1.0) * joints[column].max_velocity, 0.0, None)
            found[..., column] = np.maximum(joints[column].upper - way, joints[column].lower)
        return found

    class Late(Off):
        def answer(self, questions):
            return [
                Answer(np.vstack([each.recorded[:1], each.recorded[:1], each.recorded[:-2]]), 1.0) for each in questions
            ]

    session = Session(profile, end=2.0, commands=False, joints_of=closing).record()
    _, found = document_of(profile, [session.write(tmp_path / "bag.mcap")], [Late()], tmp_path, every=1)
    jaw = found["gripper"]["left_gripper"]
    assert jaw["changes"] > 3
    assert jaw["timing_mean_s"] == pytest.approx(2 * profile.policy.waypoint_dt, rel=1e-6)
    assert 0.5 < jaw["f1"] < 1.0


def test_the_interval_of_a_mean_narrows_and_needs_two_episodes():
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    wide, narrow = (interval_of(of.tolist(), [1] * len(of)) for of in (values[:8], values))
    assert narrow[0] < 3.0 < narrow[1] and wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    # standard error of 400 draws: 0.05; 95 % within twice that
    assert narrow[1] - narrow[0] == pytest.approx(4 * 0.05, rel=0.15)
    assert interval_of([1.0], [1]) is None


def test_the_interval_for_episodes_of_one_length_is_students():
    from scipy import stats

    values = np.array([3.0, 4.0, 8.0])
    error = values.std(ddof=1) / np.sqrt(3)
    assert interval_of((values * 7).tolist(), [7] * 3) == pytest.approx(list(stats.t.interval(0.95, 2, 5.0, error)))


@pytest.mark.parametrize("episodes", [2, 3, 5, 10])
def test_the_interval_holds_the_mean_as_often_as_it_says(episodes):
    random, held = np.random.default_rng(episodes), []
    for _ in range(1000):
        low, high = interval_of(random.normal(3.0, 1.0, episodes), np.ones(episodes))
        held.append(low <= 3.0 <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.025)


def test_the_interval_is_that_of_the_figure_beside_it():
    """Of one long episode and five short ones with other errors."""
    ours, still = EpisodeSums(), EpisodeSums()
    for number, (rows, error, held) in enumerate([(1000, 0.05, 0.1), *[(20, 0.075, 0.06)] * 5]):
        for sums, value in ((ours, error), (still, held)):
            sums.add(0, np.full(rows, number, np.int32), np.full((rows, 2), value), np.ones((rows, 2), bool))
    assert ours.mean() == pytest.approx((1000 * 0.05 + 100 * 0.075) / 1100)
    for sums in (ours, still, ours.less(still)):
        low, high = sums.interval()
        assert low < sums.mean() < high
    assert ours.less(still).mean() == pytest.approx(ours.mean() - still.mean()) and ours.mean() < still.mean()


def test_what_is_skipped_is_counted_and_said(tmp_path):
    profile = pair(("cameras.front.max_age", 0.2))
    session = Session(profile, end=4.0).record()
    silent = {camera.topic for camera in profile.cameras.by_name.values() if camera.topic != "/front/image_raw"}
    session.messages = [
        each for each in session.messages if not (each[1] in silent and START + 1500 * MS < each[0] < START + 2500 * MS)
    ]
    session.mark(0.1, "start").mark(1.0, "end", success=False).mark(1.1, "start").mark(3.9, "end", success=True)
    figures, found = document_of(profile, [session.write(tmp_path / "bag.mcap")], [Off()], tmp_path)
    assert found["skipped"]["failed"] == 1
    assert found["skipped"]["camera_stale"] > 5
    assert found["skipped"]["episode_end"] >= 1
    assert found["frames"] == len(figures.parts[0].rows())


@pytest.mark.parametrize("second", [{"success": False}, {"success": True, "instruction": ""}], ids=["failed", "bare"])
def test_episodes_of_a_bag_of_which_nothing_is_left_are_counted(tmp_path, second):
    """The second episode failed too, or nobody said what it was to do."""
    profile = changed("so101_bimanual", ("instruction", ""))
    useful = Session(profile, end=1.2).record().mark(0.1, "start", instruction="fold").mark(1.1, "end", success=True)
    useless = Session(profile, end=1.2).record().mark(0.1, "start", instruction="fold").mark(0.5, "end", success=False)
    useless.mark(0.6, "start").mark(1.1, "end", **second)
    bags = [each.write(tmp_path / f"{i}.mcap") for i, each in enumerate((useful, useless))]
    _, found = document_of(profile, bags, [Off()], tmp_path, every=4)

    failed = 2 if second["success"] is False else 1
    assert found["bags"][1]["error"] and found["bags"][1]["skipped"] == {"failed": failed}
    assert found["skipped"]["failed"] == failed


def bag_of(tmp_path, **options):
    return Session(pair(), end=1.5, **options).record().write(tmp_path / "bag.mcap")


def test_a_flipped_byte_is_reported_where_there_are_checksums(tmp_path):
    bag = bag_of(tmp_path)
    content = bytearray(bag.read_bytes())
    content[len(content) // 2] ^= 1
    bag.write_bytes(content)
    record = replay_bag(bag, pair(), [Off()], ReplaySettings(every=5), tmp_path / "part")
    assert record.damaged and "differs from what was written" in record.integrity
    assert record.error and any("log times 1700000000000000000 to" in note for note in record.notes)

    whole = Session(pair(), end=1.0).record().write(tmp_path / "sqlite", storage="sqlite3")
    record = replay_bag(whole, pair(), [Off()], ReplaySettings(every=5), tmp_path / "part2")
    assert "integrity is unchecked" in record.integrity and not record.damaged


def test_a_cut_bag_gives_every_whole_message(tmp_path):
    bag = bag_of(tmp_path)
    whole = replay_bag(bag, pair(), [Off()], ReplaySettings(), tmp_path / "whole")
    content = bag.read_bytes()
    bag.write_bytes(content[: len(content) * 2 // 3])
    record = replay_bag(bag, pair(), [Off()], ReplaySettings(), tmp_path / "cut")
    assert whole.frames * 0.4 < record.frames < whole.frames
    assert any("truncated" in note for note in record.notes)


@pytest.mark.parametrize("kind", ["file", "message"])
def test_compressed_and_split_bags_are_replayed(tmp_path, kind):
    from rosbags.rosbag2 import CompressionFormat, CompressionMode

    session = Session(pair(), end=1.0).record()
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(CompressionMode[kind.upper()], CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for log_time, topic, msgtype, data in session.ordered():
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=cdr.typestore())
            writer.write(connections[topic], log_time, data)
    record = replay_bag(tmp_path / "bag", pair(), [Off()], ReplaySettings(every=2), tmp_path / "part")
    assert record.error == "" and record.frames >= 8


def test_wrong_clocks_and_another_robot_in_the_bag(tmp_path):
    profile = pair()
    session = Session(profile, end=1.5).record()
    other = changed("widowx", ("instruction", "go"), ("cameras.front.topic", "/elsewhere/image_raw"))
    session.messages += Session(other, end=1.5).record().messages
    bag = session.write(tmp_path / "bag.mcap", log_offset=-1_000_000_000 * 1_000_000_000)
    assert replay_bag(bag, profile, [Off()], ReplaySettings(every=2), tmp_path / "a").frames >= 12
    assert replay_bag(bag, other, [Off()], ReplaySettings(every=2), tmp_path / "b").frames >= 5


def test_the_command_goes_on_where_it_was_and_compares(tmp_path, capsys):
    folder = tmp_path / "bags"
    for number in range(3):
        Session(pair(), begin=0.1 * number, end=1.2).record().write(folder / f"bag_{number}.mcap")
    (folder / "broken.mcap").write_bytes(b"nothing")
    command = ["replay", str(folder), "--output", str(tmp_path / "out"), "--every", "4", "--baseline"]
    assert main([*command, "--jobs", "2"]) == 0
    said = capsys.readouterr()
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(found["episodes"]) == 3 and len(found["bags"]) == 4
    assert found["headline"]["mae"] == found["baselines"]["persistence"]["headline"]["mae"]
    assert not found["beats_persistence"]["holds"] and "no policy was run" in said.out
    assert "broken.mcap" in said.out and "does not guarantee success" in said.out
    with (tmp_path / "out" / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["part"] for row in rows} >= set(pair().joints.policy_order)

    assert main(command) == 0
    assert "4 of 4 bags were already replayed" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == found


def test_predictions_over_time_for_rerun(tmp_path):
    pytest.importorskip("rerun")
    bag = bag_of(tmp_path)
    file = tmp_path / "run.rrd"
    assert (
        main(
            ["replay", str(bag), "--baseline", "--every", "4", "--output", str(tmp_path / "out"), "--rerun", str(file)]
        )
        == 0
    )
    assert file.stat().st_size > 10_000


def test_ablations_change_one_thing_at_a_time(tmp_path):
    seen = []

    class Told(Off):
        def answer(self, questions):
            seen.extend(question.seen for question in questions)
            return super().answer(questions)

    _, found = document_of(pair(), [bag_of(tmp_path)], [Told()], tmp_path, every=4, ablations=True)
    names = ["camera front black", "camera left_wrist black", "camera right_wrist black", "another instruction"]
    assert list(found["ablations"]) == names
    assert all(each["mae"] == each["answers_moved"] == 0.0 for each in found["ablations"].values())
    plain, front, *_, words = seen[:5]
    assert not front.images["front"].any() and front.images["left_wrist"] is plain.images["left_wrist"]
    assert words.instruction == "stand still" and words.stamp == plain.stamp


def test_instructions_are_swapped():
    assert swapped("put the Red cube left", []) == "put the Red cube right"
    assert swapped("touch the red cube", []) == "touch the blue cube"
    assert swapped("touch it", ["touch it", "fold it"]) == "fold it"


def test_bags_are_found(tmp_path):
    for name in ("split_0.mcap", "split_1.mcap"):
        (tmp_path / "split").mkdir(exist_ok=True)
        (tmp_path / "split" / name).touch()
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "a.mcap").touch()
    assert find_bags([str(tmp_path / "split")]) == [tmp_path / "split"]
    assert find_bags([str(tmp_path)]) == [tmp_path / "many", tmp_path / "split"]
    assert find_bags([str(tmp_path / "many"), str(tmp_path / "many" / "a.mcap")]) == [tmp_path / "many" / "a.mcap"]
    inside = tmp_path / "split" / "split_0.mcap"
    for named in ([tmp_path / "split", inside], [inside, tmp_path / "split"]):
        assert find_bags(list(map(str, named))) == [tmp_path / "split"]


def test_an_adapter_that_was_trained_on_is_replayed_anew(tmp_path):
    bag = Bag(Session(pair(), end=1.2).record().write(tmp_path / "bag.mcap"))
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder, names in ((base, ("config.json", "model.safetensors")), (adapter, ("adapter_config.json",))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("{}")
    keys = []
    for weights in (b"one", b"two", b"two"):
        (adapter / "adapter_model.safetensors").write_bytes(weights)
        policies = Policies((f"{adapter},{base}",))
        (job,) = make_jobs([bag], pair(), policies, ReplaySettings(), tmp_path / "out")
        keys.append(job.key)
    assert keys[0] != keys[1] == keys[2]


def test_a_record_made_otherwise_does_not_count(tmp_path):
    BagRecord("bag", frames=3).write(tmp_path, "one")
    assert BagRecord.read(tmp_path, "two") is None
    assert BagRecord.read(tmp_path, "one").frames == 3
    for damaged in ("", "[1]", "3"):
        (tmp_path / RECORD).write_text(damaged)
        assert BagRecord.read(tmp_path, "one") is None


def test_two_policies_side_by_side(tmp_path):
    profile = pair()
    bags = [Session(profile, begin=0.2 * i, end=1.2).record().write(tmp_path / f"{i}.mcap") for i in range(3)]
    _, found = document_of(profile, bags, [Noisy(), Off()], tmp_path, every=4)
    assert found["compare"]["headline"]["mae"] == 0.0
    apart = found["compare"]["difference"]
    assert apart["episodes"] == 3 and apart["interval"][1] < 0.0
    assert apart["mean"] == pytest.approx(-found["headline"]["mae"])
    write_metrics(found, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_policy_trained_on_the_expert_beats_persistence(tmp_path):
    pytest.importorskip("mujoco")
    demos, output = tmp_path / "demos", tmp_path / "run"
    assert main(["demos", "--task", "touch", "--episodes", "4", "--image-size", "96", "--output", str(demos)]) == 0
    assert (
        main(
            [
                "train",
                "--no-evaluate",
                "phase1.yaml",
                f"datasets.0.paths=[{demos}/*.mcap]",
                "datasets.0.split.fraction=0",
                f"output={output}",
                "steps=150",
                "batch.size=8",
                "batch.workers=0",
                "schedule.ramp=10",
                "optimizer.learning_rate=1e-3",
                "ema.decay=0.9",
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "replay",
                str(demos),
                "--checkpoint",
                str(output / "checkpoint"),
                "--every",
                "5",
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["trained"] and found["beats_persistence"]["holds"]
    assert found["headline"]["mae"] < 0.7 * found["baselines"]["persistence"]["headline"]["mae"]
    assert found["headline"]["mae"] < found["baselines"]["mean"]["headline"]["mae"]


def test_why_nothing_could_be_replayed_is_said_once_in_the_words_of_the_node(tmp_path, capsys):
    bag = Session(pair(), end=1.0).record().encoded("8UC3").write(tmp_path / "bag.mcap")
    assert main(["replay", str(bag), "--baseline", "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.count("cannot be used: encoding '8UC3'") == 3  # a slot each
    assert said.count(str(bag)) == 1
    assert "camera_missing: front: image on /front/image_raw" in said


def test_faults_are_kept_with_their_details(tmp_path, capsys):
    bag = Session(pair(), end=2.0).record().encoded("8UC3", 1.0, 1.5).write(tmp_path / "bag.mcap")
    assert main(["replay", str(bag), "--baseline", "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for each in (found, found["bags"][0]):
        details = each["skipped_details"]
        assert sum(kind["count"] for kind in details) == sum(
            count for reason, count in each["skipped"].items() if reason != "episode_end"
        )
        assert any("encoding '8UC3'" in kind["detail"] for kind in details)
    said = capsys.readouterr().out
    assert "skipped: " in said and "camera_missing: front: image on" in said
    assert "encoding" in (tmp_path / "out" / "report.html").read_text()


def test_an_instruction_is_asked_for_once_and_only_of_a_policy(tmp_path, capsys):
    silent = changed("so101_bimanual", ("instruction", ""))
    bag = Session(silent, end=1.0).record().write(tmp_path / "bag.mcap")
    assert main(["replay", str(bag), "--baseline", "--every", "4", "--output", str(tmp_path / "out")]) == 0
    record = replay_bag(bag, silent, [Off()], ReplaySettings(), tmp_path / "part")
    assert record.error.count("has no instruction: give it with --instruction TEXT") == 1
    assert str(bag) not in record.error and "data set" not in record.error
    capsys.readouterr()


def test_episodes_that_all_failed_are_counted_where_nothing_is_left(tmp_path, capsys):
    bag = Session(pair(), end=1.0).record().mark(0.1, "start").mark(0.9, "end", success=False)
    assert main(["replay", str(bag.write(tmp_path / "bag.mcap")), "--baseline", "--output", str(tmp_path / "out")]) == 1
    assert "skipped: 1 failed" in capsys.readouterr().err


def test_bags_that_could_not_be_replayed_are_counted(tmp_path, capsys):
    Session(pair(), end=1.0).record().write(tmp_path / "bags" / "good.mcap")
    Session(pair(), end=1.0).record().encoded("8UC3").write(tmp_path / "bags" / "bad.mcap")
    assert main(["replay", str(tmp_path / "bags"), "--baseline", "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "1 of 2 bags could not be replayed" in said and "no observation could be built" in said


def test_recordings_without_a_profile_do_not_hide_the_robot_of_the_others(tmp_path, capsys):
    """An empty file and a damaged one come first by name; each is told once, and what is whole is replayed."""
    bags, output = tmp_path / "bags", ["--baseline", "--every", "4", "--output", str(tmp_path / "out")]
    good = Session(pair(), end=1.0).record().write(bags / "good.mcap")
    cut = bags / "z_cut.mcap"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (bags / "a_empty.mcap").touch()
    damaged = Session(pair(), end=1.0).record().write(bags / "b_damaged.mcap")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert main(["replay", str(bags), *output]) == 0
    lines = capsys.readouterr().out.splitlines()
    failed = lines.index("  2 of 4 bags could not be replayed:")
    empty, flipped = lines[failed + 1 : failed + 3]
    assert empty.startswith(f"    {bags / 'a_empty.mcap'}: no message in it can be read: ")
    assert flipped.startswith(f"    {damaged}: damaged: ")
    assert not any(str(each) in line for line in lines[failed + 3 :] for each in (good, damaged))
    assert lines[failed + 3].startswith(f"  {cut}: truncated: ")

    assert main(["replay", str(bags / "a_empty.mcap"), *output]) == 1
    assert "no message in it can be read" in capsys.readouterr().err
    with Writer(tmp_path / "foreign", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        joints = writer.add_connection("/joints", cdr.JOINT_STATE, typestore=cdr.typestore())
        writer.write(joints, START, cdr.joint_state(START, ["a"], [0.0]))
    assert main(["replay", str(tmp_path / "foreign"), *output]) == 1
    assert "the bag contains no profile: name the robot, or its profile file, with --robot" in capsys.readouterr().err


def test_joints_that_leap_are_left_out_or_refused(tmp_path, monkeypatch):
    for commands in (True, False):
        bag = Session(pair(), end=3.0, commands=commands).record().zeros(1.0, 2.0).write(tmp_path / f"{commands}.mcap")
        record = replay_bag(bag, pair(), [Off()], ReplaySettings(), tmp_path / f"part{commands}")
        assert record.skipped["joints_implausible"] >= 20
        assert (25 <= record.frames <= 40) if commands else (record.frames == 0)
        assert commands or "joints leap faster than a joint can move" in record.error
