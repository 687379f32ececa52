# SPDX-License-Identifier: Apache-2.0
"""Tasks of the simulated arms: randomised layouts, instructions, judges and scripted experts."""

from xvla_ros.simulation.tasks.catalogue import load_task, task_names
from xvla_ros.simulation.tasks.plan import ExpertPlan
from xvla_ros.simulation.tasks.task import Expert, Goal, Layout, Outcome, Task

__all__ = ["Expert", "ExpertPlan", "Goal", "Layout", "Outcome", "Task", "load_task", "task_names"]
