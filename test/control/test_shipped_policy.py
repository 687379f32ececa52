"""The policy that comes with the package: found where it lies, used for the robots it was trained for."""

from dataclasses import replace

import numpy as np
import pytest

from xvla_ros import resources
from xvla_ros.control.policy_source import load_policy, shipped_policy
from xvla_ros.evaluation.graph import settings_in_simulation
from xvla_ros.model.checkpoint import save
from xvla_ros.model.policy import Policy
from xvla_ros.robots.profile import load_profile

PAIR, RADIANS = "so101_bimanual", "so101_bimanual_radians"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint that says it was trained for the domain of the pair."""
    profile = load_profile(PAIR)[PAIR]
    made = load_policy({PAIR: profile}, seed=3)
    training = replace(made.training, trained_domains=(profile.policy.domain_id,))
    folder = tmp_path_factory.mktemp("package") / "policy"
    save(Policy(made.network, made.processor, robots=made.robots, training=training, source=""), folder)
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


def test_another_profile_of_the_same_arms_is_normalised_alike(packaged):
    profile = load_profile(RADIANS)[RADIANS]
    policy = load_policy({RADIANS: profile})
    known, other = (policy.processor.statistics_of(name).state for name in (PAIR, RADIANS))
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
