# SPDX-License-Identifier: Apache-2.0
"""Which joints of a URDF are an arm, which its gripper, and which neither: recognised by the tree and by names.

Where tree and names leave it open, or say that nothing is an arm, the question is asked: which ``--tip-link``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from xvla_ros.errors import Problem, ProfileError
from xvla_ros.robots.profile.schema import WIDEST
from xvla_ros.robots.urdf import Urdf, UrdfJoint

Chain = tuple[UrdfJoint, ...]

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
LEG, HEAD = "a leg or a wheel", "a head"
LEGS = {
    "leg",
    "hip",
    "knee",
    "ankle",
    "thigh",
    "calf",
    "shank",
    "foot",
    "toe",
    "haa",
    "hfe",
    "kfe",
    "wheel",
    "caster",
    "suspension",
}
HEADS = {"head", "neck", "eye", "cervical", "camera", "cam"}
BODIES = {
    "torso",
    "waist",
    "trunk",
    "chest",
    "spine",
    "body",
    "pelvis",
    "lumbar",
    "thoracic",
    "base",
    "root",
    "mobile",
    "column",
    "rail",
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


GRIPPER_NAME = re.compile(r"grip|finger|jaw|claw|knuckle|thumb|pinky", re.IGNORECASE)
# Names of the frame at a tool's working point, the likeliest first.
TIP_NAMES = ("tcp", "grasp", "tool", "ee", "eef", "effector", "tip", "frame", "center", "flange")
_SIDE = r"{word}|(?<![^\W_])(?i:{letter})(?=_|\b|arm|hand)|(?<![^\W_]){letter}(?=[A-Z][a-z]|ARM|HAND|SHOULDER)"
SIDES = {
    "left": re.compile(_SIDE.format(word="(?i:left)", letter="L")),
    "right": re.compile(_SIDE.format(word="(?i:(?<![bfp])right)", letter="R")),
}
SHORTEST_ARM = 3  # joints; shorter branches are heads, wheels and camera mounts
HAND = "part of a hand"
GUESSES = (LEG, HEAD, HAND)  # reasons for leaving joints out that may be wrong
MOST_FINGERS = 3  # that move on their own; more are a hand, which one channel cannot move
MOST_ARMS = 2  # more branches than this raise a question


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: ``arm``, ``left_arm``, or ``arm_1`` …
        joints: its own moving joints, base first, without the gripper's.
        gripper: the joint that opens and closes its gripper, or None.
        tip_link: the link at its tool's working point, as given or as likely.
        reach: m, at most, from the first joint to tip_link.
        gripper_doubts: what was assumed of the gripper.
    """

    name: str
    joints: tuple[UrdfJoint, ...]
    gripper: UrdfJoint | None
    tip_link: str
    reach: float
    gripper_doubts: tuple[str, ...] = ()

    @property
    def gripper_name(self) -> str:
        """Name of the gripper beside the arm's: ``gripper``, ``left_gripper``."""
        return self.name.replace("arm", "gripper")


@dataclass(frozen=True)
class Arms:
    """The arms of a robot.

    Attributes:
        arms: left before right, or in the order asked for.
        base_link: as given, or the last link that carries them all.
        left_out: reason for every other moving joint, by name.
        doubts: what was assumed where nobody was asked.
    """

    arms: tuple[Arm, ...]
    base_link: str
    left_out: dict[str, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


def find_arms(urdf: Urdf, base_link: str | None = None, tip_links: Sequence[str] = ()) -> Arms:
    """Find the arms of a robot.

    Args:
        urdf: the robot.
        base_link: joints above it are left alone; None takes the whole robot.
        tip_links: one for each arm; none finds them, see ``_Search``.

    Raises:
        ProfileError: a link does not exist or does not lie above the other, no joint moves there, a joint of an arm
            has no limits, or it is not clear what the arms are; the message has the tip links to choose from.
    """
    grippers = _gripper_joints(urdf)
    search = _Search(urdf, grippers, base_link)
    chains = _asked_for(urdf, grippers, base_link, tip_links) if tip_links else search.arms()
    shared = {joint.name for chain in chains for joint in chain if sum(joint in other for other in chains) > 1}
    own = [tuple(joint for joint in chain if joint.name not in shared) for chain in chains]
    _refuse_unfit(urdf, own, tip_links)
    tips = list(tip_links) or [_likely_tip(urdf, chain[-1]) for chain in own]
    names = _arm_names([_side((*chain, *urdf.path(tip)[-1:]), tip) for chain, tip in zip(own, tips, strict=True)])
    arms = [_arm(urdf, name, chain, tip, grippers) for name, chain, tip in zip(names, own, tips, strict=True)]
    if not tip_links:
        arms.sort(key=lambda arm: arm.name)  # left before right, arm_1 before arm_2
    left_out = _left_out(urdf, arms, grippers, shared) | search.left_out
    doubts = [] if tip_links else [*search.doubts, *_doubts(arms, left_out)]
    return Arms(tuple(arms), base_link or _common_base(urdf, own), left_out, tuple(doubts))


def _gripper_joints(urdf: Urdf) -> set[str]:
    """Return the joints of grippers, the following ones too: named so, followed by others, or a pair of fingers."""
    likely = {
        joint.name
        for joint in urdf.joints.values()
        if joint.moves and (_is_finger(joint) or _is_followed(urdf, joint) or _is_one_of_a_pair(urdf, joint))
    }

    def carries_an_arm(name: str) -> bool:
        below = urdf.below(urdf.joints[name])
        return any(other.moves and other.mimics is None and other.name not in likely for other in below)

    return {name for name in likely if not carries_an_arm(name)}


def _is_finger(joint: UrdfJoint) -> bool:
    words = words_of([joint])
    return bool(GRIPPER_NAME.search(joint.name)) or bool(words & FINGERS and not words & (BODIES | HEADS))


def _is_followed(urdf: Urdf, joint: UrdfJoint) -> bool:
    return any(other.mimics == joint.name for other in urdf.joints.values())


def _is_one_of_a_pair(urdf: Urdf, joint: UrdfJoint) -> bool:
    def ends_there(finger: UrdfJoint) -> bool:
        return finger.kind == "prismatic" and not any(other.moves for other in urdf.below(finger))

    twins = [other for other in urdf.joints.values() if other.parent == joint.parent and ends_there(other)]
    return ends_there(joint) and len(twins) == 2 and any(above.moves for above in urdf.path(joint.parent))


def _arm_joints(urdf: Urdf, link: str, grippers: set[str], base_link: str | None) -> Chain:
    """Return the moving joints from the base (None: the root) to ``link``, without those that follow others.

    Gripper joints are left out too, unless nothing else moves there.
    """
    path = urdf.path(link)
    above = len(urdf.path(base_link)) if base_link is not None else 0
    moving = tuple(each for each in path[above:] if each.moves and each.mimics is None)
    return tuple(each for each in moving if each.name not in grippers) or moving


def _asked_for(urdf: Urdf, grippers: set[str], base_link: str | None, tip_links: Sequence[str]) -> list[Chain]:
    if base_link is not None:
        urdf.ensure_link(base_link, "--base-link")
    for link in tip_links:
        urdf.ensure_link(link, "--tip-link")
        if tip_links.count(link) > 1:
            message = f"tip link {link!r} is given {tip_links.count(link)} times"
            raise ProfileError([Problem(urdf.file, "--tip-link", link, "a different link for each arm", message)])
        carriers = [urdf.root, *(joint.child for joint in urdf.path(link))]
        if base_link is not None and base_link not in carriers:
            message = f"base link {base_link!r} does not carry tip link {link!r}"
            raise ProfileError([Problem(urdf.file, "--base-link", base_link, "one of " + ", ".join(carriers), message)])
    return [_arm_joints(urdf, link, grippers, base_link) for link in tip_links]


class _Search:
    """Looks for the arms of a robot: the long branches of its tree.

    A branch goes on where it parts with less than an arm beside it, such as a camera's servo. Where several of an arm's
    length begin, they are arms if what carries them is short, named like a body, or has a left and a right at its end.
    Several at the end of something of an arm's length may be the fingers of a hand: that is asked, unless they are
    short. Legs and heads are known by their names.
    """

    def __init__(self, urdf: Urdf, grippers: set[str], base_link: str | None) -> None:
        if base_link is not None:
            urdf.ensure_link(base_link, "--base-link")
        self._urdf = urdf
        self._base = branches_from(urdf, base_link or urdf.root, grippers)
        self._all = branches_from(urdf, base_link or urdf.root, set())
        self.left_out: dict[str, str] = {}
        self.doubts: list[str] = []

    def arms(self) -> list[Chain]:
        """Return the joints of each arm, those that several share among them."""
        found = self._beyond(self._base, self._base.run, 0)
        if not found or len(found[0]) < SHORTEST_ARM:
            if self.left_out:
                named = ", ".join(dict.fromkeys(self.left_out.values()))
                raise self._question(f"no arm was found, only {named}, judging by the names", self._all.ends())
            if self._base.has_fingers:
                raise self._question("no arm was found, only a gripper or a hand", self._all.ends())
        if len(found) > MOST_ARMS:
            raise self._question(f"{len(found)} branches could be arms", found)
        return found

    def _beyond(self, place: Branch, above: Chain, shared: int) -> list[Chain]:
        """Return the arms that ``above`` goes on to at the end of a branch; the first ``shared`` are shared."""
        children = [child for child in place.children if not self._is_named_otherwise(child)]
        arms = [child for child in children if child.length >= SHORTEST_ARM]
        ends_an_arm = len(above) - shared >= SHORTEST_ARM
        ways = [above, *(above + end for child in children for end in child.ends())]
        if len(arms) > 1:
            if ends_an_arm and not _is_body(above, arms):
                raise self._question(f"{len(arms)} branches begin at the end of {_span(above)}: arms, or a hand", ways)
            return [chain for arm in arms for chain in self._beyond(arm, above + arm.run, len(above))]
        if ends_an_arm and (len(children) > 2 or (children and place.has_fingers)):
            if arms:
                raise self._question(f"{len(children)} branches begin at the end of {_span(above)}: a hand", ways)
            return [self._without_hand(above, children)]
        longest = [child for child in children if child.length == max(each.length for each in children)]
        if len(longest) > 1:
            if ends_an_arm:
                return [self._without_hand(above, children)]
            raise self._question(f"{len(longest)} branches could be the arm, and none is longer than the others", ways)
        if longest:
            if ends_an_arm and len(children) > 1:
                others = ", ".join(child.run[0].name for child in children if child is not longest[0])
                self.doubts.append(
                    f"whether the arm continues with {longest[0].run[0].name}, because {others} also begins there"
                )
            return self._beyond(longest[0], above + longest[0].run, shared)
        return [above] if above else []

    def _is_named_otherwise(self, child: Branch) -> bool:
        if child.other:
            self._leave_out([child], child.other)
        return bool(child.other)

    def _without_hand(self, above: Chain, fingers: Iterable[Branch]) -> Chain:
        self._leave_out(fingers, HAND)
        return above

    def _leave_out(self, branches: Iterable[Branch], reason: str) -> None:
        self.left_out |= {joint.name: reason for each in branches for end in each.ends() for joint in end}

    def _question(self, message: str, ways: Iterable[Chain]) -> ProfileError:
        options = [f"{_likely_tip(self._urdf, way[-1])} ({_span(way)})" for way in dict.fromkeys(ways) if way]
        expected = "--tip-link for each arm, one of " + ", ".join(options)
        return ProfileError([Problem(self._urdf.file, "--tip-link", None, expected, message)])


def _is_body(above: Chain, arms: Sequence[Branch]) -> bool:
    if words_of(above) & BODIES:
        return True
    sides = sorted(_side([joint for end in arm.ends() for joint in end]) for arm in arms)
    return sides == ["left", "right"] and not _side(above)


def _span(chain: Chain) -> str:
    names = f"{chain[0].name} … {chain[-1].name}" if len(chain) > 1 else chain[0].name
    return f"{len(chain)} joint{'' if len(chain) == 1 else 's'}, {names}"


def _refuse_unfit(urdf: Urdf, chains: Sequence[Sequence[UrdfJoint]], tip_links: Sequence[str]) -> None:
    problems = []
    if not chains:
        problems.append(Problem(urdf.file, "robot", None, "revolute or prismatic joints", "no joint moves"))
    for index, chain in enumerate(chains):
        if not chain:
            tip = tip_links[index] if tip_links else urdf.root
            message = f"no joint of an arm leads only to {tip!r}"
            problems.append(Problem(urdf.file, "--tip-link", tip, "the link at the end of one arm", message))
        problems += [problem for joint in chain for problem in _unfit(urdf, joint)]
    if problems:
        raise ProfileError(problems)


def _unfit(urdf: Urdf, joint: UrdfJoint) -> list[Problem]:
    expected = 'type "revolute" or "prismatic" with <limit lower="…" upper="…" velocity="…">'
    if joint.kind == "continuous":
        message = f"joint {joint.name!r} is continuous, but a joint of a policy needs limits"
        expected += "; set in a copy what its cables allow, or one turn to each side"
        return [Problem(urdf.file, joint.name, joint.kind, expected, message)]
    if joint.kind not in ("revolute", "prismatic"):
        message = f"joint {joint.name!r} is {joint.kind}, which no command interface can move"
        return [Problem(urdf.file, joint.name, joint.kind, expected, message)]
    if joint.lower is None or joint.upper is None:
        return [Problem(urdf.file, joint.name, None, expected, f"joint {joint.name!r} has no limits")]
    if not joint.has_range:
        message = f"joint {joint.name!r} has limits {joint.lower:g} … {joint.upper:g}, which leave no range of motion"
        return [Problem(urdf.file, joint.name, [joint.lower, joint.upper], "lower below upper", message)]
    if max(-joint.lower, joint.upper) > WIDEST:
        unit, guess = ("rad", "degrees") if joint.kind == "revolute" else ("m", "millimetres")
        message = f"joint {joint.name!r} has limits {joint.lower:g} … {joint.upper:g} {unit}, wider than profiles allow"
        real = f"the real limits, at most {WIDEST:g} {unit} from zero (are these {guess}?); {expected}"
        return [Problem(urdf.file, joint.name, [joint.lower, joint.upper], real, message)]
    return []


def _likely_tip(urdf: Urdf, last: UrdfJoint) -> str:
    links = urdf.rigid_with(last.child)
    for word in TIP_NAMES:
        for link in links:
            if re.search(rf"(^|[_/]){word}\d*([_/]|$)", link, re.IGNORECASE):
                return link
    return last.child


def _side(joints: Iterable[UrdfJoint], tip: str = "") -> str:
    """Return the side that most names of the joints and the tip point to: ``left``, ``right``, or nothing."""
    names = [*(joint.name for joint in joints), tip]
    votes = {side: sum(bool(word.search(name)) for name in names) for side, word in SIDES.items()}
    if votes["left"] == votes["right"]:
        return ""
    return max(votes, key=lambda side: votes[side])


def _arm_names(sides: Sequence[str]) -> list[str]:
    if len(sides) == 1:
        return ["arm"]
    if sorted(sides) == ["left", "right"]:
        return [f"{side}_arm" for side in sides]
    return [f"arm_{index + 1}" for index in range(len(sides))]


def _arm(urdf: Urdf, name: str, chain: Chain, tip: str, grippers: set[str]) -> Arm:
    below = list(urdf.below(chain[-1]))
    fingers = [joint for joint in below if joint.name in grippers and joint.mimics is None]
    usable = [joint for joint in fingers if joint.kind in ("revolute", "prismatic") and joint.has_range]
    usable.sort(key=lambda joint: (not _is_followed(urdf, joint), any(other.moves for other in urdf.below(joint))))
    path = urdf.path(tip)
    reach = sum(joint.length + _travel(joint) for joint in path[path.index(chain[0]) + 1 :])
    if len(usable) > MOST_FINGERS:
        return Arm(name, chain, None, tip, reach)
    beside = ", ".join(joint.name for joint in usable[1:])
    doubts = (f"whether this joint opens the gripper; {beside} next to it is not commanded",) if beside else ()
    return Arm(name, chain, usable[0] if usable else None, tip, reach, doubts)


def _travel(joint: UrdfJoint) -> float:
    return max(abs(joint.lower or 0.0), abs(joint.upper or 0.0)) if joint.kind == "prismatic" else 0.0


def _common_base(urdf: Urdf, chains: Sequence[Sequence[UrdfJoint]]) -> str:
    if len(chains) == 1:
        return chains[0][0].parent
    paths = [[urdf.root, *(joint.child for joint in urdf.path(chain[0].parent))] for chain in chains]
    return [link for link in paths[0] if all(link in path for path in paths)][-1]


def _doubts(arms: Sequence[Arm], left_out: Mapping[str, str]) -> list[str]:
    """Return what was assumed of arms that were found."""
    found = []
    counts = Counter(left_out.values())
    if told := [f"{counts[reason]} for {reason}" for reason in GUESSES if counts[reason]]:
        found.append(
            f"whether these are the arms: joints were chosen, {', '.join(told)}, see above; choose others "
            "with --tip-link"
        )
    if len(arms) > 1 and arms[0].name == "arm_1":
        found.append("the order of the arms: no name says left or right")
    for arm in arms:
        body = [joint.name for joint in arm.joints if words_of([joint]) & BODIES]
        if body and len(arm.joints) - len(body) >= SHORTEST_ARM:
            found.append(f"whether {', '.join(body)} is part of the {arm.name}; --base-link lets it begin further out")
    return found


def _left_out(urdf: Urdf, arms: Sequence[Arm], grippers: set[str], shared: set[str]) -> dict[str, str]:
    used = {joint.name for arm in arms for joint in (*arm.joints, arm.gripper) if joint is not None}
    reasons = {}
    for joint in urdf.joints.values():
        if not joint.moves or joint.name in used:
            continue
        if joint.mimics is not None:
            reasons[joint.name] = f"follows {joint.mimics}"
        elif joint.name in shared:
            reasons[joint.name] = "carries more than one arm"
        elif joint.name in grippers and not joint.has_range:
            reasons[joint.name] = "has no range"
        elif joint.name in grippers:
            carriers = urdf.path(joint.parent)
            commanded = any(arm.joints[-1] in carriers and arm.gripper is not None for arm in arms)
            reasons[joint.name] = "a finger next to the commanded one" if commanded else HAND
        else:
            reasons[joint.name] = "not part of these arms"
    return reasons
