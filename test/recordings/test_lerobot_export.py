# SPDX-License-Identifier: Apache-2.0
"""Bags written as LeRobot data sets, and what our own reader makes of these."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("av")

import av
import pyarrow.parquet as pq

from test.training.recorded import START, Session, changed
from xvla_ros.commands import main
from xvla_ros.errors import DataSetWriteError, SetupError
from xvla_ros.recordings import cdr, lerobot_writer
from xvla_ros.recordings.bag_recording import BagOptions, BagRecording
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.lerobot_encoding import ExportOptions, _FrameGrid
from xvla_ros.recordings.lerobot_export import export
from xvla_ros.recordings.lerobot_mapping import ChannelSource, LeRobotMapping, profile_of_data_set
from xvla_ros.recordings.lerobot_recording import LeRobotOptions, LeRobotRecording
from xvla_ros.recordings.lerobot_writer import ClipWriter, PictureSums, statistics
from xvla_ros.recordings.recording import Frame, SamplesError
from xvla_ros.robots.joints import from_policy, to_policy
from xvla_ros.robots.profile import Profile

PAIR = changed("so101_bimanual", ("instruction", "fold the cloth"))
SLOTS = PAIR.cameras.slots
AS_IT_IS = BagOptions()


def exported(tmp_path, *bags, **changes):
    return export(bags, tmp_path / "set", ExportOptions(**changes), lambda what, done, total: None)


def frames_of(recording):
    survey = recording.survey()
    assert not survey.problems
    frames = [each for each in recording.frames(survey) if isinstance(each, Frame)]
    return frames, [survey.episodes[each.episode] for each in frames]


def read(folder):
    return frames_of(LeRobotRecording(folder, profile_of_data_set(folder)))


def assert_equal(folder, bags, options=AS_IT_IS, within=8.0):
    """Every frame of the bags is in the data set: states and actions to the bit, pictures to some levels."""
    everything = LeRobotOptions(only_successes=options.only_successes)
    found, episodes = frames_of(LeRobotRecording(folder, profile_of_data_set(folder), everything))
    wanted = []
    for bag in bags:
        wanted += zip(*frames_of(BagRecording(bag, profile_of_data_set(folder), options)), strict=True)
    # an observation without one of its optional cameras, as the first of a bag may be, is no frame of a data set
    wanted = [each for each in wanted if len(each[0].images) == len(found[0].images)]
    assert len(found) == len(wanted)
    for frame, episode, (frame_of_bag, episode_of_bag) in zip(found, episodes, wanted, strict=True):
        assert frame.state.tobytes() == frame_of_bag.state.tobytes()
        action = episode_of_bag.path.at([frame_of_bag.stamp])
        assert episode.path.at([frame.stamp]).tobytes() == action.tobytes()
        assert episode.instruction == episode_of_bag.instruction
        assert frame.images.keys() == frame_of_bag.images.keys()
        for slot, picture in frame.images.items():
            assert np.abs(picture.astype(float) - frame_of_bag.images[slot]).mean() < within


def marked(tmp_path, name="marked"):
    """Three episodes of 1 s: one done, one failed, one discarded, and one of another task."""
    session = Session(PAIR, end=4.0).record()
    told = [(0.0, "touch the red cube", True), (1.0, "touch the red cube", False), (3.0, "touch the blue cube", None)]
    for begin, instruction, success in told:
        session.mark(begin + 0.02, "start", instruction=instruction, task="touch", seed=round(begin))
        session.mark(begin + 0.98, "end", success=success)
    session.mark(2.02, "start", instruction="touch nothing").mark(2.5, "discard")
    return session.write(tmp_path / f"{name}.mcap")


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (
            ("cameras.front.transport", "compressed"),
            ("cameras.front.rotate", 90),
            ("cameras.front.crop", [4, 2, 20, 20]),
        ),
        (("policy.proprio_source", "commanded"),),
    ],
)
def test_our_own_reader_gives_every_frame_back(tmp_path, changes):
    profile = changed("so101_bimanual", ("instruction", "fold the cloth"), *changes)
    bag = Session(profile, end=2.0).record().write(tmp_path / "bag.mcap")
    found = exported(tmp_path, bag)
    assert (found.episodes, found.fps, found.tasks, found.actions) == (1, 20, ("fold the cloth",), "commanded")
    assert_equal(found.folder, [bag])


def in_ranges(name):
    """A pair whose joints, but for the grippers, are in -100..100 of their ranges."""
    settings = PAIR.to_mapping()
    for joint in settings["joints"]["policy_order"]:
        one = settings["joints"][joint]
        if not joint.endswith("gripper"):
            one["scale"] = 200 / (one["upper"] - one["lower"])
            one["offset"] = -100 - one["scale"] * one["lower"]
    return Profile.from_mapping(name, settings)


@pytest.mark.parametrize("name", ["so101_bimanual", "pair_in_ranges"])
def test_a_profile_of_other_units_reads_what_it_reads_from_the_bag(tmp_path, name):
    bag = Session(PAIR, end=1.0).record().write(tmp_path / "bag.mcap")
    folder, other = exported(tmp_path, bag).folder, in_ranges(name)
    wanted, _ = frames_of(BagRecording(bag, PAIR))
    found, episodes = frames_of(LeRobotRecording(folder, other))
    for frame, before in zip(found, wanted, strict=True):
        state = to_policy(from_policy(before.state, PAIR), other)
        np.testing.assert_allclose(frame.state, state, atol=1e-3)
    (before,) = LeRobotRecording(folder, PAIR).survey().episodes
    action = to_policy(from_policy(before.path.values, PAIR), other)
    np.testing.assert_allclose(episodes[0].path.values, action, atol=1e-3)


def test_scales_of_the_mapping_count_before_the_units_of_the_written_profile(tmp_path):
    folder = exported(tmp_path, Session(PAIR, end=1.0).record().write(tmp_path / "bag.mcap")).folder
    other = changed("so101_bimanual", ("joints.left_shoulder_pan.scale", 1.0))
    mapping = LeRobotMapping(channels={"left_shoulder_pan": ChannelSource(name="left_shoulder_pan.pos", scale=0.02)})
    states, plain = (
        frames_of(LeRobotRecording(folder, profile, LeRobotOptions(mapping=told)))[0][5].state
        for profile, told in ((other, mapping), (PAIR, LeRobotMapping()))
    )
    assert states[0] == pytest.approx(0.02 * plain[0])
    assert states[1:].tobytes() == plain[1:].tobytes()


def test_a_data_set_with_a_profile_that_cannot_be_read_is_named(tmp_path):
    folder = exported(tmp_path, Session(PAIR, end=1.0).record().write(tmp_path / "bag.mcap")).folder
    written = folder / "meta/xvla_ros.json"
    written.write_text(written.read_text().replace("scale", "size"))
    with pytest.raises(SamplesError, match=r"meta/xvla_ros\.json.*size"):
        LeRobotRecording(folder, PAIR).survey()


def test_tool_poses_come_back_as_the_vectors_they_are(tmp_path):
    pytest.importorskip("pinocchio")
    profile = changed("agibot", ("instruction", "fold the cloth"))
    bag = Session(profile, end=1.0, commands=False).record().write(tmp_path / "bag.mcap")
    found = exported(tmp_path, bag)
    assert found.actions == "measured"
    info = json.loads((found.folder / "meta/info.json").read_text())
    assert tuple(info["features"]["action"]["names"]) == profile.channels
    assert_equal(found.folder, [bag])


def test_marks_make_the_episodes(tmp_path):
    bag = marked(tmp_path)
    found = exported(tmp_path, bag)
    assert (found.episodes, found.tasks) == (2, ("touch the red cube", "touch the blue cube"))
    assert found.skipped == {"failed": 1, "discarded": 1}
    assert_equal(found.folder, [bag])
    told = json.loads((found.folder / "meta/xvla_ros.json").read_text())["episodes"]
    assert [(each["bag"], each["success"], each["task"], each["seed"]) for each in told] == [
        ("marked.mcap", True, "touch", 0),
        ("marked.mcap", None, "touch", 3),
    ]
    (tmp_path / "set").rename(tmp_path / "first")
    assert exported(tmp_path, bag, only_successes=False).episodes == 3


def test_each_frame_keeps_the_instruction_of_its_time(tmp_path):
    session = Session(PAIR, end=2.0).record()
    for seconds, text in ((0.02, "touch the red cube"), (1.0, "touch the blue cube")):
        session.add(seconds, f"/{PAIR.name}/instruction", cdr.STRING, cdr.string(text))
    found = exported(tmp_path, session.write(tmp_path / "bag.mcap"))
    assert found.tasks == ("touch the red cube", "touch the blue cube")
    frames, episodes = read(found.folder)
    told = [episode.instruction_at(frame.stamp) for frame, episode in zip(frames, episodes, strict=True)]
    assert told == sorted(told, reverse=True) and len(set(told)) == 2


def test_the_files_are_what_lerobot_reads(tmp_path):
    """As its documentation gives v3.0: names, shapes, indices, statistics, and tasks that pandas takes for an index."""
    found = exported(tmp_path, marked(tmp_path))
    info = json.loads((found.folder / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["fps"], info["total_episodes"], info["total_frames"], info["total_tasks"]) == (20, 2, found.frames, 2)
    assert info["features"]["observation.state"]["names"] == [f"{joint}.pos" for joint in PAIR.joints.policy_order]
    assert [name for name in info["features"] if "images" in name] == [f"observation.images.{slot}" for slot in SLOTS]

    rows = pq.read_table(found.folder / "data/chunk-000/file-000.parquet").to_pydict()
    half = found.frames // 2
    assert rows["index"] == list(range(found.frames))
    assert rows["episode_index"] == rows["task_index"] == [0] * half + [1] * half
    assert rows["frame_index"] == list(range(half)) * 2
    assert rows["timestamp"] == np.tile((np.arange(half) / 20).astype(np.float32), 2).tolist()
    assert {len(row) for row in rows["action"]} == {12}
    assert pq.ParquetFile(found.folder / "data/chunk-000/file-000.parquet").num_row_groups == 2

    tasks = pq.read_table(found.folder / "meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0, 1], "__index_level_0__": list(found.tasks)}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]

    episodes = pq.read_table(found.folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    second, key = episodes[1], "videos/observation.images.front"
    assert (second["dataset_from_index"], second["dataset_to_index"], second["length"]) == (half, 2 * half, half)
    assert second["tasks"] == ["touch the blue cube"]
    assert (second[f"{key}/from_timestamp"], second[f"{key}/to_timestamp"]) == (half / 20, half / 10)

    stats = json.loads((found.folder / "meta/stats.json").read_text())
    assert stats.keys() == info["features"].keys()
    actions = np.array(rows["action"])
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stats["action"]["q90"], np.quantile(actions, 0.9, axis=0), rtol=1e-6)
    np.testing.assert_allclose(second["stats/action/max"], actions[half:].max(axis=0), rtol=1e-6)
    assert np.shape(stats["observation.images.front"]["std"]) == (3, 1, 1)
    assert stats["observation.images.front"]["count"] == [found.frames]


def test_statistics_of_pictures_and_numbers():
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (3, 40, 60, 3)).astype(np.uint8)
    one, two = PictureSums(), PictureSums()
    one.add(pictures[0])
    for picture in pictures[1:]:
        two.add(picture)
    one.merge(two)
    found, values = one.statistics(), pictures.reshape(-1, 3) / 255
    for name, wanted in {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
    }.items():
        np.testing.assert_allclose(np.ravel(found[name]), wanted, atol=1e-12)
    for name, share in {"q01": 0.01, "q50": 0.5, "q99": 0.99}.items():
        np.testing.assert_allclose(np.ravel(found[name]), np.quantile(values, share, axis=0), atol=1 / 255)
    assert found["count"] == [3]
    assert statistics(np.array([1.0, 3.0])) | {"std": [1.0], "mean": [2.0]} == statistics(np.array([1.0, 3.0]))


@pytest.mark.parametrize("codec", ["h264", "h264-444", "av1"])
def test_codecs(tmp_path, codec):
    bag = Session(PAIR, end=1.0, size=(64, 96)).record().write(tmp_path / "bag.mcap")
    found = exported(tmp_path, bag, codec=codec)
    assert_equal(found.folder, [bag], within=3.0 if codec == "h264-444" else 8.0)
    told = json.loads((found.folder / "meta/info.json").read_text())["features"]["observation.images.front"]["info"]
    with av.open(str(found.folder / "videos/observation.images.front/chunk-000/file-000.mp4")) as video:
        context = video.streams.video[0].codec_context
        assert told["video.codec"] in {"h264": "h264", "libdav1d": "av1", "av1": "av1"}[context.name]
        assert told["video.pix_fmt"] == context.pix_fmt
        assert sum(packet.is_keyframe for packet in video.demux(video=0) if packet.size) >= 10  # every second frame


def test_encoding_leaves_the_processor_to_others(tmp_path):
    """SVT-AV1 makes itself and its process real-time where root runs it."""
    before = os.sched_getscheduler(0)
    clip = ClipWriter(tmp_path / "a.mp4", (64, 64), 30, "av1")
    for _ in range(3):
        clip.add(np.zeros((64, 64, 3), np.uint8))
    found = set()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended since
            found.add(os.sched_getscheduler(int(thread.name)))
    assert found == {before}
    clip.close()


def test_a_video_is_full_at_some_size(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_writer, "MOST_VIDEO_MB", 0)
    monkeypatch.setattr(lerobot_writer, "MOST_MB", 0)
    monkeypatch.setattr(lerobot_writer, "FILES_A_CHUNK", 1)
    bags = [marked(tmp_path, "a"), marked(tmp_path, "b")]
    found = exported(tmp_path, *bags)
    files = sorted(str(file.relative_to(found.folder)) for file in (found.folder / "data").rglob("*.parquet"))
    assert files == [f"data/chunk-00{number}/file-000.parquet" for number in range(4)]
    assert len(list((found.folder / "videos/observation.images.front").rglob("*.mp4"))) == 4
    assert_equal(found.folder, bags)


def test_a_long_video_ends_where_lerobot_tells_its_times_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_writer, "MOST_SECONDS", 2)
    bag = marked(tmp_path)
    found = exported(tmp_path, bag, only_successes=False)
    assert len(list((found.folder / "videos/observation.images.front").rglob("*.mp4"))) == 2
    assert_equal(found.folder, [bag], BagOptions(only_successes=False))


def dropped(session, begin, end, topics):
    """Leave out messages of some topics between two instants, s after START."""
    low, high = START + begin * 1e9, START + end * 1e9
    session.messages = [each for each in session.messages if not (low <= each[0] < high and each[1] in topics)]
    return session


def test_a_dropped_picture_is_shown_again_and_a_silent_camera_ends_the_episode(tmp_path):
    topic = PAIR.cameras.by_name["front"].topic
    session = dropped(Session(PAIR, end=4.0).record(), 0.48, 0.52, {topic})  # one picture
    bag = dropped(session, 2.0, 3.0, {topic}).write(tmp_path / "bag.mcap")
    found = exported(tmp_path, bag)
    frames, _ = read(found.folder)
    counts = Counter(frame.episode for frame in frames)
    assert counts == {0: 40, 1: 20}
    state = BagRecording(bag, PAIR)
    survey = state.survey()
    for number in (9, 10, 11):  # frame 10 is at 0.5 s, where no picture is
        at = START + number * 50_000_000
        np.testing.assert_array_equal(frames[number].state, state.state(survey, 0, at))
    blue = [frame.images["front"][..., 2].mean() for frame in frames[8:12]]  # it grows by 5 every 50 ms
    assert np.diff(blue)[1] < 2.5 < min(np.diff(blue)[[0, 2]])
    episodes = json.loads((found.folder / "meta/xvla_ros.json").read_text())["episodes"]
    assert [(each["start"] - START) / 1e9 for each in episodes] == [0.0, 3.0]


def test_leaping_joints_end_an_episode(tmp_path):
    bag = Session(PAIR, end=4.0).record().zeros(1.5, 1.8).write(tmp_path / "bag.mcap")
    found = exported(tmp_path, bag)
    assert found.episodes == 2
    assert found.skipped["joints_implausible"] == len(found.faults)
    kept = BagRecording(bag, PAIR)
    survey = kept.survey()
    wanted = [each.state.tobytes() for each in kept.frames(survey) if isinstance(each, Frame)]
    assert [frame.state.tobytes() for frame in read(found.folder)[0]] == wanted


@pytest.mark.parametrize(
    ("rate", "fps", "shift"), [(20.0, 20, 0.0), (29.97, 30, 0.3), (60.0, 30, 0.4), (10.0, 30, 0.0)]
)
def test_frames_are_the_pictures_nearest_to_a_grid(rate, fps, shift):
    generator = np.random.default_rng(1)
    count = 600
    stamps = (np.arange(count) + generator.uniform(-0.05, 0.05, count) + shift) / rate * 1e9
    grid = _FrameGrid(np.sort(stamps.astype(np.int64)), fps)
    assert all(abs(stamp - grid.at(point)) <= 0.5001 * 1e9 / fps for stamp, point in grid.place.items())
    points = sorted(grid.place.values())
    assert len(set(points)) == len(points)
    seconds = count / rate
    # no jitter makes a hole or drops a picture; a camera that is a little slow slips once in a while
    wanted = min(count, round(seconds * fps))
    assert wanted - 2 <= len(points) <= wanted
    if rate > 25:
        assert points[-1] - points[0] + 1 - len(points) <= 2


def test_a_rate_of_its_own(tmp_path):
    bag = Session(PAIR, end=2.0).record().write(tmp_path / "bag.mcap")
    found = exported(tmp_path, bag, fps=10)
    frames, episodes = read(found.folder)
    assert found.frames == 20
    recording = BagRecording(bag, PAIR)
    survey = recording.survey()
    every = [each for each in recording.frames(survey) if isinstance(each, Frame)][::2]
    assert [frame.state.tobytes() for frame in frames] == [frame.state.tobytes() for frame in every]
    assert [frame.stamp for frame in frames] == [round(n * 1e8) for n in range(20)]
    assert {episode.instruction for episode in episodes} == {"fold the cloth"}


def test_processes_change_nothing(tmp_path):
    bags = [marked(tmp_path, "a"), marked(tmp_path, "b")]
    exported(tmp_path, *bags).folder.rename(tmp_path / "alone")
    exported(tmp_path, *bags, jobs=2, threads=1)
    for file in ("data/chunk-000/file-000.parquet", "meta/info.json", "meta/stats.json", "meta/xvla_ros.json"):
        assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "set" / file).read_bytes()


def other_rate(tmp_path):
    return Session(PAIR, end=1.0, camera_rate=5.0).record().write(tmp_path / "slow.mcap"), "mixed rates"


def other_size(tmp_path):
    return Session(PAIR, end=1.0, size=(48, 64)).record().write(tmp_path / "large.mcap"), "cameras.front.*another size"


def odd_size(tmp_path):
    return Session(PAIR, end=1.0, size=(25, 32)).record().write(tmp_path / "odd.mcap"), "32x25 pixels.*h264-444"


def uncommanded(tmp_path):
    bag = Session(PAIR, end=1.0, commands=False).record().write(tmp_path / "bare.mcap")
    return bag, "actions are measured.*--actions measured"


def other_robot(tmp_path):
    bag = Session(changed("widowx", ("instruction", "x")), end=1.0).record().write(tmp_path / "other.mcap")
    return bag, "is of robot widowx.*export them separately"


def empty(tmp_path):
    return Session(PAIR).write(tmp_path / "empty.mcap"), "does not fit robot so101_bimanual|is empty"


def no_bag(tmp_path):
    (tmp_path / "text.mcap").write_text("no bag")
    return tmp_path / "text.mcap", "text.mcap"


@pytest.mark.parametrize("bad", [other_rate, other_size, odd_size, uncommanded, other_robot, empty, no_bag])
def test_what_does_not_fit_is_named_before_anything_is_written(tmp_path, bad):
    if bad is other_robot:
        pytest.importorskip("pinocchio")
    bag, said = bad(tmp_path)
    good = Session(PAIR, end=1.0).record().write(tmp_path / "good.mcap")
    with pytest.raises(SamplesError, match=said) as caught:
        exported(tmp_path, good, bag)
    assert str(bag) in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_bad_bags_are_left_out_where_that_is_asked_for(tmp_path):
    bags = [marked(tmp_path), no_bag(tmp_path)[0], odd_size(tmp_path)[0]]
    found = exported(tmp_path, *bags, skip_bad=True)
    assert found.episodes == 2
    assert [name for name in ("text.mcap", "odd.mcap") if name in "\n".join(found.notes)] == ["text.mcap", "odd.mcap"]
    assert_equal(found.folder, bags[:1])


def test_a_bag_whose_pictures_change_is_named_and_leaves_nothing(tmp_path):
    session = Session(PAIR, end=1.0).record()
    session.messages += Session(PAIR, begin=1.0, end=2.0, size=(48, 64)).record().messages
    bag = session.write(tmp_path / "grows.mcap")
    with pytest.raises(SamplesError, match=r"grows\.mcap: cameras\.front.*at 17\d+\.\d+ s.*64x48.*32x24"):
        exported(tmp_path, bag)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    good = marked(tmp_path)
    found = exported(tmp_path, bag, good, skip_bad=True)
    assert (found.episodes, found.skipped["problems"]) == (2, 1)


def test_no_such_robot_and_a_folder_that_is_there(tmp_path, capsys):
    bag = marked(tmp_path)
    assert main(["export", "lerobot", str(bag), "--output", str(tmp_path / "set"), "--robot", "so102"]) == 1
    assert "so102" in capsys.readouterr().err
    (tmp_path / "set").mkdir()
    (tmp_path / "set/notes.txt").touch()
    assert main(["export", "lerobot", str(bag), "--output", str(tmp_path / "set")]) == 1
    assert f"{tmp_path / 'set'} already exists" in capsys.readouterr().err
    (tmp_path / "set/notes.txt").unlink()
    (tmp_path / "set.part").mkdir()
    with pytest.raises(SetupError, match=r"set\.part exists"):
        exported(tmp_path, bag)
    (tmp_path / "set.part").rmdir()
    assert main(["export", "lerobot", str(bag), "--output", str(tmp_path / "set"), "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert "2 episodes" in said
    assert "1 discarded, 1 failed" in said


def test_a_second_export_to_the_same_folder_is_refused_and_costs_the_first_nothing(tmp_path):
    bag, refused = marked(tmp_path), list[str]()

    def try_too(*_: object) -> None:
        try:
            exported(tmp_path, bag)
        except SetupError as error:
            refused.append(str(error))

    found = export([bag], tmp_path / "set", ExportOptions(), try_too)
    assert found.episodes == 2 and len(list(tmp_path.glob("set/meta/info.json"))) == 1
    assert refused and all("set.part exists: another export" in each for each in refused)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, jobs):
    """A limit on the size of a file stands for the disk."""
    bags = [Session(PAIR, end=2.0, size=(96, 128)).record().write(tmp_path / f"{name}.mcap") for name in "ab"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        with pytest.raises(
            DataSetWriteError, match=r"set cannot be written, and its partial files were removed: File too large"
        ):
            exported(tmp_path, *bags, jobs=jobs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_export_leaves_nothing(tmp_path, stop, code):
    for name in "ab":
        Session(PAIR, end=20.0, size=(240, 320)).record().write(tmp_path / f"{name}.mcap")
    command = [sys.executable, "-m", "xvla_ros", "export", "lerobot", str(tmp_path), "--output", str(tmp_path / "set")]
    running = subprocess.Popen(
        [*command, "--jobs", "2"], stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    while not list(tmp_path.glob("set.part/clips/*.mp4")) and running.poll() is None:
        os.sched_yield()
    running.send_signal(stop)
    _, said = running.communicate(timeout=600)
    assert running.returncode == code, said.decode()
    assert "Traceback" not in said.decode()
    assert not list(tmp_path.glob("set*"))


def test_a_damaged_bag_is_named(tmp_path):
    bag = marked(tmp_path)
    content = bytearray(bag.read_bytes())
    content[len(content) // 2] ^= 255
    bag.write_bytes(content)
    with pytest.raises(SamplesError, match=r"marked\.mcap: damaged"):
        exported(tmp_path, bag)
    assert Bag(bag).path == Path(bag)


PEERS = [each for each in os.environ.get("XVLA_LEROBOT_PYTHON", "").split(":") if each]


@pytest.mark.slow
@pytest.mark.skipif(not PEERS, reason="XVLA_LEROBOT_PYTHON names no interpreter with lerobot==0.4.4 or 0.6.1")
@pytest.mark.parametrize("codec", ["h264", "h264-444", "av1"])
def test_each_lerobot_reads_it_as_we_do_and_trains_on_it(tmp_path, codec):
    session = Session(PAIR, end=2.0, size=(64, 96)).record()
    for begin, instruction in ((0.02, "touch the red cube"), (1.02, "touch the blue cube")):
        session.mark(begin, "start", instruction=instruction).mark(begin + 0.96, "end")
    found = exported(tmp_path, session.write(tmp_path / "bag.mcap"), codec=codec)
    frames, episodes = read(found.folder)
    script = Path(__file__).parents[2] / "bench" / "lerobot_data_set.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    for number, peer in enumerate(PEERS):
        file = tmp_path / f"read_{number}.npz"
        for asked in (("read", file), ("train", tmp_path / f"run_{number}")):
            command = [peer, str(script), asked[0], str(found.folder), str(asked[1])]
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
            assert ended.returncode == 0, ended.stderr[-2000:]
        with np.load(file) as told:
            assert told["states"].tobytes() == np.array([frame.state for frame in frames]).tobytes()
            actions = [each.path.at([frame.stamp])[0] for each, frame in zip(episodes, frames, strict=True)]
            assert told["actions"].tobytes() == np.array(actions).tobytes()
            assert told["tasks"].tolist() == [episode.instruction for episode in episodes]
            for slot in SLOTS:
                ours = np.array([frame.images[slot] for frame in frames[::7]]).transpose(0, 3, 1, 2)
                np.testing.assert_allclose(told[f"observation.images.{slot}"] * 255, ours, atol=0.01)
