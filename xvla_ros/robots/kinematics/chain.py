"""The joints between two links of a robot, and the pose of the one seen from the other."""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.errors import ProfileError, did_you_mean
from xvla_ros.robots.kinematics.description import KinematicsError, RobotDescription
from xvla_ros.robots.kinematics.poses import Poses
from xvla_ros.robots.urdf import Urdf, parse_urdf

Floats = NDArray[np.float64]


class Chain:
    """The moving joints from ``base_link`` to ``tip_link``, in that order; every other joint stays at zero.

    Calls may come from several threads.

    Attributes:
        description: the robot it was cut from.
        base_link, tip_link: names of its ends.
        joints: J names as in the URDF, base first.
        lower, upper: float64 [J], the URDF's limits in rad or m.
        max_velocity: float64 [J], the URDF's, in rad/s or m/s.
        limits: name → (lower, upper, velocity) of every joint of the robot that has one coordinate.

    Raises:
        KinematicsError: Pinocchio is not installed, the URDF cannot be read, a link is not in it, or no joint moves the
            one link against the other.
    """

    def __init__(self, description: RobotDescription, base_link: str, tip_link: str) -> None:
        self.description, self.base_link, self.tip_link = description, base_link, tip_link
        self._pin = _pinocchio()
        urdf = _read(description)
        whole = self._model(urdf)
        for link in (base_link, tip_link):
            if link not in urdf.links:
                known = f"{did_you_mean(link, urdf.links)}; it has {', '.join(urdf.links)}"
                raise KinematicsError(f"{description.origin} has no link {link!r}{known}")
        base_body, tip_body = urdf.body(base_link), urdf.body(tip_link)
        between = _joints_between(whole, self._body(whole, base_body), self._body(whole, tip_body))
        self._refuse_what_cannot_be(whole, between)
        others = [joint for joint in range(1, whole.njoints) if joint not in between]
        self.limits = _limits(whole)
        self.model: Any = self._pin.buildReducedModel(whole, others, self._pin.neutral(whole))
        self.data: Any = self.model.createData()
        self.lock = threading.Lock()
        self.tip: int = self._body(self.model, tip_body)
        self.joints = tuple(self.model.names)[1:]
        self.lower = np.array(self.model.lowerPositionLimit)
        self.upper = np.array(self.model.upperPositionLimit)
        self.max_velocity = np.array(self.model.velocityLimit)
        self._pin.framesForwardKinematics(self.model, self.data, self._pin.neutral(self.model))
        self.base: Any = self.data.oMf[self._body(self.model, base_body)].copy()

    def poses(self, positions: ArrayLike) -> Poses:
        """Forward kinematics: poses of the tip in the base link for joint positions [..., J] in rad or m.

        Raises:
            ValueError: when the last axis is not the number of joints.
        """
        values = np.asarray(positions, dtype=np.float64)
        if values.shape[-1:] != (len(self.joints),):
            raise ValueError(
                f"positions have shape {list(values.shape)}, expected [..., {len(self.joints)}] for "
                f"{', '.join(self.joints)}"
            )
        rows = values.reshape(-1, len(self.joints))
        places, rotations = np.empty((len(rows), 3)), np.empty((len(rows), 3, 3))
        with self.lock:
            for i, row in enumerate(rows):
                self._pin.forwardKinematics(self.model, self.data, row)
                seen = self.base.actInv(self._pin.updateFramePlacement(self.model, self.data, self.tip))
                places[i], rotations[i] = seen.translation, seen.rotation
        lead = values.shape[:-1]
        return Poses(places.reshape(*lead, 3), rotations.reshape(*lead, 3, 3))

    def placement(self, pose: Poses) -> Any:
        """Return one pose in the base link as Pinocchio's placement in the world, its rotation made orthonormal."""
        quaternion = self._pin.Quaternion(np.ascontiguousarray(pose.rotations))
        quaternion.normalize()
        return self.base * self._pin.SE3(quaternion, np.ascontiguousarray(pose.positions))

    def _model(self, urdf: Urdf) -> Any:
        try:
            return self._pin.buildModelFromXML(urdf.text)
        except Exception as error:  # Pinocchio raises what its parser raises
            raise KinematicsError(f"{urdf.file} is no URDF that Pinocchio reads: {error}") from error

    def _body(self, model: Any, link: str) -> int:
        return int(model.getFrameId(link, self._pin.FrameType.BODY))

    def _refuse_what_cannot_be(self, whole: Any, between: list[int]) -> None:
        ends = f"{self.base_link!r} and {self.tip_link!r} of {self.description.origin}"
        if not between:
            raise KinematicsError(f"no joint moves between {ends}; expected base_link and tip_link of one arm")
        for joint in between:
            if whole.joints[joint].nq != 1:
                raise KinematicsError(
                    f"joint {whole.names[joint]!r} between {ends} is {whole.joints[joint].shortname()}; expected "
                    "revolute with limits, or prismatic: give a continuous joint the limits of its cables"
                )


def _read(description: RobotDescription) -> Urdf:
    try:
        return parse_urdf(description.text, description.origin)
    except ProfileError as error:
        raise KinematicsError(f"{description.origin} is no URDF: {error}") from error


def _limits(model: Any) -> dict[str, tuple[float, float, float]]:
    found = {}
    for joint in range(1, model.njoints):
        if model.joints[joint].nq == 1:
            q, v = model.joints[joint].idx_q, model.joints[joint].idx_v
            low, high = model.lowerPositionLimit[q], model.upperPositionLimit[q]
            found[model.names[joint]] = (float(low), float(high), float(model.velocityLimit[v]))
    return found


def _joints_between(model: Any, base: int, tip: int) -> list[int]:
    """Return the ids of the joints on the way from one frame up to the other's ancestors and down, tip side last."""
    from_base, from_tip = (_ancestors(model, model.frames[frame].parentJoint) for frame in (base, tip))
    above = [joint for joint in from_base if joint not in from_tip]
    if above:
        names = ", ".join(model.names[joint] for joint in above)
        raise KinematicsError(
            f"link {model.frames[base].name!r} moves with {names}, which do not carry {model.frames[tip].name!r}; "
            "expected a base_link that carries the tip_link"
        )
    return [joint for joint in reversed(from_tip) if joint not in from_base]


def _ancestors(model: Any, joint: int) -> list[int]:
    found = []
    while joint > 0:
        found.append(joint)
        joint = model.parents[joint]
    return found


def _pinocchio() -> ModuleType:
    try:
        import pinocchio
    except ImportError as error:
        raise KinematicsError(
            f"tool poses need Pinocchio, which cannot be imported ({error}); install it with: "
            "pip install 'xvla_ros[kinematics]', or from a ROS distribution: ros-<distro>-pinocchio"
        ) from error
    module: ModuleType = pinocchio
    return module
