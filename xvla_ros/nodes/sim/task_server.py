# SPDX-License-Identifier: Apache-2.0
"""A task in the simulation node: ``~/reset`` begins one of its episodes, ``~/<robot>/outcome`` says how it stands.

The outcome is an ``xvla_ros/EpisodeOutcome``, latched, sent on every change and a few times a second.
"""

from __future__ import annotations

import numpy as np
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from xvla_ros.errors import KinematicsError, SimulationError
from xvla_ros.nodes import qos
from xvla_ros.nodes.messages import stamp_message
from xvla_ros.simulation.tasks import Layout, Outcome, Task, load_task
from xvla_ros.simulation.world import World
from xvla_ros.types import NS

SAY_PERIOD = NS // 5  # of simulated time
BAD_TASK = (KinematicsError, SimulationError)


def declare_parameters(node: Node) -> None:
    """Declare what ``~/reset`` reads beside the seed; all of it may be set at any time."""
    for name, default, description, limits in (
        ("task", "", "Task whose episodes ~/reset begins; empty lays the scene's props out.", {}),
        (
            "variant",
            0,
            "Which of a layout's instructions an episode has.",
            {"integer_range": [IntegerRange(from_value=0, to_value=10**6, step=1)]},
        ),
        (
            "variation",
            1.0,
            "How much a task varies light, colours and cameras, 0 not at all.",
            {"floating_point_range": [FloatingPointRange(from_value=0.0, to_value=100.0)]},
        ),
    ):
        node.declare_parameter(name, default, ParameterDescriptor(description=description, **limits))


class TaskServer:
    """The episodes of one world."""

    def __init__(self, node: Node, world: World) -> None:
        # Imported here: the generated messages need the built package, and a plain import of this module does not.
        from xvla_ros.msg import EpisodeOutcome

        self._node, self._world, self._message = node, world, EpisodeOutcome
        self._publisher = node.create_publisher(EpisodeOutcome, f"~/{world.profile.name}/outcome", qos.LATCHED)
        self._task: Task | None = None
        self._loaded: tuple[str, float] = ("", 0.0)
        self._layout: Layout | None = None
        self._episode = 0
        self._seed = 0
        self._accepted = 0
        self._begun = 0
        self._started: int | None = None
        self._ended: int | None = None
        self._outcome = Outcome(False, False)
        self._said = 0

    def reset(self, seed: int) -> str:
        """Begin an episode, or lay the scene out where the parameter ``task`` is empty; return what was done.

        Raises:
            SimulationError, KinematicsError: naming what is missing; the world is as it was.
        """
        name, variation = (self._node.get_parameter(key).value for key in ("task", "variation"))
        if not name:
            self._layout = None
            self._world.reset(seed)
            return f"arms at home, props laid out by seed {seed}"
        if self._loaded != (name, variation):
            self._task = load_task(self._world.profile, name, variation=variation)
            self._loaded = (name, variation)
        variant = self._node.get_parameter("variant").value
        self._layout = self._task_loaded().reset(self._world, np.random.default_rng(seed), variant)
        self._episode, self._seed = self._episode + 1, seed
        self._accepted, self._begun = self._commands(), self._world.time
        self._started = self._ended = None
        self._outcome = Outcome(False, False)
        self._say()
        return f"task {name}, seed {seed}: {self._layout.instruction}"

    def look(self) -> None:
        """Judge the present state; call it often while the world is stepped."""
        if self._layout is None:
            return
        now = self._world.time
        if self._started is None and self._commands() > self._accepted:
            self._started = now
        if self._ended is None:
            self._outcome = self._task_loaded().outcome(self._world)
            if self._outcome.done or self._elapsed() >= self._task_loaded().time_limit:
                self._ended = now
                self._say()
        if now - self._said >= SAY_PERIOD:
            self._say()

    def _task_loaded(self) -> Task:
        if self._task is None:
            raise RuntimeError("an episode was asked about before a task was loaded")
        return self._task

    def _commands(self) -> int:
        return sum(controller.accepted for controller in self._world.controllers.values())

    def _elapsed(self) -> float:
        return 0.0 if self._started is None else (self._now() - self._started) / NS

    def _now(self) -> int:
        return self._world.time if self._ended is None else self._ended

    def _say(self) -> None:
        layout = self._layout
        if layout is None:
            return
        self._said = self._world.time
        message = self._message(
            robot=layout.robot,
            task=layout.task,
            episode=self._episode,
            seed=self._seed,
            variant=layout.variant,
            instruction=layout.instruction,
            success=self._outcome.success,
            wrong=self._outcome.wrong,
            over=self._ended is not None,
            reason=self._reason(),
            begun=stamp_message(self._begun),
            elapsed=self._elapsed(),
        )
        message.header.stamp = stamp_message(self._now())
        self._publisher.publish(message)

    def _reason(self) -> str:
        if self._ended is None:
            return str(self._message.NOT_OVER)
        return str(
            self._message.DONE
            if self._outcome.success
            else self._message.SOMETHING_ELSE
            if self._outcome.wrong
            else self._message.TIME_IS_UP
        )
