# SPDX-License-Identifier: Apache-2.0
"""The policy that comes with the package: found where it lies, used for the robots it was trained for."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xvla_ros import resources
from xvla_ros.commands.check import check
from xvla_ros.commands.demo import is_trained
from xvla_ros.control.policy_source import load_policy, shipped_policy
from xvla_ros.errors import CheckpointError, ProfileError
from xvla_ros.evaluation.graph import settings_in_simulation
from xvla_ros.model.checkpoint import load, save
from xvla_ros.model.checkpoint.inspection import CheckpointFolders, find_checkpoint
from xvla_ros.model.checkpoint.record import RECORD_FILE
from xvla_ros.model.policy import Policy
from xvla_ros.robots.profile import Profile, load_profile

PAIR, NUMBERED = "so101_bimanual", "so101_bimanual_numbered"
MISFITS = {
    "radians": (
        "joints.left_shoulder_pan",
        "the shipped policy of xvla_ros was trained with other units for left_shoulder_pan, left_shoulder_lift, "
        "left_elbow_flex, left_wrist_flex, left_wrist_roll, right_shoulder_pan, right_shoulder_lift, "
        "right_elbow_flex, right_wrist_flex, right_wrist_roll: the profile has position · 1 for the first",
    ),
    "range": (
        "joints.left_shoulder_pan",
        "was trained with other units for left_shoulder_pan, left_elbow_flex, left_wrist_flex, left_wrist_roll, "
        "right_shoulder_pan, right_elbow_flex, right_wrist_flex, right_wrist_roll: "
        "the profile has position · 52.0871 for the first",
    ),
    "lerobot": (
        "policy.action_mode",
        "the shipped policy of xvla_ros was trained for action mode so101_bimanual_bce, whose channels have another "
        "meaning",
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint that says it was trained for the domain of the pair."""
    profile = load_profile(PAIR)[PAIR]
    made = load_policy({PAIR: profile}, seed=3)
    training = replace(made.training, trained_domains=(profile.policy.domain_id,))
    robots = {PAIR: replace(made.robots[PAIR], profile=profile.to_mapping())}
    folder = tmp_path_factory.mktemp("package") / "policy"
    save(Policy(made.network, made.processor, robots=robots, training=training, source=""), folder)
    return folder


@pytest.fixture
def packaged(trained, monkeypatch):
    monkeypatch.setattr(resources, "__file__", str(trained.parent / "xvla_ros" / "resources.py"))
    (trained.parent / "pyproject.toml").touch()
    return trained


def test_it_is_used_where_no_checkpoint_is_named(packaged):
    profile = load_profile(PAIR)[PAIR]
    assert shipped_policy([profile]) == packaged
    policy = load_policy({PAIR: profile})
    assert policy.source == str(packaged)
    assert policy.is_trained(profile.policy.domain_id)
    assert settings_in_simulation(profile, None) == {}


def test_its_name_works_wherever_a_checkpoint_is_taken(packaged, tmp_path, monkeypatch):
    profile = load_profile(PAIR)[PAIR]
    assert find_checkpoint("shipped") == CheckpointFolders(packaged, None, str(packaged))
    assert load_policy({PAIR: profile}, "shipped").source == str(packaged)
    assert is_trained(profile, "shipped") and check(PAIR, checkpoint="shipped").errors == ()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shipped").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        find_checkpoint("shipped")  # a folder of that name comes first


def changed(change) -> Profile:
    raw = load_profile(PAIR)[PAIR].to_mapping()
    change(raw)
    return Profile.from_mapping(PAIR, raw, file="mine.yaml")


@pytest.mark.parametrize("variant", MISFITS)
def test_a_robot_of_its_domain_in_other_units_or_another_mode_is_refused_in_the_same_words(
    packaged, variant, monkeypatch
):
    """The domain alone would have an arm take degrees for radians."""
    name, (key, words) = f"{PAIR}_{variant}", MISFITS[variant]
    profile = load_profile(name)[name]
    refusals = []
    for refuse in (
        lambda: shipped_policy([profile]),
        lambda: load_policy({name: profile}),
        lambda: settings_in_simulation(profile, None),
        lambda: is_trained(profile, None),
    ):
        with pytest.raises(ProfileError) as caught:
            refuse()
        refusals.append(caught.value.problems)
    report = check(name)
    assert all(tuple(refusal) == report.errors for refusal in refusals)
    [problem] = report.errors
    assert (problem.file, problem.key) == (str(profile.source), f"{name}.{key}")
    assert words in problem.message and "--checkpoint" in problem.expected
    assert not any("moves at random" in text for text in report.missing)
    assert shipped_policy([profile, load_profile("so101")["so101"]]) is None, "not trained for both anyway"
    monkeypatch.setattr("xvla_ros.control.policy_source._load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ProfileError):
        load_policy({name: profile, PAIR: load_profile(PAIR)[PAIR]})


def test_joints_in_another_order_are_refused(packaged):
    def swap(raw):
        order = raw["joints"]["policy_order"]
        raw["joints"]["policy_order"] = [*order[6:], *order[:6]]

    with pytest.raises(ProfileError, match="was trained for other joints, or in another order") as caught:
        shipped_policy([changed(swap)])
    assert caught.value.problems[0].key == f"{PAIR}.joints.policy_order"


@pytest.mark.parametrize(
    ("setting", "fits"),
    [({"offset": 4.0}, True), ({"scale": 57.3}, True), ({"offset": 90.0}, False), ({"scale": -57.29577951}, False)],
)
def test_a_calibrated_joint_is_none_of_other_units(packaged, setting, fits):
    profile = changed(lambda raw: raw["joints"]["right_elbow_flex"].update(setting))
    if fits:
        assert shipped_policy([profile]) == packaged
    else:
        with pytest.raises(ProfileError, match="other units for right_elbow_flex: "):
            shipped_policy([profile])


def test_a_policy_that_does_not_say_its_units_is_refused(packaged, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(packaged, tmp_path / "policy"))
    record = json.loads((folder / RECORD_FILE).read_text())
    record["robots"][PAIR]["profile"] = None
    (folder / RECORD_FILE).write_text(json.dumps(record))
    monkeypatch.setattr("xvla_ros.control.policy_source.policy_dir", lambda: folder)
    with pytest.raises(ProfileError, match="does not record the units"):
        shipped_policy([load_profile(PAIR)[PAIR]])


def test_another_profile_of_the_same_arms_is_normalised_alike(packaged):
    profile = load_profile(NUMBERED)[NUMBERED]
    policy = load_policy({NUMBERED: profile})
    known, other = (policy.processor.statistics_of(name).state for name in (PAIR, NUMBERED))
    state = np.arange(12, dtype=np.float32)
    np.testing.assert_array_equal(known.normalise(state), other.normalise(state))


def test_a_robot_it_was_not_trained_for_has_random_weights(packaged):
    profile = load_profile("so101")["so101"]
    assert shipped_policy([profile]) is None
    assert load_policy({"so101": profile}).source == "random weights"
    assert settings_in_simulation(profile, None) == {"so101.safety.first_step": 1.0}


def test_a_robot_beside_one_that_it_does_not_know_has_random_weights_too(packaged):
    pair, arm = load_profile(PAIR)[PAIR], load_profile("so101")["so101"]
    assert shipped_policy([pair, arm]) is None
    assert f"{PAIR}.safety.first_step" in settings_in_simulation(pair, None, [arm])


def test_a_package_without_one_has_random_weights(tmp_path, monkeypatch):
    profile = load_profile(PAIR)[PAIR]
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "lib" / "xvla_ros" / "resources.py"))
    assert resources.policy_dir() is None
    assert shipped_policy([profile]) is None


def test_it_has_room_for_sentences_of_ordinary_length_and_names_words_it_never_saw():
    policy = load_policy(load_profile("so101_bimanual"), "")
    assert policy.remarks("put the green cube in the bowl with the left arm") == []
    (remark,) = policy.remarks("pick up the red cube and put it in the bowl")
    assert "was not trained with 'pick', 'up', 'and', 'it'" in remark
    assert policy.processor.tokenizer.cut("hand over the blue block from the right gripper to the left") == ""


@pytest.mark.parametrize("fate", ["truncated", "overwritten", "removed"])
def test_a_checkpoint_that_changes_under_a_policy_changes_no_answer(tmp_path, fate):
    """Nothing of it is read, or mapped, once it has been loaded."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(resources.policy_dir(), folder)
    policy = load(folder)
    blank = [policy.blank(next(iter(policy.robots.values())).embodiment)]
    (before,) = policy.predict(blank, seed=3)
    for path in folder.iterdir():
        if fate == "truncated":
            os.truncate(path, 0)
        elif fate == "removed":
            path.unlink()
        else:
            path.write_bytes(bytes(path.stat().st_size))
    (after,) = policy.predict(blank, seed=3)
    np.testing.assert_array_equal(after.actions, before.actions)
    with pytest.raises(CheckpointError, match="checkpoint"):
        load(folder)
