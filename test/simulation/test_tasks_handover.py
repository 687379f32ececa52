# SPDX-License-Identifier: Apache-2.0
"""The task "handover": its judge, and its expert."""

from __future__ import annotations

import numpy as np
import pytest

from xvla_ros.robots import load_profile
from xvla_ros.simulation.controllers import JointTrajectory, TrajectoryPoint
from xvla_ros.simulation.demonstrations import Demonstrator, DemoSettings
from xvla_ros.simulation.parts import CUBES
from xvla_ros.simulation.tasks import load_task, task_names
from xvla_ros.simulation.world import World

pytest.importorskip("pinocchio")

ROBOT = "so101_bimanual"


def successes(episodes, folder, seed):
    settings = DemoSettings(load_profile(ROBOT)[ROBOT], "handover", seed=seed, width=16, height=16)
    demonstrator = Demonstrator(settings)
    try:
        made = [demonstrator.record(index, folder / f"{index}.mcap") for index in range(episodes)]
    finally:
        demonstrator.close()
    return sum(each.outcome.success for each in made)


def test_the_expert_hands_the_cube_over(tmp_path):
    assert successes(2, tmp_path, seed=1000) >= 1


@pytest.mark.slow
def test_the_expert_succeeds_in_nineteen_of_twenty(tmp_path):
    assert successes(100, tmp_path, seed=2000) >= 95


def test_a_robot_with_one_arm_does_not_hand_over():
    assert "handover" not in task_names(load_profile("so101")["so101"])


def drive(world, task, layout, until, steps=400):
    """Lets the expert drive without noise until ``until()`` holds; returns whether it did."""
    expert, order = task.expert(world, layout), world.profile.joints.policy_order
    for _ in range(steps):
        if until():
            return True
        positions = expert.plan(world).at([0.05])[0]
        for group, settings in world.profile.commands.by_name.items():
            names = tuple(world.profile.joints.by_name[joint].name for joint in settings.joints)
            target = tuple(positions[[order.index(joint) for joint in settings.joints]].tolist())
            assert world.command(group, JointTrajectory(names, (TrajectoryPoint(50_000_000, target),))) is None
        world.step(30)
    return False


def test_a_cube_that_is_held_by_its_giver_or_by_both_is_not_yet_handed_over():
    world = World(load_profile(ROBOT)[ROBOT])
    task = load_task(world.profile, "handover")
    layout = task.reset(world, np.random.default_rng(1))
    giver = {"left": "right", "right": "left"}[layout.goal.hand]
    assert layout.instruction == f"hand the {layout.goal.prop.replace('_', ' ')} to the {layout.goal.hand} arm"

    def holders():
        cell = task._cell_of(world)
        return {hand for hand in (giver, layout.goal.hand) if cell.contacts.holds(hand, layout.goal.prop)}

    assert drive(world, task, layout, lambda: holders() == {giver})
    assert not task.outcome(world).done
    assert drive(world, task, layout, lambda: holders() == {giver, layout.goal.hand})
    assert not task.outcome(world).done
    assert drive(world, task, layout, lambda: task.outcome(world).done)
    assert task.outcome(world).success


def test_a_cube_that_is_held_but_lies_on_the_table_is_no_success_and_a_report_can_say_so(monkeypatch):
    world = World(load_profile(ROBOT)[ROBOT])
    task = load_task(world.profile, "handover")
    task.reset(world, np.random.default_rng(1))
    monkeypatch.setattr(task._cell_of(world).contacts, "holds", lambda hand, prop: True)
    assert task.outcome(world).success is False


def test_lifting_another_cube_is_wrong():
    world = World(load_profile(ROBOT)[ROBOT])
    task = load_task(world.profile, "handover")
    layout = task.reset(world, np.random.default_rng(1))
    other = next(cube for cube in CUBES if cube != layout.goal.prop)
    world.data.qpos[world.model.jnt_qposadr[world.model.body(other).jntadr[0]] + 2] = 0.2
    world.step()
    assert task.outcome(world).wrong
