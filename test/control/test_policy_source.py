# SPDX-License-Identifier: Apache-2.0
"""Which policy a node gets, and how it is told that there is none for its robots."""

import shutil

import numpy as np
import pytest
import torch

from xvla_ros.control.policy_source import fit, load_policy
from xvla_ros.errors import CheckpointError, ProfileError, SetupError
from xvla_ros.model.checkpoint import build, save
from xvla_ros.robots.actions import Decoder
from xvla_ros.robots.profile import load_profile
from xvla_ros.types import Observation

PAIR = "so101_bimanual"


@pytest.fixture(scope="module")
def pair():
    return load_profile(PAIR)[PAIR]


@pytest.fixture(scope="module")
def untrained(pair):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("xvla_ros.control.policy_source.policy_dir", lambda: None)
        return load_policy({PAIR: pair})


@pytest.fixture(scope="module")
def saved(untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save(untrained, folder)
    return folder


def changed(profile, **policy):
    mapping = profile.to_mapping()
    mapping["policy"] |= policy
    return type(profile).from_mapping(profile.name, mapping)


def seen_by(profile, level=0):
    images = {slot: np.full((24, 32, 3), level, np.uint8) for slot in profile.cameras.slots}
    return Observation(profile.embodiment(), 10**9, images, np.zeros(profile.state_width, np.float32), "lift the cube")


def test_without_a_checkpoint_an_untrained_policy_drives(pair, untrained):
    assert not untrained.is_trained(pair.policy.domain_id)
    [chunk] = untrained.predict([seen_by(pair)], seed=1)
    path = Decoder(pair).decode(chunk)
    assert np.isfinite(path.positions).all()
    lower, upper = (np.array([getattr(joint, side) for joint in pair.joints.ordered]) for side in ("lower", "upper"))
    assert ((path.positions > lower - 0.5) & (path.positions < upper + 0.5)).all(axis=1).any()
    assert np.ptp(path.positions, axis=0).max() > 0.02, "an untrained policy moves too"


def test_a_checkpoint_by_name_or_as_the_profiles_agree(pair, untrained, saved):
    seen = seen_by(pair, 7)
    expected = untrained.predict([seen], seed=3)[0].actions
    for profiles, name in (({PAIR: pair}, str(saved)), ({PAIR: changed(pair, checkpoint=str(saved))}, "")):
        policy = load_policy(profiles, name)
        assert policy.source == str(saved)
        # Each policy chooses its linear layers by their speed when it is loaded, so two may round differently.
        np.testing.assert_allclose(
            policy.predict([seen], seed=3)[0].actions, expected, atol=1e-5 * np.abs(expected).max()
        )


def test_profiles_that_disagree_are_named_with_what_to_do(pair):
    other = changed(pair, checkpoint="someone/xvla").model_copy(update={"name": "other"})
    with pytest.raises(SetupError, match=r"so101_bimanual: none, other: someone/xvla.*parameter checkpoint"):
        load_policy({PAIR: pair, "other": other})


def test_a_robot_that_the_policy_does_not_fit_is_named(pair, saved):
    misfit = changed(pair, domain_id=60000)
    with pytest.raises(ProfileError, match=r"so101_bimanual\.policy\.domain_id.*found 60000; expected 19") as caught:
        load_policy({PAIR: misfit}, str(saved))
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    "setting", [{"waypoint_dt": 0.01}, {"first_waypoint_offset": 0.5}, {"image_pipeline": "squash"}, {"domain_id": 9}]
)
def test_a_robot_that_uses_its_checkpoint_otherwise_is_refused(pair, saved, setting):
    """Its motion would have another pace, its pictures another form, its prompt would be another arm's."""
    misfit, key = changed(pair, **setting), f"policy.{next(iter(setting))}"
    for refused in (lambda: load_policy({PAIR: misfit}, str(saved)), lambda: fit(load_policy({}, str(saved)), misfit)):
        with pytest.raises(ProfileError, match=key.replace(".", r"\.")) as caught:
            refused()
        (problem,) = caught.value.problems
        assert str(getattr(pair.policy, next(iter(setting)))) in str(problem.expected)


def test_another_profile_of_the_same_arms_is_known_by_its_domain(pair, saved):
    another = type(pair).from_mapping("my_pair", pair.to_mapping())
    assert fit(load_policy({}, str(saved)), another) == PAIR
    assert fit(load_policy({PAIR: pair}, str(saved)), pair) == PAIR


def test_a_checkpoint_that_is_not_there_is_named(pair, tmp_path):
    with pytest.raises(CheckpointError, match="nothing_here"):
        load_policy({PAIR: pair}, str(tmp_path / "nothing_here"))
    with pytest.raises(
        CheckpointError, match="expected a checkpoint folder, a hub id OWNER/NAME, or shipped, the policy"
    ):
        load_policy({PAIR: pair}, "CHECKPOINT")


def test_a_dtype_that_is_none_is_named(pair, saved):
    with pytest.raises(SetupError, match="dtype 'float99' is unknown, expected float32"):
        load_policy({PAIR: pair}, str(saved), dtype="float99")


@pytest.mark.parametrize("trained", [False, True])
def test_int8_is_asked_for_by_dtype(pair, saved, trained):
    exact, rounded = (load_policy({PAIR: pair}, str(saved) if trained else "", dtype=dtype) for dtype in ("", "int8"))
    images = {slot: np.zeros((64, 64, 3), np.uint8) for slot in pair.cameras.slots}
    seen = Observation(pair.embodiment(), 0, images, np.zeros(12, np.float32), "go on")
    near, far = (policy.predict([seen], seed=1)[0].actions for policy in (exact, rounded))
    assert 0 < abs(near - far).max() < 0.1 * abs(near).max()
    assert load_policy({PAIR: pair}, dtype="bfloat16").network.vlm.dtype == torch.bfloat16
    with pytest.raises(SetupError, match="dtype 'float99' is unknown, expected float32"):
        load_policy({PAIR: pair}, dtype="float99")


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
@pytest.mark.parametrize("trained", [False, True])
def test_a_device_that_is_not_there_is_named(pair, saved, device, trained):
    with pytest.raises(SetupError, match=f"device is '{device}'.*expected cpu, cuda"):
        load_policy({PAIR: pair}, str(saved) if trained else "", device=device)


def test_robots_of_mixed_modes_share_one_untrained_policy(pair):
    """Whichever is named first: the one whose mode leaves its width open decides that."""
    arms = {name: load_profile(name)[name] for name in ("widowx", "so101")} | {PAIR: pair}
    for first in arms:
        policy = load_policy({first: arms[first], **arms})
        for profile in arms.values():
            policy.check(profile.embodiment())


def test_arms_of_different_widths_share_one_untrained_policy(pair):
    single = load_profile("so101")["so101"]
    both = changed(pair, action_mode="auto")
    policy = load_policy({PAIR: both, "so101": single})
    chunks = policy.predict([seen_by(both), seen_by(single)], steps=1)
    assert [chunk.actions.shape[1] for chunk in chunks] == [12, 6]


def test_engines_of_the_profiles_must_agree(pair, saved):
    other = type(pair).from_mapping("other", changed(pair, engine="onnxruntime").to_mapping())
    profiles = {PAIR: changed(pair, engine="openvino"), "other": other}
    with pytest.raises(SetupError, match=r"different engines \(so101_bimanual: openvino, other: onnxruntime\)"):
        load_policy(profiles, str(saved))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_without_its_graphs_says_how_to_write_them(pair, saved, engine):
    kind = engine.removesuffix("runtime")
    with pytest.raises(SetupError, match=f"engine is {engine}, but .* write one with xvla export {kind} "):
        load_policy(changed(pair, engine=engine), str(saved))
    with pytest.raises(SetupError, match=f"engine is {engine}, but .* write one with xvla export {kind} "):
        load_policy(pair, str(saved), engine=engine)


def test_network_is_read_at_the_start_where_a_robot_is_guided(pair, saved, tmp_path, monkeypatch):
    folder, late = shutil.copytree(saved, tmp_path / "exported"), []
    (folder / "onnx").mkdir()
    (folder / "onnx" / "report.json").write_text("{}")  # graphs that are not used: torch runs

    def noted(files, **how):
        late.append(how["late"])
        return build(files, **how)

    monkeypatch.setattr("xvla_ros.model.checkpoint.build", noted)
    for method in ("realtime_chunking", "guided"):
        mapping = pair.to_mapping()
        mapping["smoothing"]["method"] = method
        load_policy(type(pair).from_mapping(pair.name, mapping), str(folder))
    assert late == [True, False]
