"""The branches of a robot's tree: joints that carry one another, up to where they part."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from xvla_ros.robots.urdf import Urdf, UrdfJoint

Chain = tuple[UrdfJoint, ...]

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
LEG, HEAD = "a leg or a wheel", "a head"
LEGS = {
    "leg", "hip", "knee", "ankle", "thigh", "calf", "shank", "foot", "toe", "haa", "hfe", "kfe", "wheel", "caster",
    "suspension",
}
HEADS = {"head", "neck", "eye", "cervical", "camera", "cam"}
BODIES = {
    "torso", "waist", "trunk", "chest", "spine", "body", "pelvis", "lumbar", "thoracic", "base", "root", "mobile",
    "column", "rail",
}
FINGERS = {"thumb", "index", "middle", "ring", "little", "pinky"}
ARMS = {"arm", "shoulder", "elbow", "wrist", "forearm", "hand"}


@dataclass(frozen=True)
class Branch:
    """Joints one after the other, and what hangs at their end.

    Attributes:
        run: joints, base first; none for the base itself.
        children: the branches that begin at its end.
        has_fingers: whether joints of a gripper hang there too.
    """

    run: Chain
    children: tuple[Branch, ...]
    has_fingers: bool

    @property
    def length(self) -> int:
        """Joints on the longest way to an end."""
        return len(self.run) + max((child.length for child in self.children), default=0)

    def ends(self) -> list[Chain]:
        """Return the way to every end."""
        if not self.children:
            return [self.run]
        return [self.run + end for child in self.children for end in child.ends()]

    @property
    def other(self) -> str:
        """What its joints' names say that it is beside an arm: ``a leg or a wheel``, ``a head``, or nothing."""
        words = words_of(self.run)
        if words_of(joint for end in self.ends() for joint in end) & ARMS:
            return ""
        return LEG if words & LEGS else HEAD if words & HEADS else ""


def words_of(joints: Iterable[UrdfJoint]) -> set[str]:
    """Return the words in the names of joints, in lower case, a side's letter in front left out."""
    words = {word.lower() for joint in joints for word in _WORD.findall(joint.name)}
    return words | {word[1:] for word in words if word[0] in "lr"}


def branches_from(urdf: Urdf, link: str, grippers: set[str]) -> Branch:
    """Return what moves from ``link`` on, without the joints of grippers and those that follow others."""
    carried: dict[str, list[UrdfJoint]] = {}
    for joint in urdf.joints.values():
        carried.setdefault(joint.parent, []).append(joint)

    def place(start: str) -> list[UrdfJoint]:
        links, found = [start], []
        for each in links:
            for joint in carried.get(each, ()):
                if joint.moves and joint.mimics is None:
                    found.append(joint)
                else:
                    links.append(joint.child)
        return found

    def grow(run: Chain, start: str) -> Branch:
        while True:
            found = place(start)
            onward = [joint for joint in found if joint.name not in grippers]
            if len(onward) != 1 or len(found) > 1:
                return Branch(run, tuple(grow((joint,), joint.child) for joint in onward), len(found) > len(onward))
            run, start = (*run, onward[0]), onward[0].child

    return grow((), link)
