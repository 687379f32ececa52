# SPDX-License-Identifier: Apache-2.0
"""Whole plans as actions: an observation is answered by the plan of its instant, whatever later ones made of it."""

from __future__ import annotations

import numpy as np
import pytest

from test.training.recorded import AHEAD, START, Session, changed, curve, recorded_plans
from xvla_ros.recordings.action_path import waypoint_times
from xvla_ros.recordings.recording import SamplesError
from xvla_ros.robots import load_profile
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.joints import to_policy
from xvla_ros.simulation.demonstrations import DemoSettings, record_all
from xvla_ros.training.config import Augmentation, DatasetSettings
from xvla_ros.training.data.datasets import open_datasets

WAYPOINTS = 30
PLAN = 0.5  # s that a recorded trajectory of ``Session`` reaches


def opened(tmp_path, bag, **settings):
    entry = DatasetSettings(paths=(str(bag),), **{"instruction": "touch the red cube", **settings})
    return open_datasets(
        [entry], waypoints=WAYPOINTS, image_size=(32, 32), cache=tmp_path / "cache", augmentation=Augmentation(), seed=0
    )


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    pytest.importorskip("pinocchio")
    profile = load_profile("so101_bimanual")["so101_bimanual"]
    folder = tmp_path_factory.mktemp("demos")
    (made,) = record_all(DemoSettings(profile, "touch", seed=20, width=32, height=32), 1, folder)
    return profile, made.path


def test_demonstrations_are_labelled_with_the_clean_plan_of_their_own_picture(tmp_path, demonstration):
    profile, path = demonstration
    plans = recorded_plans(profile, path)
    samples = opened(tmp_path, path)  # the marks of the bag say that these are plans

    assert samples.summary()[0]["actions"] == "planned"
    assert len(samples.train) >= 15
    for sample in samples.train:
        np.testing.assert_allclose(sample.actions, to_policy(plans[sample.stamp][1:], profile), atol=1e-3)
        assert sample.mask.all()


def test_read_as_commands_the_same_bag_has_the_noise_of_the_execution(tmp_path, demonstration):
    profile, path = demonstration
    plans = recorded_plans(profile, path)
    samples = opened(tmp_path, path, actions="commanded")
    off = [
        np.abs(sample.actions[5:20] - to_policy(plans[sample.stamp][6:21], profile))[:, :5].max()
        for sample in map(samples.train.__getitem__, range(15))
    ]
    assert np.median(off) > 1.0  # degrees


def test_a_plan_ends_where_it_ends(tmp_path):
    pair = changed("so101_bimanual")
    samples = opened(tmp_path, Session(pair).record().write(tmp_path / "bag.mcap"), actions="planned")
    for sample in map(samples.train.__getitem__, range(2, len(samples.train))):
        due = (waypoint_times(sample.stamp, pair, WAYPOINTS) - START) / 1e9
        begun = np.floor((sample.stamp - START) / 1e8 + 1e-6) / 10  # commands come ten times a second
        np.testing.assert_array_equal(sample.mask, due <= begun + PLAN + 1e-6)
        wanted = to_policy(curve(pair, np.minimum(due, begun + PLAN) + AHEAD), pair)
        # before its first point a plan begins where the arm is measured
        from_the_first = due >= begun + 0.05
        np.testing.assert_allclose(sample.actions[from_the_first], wanted[from_the_first], atol=0.05)


def test_plans_of_tools_are_poses(tmp_path):
    pytest.importorskip("pinocchio")
    arm = changed("widowx")
    samples = opened(tmp_path, Session(arm).record().write(tmp_path / "bag.mcap"), actions="planned")
    encoder = StateEncoder(arm)
    sample = samples.train[20]
    due = (waypoint_times(sample.stamp, arm, WAYPOINTS) - START) / 1e9
    assert 0 < sample.mask.sum() < WAYPOINTS
    wanted = encoder.state(curve(arm, due[sample.mask] + AHEAD))
    np.testing.assert_allclose(sample.actions[sample.mask][1:, :3], wanted[1:, :3], atol=2e-3)


def test_a_bag_without_plans_is_refused_by_name(tmp_path):
    arm = changed("so101_bimanual")
    bag = Session(arm, commands=False).record().write(tmp_path / "bag.mcap")
    with pytest.raises(
        SamplesError,
        match=r"no complete plan was sent on .*left.*set actions to commanded or "
        r"measured",
    ):
        opened(tmp_path, bag, actions="planned")
