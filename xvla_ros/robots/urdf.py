# SPDX-License-Identifier: Apache-2.0
"""The tree of links and joints of a URDF: the one reader of them, for new profiles and for kinematics.

Whatever ``robot_state_publisher`` takes is taken, and a little more: nothing is looked at but links and joints, and
Pinocchio gets these as they were read here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from xvla_ros import limits
from xvla_ros.errors import Problem, ProfileError, did_you_mean
from xvla_ros.robots.family import urdf_of
from xvla_ros.robots.urdf_file import XmlError, find_urdf, holds_xacro, parse, urdf_text

KINDS = ("revolute", "continuous", "prismatic", "fixed", "floating", "planar")
LIMITED = ("revolute", "prismatic")
LEAST_AXIS = 1e-6  # length; a shorter one has no direction


@dataclass(frozen=True)
class UrdfJoint:
    """One joint.

    Attributes:
        name, kind, parent, child: as written; parent and child are links.
        mimics: the joint it follows, or None; it may be one that does not exist.
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
        text: a URDF of these links and joints and nothing else, complete where the file is not, as Pinocchio asks.
    """

    file: str
    root: str
    links: tuple[str, ...]
    joints: dict[str, UrdfJoint]
    text: str = field(repr=False)
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

    def body(self, link: str) -> str:
        """Return the name of a link in ``text``: another than its own where a joint has that, as Pinocchio asks."""
        return _body(link, self.joints)

    def ensure_link(self, link: str, role: str) -> None:
        """Raise ProfileError when there is no such link; ``role`` says what it was to be."""
        if link not in self.links:
            message = f"{role} {link!r} is not a link of the robot{did_you_mean(link, self.links)}"
            raise ProfileError([Problem(self.file, role, link, "one of " + ", ".join(self.links), message)])


def read_urdf(name: str | Path) -> Urdf:
    """Read a URDF: the file ``name``, or else the shipped one of that name, or that of an arm of the family.

    Raises:
        ProfileError: naming everything that is wrong with the file.
    """
    if not Path(name).is_file() and (drawn := urdf_of(str(name))) is not None:
        return parse_urdf(drawn, str(name))
    path = find_urdf(name)
    return parse_urdf(urdf_text(path), str(path))


def parse_urdf(text: str, origin: str) -> Urdf:
    """Read the text of a URDF; ``origin`` is for messages.

    Raises:
        ProfileError: naming everything that is wrong with it.
    """

    def named(cause: str) -> ProfileError:
        return ProfileError([Problem(origin, "", None, "a URDF", f"cannot be read: {cause}")])

    with limits.edge(ProfileError, named):
        return _parsed(text, origin)


def _parsed(text: str, origin: str) -> Urdf:
    problems: list[Problem] = []
    element = _robot(text, origin)
    for tag in ("link", "joint"):
        if (count := len(element.findall(tag))) > limits.LINKS:
            raise ProfileError([Problem(origin, tag, count, f"at most {limits.LINKS}", f"has too many {tag}s")])
    links = _names(element, "link", origin, problems)
    joints = _joints(element, origin, problems)
    above = _parents(joints, links, origin, problems)
    root = _root(links, above, origin, problems)
    if problems:
        raise ProfileError(problems)
    return Urdf(origin, root, links, joints, _bare(element, joints), above)


def _robot(text: str, origin: str) -> ElementTree.Element:
    try:
        document = parse(text)
    except XmlError as error:
        raise ProfileError([Problem(origin, "", None, "a URDF", f"is not valid XML: {error}")]) from error
    element = document.find("robot")
    if element is None:
        found = ", ".join(f"<{each.tag}>" for each in document) or "no element"
        message = f"the outermost element is {found}"
        raise ProfileError([Problem(origin, "", found, "<robot>", message)])
    if holds_xacro(text):
        expected = "a URDF; expand it first: xacro FILE.xacro > FILE.urdf"
        raise ProfileError([Problem(origin, "", "xacro", expected, "contains xacro, not plain URDF")])
    return element


def _body(link: str, joints: dict[str, UrdfJoint]) -> str:
    while link in joints:
        link += " (link)"
    return link


def _bare(element: ElementTree.Element, joints: dict[str, UrdfJoint]) -> str:
    """Return a URDF of links and joints alone, each limit complete: urdfdom refuses one without effort."""
    about = {key: value for key in ("name", "version") if (value := element.get(key))}
    robot = ElementTree.Element("robot", {"name": "robot", **about})
    for link in element.findall("link"):
        ElementTree.SubElement(robot, "link", name=_body(link.get("name", ""), joints))
    for each in element.findall("joint"):
        joint = joints[each.get("name", "")]
        bare = ElementTree.SubElement(robot, "joint", name=joint.name, type=joint.kind)
        ElementTree.SubElement(bare, "parent", link=_body(joint.parent, joints))
        ElementTree.SubElement(bare, "child", link=_body(joint.child, joints))
        kept = ("origin", "axis") if joint.moves else ("origin",)
        bare.extend(found for tag in kept if (found := each.find(tag)) is not None)
        if joint.kind in LIMITED or (joint.moves and each.find("limit") is not None):
            written = each.find("limit")
            limit = {"lower": "0", "upper": "0", "velocity": "0", "effort": "0"}
            limit |= {key: written.get(key, value) for key, value in limit.items()} if written is not None else {}
            ElementTree.SubElement(bare, "limit", limit)
    return ElementTree.tostring(robot, encoding="unicode")


def _names(element: ElementTree.Element, tag: str, origin: str, problems: list[Problem]) -> tuple[str, ...]:
    names = [each.get("name", "") for each in element.findall(tag)]
    for name in dict.fromkeys(names):
        if not name:
            message = f"a <{tag}> has no name"
            problems.append(Problem(origin, tag, None, f'<{tag} name="…">', message))
        elif names.count(name) > 1:
            message = f"{tag} {name!r} occurs {names.count(name)} times"
            problems.append(Problem(origin, name, name, f"each {tag} only once", message))
    return tuple(dict.fromkeys(names))


def _joints(element: ElementTree.Element, origin: str, problems: list[Problem]) -> dict[str, UrdfJoint]:
    # Elements of transmissions and of ros2_control are called joint too, but do not stand directly in the robot.
    _names(element, "joint", origin, problems)
    reader = _JointReader(origin, problems)
    return {each.get("name", ""): reader.read(each) for each in element.findall("joint")}


class _JointReader:
    def __init__(self, origin: str, problems: list[Problem]) -> None:
        self._origin, self._problems, self._joint = origin, problems, ""

    def read(self, element: ElementTree.Element) -> UrdfJoint:
        self._joint = element.get("name", "")
        kind = element.get("type", "")
        if kind not in KINDS:
            self._add(kind or None, "one of " + ", ".join(KINDS), f"joint {self._joint!r} has type {kind!r}")
        mimic = element.find("mimic")
        lower, upper = self._range(element)
        origin = self._numbers(element, "origin", "xyz", 3) or (0.0,)
        self._numbers(element, "origin", "rpy", 3)
        if kind not in ("fixed", "floating"):
            self._axis(element)
        return UrdfJoint(
            name=self._joint,
            kind=kind,
            parent=self._link(element, "parent"),
            child=self._link(element, "child"),
            mimics=mimic.get("joint") if mimic is not None else None,
            lower=lower,
            upper=upper,
            velocity=self._number(element, "limit", "velocity") or 0.0,
            length=math.hypot(*origin),
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

    def _axis(self, element: ElementTree.Element) -> None:
        axis, written = self._numbers(element, "axis", "xyz", 3), element.find("axis")
        if written is not None and (written.get("xyz") is None or (axis and math.hypot(*axis) < LEAST_AXIS)):
            expected = 'a direction such as xyz="0 0 1", or no <axis>, which means 1 0 0'
            self._add(written.get("xyz"), expected, f"joint {self._joint!r}: <axis> has no direction")

    def _link(self, element: ElementTree.Element, tag: str) -> str:
        child = element.find(tag)
        link = child.get("link", "") if child is not None else ""
        if not link:
            self._add(None, f'<{tag} link="…">', f"joint {self._joint!r} has no {tag} link")
        return link

    def _number(self, element: ElementTree.Element, tag: str, key: str) -> float | None:
        numbers = self._numbers(element, tag, key, 1)
        return numbers[0] if numbers else None

    def _numbers(self, element: ElementTree.Element, tag: str, key: str, count: int) -> tuple[float, ...]:
        child = element.find(tag)
        text = child.get(key) if child is not None else None
        if text is None:
            return ()
        try:
            numbers = tuple(float(word) for word in text.split())
        except ValueError:
            numbers = ()
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            expected = f"{count} finite numbers" if count > 1 else "a finite number"
            self._add(text, expected, f"joint {self._joint!r}: {key} of <{tag}> is {text!r}")
            return ()
        return numbers

    def _add(self, value: object, expected: str, message: str) -> None:
        self._problems.append(Problem(self._origin, self._joint, value, expected, message))


def _parents(
    joints: dict[str, UrdfJoint], links: tuple[str, ...], origin: str, problems: list[Problem]
) -> dict[str, UrdfJoint]:
    above: dict[str, UrdfJoint] = {}
    for joint in joints.values():
        for role in ("parent", "child"):
            link = getattr(joint, role)
            if link and link not in links:
                message = f"{role} link {link!r} of joint {joint.name!r} does not exist{did_you_mean(link, links)}"
                problems.append(Problem(origin, joint.name, link, "a link of the file", message))
        if joint.child in above:
            message = f"link {joint.child!r} has two parent joints, {above[joint.child].name!r} and {joint.name!r}"
            problems.append(Problem(origin, joint.name, joint.child, "a tree: one parent joint for each link", message))
        above.setdefault(joint.child, joint)
    return above


def _root(links: tuple[str, ...], above: dict[str, UrdfJoint], origin: str, problems: list[Problem]) -> str:
    roots = [link for link in links if link not in above]
    if not links:
        problems.append(Problem(origin, "robot", None, "links and joints", "the robot has no link"))
    elif not roots:
        problems.append(Problem(origin, "robot", None, "one link without a parent joint", "the joints form a circle"))
    elif len(roots) > 1:
        message = f"there are {len(roots)} trees, with the roots {', '.join(roots)}"
        expected = "one tree; connect them with fixed joints, or correct the link names of the joints"
        problems.append(Problem(origin, "robot", roots, expected, message))
    elif _has_circle(above):
        problems.append(Problem(origin, "robot", None, "one tree", "some joints form a circle apart from the tree"))
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
