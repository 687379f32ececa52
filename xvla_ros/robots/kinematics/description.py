"""Where a robot's description comes from: a URDF file, or what a ``robot_description`` topic said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xvla_ros.errors import ProfileError, XvlaError
from xvla_ros.resources import config_dir
from xvla_ros.robots.urdf import urdf_text


class KinematicsError(XvlaError, ValueError):
    """A description that cannot be had, or that does not fit a profile; the message says what to change."""


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
        """Read a URDF file: ``name`` itself, or in the folder ``beside``, or among the shipped ones.

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
        raise KinematicsError(f"no URDF {str(name)!r}; looked for {', '.join(str(path) for path in tried)}")


def shipped_description(name: str) -> RobotDescription:
    """Return the description that comes with the package as ``config/urdf/<name>.urdf``.

    Raises:
        KinematicsError: there is none of that name; the message lists those that exist.
    """
    path = config_dir() / "urdf" / f"{name}.urdf"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.urdf")))
        raise KinematicsError(f"no URDF called {name!r} comes with xvla_ros; there are {known}")
    return RobotDescription.from_file(path)
