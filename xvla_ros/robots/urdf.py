"""The tree of links and joints of a URDF, as written: what Pinocchio does not keep or refuses without a name.

Forward and inverse kinematics are in ``kinematics``; this is for reading a robot nobody has described yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from xvla_ros.resources import config_dir
from xvla_ros.robots.problems import Problem, ProfileError, did_you_mean

KINDS = ("revolute", "continuous", "prismatic", "fixed", "floating", "planar")
LIMITED = ("revolute", "prismatic")


@dataclass(frozen=True)
class UrdfJoint:
    """One joint.

    Attributes:
        name, kind, parent, child: as written; parent and child are links.
        mimics: the joint it follows, or None.
        lower, upper: rad or m, the narrower of its limits and soft limits; None where there are none.
        velocity: rad/s or m/s; 0.0 where none is said.
        length: m from the parent link's origin to its own.
    """

    name: str
    kind: str
    parent: str
    child: str
    mimics: str | None = None
    lower: float | None = None
    upper: float | None = None
    velocity: float = 0.0
    length: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether it is not fixed."""
        return self.kind != "fixed"

    @property
    def has_range(self) -> bool:
        """Whether it has limits between which it can move."""
        return self.lower is not None and self.upper is not None and self.lower < self.upper


@dataclass(frozen=True)
class Urdf:
    """A robot's tree.

    Attributes:
        file: where it was read from.
        root: the link that no joint carries.
        links: names in the file's order.
        joints: by name, in the file's order.
    """

    file: str
    root: str
    links: tuple[str, ...]
    joints: dict[str, UrdfJoint]
    _above: dict[str, UrdfJoint] = field(repr=False)

    def path(self, link: str) -> tuple[UrdfJoint, ...]:
        """Return the joints from the root to ``link``."""
        found: list[UrdfJoint] = []
        while link in self._above:
            found.append(self._above[link])
            link = self._above[link].parent
        return tuple(reversed(found))

    def below(self, joint: UrdfJoint) -> Iterator[UrdfJoint]:
        """Yield the joints that ``joint`` carries, in the file's order."""
        return (other for other in self.joints.values() if other != joint and joint in self.path(other.parent))

    def rigid_with(self, link: str) -> list[str]:
        """Return ``link`` and what fixed joints attach to it, nearest first."""
        found = [link]
        for carrier in found:
            found += [each.child for each in self.joints.values() if each.parent == carrier and not each.moves]
        return found

    def ensure_link(self, link: str, role: str) -> None:
        """Raise ProfileError when there is no such link; ``role`` says what it was to be."""
        if link not in self.links:
            message = f"{role} {link!r} is not a link of the robot{did_you_mean(link, self.links)}"
            raise ProfileError([Problem(self.file, role, link, "one of " + ", ".join(self.links), message)])


def read_urdf(name: str | Path) -> Urdf:
    """Read a URDF: the file ``name``, or else the shipped one of that name.

    Raises:
        ProfileError: naming everything that is wrong with the file.
    """
    path = find_urdf(name)
    problems: list[Problem] = []
    element = _parse(path)
    links = _names(element, "link", path, problems)
    joints = _joints(element, path, problems)
    above = _parents(joints, links, path, problems)
    for joint in joints.values():
        if joint.mimics is not None and joint.mimics not in joints:
            message = f"joint {joint.name!r} follows {joint.mimics!r}, which does not exist"
            hint = did_you_mean(joint.mimics, joints)
            problems.append(Problem(str(path), joint.name, joint.mimics, "a joint of the file", message + hint))
    root = _root(links, above, path, problems)
    if problems:
        raise ProfileError(problems)
    return Urdf(str(path), root, links, joints, above)


def find_urdf(name: str | Path) -> Path:
    """Return the path of a URDF: ``name`` itself, or the shipped file of that name.

    Raises:
        ProfileError: naming the shipped ones.
    """
    own, shipped = Path(name), config_dir() / "urdf" / Path(name).name
    if own.is_file():
        return own
    if own == Path(own.name) and shipped.is_file():
        return shipped
    known = ", ".join(sorted(path.name for path in shipped.parent.glob("*.urdf")))
    message = "no such file" if not own.exists() else "is not a file"
    expected = f"the path of a URDF, or one of the shipped {known}"
    raise ProfileError([Problem(str(name), "", None, expected, message)])


def _parse(path: Path) -> ElementTree.Element:
    def refuse(found: object, expected: str, message: str) -> ProfileError:
        return ProfileError([Problem(str(path), "", found, expected, message)])

    try:
        text = path.read_text(encoding="utf-8")
        element = ElementTree.fromstring(text)
    except (OSError, UnicodeDecodeError) as error:
        raise refuse(None, "a readable file in UTF-8", f"cannot be read: {error}") from error
    except ElementTree.ParseError as error:
        raise refuse(None, "a URDF", f"is not valid XML: {error}") from error
    # Xacro expands to URDF; its macros look like a robot with few or no joints.
    if path.suffix == ".xacro" or any("xacro" in each.tag for each in element.iter()):
        raise refuse("xacro", "a URDF; expand it first: xacro FILE.xacro > FILE.urdf", "holds xacro, not plain URDF")
    if element.tag != "robot":
        raise refuse(element.tag, "<robot>", f"the outermost element is <{element.tag}>")
    return element


def _names(element: ElementTree.Element, tag: str, path: Path, problems: list[Problem]) -> tuple[str, ...]:
    names = [each.get("name", "") for each in element.findall(tag)]
    for name in dict.fromkeys(names):
        if not name:
            message = f"a <{tag}> has no name"
            problems.append(Problem(str(path), tag, None, f'<{tag} name="…">', message))
        elif names.count(name) > 1:
            message = f"{tag} {name!r} is there {names.count(name)} times"
            problems.append(Problem(str(path), name, name, f"each {tag} once", message))
    return tuple(dict.fromkeys(names))


def _joints(element: ElementTree.Element, path: Path, problems: list[Problem]) -> dict[str, UrdfJoint]:
    # Elements of transmissions and of ros2_control are called joint too, but do not stand directly in the robot.
    _names(element, "joint", path, problems)
    reader = _JointReader(path, problems)
    return {each.get("name", ""): reader.read(each) for each in element.findall("joint")}


class _JointReader:
    def __init__(self, path: Path, problems: list[Problem]) -> None:
        self._path, self._problems, self._joint = path, problems, ""

    def read(self, element: ElementTree.Element) -> UrdfJoint:
        self._joint = element.get("name", "")
        kind = element.get("type", "")
        if kind not in KINDS:
            self._add(kind or None, "one of " + ", ".join(KINDS), f"joint {self._joint!r} has type {kind!r}")
        mimic = element.find("mimic")
        lower, upper = self._range(element)
        origin = self._numbers(element, "origin", "xyz") or (0.0,)
        return UrdfJoint(
            name=self._joint, kind=kind, parent=self._link(element, "parent"), child=self._link(element, "child"),
            mimics=mimic.get("joint") if mimic is not None else None, lower=lower, upper=upper,
            velocity=self._number(element, "limit", "velocity") or 0.0, length=math.hypot(*origin),
        )

    def _range(self, element: ElementTree.Element) -> tuple[float | None, float | None]:
        if element.find("limit") is None:
            return None, None
        # The format's default of both ends is 0.
        lower = self._number(element, "limit", "lower") or 0.0
        upper = self._number(element, "limit", "upper") or 0.0
        soft = [self._number(element, "safety_controller", f"soft_{end}_limit") for end in ("lower", "upper")]
        if soft[0] is not None and soft[1] is not None and soft[0] < soft[1]:
            lower, upper = max(lower, soft[0]), min(upper, soft[1])
        return lower, upper

    def _link(self, element: ElementTree.Element, tag: str) -> str:
        child = element.find(tag)
        link = child.get("link", "") if child is not None else ""
        if not link:
            self._add(None, f'<{tag} link="…">', f"joint {self._joint!r} has no {tag} link")
        return link

    def _number(self, element: ElementTree.Element, tag: str, key: str) -> float | None:
        numbers = self._numbers(element, tag, key)
        return numbers[0] if numbers else None

    def _numbers(self, element: ElementTree.Element, tag: str, key: str) -> tuple[float, ...]:
        child = element.find(tag)
        text = child.get(key) if child is not None else None
        if text is None:
            return ()
        try:
            numbers = tuple(float(word) for word in text.split())
        except ValueError:
            numbers = ()
        if not numbers or not all(map(math.isfinite, numbers)):
            self._add(text, "finite numbers", f"joint {self._joint!r}: {key} of <{tag}> is {text!r}")
            return ()
        return numbers

    def _add(self, value: object, expected: str, message: str) -> None:
        self._problems.append(Problem(str(self._path), self._joint, value, expected, message))


def _parents(
    joints: dict[str, UrdfJoint], links: tuple[str, ...], path: Path, problems: list[Problem]
) -> dict[str, UrdfJoint]:
    above: dict[str, UrdfJoint] = {}
    for joint in joints.values():
        for role in ("parent", "child"):
            link = getattr(joint, role)
            if link and link not in links:
                message = f"{role} link {link!r} of joint {joint.name!r} does not exist{did_you_mean(link, links)}"
                problems.append(Problem(str(path), joint.name, link, "a link of the file", message))
        if joint.child in above:
            message = f"link {joint.child!r} is carried by joints {above[joint.child].name!r} and {joint.name!r}"
            problems.append(Problem(str(path), joint.name, joint.child, "a tree: one joint above each link", message))
        above.setdefault(joint.child, joint)
    return above


def _root(links: tuple[str, ...], above: dict[str, UrdfJoint], path: Path, problems: list[Problem]) -> str:
    roots = [link for link in links if link not in above]
    if not links:
        problems.append(Problem(str(path), "robot", None, "links and joints", "the robot has no link"))
    elif not roots:
        problems.append(Problem(str(path), "robot", None, "one link that no joint carries", "the joints form a circle"))
    elif len(roots) > 1:
        message = f"there are {len(roots)} trees, with the roots {', '.join(roots)}"
        expected = "one tree; join them with fixed joints, or name the missing joints' links alike"
        problems.append(Problem(str(path), "robot", roots, expected, message))
    elif _has_circle(above):
        problems.append(Problem(str(path), "robot", None, "one tree", "some joints form a circle beside the tree"))
    return roots[0] if roots else ""


def _has_circle(above: dict[str, UrdfJoint]) -> bool:
    for start in above:
        link, seen = start, set()
        while link in above:
            if link in seen:
                return True
            seen.add(link)
            link = above[link].parent
    return False
