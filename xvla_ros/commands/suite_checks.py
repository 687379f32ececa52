# SPDX-License-Identifier: Apache-2.0
"""``xvla check --suite``: the known causes of a success rate of 0 %, looked for before the first episode.

Each leaves a policy that moves, and never succeeds: nothing fails. What files can tell is compared; the rest is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from xvla_ros.commands.check import CheckReport
from xvla_ros.commands.checkpoint_checks import computing, of_the_files
from xvla_ros.commands.graph_checks import Finding
from xvla_ros.control.policy_source import decode_alike
from xvla_ros.errors import CheckpointError, Problem, SetupError, SimulationError
from xvla_ros.evaluation.suites.drivers import ACTION_MODE, ROBOT, SLOTS, embodiment_of, misfits
from xvla_ros.model.action_specs import ACTION_SPECS
from xvla_ros.model.inputs.normalisers import MEAN_STD, MODES, Normaliser
from xvla_ros.simulation.suites.joints import SUITES as JOINT_SUITES
from xvla_ros.simulation.suites.libero import check_installed, ensure_suite, installed
from xvla_ros.simulation.suites.protocols import EvaluationProtocol

if TYPE_CHECKING:
    from xvla_ros.model.checkpoint.inspection import CheckpointInfo, Description
    from xvla_ros.model.checkpoint.record import RobotRecord

PARTS = ("checkpoint", "simulator")
# rot6d of LIBERO's hand where an episode begins, pointing down: of the grip site that X-VLA is told, and of the hand's
# body, which the simulator's own quaternion is of and which stands a quarter turn from it.
DOWN = {
    ("columns", "the grip site"): (0, 1, 0, 1, 0, 0),
    ("interleaved", "the grip site"): (0, 1, 1, 0, 0, 0),
    ("columns", "the hand's body"): (1, 0, 0, 0, -1, 0),
    ("interleaved", "the hand's body"): (1, 0, 0, -1, 0, 0),
}
NEAR = 0.7  # how far the middle of a data set's rotations is from where the hand points down, at most
LOWEST = 0.05  # m above the world's floor that absolute positions of the hand are on the mean, at least


def check_suite(suite: str, checkpoint: str, protocol: EvaluationProtocol, python: str = "") -> CheckReport:
    """Compare a checkpoint with how a suite asks, and look at the suite's interpreter.

    Raises:
        SetupError: no such suite, or none of LIBERO's.
    """
    ensure_suite(suite, also=JOINT_SUITES)
    if suite in JOINT_SUITES:
        robot = JOINT_SUITES[suite].robot
        raise SetupError(f"{suite} is checked through its robot: xvla check --robot {robot} --checkpoint {checkpoint}")
    errors, warnings = list[Problem](), list[Problem]()
    missing, notes = list[str](), list[str]()
    for finding in checkpoint_findings(checkpoint, protocol):
        (errors if finding.is_error else warnings).append(finding.problem)
    try:
        check_installed(installed(python))
    except SetupError as error:
        errors.append(Problem("", f"{suite}.simulator", None, "LIBERO as it was published", str(error)))
    except SimulationError as error:
        missing.append(f"simulator: {error}")
    if said := computing(checkpoint):
        notes.append(said)
    notes.append(told(protocol))
    return CheckReport((suite,), PARTS, tuple(errors), tuple(warnings), tuple(notes), tuple(missing), parts=PARTS)


def told(protocol: EvaluationProtocol) -> str:
    """Say what no file of a checkpoint tells, and how the protocol has it."""
    turned = " and ".join(protocol.turned) or "no camera"
    return (
        f"protocol {protocol.name}: absolute poses of the grip site in the world frame; images of {turned} are "
        f"rotated by 180 degrees, other images are unchanged; state after the first chunk {protocol.state_after}; "
        f"gripper closes above {protocol.close_above:g}; no file says whether the checkpoint was trained this way"
    )


def checkpoint_findings(checkpoint: str, protocol: EvaluationProtocol) -> Iterator[Finding]:
    """Yield what of a checkpoint does not fit how a suite asks."""
    from xvla_ros.model.checkpoint.inspection import describe, find_checkpoint, inspect
    from xvla_ros.model.checkpoint.pipelines import PROFILE_STEPS

    try:
        info = inspect(checkpoint, assume=PROFILE_STEPS)
        described = describe(find_checkpoint(checkpoint), PROFILE_STEPS)
    except CheckpointError as error:
        yield from of_the_files(checkpoint, error.problems)
        return
    yield from of_the_files(checkpoint, misfits(info))
    yield from _SuiteComparison(checkpoint, protocol, info, described).findings()


class _SuiteComparison:
    """A checkpoint beside a protocol."""

    def __init__(
        self, checkpoint: str, protocol: EvaluationProtocol, info: CheckpointInfo, described: Description
    ) -> None:
        self._checkpoint, self._protocol, self._info, self._described = checkpoint, protocol, info, described
        self._record: RobotRecord | None = info.robots.get(ROBOT)
        statistics = described.pipelines.statistics if self._record is None else self._record.statistics
        self._state, self._action = statistics.state, statistics.action

    def findings(self) -> Iterator[Finding]:
        """Yield everything that does not fit."""
        yield from self._mode()
        yield from self._control()
        yield from self._rotations()
        yield from self._domain()
        yield from self._pictures()
        yield from self._for_lerobot()

    def _mode(self) -> Iterator[Finding]:
        stored = self._record.embodiment.action_mode if self._record else self._info.action_mode
        theirs = ACTION_SPECS.get(stored)
        if theirs is None or not decode_alike(ACTION_SPECS[ACTION_MODE], theirs):
            message = f"reads its channels differently from {ACTION_MODE}, the gripper's among them"
            yield self._finding("action_mode", stored, ACTION_MODE, message)

    def _control(self) -> Iterator[Finding]:
        middle = _middle(self._action)
        if middle is not None and len(middle) >= 3 and abs(middle[2]) < LOWEST:
            message = (
                "the mean height of the hand in the trained actions is about 0, as in relative actions (motion from "
                "step to step); a suite executes absolute poses in the world frame, where 0 is the floor"
            )
            yield self._finding("statistics.action", round(float(middle[2]), 3), f"{LOWEST:g} m or more", message)

    def _rotations(self) -> Iterator[Finding]:
        asked = self._protocol.rot6d
        if self._record is not None and self._record.embodiment.rot6d != asked:
            message = "the checkpoint was trained with the other layout of rotations"
            yield self._finding("rot6d", asked, self._record.embodiment.rot6d, message)
        middle = _middle(self._state)
        if middle is None or len(middle) < 9:
            return
        far = {kind: float(np.linalg.norm(middle[3:9] - np.array(pose))) for kind, pose in DOWN.items()}
        (layout, frame), least = min(far.items(), key=lambda item: item[1])
        if least > NEAR or (layout, frame) == (asked, "the grip site"):
            return
        if frame != "the grip site":
            message = (
                "the trained states rotate the hand by 90 degrees: they are the simulator's robot0_eef_quat, the "
                "hand's body, but a suite uses the controller's grip site"
            )
            yield self._finding("statistics.state", frame, "the grip site", message)
        if layout != asked:
            message = f"the trained states look as rot6d in {layout}"
            yield self._finding("rot6d", asked, layout, message)

    def _domain(self) -> Iterator[Finding]:
        asked = embodiment_of(self._protocol, self._described.pipelines.domain_id).domain_id
        trained, count = self._info.trained_domains, self._info.num_domains
        own = self._record.embodiment.domain_id if self._record else self._described.pipelines.domain_id
        if asked >= count:
            message = f"the checkpoint has {count} soft prompts and none for domain {asked}"
            yield self._finding("domain_id", asked, f"0 to {count - 1}", message)
        elif trained is not None and asked not in trained:
            expected = "one of " + ", ".join(map(str, trained)) if trained else "a trained checkpoint"
            message = f"the soft prompt of domain {asked} is untrained; choose another with --set domain_id=N"
            yield self._finding("domain_id", asked, expected, message)
        elif own is not None and own != asked:
            message = f"the checkpoint's own files use {own}; use it too with --set domain_id={own}"
            yield self._finding("domain_id", asked, own, message, is_error=self._record is not None)

    def _pictures(self) -> Iterator[Finding]:
        asked = self._protocol.image_pipeline
        stored = self._record.embodiment.image_pipeline if self._record else self._info.image_pipeline
        if stored != asked:
            message = (
                f"the checkpoint's own code uses the image pipeline {stored}; use it too with --set "
                f"image_pipeline={stored}"
            )
            yield self._finding("image_pipeline", asked, stored, message, is_error=self._record is not None)
        cameras: Any = (self._record.profile or {}).get("cameras", {}) if self._record else {}
        for slot, camera in SLOTS.items():
            turn = 180 if camera in self._protocol.turned else 0
            found = cameras.get(slot, {}).get("rotate", turn)
            if found != turn:
                message = f"the checkpoint was trained with images of {camera} rotated by {found} degrees"
                yield self._finding(f"turned.{slot}", turn, found, message)

    def _for_lerobot(self) -> Iterator[Finding]:
        if self._info.dialect != "lerobot" or self._info.missing_steps:
            return
        message = (
            "its preprocessor normalises images, and LeRobot's own LIBERO environment does so too: lerobot-eval "
            "fails, or normalises twice. xvla evaluate does it once. For lerobot-eval: "
            "xvla_ros.model.checkpoint.pipelines.copy_for_lerobot_eval"
        )
        yield self._finding("policy_preprocessor.json", None, "as it is for xvla evaluate", message, is_error=False)

    def _finding(self, key: str, value: Any, expected: object, message: str, is_error: bool = True) -> Finding:
        return Finding(Problem(self._checkpoint, key, value, str(expected), message), is_error)


def _middle(normaliser: Normaliser) -> Any:
    """Return the middle [width] of the numbers that a normaliser was made of; None where it is none."""
    if normaliser.width is None:
        return None
    low, high = (normaliser.stats[name].astype(np.float64) for name in MODES[normaliser.mode])
    return low if normaliser.mode == MEAN_STD else (low + high) / 2
