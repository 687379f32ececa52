# SPDX-License-Identifier: Apache-2.0
"""The task "pick_place": its judge, and its expert on every robot that has it."""

from __future__ import annotations

import numpy as np
import pytest

from xvla_ros.robots import load_profile
from xvla_ros.simulation.demonstrations import Demonstrator, DemoSettings
from xvla_ros.simulation.parts import CUBES
from xvla_ros.simulation.tasks import load_task
from xvla_ros.simulation.tasks.hands import hands_of
from xvla_ros.simulation.world import World

pytest.importorskip("pinocchio")

ROBOTS = ("so101_bimanual", "so101", "widowx")


def successes(robot, episodes, folder, seed):
    settings = DemoSettings(load_profile(robot)[robot], "pick_place", seed=seed, width=16, height=16)
    demonstrator = Demonstrator(settings)
    try:
        made = [demonstrator.record(index, folder / f"{index}.mcap") for index in range(episodes)]
    finally:
        demonstrator.close()
    return sum(each.outcome.success for each in made)


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_expert_puts_the_named_cube_in_the_bowl(robot, tmp_path):
    assert successes(robot, 4, tmp_path, seed=1000) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("robot", ROBOTS)
def test_the_expert_succeeds_in_nineteen_of_twenty(robot, tmp_path):
    assert successes(robot, 100, tmp_path, seed=2000) >= 95


@pytest.fixture(scope="module")
def episode():
    world = World(load_profile("so101_bimanual")["so101_bimanual"])
    task = load_task(world.profile, "pick_place")
    return world, task


def begin(episode):
    world, task = episode
    layout = task.reset(world, np.random.default_rng(4))
    other = next(cube for cube in CUBES if cube != layout.goal.prop)
    return world, task, layout, other


def put(world, prop, xyz):
    place = world.model.jnt_qposadr[world.model.body(prop).jntadr[0]]
    world.data.qpos[place : place + 3] = xyz
    world.step(600)


def test_the_named_cube_in_the_bowl_is_a_success(episode):
    world, task, layout, _ = begin(episode)
    assert not task.outcome(world).done
    put(world, layout.goal.prop, world.data.body("bowl").xpos + np.array([0.0, 0.0, 0.03]))
    assert task.outcome(world).success
    assert not task.outcome(world).wrong


def test_another_cube_in_the_bowl_is_wrong(episode):
    world, task, _, other = begin(episode)
    put(world, other, world.data.body("bowl").xpos + np.array([0.0, 0.0, 0.03]))
    assert task.outcome(world).wrong
    assert not task.outcome(world).success


def test_another_cube_pushed_far_away_is_wrong_and_pushed_a_little_is_not(episode):
    world, task, layout, other = begin(episode)
    x, y, _ = layout.props[other]
    put(world, other, (x + 0.02, y, 0.014))
    assert not task.outcome(world).done
    put(world, other, (x + 0.10, y, 0.014))
    assert task.outcome(world).wrong


def test_another_cube_lifted_is_wrong_and_a_report_can_say_so(episode):
    world, task, layout, other = begin(episode)
    x, y, _ = layout.props[other]
    world.put(other, np.array([x, y, 0.08]), np.eye(3))
    assert task.outcome(world).wrong is True


def test_the_named_cube_over_the_bowl_in_the_air_is_not_yet_a_success(episode):
    world, task, layout, _ = begin(episode)
    place = world.model.jnt_qposadr[world.model.body(layout.goal.prop).jntadr[0]]
    world.data.qpos[place : place + 3] = world.data.body("bowl").xpos + np.array([0.0, 0.0, 0.10])
    world.step()
    assert not task.outcome(world).done


def beside_the_cube(episode, opening):
    """The hand and the expert's plan where the hand has come down beside the cube, its fingers open by this share."""
    world, task, layout, _ = begin(episode)
    expert, hand = task.expert(world, layout), hands_of(world)[layout.hand]
    (down,) = [leg for leg in expert.plan(world).legs if leg.speed < 1.0 and leg.noise > 0.0]
    figures, at = hand.figures, down.posture.copy()
    at[hand.gripper] = figures.closed + opening * (figures.opened - figures.closed)
    aside = 0.03 * hand.pose(at[hand.columns])[1] @ np.cross(figures.approach, figures.jaw)
    x, y, yaw = layout.props[layout.goal.prop]
    joints = dict(zip(world.profile.joints.policy_order, at.tolist(), strict=True))
    world.arrange({layout.goal.prop: (x + aside[0], y + aside[1], yaw)}, joints)
    return hand, expert.plan(world)


def test_fingers_that_are_half_closed_beside_the_cube_go_on_closing_where_they_are(episode):
    hand, plan = beside_the_cube(episode, 0.5)
    now, soon = plan.at([0.0, 0.1])
    assert soon[hand.gripper] < now[hand.gripper] - 0.1
    np.testing.assert_array_equal(soon[hand.columns], now[hand.columns])


@pytest.mark.parametrize("opening", [0.0, 1.0])
def test_fingers_that_are_open_or_closed_on_nothing_go_up_first_and_change_there(episode, opening):
    hand, plan = beside_the_cube(episode, opening)
    path = plan.at(np.linspace(0.0, plan.duration, 400))
    changed = int(np.argmax(np.abs(path[:, hand.gripper] - path[0, hand.gripper]) > 0.01))
    heights = [hand.point(row[hand.columns], hand.figures.tip)[2] for row in path[: changed + 1]]
    assert max(heights) > heights[0] + 0.02
