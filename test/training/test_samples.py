# SPDX-License-Identifier: Apache-2.0
"""Samples from bags: what the waypoints are, where episodes begin and end, in what order samples are drawn."""

from __future__ import annotations

import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from recorded import AHEAD, MS, START, Session, changed, curve, picture

from xvla_ros.model.inputs.pictures import image_pipeline
from xvla_ros.recordings import cdr
from xvla_ros.recordings.recording import SamplesError
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.joints import to_policy
from xvla_ros.robots.profile import Profile, profile_document
from xvla_ros.robots.rotations import rot6d_to_matrix
from xvla_ros.training.config import Augmentation, DatasetSettings
from xvla_ros.training.data.datasets import open_datasets

TASK = "put the cube in the bowl"
WAYPOINTS = 12


@pytest.fixture(scope="module")
def pair():
    return changed(
        "so101_bimanual",
        ("instruction", TASK),
        ("policy.waypoint_dt", 0.05),
        ("cameras.left_wrist.transport", "compressed"),
    )


@pytest.fixture(scope="module")
def arm():
    return changed("widowx", ("instruction", TASK), ("policy.waypoint_dt", 0.1))


def opened(tmp_path, *paths, size=None, waypoints=WAYPOINTS, augmentation=None, seed=0, **settings):
    entry = DatasetSettings(paths=tuple(str(path) for path in paths), **settings)
    return open_datasets(
        [entry], waypoints=waypoints, image_size=size, cache=tmp_path / "cache", augmentation=augmentation, seed=seed
    )


def due(profile, sample):
    policy = profile.policy
    after = policy.first_waypoint_offset + policy.waypoint_dt * np.arange(len(sample.actions))
    return (sample.stamp - START) / 1e9 + after


@pytest.mark.parametrize("actions", ["commanded", "measured", "auto"])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_waypoints_lie_on_the_curve_at_their_times(tmp_path, pair, actions, storage):
    name = "bag.mcap" if storage == "mcap" else "bag"
    bag = Session(pair).record().write(tmp_path / name, storage)
    if storage == "sqlite3":  # `ros2 bag record` writes no profile
        profile_file = tmp_path / "pair.yaml"
        profile_file.write_text(profile_document([pair]))
        samples = opened(tmp_path, bag, actions=actions, robot=str(profile_file))
    else:
        samples = opened(tmp_path, bag, actions=actions)

    assert len(samples.train) > 50
    ahead = 0.0 if actions == "measured" else AHEAD
    for sample in samples.train:
        seconds = (sample.stamp - START) / 1e9
        np.testing.assert_allclose(sample.state, to_policy(curve(pair, seconds), pair), atol=0.02)
        wanted = to_policy(curve(pair, due(pair, sample) + ahead), pair)
        known = sample.mask.copy()
        if ahead:  # before the first command the joints are where they are measured
            known &= due(pair, sample) > 0.05
        np.testing.assert_allclose(sample.actions[known], wanted[known], atol=0.05)
        assert sample.instruction == TASK
        assert sample.actions.dtype == np.float32
        assert sample.actions.shape == (WAYPOINTS, 12)


def test_after_the_end_the_last_waypoint_repeats(tmp_path, pair):
    bag = Session(pair).record().write(tmp_path / "bag.mcap")
    last = opened(tmp_path, bag, actions="measured").train[-4]
    count = int(last.mask.sum())
    assert 0 < count < 6
    assert last.mask[:count].all()
    assert not last.mask[count:].any()
    np.testing.assert_array_equal(
        last.actions[count:], np.repeat(last.actions[count : count + 1], WAYPOINTS - count, 0)
    )
    np.testing.assert_allclose(last.actions[-1], to_policy(curve(pair, 2.98), pair), atol=0.02)


def test_tool_poses_are_those_of_the_joints(tmp_path, arm):
    bag = Session(arm).record().write(tmp_path / "bag.mcap")
    samples = opened(tmp_path, bag, actions="measured")
    encoder = StateEncoder(arm)
    for sample in [samples.train[5], samples.train[20]]:
        times = due(arm, sample)[sample.mask]
        wanted = encoder.state(curve(arm, times))
        found = sample.actions[sample.mask].astype(np.float64)
        np.testing.assert_allclose(found[:, :3], wanted[:, :3], atol=3e-4)
        np.testing.assert_allclose(
            rot6d_to_matrix(found[:, 3:9], "interleaved"), rot6d_to_matrix(wanted[:, 3:9], "interleaved"), atol=2e-3
        )
        assert not found[:, 10:].any()
        # the gripper's channel is that of an action: 0 open, 1 closed
        opening = np.clip((0.037 - curve(arm, times)[:, 6]) / 0.022, 0, 1)
        np.testing.assert_allclose(found[:, 9], opening, atol=0.02)


def test_commanded_proprioception_is_the_state(tmp_path, arm):
    bag = Session(arm).record().write(tmp_path / "bag.mcap")
    samples = opened(tmp_path, bag)
    assert arm.policy.proprio_source == "commanded"
    encoder = StateEncoder(arm)
    for sample in samples.train:
        seconds = (sample.stamp - START) / 1e9
        if 0.15 < seconds < 2.8:
            np.testing.assert_allclose(sample.state[:3], encoder.state(curve(arm, seconds + AHEAD))[:3], atol=2e-3)


def test_marks_delimit_episodes(tmp_path, pair):
    session = Session(pair, end=6.0).record()
    session.mark(0.5, "start", instruction="touch the red cube", task="touch", seed=4).mark(1.5, "end", success=True)
    session.mark(2.0, "start", instruction="touch the green cube").mark(2.5, "discard")
    session.mark(3.0, "start", instruction="touch the blue cube").mark(3.5, "end", success=False)
    session.mark(4.0, "start", robot="another").mark(4.5, "end", robot="another")
    session.mark(5.0, "start", instruction="touch the white cube")
    bag = session.write(tmp_path / "bag.mcap")

    samples = opened(tmp_path, bag)

    (store,) = samples.datasets[0].stores
    assert [(episode.instruction, episode.success) for episode in store.episodes] == [
        ("touch the red cube", True),
        ("touch the white cube", None),
    ]
    assert (store.episodes[0].task, store.episodes[0].seed) == ("touch", 4)
    assert store.skipped == {"discarded": 1, "failed": 1}
    for sample in samples.train:
        seconds = (sample.stamp - START) / 1e9
        assert (0.5 <= seconds <= 1.5) if "red" in sample.instruction else seconds >= 5.0
        recorded = due(pair, sample)[sample.mask]
        assert "white" in sample.instruction or (recorded <= 1.5).all()
    kept = opened(tmp_path, bag, only_successes=False)
    assert len(kept.datasets[0].stores[0].episodes) == 3


def test_a_cut_bag_gives_what_is_whole(tmp_path, pair):
    whole = Session(pair).record().write(tmp_path / "whole.mcap").read_bytes()
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(whole[: int(0.6 * len(whole))])
    samples = opened(tmp_path, cut, actions="measured")
    assert 20 < len(samples.train) < 45
    assert "truncated" in samples.datasets[0].stores[0].notes[0]


def test_a_recorder_with_another_clock_and_a_simulation_that_begins_again(tmp_path, pair):
    session = Session(pair, end=2.0).record()
    again = Session(pair, end=1.5).record()
    session.messages = session.ordered() + [(time + 2100 * MS, *rest) for time, *rest in again.ordered()]
    bag = session.write(tmp_path / "bag.mcap", log_offset=10**18)
    samples = opened(tmp_path, bag, actions="measured")
    (store,) = samples.datasets[0].stores
    assert len(store.episodes) == 2
    seconds = (store.stamps - START) / 1e9
    assert seconds[: store.first[1]].max() > 1.9
    assert seconds[store.first[1] :].max() < 1.5
    for sample in samples.train:
        wanted = to_policy(curve(pair, due(pair, sample)), pair)
        np.testing.assert_allclose(sample.actions[sample.mask], wanted[sample.mask], atol=0.05)


@pytest.mark.parametrize("pipeline", ["squash", "letterbox"])
def test_pictures_kept_at_the_networks_size_give_its_input(tmp_path, pair, pipeline):
    profile = changed("so101_bimanual", ("instruction", TASK), ("policy.image_pipeline", pipeline))
    bag = Session(profile, end=0.6, size=(96, 128)).record().write(tmp_path / "bag.mcap")
    kept = opened(tmp_path, bag, size=(48, 48), actions="measured").train[3]
    plain = opened(tmp_path, bag, actions="measured").train[3]
    make = image_pipeline(pipeline)
    for slot, image in plain.images.items():
        assert kept.images[slot].shape[0] < 49
        # 8 bits of a normalised value: 1/255 over the smallest deviation, half of it by rounding
        limit = 0.0 if pipeline == "squash" else 0.51 / 255 / 0.224
        difference = (make(kept.images[slot], (48, 48)) - make(image, (48, 48))).abs().max()
        assert float(difference) <= limit


def test_plain_pictures_are_those_of_the_bag(tmp_path, pair):
    bag = Session(pair, end=1.0).record().write(tmp_path / "bag.mcap")
    for sample in opened(tmp_path, bag).train:
        seconds = (sample.stamp - START) / 1e9
        np.testing.assert_array_equal(sample.images["front"], picture(seconds, 0, (24, 32)))
        np.testing.assert_array_equal(sample.images["right_wrist"], picture(seconds, 2, (24, 32)))


def test_a_link_in_the_place_of_a_lock_costs_no_file(tmp_path, pair):
    bag, victim = Session(pair, end=0.6).record().write(tmp_path / "bag.mcap"), tmp_path / "victim"
    opened(tmp_path, bag)
    (lock,) = (tmp_path / "cache").glob("*.lock")
    shutil.rmtree(lock.with_suffix(""))
    lock.unlink()
    lock.symlink_to(victim)
    victim.write_text("mine")
    with pytest.raises(SamplesError, match=rf"{lock.name} cannot be written: .*symbolic links; expected a writable"):
        opened(tmp_path, bag)
    assert victim.read_text() == "mine"


def test_an_absent_optional_camera_masks_its_slot(tmp_path, pair):
    profile = changed("so101_bimanual", ("instruction", TASK), ("cameras.right_wrist.required", False))
    session = Session(profile).record()
    topic = profile.cameras.by_name["right_wrist"].topic
    session.messages = [entry for entry in session.messages if entry[1] != topic or entry[0] > START + 1500 * MS]
    samples = opened(tmp_path, session.write(tmp_path / "bag.mcap"))
    seen = [set(sample.images) for sample in samples.train]
    assert {"front", "left_wrist"} in seen
    assert {"front", "left_wrist", "right_wrist"} in seen


def test_held_out_episodes_are_not_trained_on(tmp_path, pair):
    session = Session(pair, end=4.0).record()
    for number in range(8):
        session.mark(number * 0.5, "start", instruction=f"task {number}").mark(number * 0.5 + 0.45, "end")
    bag = session.write(tmp_path / "bag.mcap")
    samples = opened(tmp_path, bag, split={"fraction": 0.25, "seed": 3})
    train, held_out = ({one.instruction for one in part} for part in (samples.train, samples.held_out))
    assert (len(train), len(held_out)) == (6, 2)
    assert not train & held_out
    assert {samples.draw(index).instruction for index in range(len(samples.train))} == train


@pytest.mark.parametrize("split_seed", range(4))
def test_simulated_episodes_of_one_layout_are_held_out_together(tmp_path, pair, split_seed):
    session = Session(pair, end=4.0).record()
    for number in range(8):
        told = {"instruction": f"task {number // 2}, arm {number % 2}", "task": "touch", "seed": number // 2}
        session.mark(number * 0.5, "start", **told).mark(number * 0.5 + 0.45, "end")
    samples = opened(tmp_path, session.write(tmp_path / "bag.mcap"), split={"fraction": 0.25, "seed": split_seed})
    train, held_out = ({one.instruction for one in part} for part in (samples.train, samples.held_out))
    assert (len(train), len(held_out)) == (6, 2)
    assert len({each.partition(",")[0] for each in held_out}) == 1


def test_an_instruction_that_changes_in_an_unmarked_bag_counts_from_then_on(tmp_path):
    profile = changed("so101_bimanual", ("instruction", TASK))
    told = [(0.05, "touch the red cube"), (1.0, ""), (1.5, "touch the blue cube"), (2.0, "touch the blue cube")]

    def bag(name, marked=False):
        session = Session(profile, end=3.0).record()
        for seconds, text in told:
            session.add(seconds, f"/{profile.name}/instruction", cdr.STRING, cdr.string(text))
        if marked:
            session.mark(0.1, "start", instruction=TASK).mark(2.9, "end")
        return session.write(tmp_path / f"{name}.mcap")

    samples = opened(tmp_path, bag("plain")).train
    wanted = ["touch the blue cube" if one.stamp >= START + 1500 * MS else "touch the red cube" for one in samples]
    assert [one.instruction for one in samples] == wanted and len(set(wanted)) == 2
    assert {one.instruction for one in opened(tmp_path, bag("marked", marked=True)).train} == {TASK}
    assert {one.instruction for one in opened(tmp_path, tmp_path / "plain.mcap", instruction="x").train} == {"x"}


def odd(profile, stamp, end):
    """A marked episode of 5 s, in the middle of which one wrist picture has another stamp; ``end``: of its mark."""
    session = Session(profile, end=5.0).record()
    topic = profile.cameras.by_name["left_wrist"].topic
    place = next(n for n, each in enumerate(session.messages) if each[1] == topic and each[0] > START + 2500 * MS)
    at, topic, kind, data = session.messages[place]
    seconds, ns = divmod(stamp, 10**9)
    session.messages[place] = at, topic, kind, data[:4] + struct.pack("<iI", seconds, ns) + data[12:]
    return session.mark(0.1, "start", instruction=TASK).mark(4.9, **end)


@pytest.mark.parametrize("stamp", [0, START - 2000 * MS])
@pytest.mark.parametrize("end", [{"event": "end", "success": False}, {"event": "discard"}])
def test_an_odd_stamp_makes_no_demonstration_of_a_failure(tmp_path, pair, stamp, end):
    with pytest.raises(SamplesError, match=r"1 (failed|discarded) was skipped"):
        opened(tmp_path, odd(pair, stamp, end).write(tmp_path / "bag.mcap"))


@pytest.mark.parametrize("stamp", [0, START - 2000 * MS])
def test_an_odd_stamp_costs_at_most_the_rest_of_an_episode(tmp_path, pair, stamp):
    bag = odd(pair, stamp, {"event": "end", "success": True}).write(tmp_path / "bag.mcap")
    (episode,) = opened(tmp_path, bag).datasets[0].stores[0].episodes
    assert episode.success
    assert (episode.end - episode.start) / 1e9 > (4.7 if stamp == 0 else 2.2)


def test_joint_states_of_others_without_stamps_on_the_topic_change_nothing(tmp_path, pair):
    session = Session(pair, end=3.0).record()
    topic = pair.joints.topics[0]
    for tick in range(60):
        wheels = cdr.joint_state(0, ["wheel_left", "wheel_right"], np.array([0.1, 0.2]))
        session.add(0.05 * tick + 0.001, topic, cdr.JOINT_STATE, wheels)
    found = opened(tmp_path, session.write(tmp_path / "bag.mcap")).train
    plain = opened(tmp_path, Session(pair, end=3.0).record().write(tmp_path / "plain.mcap")).train
    assert [one.stamp for one in found] == [one.stamp for one in plain]


def test_a_pattern_that_fits_folders_and_their_files_takes_each_bag_once(tmp_path, pair):
    for number in range(2):
        folder = tmp_path / "rec" / f"b{number}"
        folder.mkdir(parents=True)
        Session(pair, begin=number, end=number + 1.0).record().write(folder / f"b{number}_0.mcap")
    Session(pair, begin=60.0, end=61.0).record().write(tmp_path / "rec" / "take.mcap")
    for pattern in (tmp_path / "rec" / "**", tmp_path / "rec"):
        (found,) = opened(tmp_path, pattern).datasets
        assert sorted(Path(store.source).stem.removesuffix("_0") for store in found.stores) == ["b0", "b1", "take"]


def test_draws_depend_on_seed_and_number_alone(tmp_path, pair):
    bag = Session(pair, end=1.5).record().write(tmp_path / "bag.mcap")
    settings = {
        "augmentation": Augmentation(brightness=0.3, noise=0.05, drop_view=0.3),
        "instructions": {TASK: ("move the cube into the bowl",)},
    }
    one, two, other = (opened(tmp_path, bag, seed=seed, **settings) for seed in (5, 5, 6))
    for index in (700, 3, 41):
        a, b = one.draw(index), two.draw(index)
        assert (a.stamp, a.instruction, a.index, a.row) == (b.stamp, b.instruction, index, b.row)
        assert a.images.keys() == b.images.keys()
        for slot in a.images:
            np.testing.assert_array_equal(a.images[slot], b.images[slot])
        np.testing.assert_array_equal(one.train[a.row].state, a.state)
    assert [one.draw(i).stamp for i in range(20)] != [other.draw(i).stamp for i in range(20)]
    assert {one.draw(i).instruction for i in range(40)} == {TASK, "move the cube into the bowl"}
    assert set(one.instructions) == {TASK, "move the cube into the bowl"}


def test_paraphrases_of_an_instruction_that_no_episode_has_are_refused(tmp_path, pair):
    bag = Session(pair, end=1.5).record().write(tmp_path / "bag.mcap")
    for text in (f"  {TASK.upper()}. ", TASK):
        assert opened(tmp_path, bag, instructions={text: ("move it",)}).instructions
    with pytest.raises(SamplesError, match="no episode has the instruction toch the red cube,") as caught:
        opened(tmp_path, bag, instructions={"toch the red cube": ("tap it",), TASK: ("move it",)})
    assert TASK in caught.value.problems[0].expected


def test_robots_are_mixed_by_weight(tmp_path, pair, arm):
    bags = {
        profile.name: Session(profile, end=1.0).record().write(tmp_path / f"{profile.name}.mcap")
        for profile in (pair, arm)
    }
    entries = [
        DatasetSettings(paths=(str(bags["so101_bimanual"]),), weight=3.0),
        DatasetSettings(paths=(str(bags["widowx"]),), weight=1, domain_id=7),
    ]
    samples = open_datasets(entries, waypoints=4, image_size=(32, 32), cache=tmp_path / "cache")
    drawn = [samples.draw(index) for index in range(1024)]
    assert sum(sample.robot == "widowx" for sample in drawn) == 256
    assert {sample.domain_id for sample in drawn} == {19, 7}
    assert samples.embodiments["widowx"].domain_id == 7
    assert {sample.actions.shape for sample in drawn} == {(4, 12), (4, 20)}


def test_the_same_name_for_two_robots_is_refused(tmp_path, pair):
    bag = Session(pair, end=1.0).record().write(tmp_path / "bag.mcap")
    entries = [DatasetSettings(paths=(str(bag),)), DatasetSettings(paths=(str(bag),), domain_id=3)]
    with pytest.raises(SamplesError, match="one profile and one domain"):
        open_datasets(entries, waypoints=4, image_size=(32, 32), cache=tmp_path / "cache")


def test_statistics_are_those_of_the_samples(tmp_path, pair):
    bag = Session(pair).record().write(tmp_path / "bag.mcap")
    samples = opened(tmp_path, bag)
    states = np.stack([sample.state for sample in samples.train])
    actions = np.concatenate([sample.actions[sample.mask] for sample in samples.train])
    found = samples.statistics("so101_bimanual", "mean_std", "quantiles")
    np.testing.assert_allclose(found.state.stats["mean"], states.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.state.stats["std"], states.std(0), rtol=1e-4, atol=1e-5)
    joints = [i for i in range(12) if i not in (5, 11)]
    np.testing.assert_allclose(
        found.action.stats["q99"][joints], np.quantile(actions, 0.99, axis=0)[joints], rtol=1e-3, atol=1e-3
    )
    # grippers are decoded by a sigmoid and stay in 0..1
    np.testing.assert_allclose(found.action.normalise(actions)[:, [5, 11]], actions[:, [5, 11]], atol=1e-6)


def test_statistics_of_offsets_are_those_of_what_the_network_predicts(tmp_path, pair):
    raw = pair.to_mapping()
    raw["policy"].update(action_mode="auto_relative", absolute=["left_gripper", "right_gripper"])
    offsets = Profile.from_mapping(pair.name, raw)
    samples = opened(tmp_path, Session(offsets).record().write(tmp_path / "bag.mcap"))
    channels = [i for i in range(12) if i not in (5, 11)]
    assert samples.embodiments[pair.name].relative == tuple(channels)
    told = [(sample.actions[sample.mask], sample.state) for sample in samples.train]
    counted = np.concatenate([actions - np.where(np.isin(range(12), channels), state, 0) for actions, state in told])
    found = samples.statistics(pair.name, "mean_std", "mean_std").action
    np.testing.assert_allclose(found.stats["mean"], counted.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.stats["std"], counted.std(0), rtol=1e-4, atol=1e-5)


def test_a_second_run_reads_the_store(tmp_path, pair, monkeypatch):
    from xvla_ros.recordings.bag_recording import BagRecording

    bag = Session(pair, end=1.0).record().write(tmp_path / "bag.mcap")
    first = opened(tmp_path, bag, size=(32, 32))
    monkeypatch.setattr(BagRecording, "survey", lambda self: pytest.fail("the bag was read again"))
    second = opened(tmp_path, bag, size=(32, 32))
    for a, b in zip(first.train, second.train, strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(a.images["front"], b.images["front"])
