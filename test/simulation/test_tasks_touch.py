# SPDX-License-Identifier: Apache-2.0
"""The task "touch": its layouts, its judge, its expert, on every robot that has it."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from xvla_ros.errors import SimulationError
from xvla_ros.robots import load_profile
from xvla_ros.simulation.demonstrations import Demonstrator, DemoSettings
from xvla_ros.simulation.parts import CUBES
from xvla_ros.simulation.tasks import load_task, task_names
from xvla_ros.simulation.world import World

pytest.importorskip("pinocchio")

ROBOTS = ("so101_bimanual", "so101", "widowx", "agibot")


def profile_of(robot):
    return load_profile(robot)[robot]


@pytest.fixture(scope="module")
def pair():
    world = World(profile_of("so101_bimanual"))
    return world, load_task(world.profile, "touch")


def successes(robot, task, episodes, folder, seed):
    demonstrator = Demonstrator(DemoSettings(profile_of(robot), task, seed=seed, width=16, height=16, rate=20.0))
    try:
        made = [demonstrator.record(index, folder / f"{index}.mcap") for index in range(episodes)]
    finally:
        demonstrator.close()
    return sum(each.outcome.success for each in made)


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_expert_touches_what_it_is_told_to(robot, tmp_path):
    assert successes(robot, "touch", 6, tmp_path, seed=1000) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("robot", ROBOTS)
def test_the_expert_succeeds_in_nineteen_of_twenty(robot, tmp_path):
    assert successes(robot, "touch", 100, tmp_path, seed=2000) >= 95


def test_one_seed_is_one_episode_and_its_variants_differ_in_words_alone(pair):
    world, task = pair
    layouts, states, looks = [], [], []
    for variant in (0, 1, 0):
        layouts.append(task.reset(world, np.random.default_rng(5), variant))
        states.append(world.data.qpos.copy())
        looks.append(world.model.geom_rgba.copy())
    assert layouts[0] == layouts[2]
    assert layouts[0].instruction != layouts[1].instruction
    assert layouts[0].props == layouts[1].props
    for other in (1, 2):
        np.testing.assert_array_equal(states[0], states[other])
        np.testing.assert_array_equal(looks[0], looks[other])
    task.reset(world, np.random.default_rng(6))
    assert np.abs(world.data.qpos - states[0]).max() > 0.01
    assert np.abs(world.model.geom_rgba - looks[0]).max() > 0.01


def test_a_layouts_first_two_instructions_differ_in_the_cube_or_in_the_arm(pair):
    world, task = pair
    kinds = set()
    for seed in range(30):
        first, second = (task.reset(world, np.random.default_rng(seed), variant).goal for variant in (0, 1))
        kinds.add((first.prop == second.prop, first.hand == second.hand))
    assert kinds == {(True, False), (False, True)}


def test_every_instruction_comes_up_and_is_listed(pair):
    world, task = pair
    said = {task.reset(world, np.random.default_rng(seed)).instruction for seed in range(80)}
    assert said == set(task.instructions)
    assert "touch the red cube with the left arm" in said


def test_without_variation_light_and_colours_are_the_scenes_own(pair):
    world, _ = pair
    plain = load_task(world.profile, "touch", variation=0.0)
    plain.reset(world, np.random.default_rng(3))
    np.testing.assert_allclose(world.model.geom_rgba, world.appearance.colours, atol=1e-6)
    np.testing.assert_allclose(world.model.cam_quat, world.appearance.camera_turns, atol=1e-9)


def test_nothing_is_decided_until_something_is_touched(pair):
    world, task = pair
    task.reset(world, np.random.default_rng(0))
    world.step(300)
    outcome = task.outcome(world)
    assert (outcome.success, outcome.wrong, outcome.done) == (False, False, False)


def put_against_the_finger(world, prop, side):
    """Puts a cube where the fixed finger of one arm ends."""
    place = world.model.jnt_qposadr[world.model.body(prop).jntadr[0]]
    world.data.qpos[place : place + 3] = world.data.site(f"{side}_tool").xpos - np.array([0.0, 0.0, 0.012])
    mujoco.mj_forward(world.model, world.data)


@pytest.mark.parametrize("right_cube", [True, False])
@pytest.mark.parametrize("right_arm", [True, False])
def test_the_judge_knows_the_cube_and_the_arm(pair, right_cube, right_arm):
    world, task = pair
    layout = next(layout for seed in range(50) if (layout := task.reset(world, np.random.default_rng(seed))).goal.hand)
    prop = layout.goal.prop if right_cube else next(cube for cube in CUBES if cube != layout.goal.prop)
    side = layout.goal.hand if right_arm else {"left": "right", "right": "left"}[layout.goal.hand]
    put_against_the_finger(world, prop, side)
    outcome = task.outcome(world)
    assert outcome.done
    assert outcome.success == (right_cube and right_arm)
    assert outcome.wrong != outcome.success
    world.reset()
    assert task.outcome(world) == outcome  # it is not taken back


def test_a_profile_of_other_names_and_units_has_the_same_tasks():
    profile = load_profile("so101_bimanual_radians")["so101_bimanual_radians"]
    assert task_names(profile) == task_names(profile_of("so101_bimanual"))
    layout = load_task(profile, "touch").reset(World(profile), np.random.default_rng(2))
    assert layout.robot == "so101_bimanual_radians"


def test_an_unknown_task_is_answered_with_those_there_are():
    with pytest.raises(SimulationError, match=r"'juggle' for robot 'widowx'; expected one of: touch, pick_place"):
        load_task(profile_of("widowx"), "juggle")


def test_an_outcome_without_an_episode_is_refused():
    profile = profile_of("widowx")
    with pytest.raises(RuntimeError, match="must be reset before"):
        load_task(profile, "touch").outcome(World(profile))
