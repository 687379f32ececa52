# SPDX-License-Identifier: Apache-2.0
"""Data that cannot be trained on is named before any step: what, where, and what is expected."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from recorded import Session, changed, curve, problems_of

from xvla_ros.recordings import cdr
from xvla_ros.recordings.bag_writer import BagWriter
from xvla_ros.recordings.recording import SamplesError
from xvla_ros.robots.profile import profile_document
from xvla_ros.training.config import DatasetSettings
from xvla_ros.training.data.datasets import open_datasets
from xvla_ros.training.data.samples import is_told

TASK = "put the cube in the bowl"


@pytest.fixture(scope="module")
def pair():
    return changed("so101_bimanual", ("instruction", TASK))


def said(*paths, **settings):
    """What opening says, one problem a line."""
    return "\n".join(map(str, problems_of(DatasetSettings(paths=tuple(map(str, paths)), **settings))))


def test_a_good_bag_has_no_problem(tmp_path, pair):
    assert said(Session(pair, end=1.0).record().write(tmp_path / "bag.mcap")) == ""


def test_no_bag_an_empty_one_and_one_of_another_robot(tmp_path, pair):
    assert "no file or folder matches" in said(tmp_path / "no_such*.mcap")
    (tmp_path / "notes.txt").write_text("none")
    assert "no bag is at" in said(tmp_path / "*.txt")
    assert "there is no meta/info.json" in said(tmp_path, kind="lerobot")
    (tmp_path / "broken.mcap").write_bytes(b"nothing of this is a bag")
    assert "no message in it can be read" in said(tmp_path / "broken.mcap", robot="so101_bimanual")

    with BagWriter(tmp_path / "empty.mcap", profile_document([pair])):
        pass
    text = said(tmp_path / "empty.mcap")
    assert "/front/image_raw is missing, expected sensor_msgs/msg/Image" in text
    assert str(tmp_path / "empty.mcap") in text

    other = Session(changed("widowx", ("instruction", TASK)), end=1.0).record().write(tmp_path / "other.mcap")
    text = said(other, robot="so101_bimanual")
    assert "does not fit robot so101_bimanual" in text
    assert "/left/joint_states is missing" in text
    with pytest.raises(SamplesError, match="/left/joint_states is missing"):
        open_datasets(
            [DatasetSettings(paths=(str(other),), robot="so101_bimanual")],
            waypoints=4,
            image_size=None,
            cache=tmp_path / "cache",
        )
    mixed = Session(pair, end=1.0).record().write(tmp_path / "pair.mcap")
    with pytest.raises(SamplesError, match="is of robot so101_bimanual, but the first recording is of widowx"):
        open_datasets(
            [DatasetSettings(paths=(str(other), str(mixed)))], waypoints=4, image_size=None, cache=tmp_path / "cache"
        )


def test_mixed_rates_of_two_bags(tmp_path, pair):
    slow = Session(pair, end=1.0, camera_rate=10.0).record().write(tmp_path / "slow.mcap")
    fast = Session(pair, end=1.0, camera_rate=25.0).record().write(tmp_path / "fast.mcap")
    text = said(slow, fast)
    assert "mixed rates" in text
    assert str(slow) in text
    assert str(fast) in text
    assert said(slow, fast, rate=10.0) == ""


def test_wrong_units(tmp_path, pair):
    degrees = Session(pair, end=1.0, commands=False, joints_of=lambda t: np.degrees(curve(pair, t))).record()
    text = said(degrees.write(tmp_path / "degrees.mcap"))
    assert "messages cannot be used, the first because: joints_invalid: " in text
    assert "these values fit as degrees, but ROS uses radians" in text
    small = Session(pair, end=1.0, commands=False, joints_of=lambda t: np.radians(curve(pair, t))).record()
    assert "radians that were interpreted as degrees" in said(small.write(tmp_path / "small.mcap"))
    still = Session(pair, end=1.0, commands=False, joints_of=lambda t: curve(pair, 0.0)).record()
    assert "no joint moves" in said(still.write(tmp_path / "still.mcap"))
    turned = Session(pair, end=1.0, commands=False, joints_of=lambda t: curve(pair, t) + 2 * np.pi).record()
    assert "they are whole turns (2π) away" in said(turned.write(tmp_path / "turned.mcap"))


def test_nan_in_joints_and_commands(tmp_path, pair):
    def sometimes(seconds):
        joints = curve(pair, seconds)
        if 0.5 < seconds < 0.6:
            joints[2] = np.nan
        return joints

    text = said(Session(pair, end=1.0, commands=False, joints_of=sometimes).record().write(tmp_path / "joints.mcap"))
    assert "/left/joint_states" in text
    assert "elbow_flex = nan" in text
    session = Session(pair, end=1.0).record()
    group = pair.commands.by_name["left_arm"]
    names = [pair.joints.by_name[joint].name for joint in group.joints]
    session.add(
        0.5, group.topic, cdr.JOINT_TRAJECTORY, cdr.joint_trajectory(0, names, [10**8], np.full((1, 6), np.inf))
    )
    text = said(session.write(tmp_path / "commands.mcap"))
    assert group.topic in text
    assert "shoulder_pan that is not a finite number" in text


def test_commands_that_lack_and_episodes_without_pictures_or_words(tmp_path, pair):
    bag = Session(pair, end=1.0, commands=False).record().write(tmp_path / "bag.mcap")
    assert "no command was sent on /left/arm_controller" in said(bag, actions="commanded")
    with_commands = Session(pair, end=1.0).record().write(tmp_path / "with.mcap")
    assert "1 of 2 recordings do not have commands" in said(bag, with_commands)
    assert said(bag, with_commands, actions="measured") == ""

    silent = changed("so101_bimanual", ("instruction", ""))
    assert "has no instruction" in said(Session(silent, end=1.0).record().write(tmp_path / "silent.mcap"))
    short = Session(pair, end=1.0).record().mark(0.51, "start").mark(0.53, "end")
    assert "has no image" in said(short.write(tmp_path / "short.mcap"))
    failed = Session(pair, end=1.0).record().mark(0.1, "start").mark(0.9, "end", success=False)
    assert "1 failed was skipped" in said(failed.write(tmp_path / "failed.mcap"))


def test_a_recording_of_a_failure_alone_is_left_out_among_others(tmp_path, pair):
    Session(pair, end=1.0).record().write(tmp_path / "good.mcap")
    failed = Session(pair, end=1.0).record().mark(0.1, "start").mark(0.9, "end", success=False)
    failed.write(tmp_path / "failed.mcap")
    entry = DatasetSettings(paths=(str(tmp_path / "*.mcap"),), robot="so101_bimanual", instruction=TASK)
    assert problems_of(entry) == ()
    samples = open_datasets([entry], waypoints=4, image_size=None, cache=tmp_path / "cache")
    assert len(samples.datasets[0].stores) == 1
    assert "1 failed was skipped" in str(samples.datasets[0].left_out[0])
    alone = entry.model_copy(update={"paths": (str(tmp_path / "failed.mcap"),)})
    assert "1 failed was skipped" in str(problems_of(alone)[0])


def test_bad_recordings_may_be_left_out(tmp_path, pair):
    good = Session(pair, end=1.0).record().write(tmp_path / "good.mcap")
    (tmp_path / "broken.mcap").write_bytes(good.read_bytes()[:200])
    entry = DatasetSettings(paths=(str(tmp_path / "*.mcap"),), robot="so101_bimanual", instruction=TASK, skip_bad=True)
    samples = open_datasets([entry], waypoints=4, image_size=None, cache=tmp_path / "cache")
    assert len(samples.datasets[0].stores) == 1
    assert "broken.mcap" in str(samples.datasets[0].left_out[0])
    with pytest.raises(SamplesError, match=r"broken\.mcap"):
        open_datasets(
            [entry.model_copy(update={"skip_bad": False})], waypoints=4, image_size=None, cache=tmp_path / "cache"
        )


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path, pair):
    bag = Session(pair, end=2.0).record().write(tmp_path / "bag.mcap")
    script = textwrap.dedent(f"""
        from pathlib import Path
        from xvla_ros.recordings.recording import SamplesError
        from xvla_ros.training.config import DatasetSettings
        from xvla_ros.training.data.datasets import open_datasets
        for size in ((512, 512), None):
            try:
                open_datasets([DatasetSettings(paths=({str(bag)!r},))], waypoints=4, image_size=size,
                              cache=Path({str(tmp_path / "cache")!r}))
            except SamplesError as error:
                print(error)
        print([path.name for path in Path({str(tmp_path / "cache")!r}).iterdir() if path.is_dir()])
    """)
    (tmp_path / "cache").mkdir()
    mount = 'mount -t tmpfs -o size=160k tmpfs "$0" && exec "$@"'
    small = ["unshare", "-m", "sh", "-c", mount, str(tmp_path / "cache")]
    if subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    done = subprocess.run([*small, sys.executable, "-c", script], capture_output=True, text=True)
    before, during, left = done.stdout.strip().splitlines() or [done.stderr, "", ""]
    assert "do not fit on the disk" in before
    assert "no space is left on the disk" in during
    assert left == "[]"


def _open(bag: str, cache: str, results: multiprocessing.Queue) -> None:
    samples = open_datasets([DatasetSettings(paths=(bag,))], waypoints=4, image_size=(16, 16), cache=cache)
    results.put((len(samples.train), float(samples.train[3].images["front"].sum())))


def test_processes_that_start_together_make_one_store(tmp_path, pair):
    bag = Session(pair, end=1.0).record().write(tmp_path / "bag.mcap")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    running = [context.Process(target=_open, args=(str(bag), str(tmp_path / "cache"), results)) for _ in range(3)]
    for process in running:
        process.start()
    found = {results.get(timeout=300) for _ in running}
    for process in running:
        process.join()
    assert len(found) == 1
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_several_processes_decode_several_bags(tmp_path, pair):
    for number in range(3):
        Session(pair, end=1.0 + 0.2 * number).record().write(tmp_path / f"{number}.mcap")
    (tmp_path / "3.mcap").write_bytes((tmp_path / "2.mcap").read_bytes()[:300])
    entry = DatasetSettings(paths=(str(tmp_path / "*.mcap"),), robot="so101_bimanual", instruction=TASK, skip_bad=True)
    told = []
    samples = open_datasets(
        [entry], waypoints=4, image_size=(16, 16), cache=tmp_path / "cache", workers=2, progress=told.append
    )
    assert [Path(store.source).name for store in samples.datasets[0].stores] == ["0.mcap", "1.mcap", "2.mcap"]
    assert "3.mcap" in str(samples.datasets[0].left_out[0])
    assert [text.rpartition(" (")[2] for text in told] == ["1 of 4)", "2 of 4)", "3 of 4)", "4 of 4)"], "each once"


@pytest.mark.parametrize(("step", "of", "lines"), [(1, 4, 4), (1, 50, 10), (16, 1356, 10), (16, 5, 1)])
def test_long_work_says_how_far_it_is_in_few_lines_and_that_it_is_done(step, of, lines):
    done = [min(first + step, of) for first in range(0, of, step)]
    told = [each for before, each in zip([0, *done], done, strict=False) if is_told(each, before, of)]
    assert len(told) == lines and told[-1] == of


def test_another_bag_or_profile_gets_another_store(tmp_path, pair):
    bag = Session(pair, end=1.0).record().write(tmp_path / "bag.mcap")
    cache = tmp_path / "cache"

    def stores(**settings):
        open_datasets([DatasetSettings(paths=(str(bag),), **settings)], waypoints=4, image_size=None, cache=cache)
        return len([path for path in cache.iterdir() if path.is_dir()])

    def with_profile(name, **changes):
        file = tmp_path / name
        file.write_text(profile_document([changed("so101_bimanual", ("instruction", TASK), *changes.items())]))
        return str(file)

    assert stores() == 1
    assert stores(weight=3.0) == 1
    assert stores(robot=with_profile("a.yaml", **{"policy.waypoint_dt": 0.2, "policy.domain_id": 3})) == 1
    assert stores(robot=with_profile("b.yaml", **{"cameras.front.max_age": 0.05})) == 2
    assert stores(rate=5.0) == 3
    assert stores(actions="measured") == 4
    again = Session(pair, end=1.05).record().write(tmp_path / "bag.mcap")
    assert again == bag
    assert stores() == 5


def test_frames_without_words_of_their_own_follow_the_profiles(tmp_path):
    bag = Session(changed("so101_bimanual", ("instruction", "")), end=1.0).record().write(tmp_path / "bag.mcap")
    for words in ("touch the red cube", "touch the blue cube"):
        file = tmp_path / "profile.yaml"
        file.write_text(profile_document([changed("so101_bimanual", ("instruction", words))]))
        said = DatasetSettings(paths=(str(bag),), robot=str(file))
        samples = open_datasets([said], waypoints=4, image_size=None, cache=tmp_path / "cache")
        assert samples.train[0].instruction == words


def opened(bag, tmp_path, **settings):
    return open_datasets(
        [DatasetSettings(paths=(str(bag),), **settings)], waypoints=4, image_size=None, cache=tmp_path / "cache"
    )


def test_why_there_is_no_observation_is_said_in_the_words_of_the_node(tmp_path, pair):
    bag = Session(pair, end=1.0).record().encoded("8UC3").write(tmp_path / "bag.mcap")
    with pytest.raises(
        SamplesError,
        match=r"no observation can be built: \d+ camera_missing: front: image on "
        r"/front/image_raw cannot be used: encoding '8UC3'",
    ):
        opened(bag, tmp_path)
    far = Session(pair, end=1.0).record()
    far.messages = [
        (at - 3600 * 10**9 if "joint_states" in topic else at, topic, kind, data)
        for at, topic, kind, data in far.messages
    ]
    early = Session(pair, begin=-3600.0, end=-3599.0).record().messages
    far.messages = [each for each in far.messages if "image" in each[1]] + [
        (at + 3600 * 10**9, *rest) for at, *rest in early if "image" not in rest[0]
    ]
    text = said(far.write(tmp_path / "far.mcap"))
    assert "has no image between its joint states" in text
    assert "joints_stale: /left/joint_states: newest message on /left/joint_states is 3600." in text


def test_joints_that_never_come_are_named(tmp_path, pair):
    bag = Session(pair, end=1.0, commands=False).record().write(tmp_path / "bag.mcap")
    other = tmp_path / "other.yaml"
    prefixed = [(f"joints.left_{joint}.name", f"robot1/{joint}") for joint in ("shoulder_pan", "gripper")]
    other.write_text(profile_document([changed("so101_bimanual", ("instruction", TASK), *prefixed)]))
    text = said(bag, robot=str(other))
    assert "has no episode to train on" in text
    assert "joints_missing: /left/joint_states" in text and "expected robot1/shoulder_pan, robot1/gripper" in text


def test_some_skipped_instants_are_told_with_their_reasons(tmp_path, pair):
    bag = Session(pair, end=2.0).record().encoded("8UC3", 1.0, 1.5).write(tmp_path / "bag.mcap")
    for samples in (opened(bag, tmp_path), opened(bag, tmp_path)):  # made, and read from the store
        assert samples.summary()[0]["no observation"] >= 8
        assert any(
            "so101_bimanual: no observation: " in line and "encoding '8UC3'" in line for line in samples.left_out()
        )


def test_joints_that_leap_are_cut_out_or_refused(tmp_path, pair):
    for commands in (True, False):
        bag = Session(pair, end=3.0, commands=commands).record().zeros(1.0, 2.0).write(tmp_path / f"{commands}.mcap")
        if commands:
            samples = opened(bag, tmp_path)
            assert 25 <= len(samples.train) <= 40
            assert any(" leaps by " in line for line in samples.left_out())
        else:
            with pytest.raises(
                SamplesError, match="joints leap faster than a joint can move, and the measured joints are used"
            ):
                opened(bag, tmp_path)
