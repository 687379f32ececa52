# SPDX-License-Identifier: Apache-2.0
"""Samples drawn by the simulator: a function of their number, the expert's, and trained on end to end."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from recorded import changed
from tiny import MODEL

pytest.importorskip("mujoco")
pytest.importorskip("pinocchio")

from xvla_ros.commands import main
from xvla_ros.model import checkpoint
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.family import draw_arm
from xvla_ros.robots.profile import load_robot, profile_document
from xvla_ros.training.config import Drawn, SceneSettings, TrainingError
from xvla_ros.training.data.drawn import DrawnSamples, Players, SceneSamples
from xvla_ros.training.data.features import TowerRun
from xvla_ros.training.data.samples import PLACE_UNIT
from xvla_ros.training.run import train

SCENES = (SceneSettings(robot="so101_bimanual"), SceneSettings(robot="agibot"))
WAYPOINTS = 8


@pytest.fixture(scope="module")
def source():
    return DrawnSamples(Drawn(scenes=SCENES, goals=2, pixels=32), WAYPOINTS, 0)


def same(one, other) -> bool:
    return (
        one.instruction == other.instruction and one.index == other.index and one.robot == other.robot
        and np.array_equal(one.actions, other.actions) and np.array_equal(one.state, other.state)
        and all(np.array_equal(one.images[slot], other.images[slot]) for slot in one.images)
    )  # fmt: skip


def test_a_sample_depends_on_seed_and_number_alone(source):
    first = [source.draw(index) for index in (0, 1, 2, 7)]
    again = DrawnSamples(Drawn(scenes=SCENES, goals=2, pixels=32), WAYPOINTS, 0)
    assert all(same(one, again.draw(one.index)) for one in reversed(first))
    assert again.fingerprint == source.fingerprint
    assert DrawnSamples(Drawn(scenes=SCENES, goals=2, pixels=32), WAYPOINTS, 1).fingerprint != source.fingerprint
    assert not same(source.held_out[0], source.held_out[1])


def test_samples_that_come_again_are_drawn_once(monkeypatch):
    source = DrawnSamples(Drawn(scenes=SCENES, goals=2, repeats=3, pixels=32), WAYPOINTS, 0)
    once = DrawnSamples(Drawn(scenes=SCENES, goals=2, pixels=32), WAYPOINTS, 0)
    drawn, draw = [], source._drawn
    monkeypatch.setattr(source, "_drawn", lambda number, *rest: drawn.append(number) or draw(number, *rest))
    monkeypatch.setattr("xvla_ros.training.data.drawn.APART", 8)
    monkeypatch.setattr("xvla_ros.training.config.APART", 8)
    indices = range(3 * 40)
    samples = [source.draw(index) for index in indices]
    assert [each.index for each in samples] == list(indices)
    assert len(drawn) == len(set(drawn)) == (40 + 2 * 8) // 2
    for turn in range(20):
        wanted = replace(once.draw(turn), index=0)
        assert all(same(wanted, replace(samples[3 * (turn + 8 * n) + n], index=0)) for n in range(3))
    assert samples[3].images is samples[3 * 9 + 1].images
    assert same(source.draw(60), samples[60])  # not kept any more, and the same again
    assert len(source._latest) <= 2 * 8 // 2 + 1


def test_samples_of_a_moment_share_all_but_words_and_way(source):
    robots = set()
    for index in range(0, 16, 2):
        one, other = source.draw(index), source.draw(index + 1)
        robots.add(one.robot)
        assert one.images is other.images and np.array_equal(one.state, other.state)
        assert one.instruction != other.instruction
        assert one.mask.all() and one.actions.shape == (WAYPOINTS, len(one.state))
    assert robots == {"so101_bimanual", "agibot"}


def test_actions_are_the_plan_in_the_units_of_the_state(source):
    for index in range(0, 12, 2):
        scene = source._scenes[index % 4 // 2]
        profile, policy = scene.profile, scene.profile.policy
        (moment,) = scene.moments.draw(np.random.default_rng(index), 1, pictures=False)
        (made,) = scene.samples([moment], WAYPOINTS, 0, "")
        times = policy.first_waypoint_offset + np.arange(WAYPOINTS) * policy.waypoint_dt
        there = StateEncoder(profile).state(moment.asked[0].plan.at(times))
        spoken = [i for i, name in enumerate(profile.channels) if "gripper" not in name]
        np.testing.assert_allclose(made.actions[:, spoken], there[:, spoken], atol=2e-5)


def test_normalisation_is_that_of_what_is_drawn(source, monkeypatch):
    monkeypatch.setattr("xvla_ros.training.data.drawn.MEASURED", 60)
    statistics = source.statistics("so101_bimanual", "mean_std", "mean_std")
    state = np.stack([source.draw(i).state for i in range(80) if source.draw(i).robot == "so101_bimanual"])
    normalised = statistics.state.normalise(state)
    assert np.abs(normalised.mean(axis=0)).max() < 1.0 and np.abs(normalised).max() < 8.0
    grippers = [i for i, name in enumerate(source.profiles["so101_bimanual"].channels) if "gripper" in name]
    actions = np.random.default_rng(0).random((3, 12))
    np.testing.assert_allclose(statistics.action.normalise(actions)[:, grippers], actions[:, grippers], atol=1e-6)


def test_tool_poses_stay_as_they_are_without_a_sample_being_drawn(source, monkeypatch):
    monkeypatch.setattr(SceneSamples, "moments", None)
    statistics = source.statistics("agibot", "identity", "IDENTITY")
    assert statistics.state.mode == statistics.action.mode == "IDENTITY"


def test_arms_of_the_family_are_domains_beside_the_scenes():
    told = Drawn(scenes=SCENES[:1], family=3, family_weight=0.6, pixels=32)
    assert [(each.robot, each.task, round(each.weight, 9)) for each in told.all_scenes] == [
        ("so101_bimanual", "touch", 1.0), ("family_0", "touch", 0.2), ("family_1", "touch", 0.2),
        ("family_2", "touch", 0.2),
    ]  # fmt: skip
    source = DrawnSamples(told, WAYPOINTS, 0)
    assert [each.domain_id for each in source.embodiments.values()] == [19, 32, 33, 34]
    drawn = [source.draw(index) for index in range(0, 96, 2)]
    assert {sample.robot for sample in drawn} == set(source.embodiments)
    assert {len(sample.images) for sample in drawn if sample.robot == "family_0"} == {len(draw_arm(0).slots)}
    assert source.fingerprint != DrawnSamples(Drawn(scenes=SCENES[:1], family=2, pixels=32), WAYPOINTS, 0).fingerprint


@pytest.mark.parametrize("plans", [True, False])
def test_a_place_in_the_picture_is_where_the_named_cube_is_seen(plans):
    source = DrawnSamples(Drawn(scenes=(SceneSettings(robot="family_4"),), places="picture"), WAYPOINTS, 0, plans=plans)
    colours, far = {"red": 0, "green": 1, "blue": 2}, []
    for index in range(0, 40, 2):
        sample = source.draw(index)
        u, v, depth = sample.place / PLACE_UNIT
        assert 0.2 < depth < 3.0
        picture = sample.images["front"].astype(float)
        column, row = int((u + 1) * 128), int((v + 1) * 128)
        patch = picture[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3].reshape(-1, 3).mean(axis=0)
        far.append(int(np.argmax(patch)) == colours[sample.instruction.split()[2]] and np.ptp(patch) > 40)
    assert np.mean(far) > 0.8, "the rest is hidden by the arm"


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A training file over drawn samples, with the folder of the run as its output."""
    monkeypatch.setattr("xvla_ros.training.data.drawn.MEASURED", 8)
    monkeypatch.setattr("xvla_ros.training.data.drawn.HELD_OUT_MOMENTS", 4)
    told = {
        "model": {**MODEL, "chunk_size": WAYPOINTS, "network": {**MODEL["network"], "num_domains": 20}}, "steps": 4,
        "drawn": {"scenes": [{"robot": "so101_bimanual"}], "goals": 2, "pixels": 32},
        "schedule": {"decay": "constant"}, "optimizer": {"eps": 1e-3},
        "freeze": {"vision_encoder": True}, "validation": {"every": 2, "samples": 4},
        "batch": {"size": 4, "workers": 0}, "log": {"log_every": 1, "save_every": 2, "progress": False},
    }  # fmt: skip
    path = tmp_path / "train.yaml"
    path.write_text(json.dumps(told))
    return lambda name, *changes: (str(path), [f"output={tmp_path / name}", *changes])


def losses(folder) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((folder / "curve.csv").open())]


def test_a_run_on_the_towers_outputs_is_that_on_pictures_and_goes_on_where_it_stopped(settings, tmp_path):
    assert train(*settings("pictures")) == 0
    assert train(*settings("worker", "features=true", "batch.workers=1")) == 0
    assert train(*settings("parts", "features=true", "steps=2")) == 0
    assert train(*settings("parts", "features=true", "resume=true")) == 0
    pictures, worker, parts = (losses(tmp_path / name) for name in ("pictures", "worker", "parts"))
    assert len(pictures) == 4
    np.testing.assert_allclose(worker, pictures, rtol=2e-4)
    np.testing.assert_allclose(parts, worker, rtol=1e-6)
    policy = checkpoint.load(tmp_path / "worker" / "checkpoint")
    assert set(policy.robots) == {"so101_bimanual"}


def test_samples_that_come_again_go_through_the_tower_once(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("xvla_ros.training.data.drawn.APART", 4)
    monkeypatch.setattr("xvla_ros.training.config.APART", 4)
    seen, see = [], TowerRun._see
    monkeypatch.setattr(TowerRun, "_see", lambda run, samples, _: seen.extend(samples) or see(run, samples, _))
    assert train(*settings("pictures", "drawn.repeats=2")) == 0
    assert train(*settings("kept", "drawn.repeats=2", "features=true", "validation.every=9")) == 0
    np.testing.assert_allclose(losses(tmp_path / "kept"), losses(tmp_path / "pictures"), rtol=2e-4)
    layouts = (4 * 4 // 2 + 4) // 2  # of two samples, and the four held-out ones
    assert len(seen) == len({sample.source for sample in seen}) == layouts + 4


def test_robots_and_arms_of_the_family_are_trained_together(settings, tmp_path):
    told = ("drawn.family=2", "drawn.places=picture", "grounding=1.0", "model.network.num_domains=64")
    assert train(*settings("family", *told, "features=true", "batch.workers=1", "steps=2")) == 0
    assert train(*settings("family", *told, "features=true", "batch.workers=1", "resume=true")) == 0
    assert np.isfinite(losses(tmp_path / "family")).all() and len(losses(tmp_path / "family")) == 4
    policy = checkpoint.load(tmp_path / "family" / "checkpoint")
    assert {name: each.embodiment.domain_id for name, each in policy.robots.items()} == {
        "so101_bimanual": 19, "family_0": 32, "family_1": 33,
    }  # fmt: skip


def test_the_policy_of_an_earlier_run_plays_what_it_is_then_trained_on(settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("xvla_ros.simulation.tasks.moments.PLAYED", 1.0)
    monkeypatch.setattr("xvla_ros.simulation.tasks.moments.BY_POLICY", 1.0)
    grasping = "drawn.scenes=[{robot: so101_bimanual, task: pick_place}]"
    assert train(*settings("first", grasping, "steps=2")) == 0
    first = tmp_path / "first" / "checkpoint"
    told = (grasping, f"drawn.played_by={first}", "features=true", "batch.workers=1")
    assert train(*settings("whole", *told)) == 0
    assert train(*settings("parts", *told, "steps=2")) == 0
    assert train(*settings("parts", *told, "resume=true")) == 0
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=1e-6)
    assert losses(tmp_path / "whole")[0] > 0.0
    kept = json.loads((tmp_path / "whole" / "checkpoint" / "xvla_ros.json").read_text())
    assert str(tmp_path) not in json.dumps(kept), "no path of this machine"
    path, overrides = settings("other", "drawn.scenes=[{robot: so101, task: pick_place}]", f"drawn.played_by={first}")
    capsys.readouterr()
    assert main(["train", "--no-evaluate", path, *overrides]) == 1
    assert "was not trained for so101 (domain" in capsys.readouterr().err


def test_a_player_that_cannot_drive_a_robot_is_named_where_its_files_do_not_say_what_it_was_trained_for():
    players = Players("shipped")
    players.policy.training = replace(players.policy.training, trained_domains=None)
    with pytest.raises(TrainingError, match=r"drawn\.played_by: robot 'widowx' is not in the checkpoint"):
        players.of(load_robot("widowx"))


def test_recordings_and_drawn_samples_are_not_mixed_and_what_is_wrong_is_named(settings, capsys):
    def say(name, *changes):
        path, overrides = settings(name, *changes)
        return main(["train", "--no-evaluate", str(path), *overrides])

    assert say("mixed", "datasets=[{paths: [x.mcap]}]") == 1
    assert "either recordings (datasets) or generated (drawn)" in capsys.readouterr().err
    assert say("light", "augmentation.brightness=0.1") == 1
    assert "set drawn.variation, not augmentation" in capsys.readouterr().err
    assert say("task", "drawn.scenes=[{robot: so101, task: juggle}]") == 1
    assert "no task 'juggle'" in capsys.readouterr().err


def test_two_profiles_of_one_name_are_refused(tmp_path):
    profile = changed("so101", ("policy.waypoint_dt", 0.2))
    other = tmp_path / "other.yaml"
    other.write_text(profile_document([profile]))
    scenes = (SceneSettings(robot="so101"), SceneSettings(robot=str(other)))
    with pytest.raises(TrainingError, match="with different profiles"):
        DrawnSamples(Drawn(scenes=scenes, pixels=32), WAYPOINTS, 0)
