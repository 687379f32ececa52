# SPDX-License-Identifier: Apache-2.0
"""LIBERO's arm through the node's control: its description, and poses that come of a policy's waypoints."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pinocchio")

from xvla_ros.errors import EvaluationError, SetupError, SimulationError
from xvla_ros.evaluation.suites.control import ControlDriver, described_at, profile_for
from xvla_ros.evaluation.suites.drivers import ROBOT, embodiment_of
from xvla_ros.robots import load_robot
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.rotations import axis_angle_to_matrix
from xvla_ros.robots.tools import tool_arms
from xvla_ros.simulation.suites.libero import LiberoArena, find_interpreter
from xvla_ros.simulation.suites.protocols import HARNESS, LEROBOT, XVLA
from xvla_ros.simulation.suites.suite import Beginning, Sight, SuiteTask
from xvla_ros.types import ActionChunk

TASK = SuiteTask(0, "task", "go on", 50)
TABLE = np.array([-0.66, 0.0, 0.912])
START = np.array([0, -0.161, 0, -2.4446, 0, 2.2268, 0.7854, 0.04])
STEP = np.array([0.004, 0.0, -0.003])


@pytest.fixture(scope="module")
def encoder():
    profile = profile_for(XVLA, embodiment_of(XVLA))
    return StateEncoder(profile, tool_arms(profile, described_at(TABLE)))


def sight_of(encoder: StateEncoder, joints) -> Sight:
    pose = encoder.tool_poses(joints)["arm"]
    gripper = np.array([joints[7], -joints[7]])
    return Sight({}, pose.positions, pose.rotations, pose.positions, joints[:7], gripper, TABLE)


def look():
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[0, 0] = 200
    return {"agentview": picture, "robot0_eye_in_hand": picture.copy()}


def going_on(asked, gripper=1.0):
    """Return a predictor whose waypoints go on from the state by ``STEP`` each."""

    def predict(observations, prefixes):
        asked.extend(observations)
        (seen,) = observations
        rows = np.zeros((30, 20), np.float32)
        rows[:, :3] = seen.state[:3] + np.arange(1, 31)[:, None] * STEP
        rows[:, 3:9], rows[:, 9] = seen.state[3:9], gripper
        return [ActionChunk(ROBOT, 3, "ee6d", "go on", seen.stamp, np.arange(1, 31) / 20, rows, 2.0, 0)]

    return predict


def test_the_description_has_the_grip_site_where_libero_measured_it(encoder):
    # what LIBERO's own controller says at these joints, its base at (-0.6, 0, 0)
    pose = encoder.tool_poses(START)["arm"]
    assert pose.positions - TABLE == pytest.approx([-0.1485 + 0.6, 0.0, 0.2613], abs=1e-3)
    assert np.abs(pose.rotations - np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])).max() < 0.06


def test_waypoints_become_poses_one_a_control_step(encoder):
    asked = []
    driver = ControlDriver(going_on(asked), embodiment_of(XVLA), XVLA, look)
    driver.begin(TASK, 0)
    joints, sent = START, []
    for step in range(40):
        sent.append(driver.actions(sight_of(encoder, joints), step)[0])
        window = driver._pilot.controller.last_window
        joints = joints if window is None else window.positions[0].copy()
    sent = np.array(sent)
    start = sight_of(encoder, START)
    # before the arm is known to stand it is told to stay
    np.testing.assert_allclose(sent[0, :3], start.position, atol=1e-6)
    np.testing.assert_allclose(axis_angle_to_matrix(sent[0, 3:6]), start.rotation, atol=1e-6)
    assert sent[0, 6] == -1.0
    assert driver.chunks == len(asked) == len(driver.inference_ms) >= 2
    # in motion each pose is one waypoint further, and the gripper closes
    np.testing.assert_allclose(np.diff(sent[20:, :3], axis=0), np.tile(STEP, (19, 1)), atol=2e-4)
    np.testing.assert_allclose(axis_angle_to_matrix(sent[-1, 3:6]), start.rotation, atol=2e-3)
    assert (sent[20:, 6] == 1.0).all()
    # asked with the commanded state, and with the scene's picture turned
    assert asked[0].images["image"][-1, -1].tolist() == [200] * 3
    assert asked[0].images["image2"][0, 0].tolist() == [200] * 3


def test_another_episode_begins_anew(encoder):
    asked = []
    driver = ControlDriver(going_on(asked, gripper=0.0), embodiment_of(XVLA), XVLA, look)
    for episode in range(2):
        driver.begin(TASK, episode)
        for step in range(15):
            action = driver.actions(sight_of(encoder, START), step)
        assert action.dtype == np.float32 and action.shape == (1, 7)
        assert action[0, 6] == -1.0
    assert len({each.stamp for each in asked}) == len(asked) >= 2
    assert driver.chunks == 1


def test_a_policy_that_fails_is_named(encoder):
    def predict(observations, prefixes):
        raise ValueError("no such thing")

    driver = ControlDriver(predict, embodiment_of(XVLA), XVLA, look)
    driver.begin(TASK, 0)
    with pytest.raises(EvaluationError, match=r"the policy failed at step \d+: no such thing"):
        for step in range(40):
            driver.actions(sight_of(encoder, START), step)


def test_an_arm_that_stands_elsewhere_than_described_is_named(encoder):
    driver = ControlDriver(going_on([]), embodiment_of(XVLA), XVLA, look)
    driver.begin(TASK, 0)
    sight = sight_of(encoder, START)
    elsewhere = Sight({}, sight.position + 0.02, sight.rotation, sight.position, sight.joints, sight.gripper, TABLE)
    with pytest.raises(SimulationError, match=r"has the grip site 0\.035 m away from its place in the simulator"):
        driver.actions(elsewhere, 0)


def test_the_profile_takes_pictures_state_and_soft_prompt_of_the_protocol():
    profile = profile_for(LEROBOT, embodiment_of(LEROBOT, domain_id=7))
    assert (profile.policy.domain_id, profile.policy.image_pipeline) == (7, "letterbox")
    assert profile.policy.proprio_source == "measured"
    assert profile.embodiment() == embodiment_of(LEROBOT, domain_id=7)
    assert load_robot(ROBOT).embodiment() == embodiment_of(XVLA)
    flat = profile_for(XVLA.changed(["turned=[]"]), embodiment_of(XVLA))
    assert [flat.cameras.by_name[slot].rotate for slot in flat.cameras.slots] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["libero_object", "libero_goal"])
def test_the_description_fits_every_arena(suite):
    try:
        python = str(find_interpreter())
    except SetupError as error:
        pytest.skip(str(error))
    arena = LiberoArena(suite, HARNESS.changed(["pixels=64"]), python)
    try:
        driver = ControlDriver(going_on([]), embodiment_of(HARNESS), HARNESS, arena.look)
        driver.begin(arena.tasks[0], 0)
        sight = arena.begin(Beginning(0, 0, 0, 7))
        for step in range(30):
            sight = arena.act(driver.actions(sight, step), look=False).sight
        assert driver.chunks >= 1
        profile = profile_for(HARNESS, embodiment_of(HARNESS))
        at_end = StateEncoder(profile, tool_arms(profile, described_at(sight.base)))
        found = at_end.tool_poses(np.append(sight.joints, sight.gripper[0]))["arm"]
        # in motion the controller's pose is a physics step old
        assert np.abs(found.positions - sight.position).max() < 2e-3
        assert np.abs(found.rotations - sight.rotation).max() < 0.02
    finally:
        arena.close()
