# SPDX-License-Identifier: Apache-2.0
"""What holds of every scene: it fits its profile, stands still, follows, and its cameras show the work."""

import mujoco
import numpy as np
import pytest

from xvla_ros.errors import SimulationError
from xvla_ros.robots import load_profile
from xvla_ros.robots.profile import shipped_files
from xvla_ros.simulation import parts
from xvla_ros.simulation.cameras import BESIDE_HEIGHT, BESIDE_WIDTH
from xvla_ros.simulation.controllers import ControllerOptions, JointTrajectory, TrajectoryPoint
from xvla_ros.simulation.scenes import build_scene, scene_for, scene_names
from xvla_ros.simulation.world import World
from xvla_ros.types import BESIDE

SECOND = 1_000_000_000
DEGREE = np.pi / 180
ROBOTS = ("agibot", "so101", "widowx")
TRACKED_M = 0.001  # of a joint that slides


def load(robot):
    return load_profile(robot)[robot]


@pytest.fixture(params=ROBOTS)
def world(request):
    made = World(load(request.param), seed=3, options=ControllerOptions(interpolate_from_desired_state=True))
    yield made
    made.close()


def run(world, seconds):
    world.step(round(seconds / world.timestep))


def send(world, path, times):
    """Gives every group the path of its joints: policy joint → function of time."""
    for name, group in world.profile.commands.by_name.items():
        names = tuple(world.profile.joints.by_name[joint].name for joint in group.joints)
        points = tuple(TrajectoryPoint(round(t * SECOND), tuple(path[j](t) for j in group.joints)) for t in times)
        assert world.command(name, JointTrajectory(names, points)) is None


def test_every_shipped_profile_has_a_scene():
    for file in shipped_files():
        if file.stem in ("libero_panda", "aloha"):
            continue  # LIBERO and gym-aloha bring their own
        profile = load(file.stem)
        scene = scene_for(profile.name, profile.joints.policy_order, 1 / 600)
        assert set(profile.joints.policy_order) == set(scene.driven)
        assert set(profile.cameras.slots) <= {scene.model.camera(i).name for i in range(scene.model.ncam)}


def test_a_robot_of_another_name_takes_the_scene_of_its_joints():
    order = load("widowx").joints.policy_order
    assert scene_for("my_widowx", order[::-1], 1 / 600).robot == "widowx"
    with pytest.raises(SimulationError, match="'my_widowx'"):
        scene_for("my_widowx", order[:-1], 1 / 600)


@pytest.mark.parametrize("robot", scene_names())
def test_joints_move_between_the_limits_of_the_profile(robot):
    model = build_scene(robot, 1 / 600).model
    for name, joint in load(robot).joints.by_name.items():
        # Profiles have as many digits as a driver states.
        np.testing.assert_allclose(model.joint(name).range, (joint.lower, joint.upper), atol=2e-5)
        np.testing.assert_allclose(model.actuator(name).ctrlrange, model.joint(name).range, atol=1e-12)


def test_the_arm_holds_still_for_twenty_seconds(world):
    sites = [world.model.site(i).name for i in range(world.model.nsite)]
    start = {site: world.data.site(site).xpos.copy() for site in sites}
    worst = 0.0
    for _ in range(20):
        run(world, 1.0)
        worst = max(worst, *(float(np.linalg.norm(world.data.site(site).xpos - start[site])) for site in sites))
    assert worst < 0.002
    assert np.abs(world.data.qvel[: world.model.nu]).max() < 1e-3


def test_all_joints_together_track_a_sine(world):
    home, limits = world.positions(), world.profile.joints.by_name
    path = {}
    for joint, start in home.items():
        farther = max(limits[joint].lower, limits[joint].upper, key=lambda end, start=start: abs(end - start))
        swing = float(np.clip(0.9 * (farther - start), -0.2, 0.2))
        path[joint] = lambda t, start=start, swing=swing: start + swing * np.sin(2 * np.pi * 0.2 * t) ** 2
    send(world, path, np.arange(0.05, 5.01, 0.05))
    worst = dict.fromkeys(home, 0.0)
    for tick in range(1, 101):
        run(world, 0.05)
        for joint, place in world.positions().items():
            worst[joint] = max(worst[joint], abs(place - path[joint](tick * 0.05)))
    for joint, error in worst.items():
        slides = limits[joint].upper - limits[joint].lower < 0.1
        assert error < (TRACKED_M if slides else 3 * DEGREE), joint


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_any_posture_is_reached_or_held_without_shaking(world, share):
    """Poses between the limits; where links meet the table or each other, they rest there."""
    target = {name: joint.lower + share * (joint.upper - joint.lower) for name, joint in limits_of(world)}
    home = world.positions()
    path = {joint: lambda t, a=home[joint], b=target[joint]: a + (b - a) * min(1.0, t / 3.0) for joint in home}
    send(world, path, np.arange(0.1, 3.01, 0.1))
    run(world, 5.0)
    assert np.isfinite(world.data.qpos).all()
    assert np.abs(world.data.qvel[: world.model.nu]).max() < 0.05


def limits_of(world):
    return world.profile.joints.by_name.items()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("robot", ROBOTS)
def test_cubes_lie_on_the_table_clear_of_the_bowl_and_of_each_other(robot, seed):
    scene = SCENES[robot]
    model = scene.model
    places = {name: np.array(place[:2]) for name, place in scene.layout(np.random.default_rng(seed)).items()}
    assert tuple(places) == scene.props
    table = model.geom("table")
    half = model.geom_size[model.body(scene.props[0]).geomadr[0]][0]
    spots = list(places.values())
    for i, spot in enumerate(spots):
        assert np.all(np.abs(spot - table.pos[:2]) < table.size[:2] - 2 * half)
        assert all(np.linalg.norm(spot - other) > 2.9 * half for other in spots[:i])
        if robot != "agibot":
            assert np.linalg.norm(spot - model.body("bowl").pos[:2]) > 0.09


SCENES = {robot: build_scene(robot, 1 / 600) for robot in ROBOTS}


def share_of(image, colour, tolerance=40):
    """Share of the pixels whose hue is that of a geom's colour, whatever the light on it."""
    pixels = image.reshape(-1, 3).astype(float)
    bright = pixels.max(axis=1) > 40
    shade = pixels / np.maximum(pixels.max(axis=1, keepdims=True), 1.0)
    wanted = np.array(colour[:3]) / max(colour[:3])
    return float((bright & (np.abs(shade - wanted).max(axis=1) < tolerance / 255)).mean())


@pytest.mark.parametrize("seed", range(4))
def test_the_first_camera_sees_every_cube(world, seed):
    world.reset(seed)
    image = world.render(world.profile.cameras.slots[0])
    for colour in parts.CUBES.values():
        assert share_of(image, colour) > 0.0005


@pytest.mark.parametrize("robot", [*scene_names(), "family_3", "family_11"])
def test_somebody_beside_the_table_sees_the_robot_and_every_cube(robot):
    """And it is no camera of the scene, whose number decides what is drawn at random for a look."""
    made = World(load(robot))
    cameras = [made.model.camera(number).name for number in range(made.model.ncam)]
    assert BESIDE not in cameras
    rig = made.beside_rig(BESIDE_WIDTH, BESIDE_HEIGHT)
    looks = rig._views[BESIDE][1]
    for seed in range(8):
        made.reset(seed)
        rig.capture(made.data)
        eye = looks.camera[0]
        ahead, up = np.array(eye.forward), np.array(eye.up)
        right = np.cross(ahead, up)
        bodies = [body for body in range(1, made.model.nbody) if made.model.body(body).name != "bowl"]
        for place in made.data.xpos[bodies] - np.array(eye.pos):
            depth = place @ ahead
            high = place @ up / depth * eye.frustum_near / eye.frustum_top
            wide = place @ right / depth * eye.frustum_near / (eye.frustum_top * BESIDE_WIDTH / BESIDE_HEIGHT)
            assert max(abs(high), abs(wide)) < 0.97
    rig.close()


def test_a_camera_on_a_hand_sees_both_fingers_and_the_table():
    for robot, camera, fingers in (
        ("so101", "wrist", ("wrist_roll_link", "gripper_link")),
        ("agibot", "hand_left", ("left_gripper_link", "left_other_finger_link")),
        ("agibot", "hand_right", ("right_gripper_link", "right_other_finger_link")),
    ):
        world = World(load(robot), seed=3)
        with mujoco.Renderer(world.model, 128, 128) as renderer:
            renderer.enable_segmentation_rendering()
            renderer.update_scene(world.data, camera)
            seen = renderer.render()[..., 0]
        for finger in fingers:
            geoms = np.flatnonzero(world.model.geom_bodyid == world.model.body(finger).id)
            assert float(np.isin(seen, geoms).mean()) > 0.005, (camera, finger)
        assert float((seen == world.model.geom("table").id).mean()) > 0.15, camera


@pytest.mark.parametrize(
    ("robot", "group", "tool"),
    [("widowx", "gripper", "tool"), ("agibot", "left_gripper", "left_tool"), ("agibot", "right_gripper", "right_tool")],
)
def test_fingers_hold_a_cube_in_the_air(robot, group, tool):
    """Friction and force suffice, while the arm moves too: the props are there to be handled."""
    world = World(load(robot), seed=3, options=ControllerOptions(interpolate_from_desired_state=True))
    (gripper,) = world.profile.commands.by_name[group].joints
    joint = world.profile.joints.by_name[gripper]
    closed = JointTrajectory((joint.name,), (TrajectoryPoint(SECOND, (joint.lower,)),))
    assert world.command(group, closed) is None
    for _ in range(40):
        put(world, "red_cube", tool)
        run(world, 0.025)
    arm_name = group.replace("gripper", "arm")
    arm = world.profile.commands.by_name[arm_name]
    names = tuple(world.profile.joints.by_name[joint].name for joint in arm.joints)
    raised = tuple(world.positions()[joint] + 0.1 * (-1) ** i for i, joint in enumerate(arm.joints))
    assert world.command(arm_name, JointTrajectory(names, (TrajectoryPoint(SECOND, raised),))) is None
    start = world.data.site(tool).xpos.copy()
    run(world, 3.0)
    assert np.linalg.norm(world.data.site(tool).xpos - start) > 0.01
    assert np.linalg.norm(world.data.body("red_cube").xpos - world.data.site(tool).xpos) < 0.015
    assert world.positions()[gripper] > joint.lower + 0.2 * (world.scene.home[gripper] - joint.lower)


def put(world, prop, site):
    """Puts a cube at rest at a tool, turned as the tool is."""
    body, tool = world.model.body(prop), world.data.site(site)
    place, speed = world.model.jnt_qposadr[body.jntadr[0]], world.model.jnt_dofadr[body.jntadr[0]]
    world.data.qpos[place : place + 3] = tool.xpos
    mujoco.mju_mat2Quat(world.data.qpos[place + 3 : place + 7], tool.xmat)
    world.data.qvel[speed : speed + 6] = 0.0
