# SPDX-License-Identifier: Apache-2.0
"""A profile changed on the command line of ``xvla evaluate``."""

import pytest

from xvla_ros.commands import main
from xvla_ros.commands.evaluate import changed
from xvla_ros.errors import SetupError
from xvla_ros.robots import ProfileError, load_profile


@pytest.fixture(scope="module")
def profile():
    return load_profile("so101_bimanual")["so101_bimanual"]


def test_a_setting_is_changed_and_nothing_else(profile):
    other = changed(profile, ["policy.denoising_steps=4", "smoothing.execute=0.25"])
    assert (other.policy.denoising_steps, other.smoothing.execute) == (4, 0.25)
    assert other.joints == profile.joints
    assert changed(profile, []) is profile


@pytest.mark.parametrize("override", ["policy.denoising", "policy.denoisingsteps=4", "policy.x.y=1", "nothing=1"])
def test_what_sets_nothing_is_refused(profile, override):
    with pytest.raises(SetupError, match="no setting of so101_bimanual"):
        changed(profile, [override])


def test_a_value_that_the_profile_refuses_is_named(profile):
    with pytest.raises(ProfileError, match="denoising_steps"):
        changed(profile, ["policy.denoising_steps=0"])


def test_over_ros_nothing_is_changed(capsys):
    pytest.importorskip("rclpy")
    pytest.importorskip("pinocchio")
    assert main(["evaluate", "--set", "policy.denoising_steps=4"]) == 1
    assert "--in-process" in capsys.readouterr().err
