# SPDX-License-Identifier: Apache-2.0
"""Brings up the policy node ``/xvla`` for one robot or several and, with ``sim:=true``, the simulation of them.

ros2 launch xvla_ros xvla.launch.py robot:=so101_bimanual sim:=true instruction:="touch the red cube"
ros2 launch xvla_ros xvla.launch.py sim:=true task:=touch rviz:=true
ros2 launch xvla_ros xvla.launch.py robots:=so101_bimanual,widowx checkpoint:=my_checkpoint
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit, OnProcessStart
from launch.events import matches_action
from launch.events.process import ProcessExited
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from xvla_ros.errors import SetupError
from xvla_ros.evaluation.graph import choose_profiles, settings_in_simulation, sources
from xvla_ros.resources import config_dir
from xvla_ros.robots import Profile, load_robot
from xvla_ros.ros_env import prepare

UNJUDGED = (
    "simulated without a task, so no episode is judged. task:=touch runs episodes and logs the outcome of each; "
    "rviz:=true or `xvla view --web` shows it"
)
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def generate_launch_description() -> LaunchDescription:
    """Return the arguments (``--show-args`` lists them) and what becomes of them."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "robot", default_value="so101_bimanual", description="name of a profile (see xvla robots) or its file"
            ),
            DeclareLaunchArgument(
                "robots",
                default_value="",
                description="several robots on one policy, instead of robot: names or files of profiles, "
                "separated by commas; a file means all its robots",
            ),
            DeclareLaunchArgument(
                "checkpoint", default_value="", description="checkpoint folder or hub id; empty: the profile's"
            ),
            DeclareLaunchArgument(
                "server",
                default_value="",
                description="policy servers (xvla serve) instead of a checkpoint: wss://HOST:PORT, several "
                "separated by commas; empty: the profile's",
            ),
            DeclareLaunchArgument(
                "instruction", default_value="", description="instruction; empty: the profile's, until one arrives"
            ),
            DeclareLaunchArgument(
                "sim", default_value="false", choices=list(BOOLEANS), description="simulate the arm with MuJoCo"
            ),
            DeclareLaunchArgument(
                "use_sim_time",
                default_value="",
                choices=["", *BOOLEANS],
                description="take the time from /clock; empty: with sim:=true only",
            ),
            DeclareLaunchArgument("namespace", default_value="", description="ROS namespace of the nodes"),
            DeclareLaunchArgument(
                "device", default_value="", description="device of the policy: cpu, cuda, cuda:1, …; empty: the CPU"
            ),
            DeclareLaunchArgument(
                "dtype",
                default_value="",
                choices=["", "float32", "bfloat16", "int8"],
                description="number format of the policy; empty: the fastest on this machine, but never int8",
            ),
            DeclareLaunchArgument(
                "seed",
                default_value="",
                description="seed of the sampler's noise and of the simulated scene; empty: new noise in each run, "
                "scene 0",
            ),
            DeclareLaunchArgument(
                "task",
                default_value="",
                description="in simulation, with one robot: run episodes of this task (touch, pick_place, …) and "
                "log the outcome of each; needs autostart and no namespace",
            ),
            DeclareLaunchArgument(
                "real_time",
                default_value="false",
                choices=list(BOOLEANS),
                description="with sim:=true: simulated time does not wait for a slow policy",
            ),
            DeclareLaunchArgument(
                "rviz", default_value="false", choices=list(BOOLEANS), description="show robot and plan in RViz"
            ),
            DeclareLaunchArgument(
                "params_file",
                default_value="",
                description="file with parameters of the policy node; they override the profile, and launch arguments "
                "override them",
            ),
            DeclareLaunchArgument(
                "autostart",
                default_value="true",
                choices=list(BOOLEANS),
                description="configure (load, warm up) and activate; else the node stays unconfigured",
            ),
            OpaqueFunction(function=bring_up),
        ]
    )


def bring_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Read the profile and return environment, nodes and what takes the policy node from state to state."""
    argument = context.launch_configurations
    profiles = choose_profiles(argument["robots"]) if argument["robots"] else [load_robot(argument["robot"])]
    simulated = BOOLEANS[argument["sim"]]
    parameters = {
        "robots": [profile.name for profile in profiles],
        "use_sim_time": BOOLEANS.get(argument["use_sim_time"], simulated),
        "autostart": False,  # the events below do it, and other launch files may hook into them
        "paced": simulated and BOOLEANS.get(argument["use_sim_time"], True) and not BOOLEANS[argument["real_time"]],
    }
    given = ("checkpoint", "server", "instruction", "device", "dtype")
    parameters |= {name: argument[name] for name in given if argument[name]}
    parameters |= {"seed": int(argument["seed"])} if argument["seed"] else {}
    led = argument["task"] and leader(argument, profiles)
    if simulated:
        for profile in profiles:
            parameters |= settings_in_simulation(profile, argument["checkpoint"] or argument["server"])
    policy = LifecycleNode(
        package="xvla_ros",
        executable="policy_node",
        name="xvla",
        namespace=argument["namespace"],
        parameters=[
            *map(str, sources(profiles)),
            *([argument["params_file"]] if argument["params_file"] else []),
            parameters,
        ],
        output="screen",
        emulate_tty=True,
    )
    by_itself = BOOLEANS[argument["autostart"]] and not led
    entities = [*environment(), *(started(policy) if by_itself else []), policy]
    if simulated:
        entities.append(simulation(profiles, argument["namespace"], int(argument["seed"] or 0)))
    if led:
        entities += [led, RegisterEventHandler(OnProcessExit(target_action=led, on_exit=_end_with_leader))]
    elif simulated:
        entities.append(LogInfo(msg=UNJUDGED))
    if BOOLEANS[argument["rviz"]]:
        entities.append(rviz())
    return entities


def leader(argument: dict[str, str], profiles: Sequence[Profile]) -> Node:
    """The node that takes policy and simulation through episodes of a task, without end.

    Raises:
        SetupError: if there is nothing it could lead.
    """
    ready = BOOLEANS[argument["sim"]] and BOOLEANS[argument["autostart"]] and not argument["namespace"]
    if len(profiles) != 1 or not ready:
        raise SetupError(
            f"task is {argument['task']!r}, which needs a simulation (sim:=true; of isaac.launch.py stand_in:=true) "
            "with one robot, autostart and no namespace; leave it out to give instructions yourself"
        )
    (profile,) = profiles
    order = {
        "profile": str(profile.source or profile.name),
        "robot": profile.name,
        "task": argument["task"],
        "episodes": 0,
        "seed": int(argument["seed"] or 0),
        "variation": 1.0,
        "pause": 1.0,
    }
    order |= {"instruction": argument["instruction"]} if argument["instruction"] else {}
    return Node(
        package="xvla_ros",
        executable="evaluate_node",
        name="xvla_evaluate",
        parameters=[order],
        output="screen",
        emulate_tty=True,
    )


def _end_with_leader(event: ProcessExited, context: LaunchContext) -> None:
    """End the launch with exit code 1 where the leading node gave up; its last line says why."""
    if event.returncode and not context.is_shutdown:
        raise RuntimeError("xvla_evaluate could not run an episode; its last error above gives the reason.")


def rviz() -> Node:
    """RViz with the plan of the policy; it comes with ROS (apt: ros-$ROS_DISTRO-rviz2)."""
    return Node(package="rviz2", executable="rviz2", arguments=["-d", str(config_dir() / "rviz" / "xvla.rviz")])


def environment() -> list[LaunchDescriptionEntity]:
    """What the nodes need and the user has not set, above all room for images in the DDS transport."""
    prepared = dict(os.environ)
    prepare(prepared)
    return [SetEnvironmentVariable(name, value) for name, value in prepared.items() if os.environ.get(name) != value]


def simulation(profiles: Sequence[Profile], namespace: str, seed: int) -> Node:
    """The node that simulates the robots as their files describe them, and publishes ``/clock``."""
    return Node(
        package="xvla_ros",
        executable="sim_node",
        name="sim",
        namespace=namespace,
        parameters=[
            {
                "robot": ",".join(profile.name for profile in profiles),
                "profile": ",".join(map(str, sources(profiles))),
                "seed": seed,
            }
        ],
        output="screen",
        emulate_tty=True,
    )


def started(policy: LifecycleNode) -> list[LaunchDescriptionEntity]:
    """Configure the node when its process runs, activate it when configure has succeeded.

    ``start_state`` is what keeps a later deactivate from activating at once again; the ``autostart`` of launch_ros
    would do all this, but Jazzy has none.
    """
    return [
        RegisterEventHandler(
            OnProcessStart(target_action=policy, on_start=[_change(policy, Transition.TRANSITION_CONFIGURE)])
        ),
        RegisterEventHandler(
            OnStateTransition(
                target_lifecycle_node=policy,
                start_state="configuring",
                goal_state="inactive",
                entities=[_change(policy, Transition.TRANSITION_ACTIVATE)],
            )
        ),
        *_ended_where_refused(policy),
    ]


def _ended_where_refused(policy: LifecycleNode) -> list[LaunchDescriptionEntity]:
    """End the launch with exit code 1 where the first configuration or activation fails, as for untrained weights."""
    was_active: list[bool] = []

    def end(what: str) -> Callable[[LaunchContext], None]:
        def refuse(_: LaunchContext) -> None:
            if not was_active:  # a later transition is somebody's own, who gets the answer
                raise RuntimeError(f"xvla could not be {what}; its last error above gives the reason. Nothing moves.")

        return refuse

    def came(start_state: str, goal_state: str, function: Callable[[LaunchContext], None]) -> RegisterEventHandler:
        return RegisterEventHandler(
            OnStateTransition(
                target_lifecycle_node=policy,
                start_state=start_state,
                goal_state=goal_state,
                entities=[OpaqueFunction(function=function)],
            )
        )

    return [
        came("activating", "active", lambda _: was_active.append(True)),
        came("configuring", "unconfigured", end("configured")),
        came("activating", "inactive", end("activated")),
    ]


def _change(policy: LifecycleNode, transition: int) -> EmitEvent:
    return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(policy), transition_id=transition))
