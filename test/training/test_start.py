# SPDX-License-Identifier: Apache-2.0
"""What a run begins with, and what its checkpoint remembers."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import ARM, MODEL, PAIR, TEXTS, TinySource, tiny_settings

from xvla_ros.errors import SetupError
from xvla_ros.model import checkpoint
from xvla_ros.robots import load_robot
from xvla_ros.training.config import TrainingError
from xvla_ros.training.optim import row_weights
from xvla_ros.training.start import load_start, make_policy, scratch_config

NEW_ARM = replace(ARM, robot="new_arm", domain_id=4)
SIX = replace(ARM, robot="six", domain_id=5, action_mode="auto", slots=("wrist", "front"))


@pytest.fixture
def new_arm(monkeypatch):
    import tiny

    monkeypatch.setitem(tiny.WIDTHS, "new_arm", 20)
    monkeypatch.setitem(tiny.GRIPPERS, "new_arm", (9, 19))
    return TinySource(NEW_ARM)


def adapting(tmp_path, trained, **changes):
    return tiny_settings(tmp_path / "run", model={"checkpoint": str(trained)}, **changes)


@pytest.mark.parametrize("named", ["pair", 3])
def test_a_new_domain_starts_as_a_copy_of_a_named_one(trained, tmp_path, new_arm, named):
    settings = adapting(tmp_path, trained, initialise={"new_arm": named})
    policy = make_policy(settings, new_arm, load_start(settings.model))
    rows = row_weights(policy.network)
    assert len(rows) == 5
    assert all(torch.equal(weight[4], weight[3]) and not torch.equal(weight[4], weight[1]) for weight in rows.values())


def test_a_new_domain_starts_as_the_mean_of_those_with_its_action_mode(trained, tmp_path, new_arm):
    settings = adapting(tmp_path, trained, initialise={"new_arm": "mean"})
    start = load_start(settings.model)
    arm = start.robots["arm"]
    start.robots["third"] = replace(arm, embodiment=replace(arm.embodiment, robot="third", domain_id=2))
    start.training = replace(start.training, trained_domains=(1, 2, 3))
    policy = make_policy(settings, new_arm, start)
    for weight in row_weights(policy.network).values():
        assert torch.allclose(weight[4], (weight[1] + weight[2]) / 2) and not torch.equal(weight[1], weight[2])

    start = load_start(settings.model)
    del start.robots["arm"]
    with pytest.raises(TrainingError, match="knows no other robot with action mode ee6d"):
        make_policy(settings, new_arm, start)


def test_a_copy_of_nothing_is_refused(trained, tmp_path, new_arm):
    settings = adapting(tmp_path, trained, initialise={"new_arm": "so100", "other": 3})
    with pytest.raises(TrainingError) as caught:
        make_policy(settings, new_arm, load_start(settings.model))
    found = {problem.key: problem for problem in caught.value.problems}
    assert "pair, arm" in found["initialise.new_arm"].expected
    assert found["initialise.other"].expected == "one of new_arm"


@pytest.mark.parametrize("named", ["new_arm", 4, 0])
def test_a_copy_of_itself_or_of_an_untrained_row_is_refused(trained, tmp_path, new_arm, named):
    settings = adapting(tmp_path, trained, initialise={"new_arm": named})
    with pytest.raises(TrainingError, match="no other domain that the checkpoint was trained for"):
        make_policy(settings, new_arm, load_start(settings.model))


@pytest.mark.parametrize("held", ["checkpoint/config.json", "checkpoint.old/config.json", "meta/info.json"])
def test_a_run_is_not_mixed_with_what_its_folder_holds(tmp_path, held):
    from xvla_ros.training.run import _check_output

    (tmp_path / held).parent.mkdir()
    (tmp_path / held).write_text("{}")
    with pytest.raises(TrainingError, match="which the files of a run would be mixed with"):
        _check_output(tiny_settings(tmp_path))


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_another_run_writes_into_is_refused(tmp_path, resume):
    from xvla_ros.training.run import _check_output

    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)  # as the first process of a run holds it until it ends
    with pytest.raises(SetupError, match=f"output {tmp_path}: another process writes into it; expected a folder of"):
        _check_output(tiny_settings(tmp_path, resume=resume))
    os.close(held)
    _check_output(tiny_settings(tmp_path, resume=resume))


def test_robots_known_before_stay_in_the_checkpoint_and_the_new_one_joins(trained, begin, tmp_path, new_arm):
    begin(source=new_arm, model={"checkpoint": str(trained)}, method="prompt", steps=2).run()
    policy = checkpoint.load(tmp_path / "run" / "checkpoint")
    assert set(policy.robots) == {"pair", "arm", "new_arm"}
    assert policy.training.trained_domains == (1, 3, 4)
    before = checkpoint.load(trained)
    for robot in ("pair", "arm"):
        assert policy.robots[robot].embodiment == before.robots[robot].embodiment
        found, expected = (each.robots[robot].statistics.action.to_json() for each in (policy, before))
        assert found == expected
    chunk = policy.predict([new_arm.train[0].observation()])[0]
    assert chunk.actions.shape == (6, 20) and np.isfinite(chunk.actions).all()
    history = policy.training.details
    assert history["method"] == "prompt" and history["before"]["method"] == "full"
    assert str(tmp_path) not in json.dumps(history["settings"]["datasets"])


@pytest.fixture
def six_joints(monkeypatch):
    """One arm whose mode leaves its width open, in a world of arms of 12 and of 20 channels."""
    import tiny

    monkeypatch.setitem(tiny.WIDTHS, "six", 6)
    monkeypatch.setitem(tiny.GRIPPERS, "six", (5,))
    monkeypatch.setitem(tiny.WIDTHS, "seven", 7)
    monkeypatch.setitem(tiny.GRIPPERS, "seven", (6,))
    return TinySource(SIX)


def test_an_arm_of_another_width_is_taught_and_the_others_answer_as_before(trained, begin, tmp_path, six_joints):
    before = checkpoint.load(trained, dtype="float32")
    begin(source=six_joints, model={"checkpoint": str(trained)}, method="prompt", steps=2).run()
    policy = checkpoint.load(tmp_path / "run" / "checkpoint", dtype="float32")
    record = policy.robots["six"]
    assert (record.embodiment.action_mode, record.embodiment.action_width) == ("auto", 6)
    assert (record.statistics.state.width, record.statistics.action.width) == (6, 6)
    seen = [TinySource(each).train[0].observation() for each in (SIX, PAIR, ARM)]
    chunks = policy.predict(seen, seed=1)
    assert [chunk.actions.shape for chunk in chunks] == [(6, 6), (6, 12), (6, 20)]
    for chunk, known in zip(chunks[1:], before.predict(seen[1:], seed=1), strict=True):
        np.testing.assert_allclose(chunk.actions, known.actions, atol=1e-5)


def test_lerobots_files_describe_the_robot_trained_last(trained, begin, tmp_path, six_joints):
    begin(source=six_joints, model={"checkpoint": str(trained)}, method="prompt", steps=2).run()
    folder = tmp_path / "run" / "checkpoint"
    config = json.loads((folder / "config.json").read_text())
    assert (config["action_mode"], config["max_action_dim"]) == ("auto", 20)
    assert config["output_features"]["action"]["shape"] == [6]
    assert list(config["input_features"]) == [
        "observation.images.wrist", "observation.images.front", "observation.state",
    ]  # fmt: skip
    steps = json.loads((folder / "policy_preprocessor.json").read_text())["steps"]
    (domain,) = [step for step in steps if step["registry_name"] == "xvla_add_domain_id"]
    (normaliser,) = [step for step in steps if step["registry_name"] == "normalizer_processor"]
    assert domain["config"]["domain_id"] == SIX.domain_id
    assert normaliser["config"]["features"] == {**config["input_features"], **config["output_features"]}
    loaded = checkpoint.load(folder)
    assert loaded.lerobot == "six"
    assert loaded.processor.default.action.to_json() == loaded.robots["six"].statistics.action.to_json()
    checkpoint.save(loaded, tmp_path / "named", lerobot="arm")
    assert json.loads((tmp_path / "named" / "config.json").read_text())["action_mode"] == "ee6d"
    with pytest.raises(ValueError, match="lerobot is 'none', expected a robot of the checkpoint: pair, arm, six"):
        checkpoint.save(loaded, tmp_path / "named", lerobot="none")


def test_the_robot_of_lerobots_files_can_be_named(begin, tmp_path):
    begin(steps=1, log={"log_every": 1, "save_every": 0, "progress": False, "lerobot": "pair"}).run()
    assert json.loads((tmp_path / "run" / "checkpoint" / "xvla_ros.json").read_text())["lerobot"] == "pair"
    with pytest.raises(TrainingError, match=r"log.lerobot: robot 'so100' is not in the data.*one of pair, arm"):
        begin("other", steps=1, log={"progress": False, "lerobot": "so100"})


def test_an_arm_of_offsets_is_taught_beside_arms_of_positions(trained, begin, tmp_path, six_joints):
    offsets = replace(SIX, action_mode="auto_relative", relative=(0, 1, 2, 3, 4))
    begin(source=TinySource(offsets), model={"checkpoint": str(trained)}, method="prompt", steps=2).run()
    folder = tmp_path / "run" / "checkpoint"
    policy = checkpoint.load(folder, dtype="float32")
    record = policy.robots["six"]
    assert record.embodiment.relative == (0, 1, 2, 3, 4)
    state = np.linspace(-1, 1, 6, dtype=np.float32)
    raw = torch.zeros(6, policy.network.action_mode.width)
    mode = policy.action_mode(record.embodiment)
    moved = policy.processor.decode(record.embodiment, mode, raw, state)
    still = policy.processor.decode(record.embodiment, mode, raw, 0 * state)
    np.testing.assert_allclose((moved - still)[0], state * [1, 1, 1, 1, 1, 0], atol=1e-5)
    steps = {
        each["registry_name"]: each for each in json.loads((folder / "policy_preprocessor.json").read_text())["steps"]
    }
    assert steps["relative_actions_processor"]["config"]["exclude_joints"] == ["absolute_"]
    settings = adapting(tmp_path, folder)
    changed = make_policy(settings, TinySource(replace(offsets, relative=(0,))), load_start(settings.model))
    assert changed.robots["six"].embodiment.relative == (0,), "taught anew, with statistics of its own"


def test_arms_of_several_widths_learn_together(begin, tmp_path, six_joints):
    trainer = begin(source=TinySource(PAIR, ARM, SIX, replace(SIX, robot="seven", domain_id=2)), steps=2)
    trainer.run()
    policy = checkpoint.load(tmp_path / "run" / "checkpoint")
    assert {name: each.embodiment.action_width for name, each in policy.robots.items()} == {
        "pair": 12, "arm": 20, "six": 6, "seven": 7,
    }  # fmt: skip


def test_a_robot_may_not_take_the_domain_of_another(trained, tmp_path, new_arm):
    source = TinySource(replace(NEW_ARM, domain_id=3))
    settings = adapting(tmp_path, trained)
    with pytest.raises(TrainingError, match=r"robot 'new_arm' has the same domain as 'pair'"):
        make_policy(settings, source, load_start(settings.model))


def test_a_robot_the_network_cannot_drive_is_refused(trained, tmp_path, new_arm):
    source = TinySource(replace(NEW_ARM, domain_id=17))
    settings = adapting(tmp_path, trained)
    with pytest.raises(TrainingError, match=r"domain_id 17 is not in the checkpoint, expected 0…5"):
        make_policy(settings, source, load_start(settings.model))


def test_tool_poses_stay_in_metres_and_joints_are_scaled(begin):
    records = begin().policy.robots
    assert records["arm"].statistics.action.mode == "IDENTITY"
    assert records["pair"].statistics.action.mode == "MEAN_STD"


def test_from_scratch_the_tokenizer_learns_the_instructions(begin):
    tokenizer = begin().policy.processor.tokenizer
    ids = tokenizer.encode([*TEXTS, "zebra"])
    assert len(set(ids[0]) - {0, 1, 2}) == 4 and len(set(ids[2]) - {0, 1, 2}) > 4


def test_sizes_that_do_not_exist_are_named(tmp_path):
    settings = tiny_settings(tmp_path, model={**MODEL, "network": {"hiden_size": 3}, "text": {"layers": 2}})
    with pytest.raises(TrainingError) as caught:
        scratch_config(settings.model)
    assert [problem.key for problem in caught.value.problems] == ["model.network.hiden_size", "model.text.layers"]


def test_a_vision_tower_can_be_taken_from_another_checkpoint(trained, begin):
    trainer = begin(model={**MODEL, "vision_from": str(trained)}, seed=77)
    other = checkpoint.load(trained).network
    own = dict(trainer.network.named_parameters())
    for name, weight in other.named_parameters():
        if name.startswith(("vlm.vision_tower.", "vlm.multi_modal_projector.")):
            assert torch.equal(own[name], weight)
    unlike = "transformer.blocks.0.attn.qkv.weight"
    assert not torch.equal(own[unlike], other.get_parameter(unlike))


def test_instructions_that_would_be_cut_are_refused_by_name(begin):
    source = TinySource(PAIR, ARM)
    long = "touch the red cube with the left arm and then the blue cube with the right one"
    source.instructions = (*TEXTS, long)
    with pytest.raises(TrainingError, match=r"would be cut off.*tokenizer_max_length=\d+") as caught:
        begin(source=source)
    (problem,) = caught.value.problems
    assert problem.value == long and problem.expected == "at most 12 tokens"


def test_the_checkpoint_keeps_the_words_of_its_trainings(trained, begin, tmp_path, new_arm):
    new_arm.instructions = ("touch a cube", "red tub")
    trainer = begin(source=new_arm, model={"checkpoint": str(trained)}, method="prompt", steps=2)
    assert "was not trained with 'a', so" in trainer.policy.remarks("touch a cube")[0]
    trainer.run()
    made = checkpoint.load(tmp_path / "run" / "checkpoint")
    assert made.remarks("touch a cube") == []
    assert made.training.words == {"touch", "the", "red", "blue", "a", "tub", "cube"}


def test_views_in_other_places_than_those_of_the_checkpoint_are_refused(trained, tmp_path, new_arm):
    settings = adapting(tmp_path, trained)
    start = load_start(settings.model)
    start.robots, start.processor.statistics = {}, {}
    profile = load_robot("so101_bimanual")
    new_arm.profiles = {"new_arm": profile}
    start.view_names = tuple(reversed(profile.cameras.views))
    with pytest.raises(TrainingError, match="each view would be mistaken for another"):
        make_policy(settings, new_arm, start)
