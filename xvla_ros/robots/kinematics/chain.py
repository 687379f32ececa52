# SPDX-License-Identifier: Apache-2.0
"""Robot descriptions, poses, and the chain of joints between two links."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation, Slerp

from xvla_ros.errors import KinematicsError, ProfileError, did_you_mean
from xvla_ros.resources import config_dir
from xvla_ros.robots.family import urdf_of
from xvla_ros.robots.rotations import matrix_to_quaternion
from xvla_ros.robots.urdf import Urdf, parse_urdf
from xvla_ros.robots.urdf_file import urdf_text
from xvla_ros.types import Floats


@dataclass(frozen=True)
class RobotDescription:
    """A robot's URDF.

    Attributes:
        text: the XML.
        origin: where it came from, for messages: a path or a topic.
    """

    text: str
    origin: str

    @classmethod
    def from_file(cls, name: str | Path, beside: Path | None = None) -> RobotDescription:
        """Read a URDF file: ``name`` itself, or in the folder ``beside``, among the shipped ones, or of the family.

        Raises:
            KinematicsError: naming every place looked at, or why the file cannot be read.
        """
        tried = [Path(name)]
        if not tried[0].is_absolute():
            tried = ([beside / name] if beside is not None else []) + [config_dir() / "urdf" / name, tried[0]]
        for path in tried:
            if path.is_file():
                try:
                    return cls(urdf_text(path), str(path))
                except ProfileError as error:
                    raise KinematicsError(str(error)) from error
        if (drawn := urdf_of(str(name))) is not None:
            return cls(drawn, str(name))
        raise KinematicsError(f"no URDF {str(name)!r}; looked for {', '.join(str(path) for path in tried)}")


def shipped_description(name: str) -> RobotDescription:
    """Return the description that comes with the package as ``config/urdf/<name>.urdf``.

    Raises:
        KinematicsError: there is none of that name; the message lists those that exist.
    """
    path = config_dir() / "urdf" / f"{name}.urdf"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.urdf")))
        raise KinematicsError(f"xvla_ros has no URDF called {name!r}; available: {known}")
    return RobotDescription.from_file(path)


@dataclass(frozen=True, eq=False)
class Poses:
    """One pose or many: any number of leading axes, the same for both parts.

    Attributes:
        positions: float64 [..., 3], m.
        rotations: float64 [..., 3, 3]; columns are the tool's axes.
    """

    positions: Floats
    rotations: Floats

    def __post_init__(self) -> None:
        if self.positions.shape[-1:] != (3,) or self.rotations.shape != (*self.positions.shape, 3):
            raise ValueError(
                f"poses have positions {list(self.positions.shape)} and rotations {list(self.rotations.shape)}, "
                "expected [..., 3] and [..., 3, 3]"
            )

    def __getitem__(self, index: int | slice) -> Poses:
        return Poses(self.positions[index], self.rotations[index])

    def __len__(self) -> int:
        return len(self.positions)

    def between(self, times: Floats, at: Floats) -> Poses:
        """Return the poses at ``at`` [K] on the path through T poses at ``times`` [T]; outside, the first or the last.

        Positions follow a cubic that overshoots no pose (Fritsch and Carlson 1980), rotations the great circle.

        Args:
            times: strictly increasing, in any unit, that of ``at``.
        """
        where = np.clip(at, times[0], times[-1])
        if len(self) == 1:
            return Poses(np.repeat(self.positions, len(where), axis=0), np.repeat(self.rotations, len(where), axis=0))
        positions: Floats = PchipInterpolator(times, self.positions, axis=0)(where)
        rotations: Floats = Slerp(times, Rotation.from_matrix(self.rotations))(where).as_matrix()
        return Poses(positions, rotations)

    def quaternions_xyzw(self) -> Floats:
        """Return the rotations as unit quaternions [..., 4] in the order of ROS and AgiBot's data: x, y, z, w ≥ 0."""
        return matrix_to_quaternion(self.rotations)

    def quaternions_wxyz(self) -> Floats:
        """Return the rotations as unit quaternions [..., 4] in the order of MuJoCo and genie_sim: w ≥ 0, x, y, z."""
        return np.roll(self.quaternions_xyzw(), 1, axis=-1)


class Chain:
    """The moving joints from ``base_link`` to ``tip_link``, in that order; every other joint stays at zero.

    Calls may come from several threads.

    Attributes:
        description: the robot it was cut from.
        base_link, tip_link: names of its ends.
        joints: J names as in the URDF, base first.
        lower, upper: float64 [J], the URDF's limits in rad or m.
        max_velocity: float64 [J], the URDF's, in rad/s or m/s.
        links: names of all links of the robot.
        limits: name → (lower, upper, velocity) of every joint of the robot that has one coordinate.

    Raises:
        KinematicsError: Pinocchio is not installed, the URDF cannot be read, a link is not in it, no joint moves the
            one link against the other, or one between them mimics another.
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
        self._refuse_what_cannot_be(whole, urdf, between)
        others = [joint for joint in range(1, whole.njoints) if joint not in between]
        self.links, self.limits = urdf.links, _limits(whole)
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
        """Return the poses of the tip in the base link for joint positions [..., J] in rad or m: forward kinematics.

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
            raise KinematicsError(f"{urdf.file} is not a URDF that Pinocchio can read: {error}") from error

    def _body(self, model: Any, link: str) -> int:
        return int(model.getFrameId(link, self._pin.FrameType.BODY))

    def _refuse_what_cannot_be(self, whole: Any, urdf: Urdf, between: list[int]) -> None:
        ends = f"{self.base_link!r} and {self.tip_link!r} of {self.description.origin}"
        if not between:
            raise KinematicsError(f"no joint moves between {ends}; expected base_link and tip_link of one arm")
        for joint in between:
            if (leader := urdf.joints[whole.names[joint]].mimics) is not None:
                raise KinematicsError(
                    f"joint {whole.names[joint]!r} between {ends} mimics {leader!r}; expected joints that move on "
                    "their own: tool poses cannot be solved through a joint that follows another"
                )
            if whole.joints[joint].nq != 1:
                raise KinematicsError(
                    f"joint {whole.names[joint]!r} between {ends} is {whole.joints[joint].shortname()}; expected "
                    "revolute with limits, or prismatic: give a continuous joint limits that its cables allow"
                )


def _read(description: RobotDescription) -> Urdf:
    try:
        return parse_urdf(description.text, description.origin)
    except ProfileError as error:
        raise KinematicsError(f"{description.origin} is not a URDF: {error}") from error


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
