"""Which joints of a URDF are an arm, which its gripper, and which neither: recognised by the tree and by names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from xvla_ros.robots.problems import Problem, ProfileError
from xvla_ros.robots.urdf import Urdf, UrdfJoint

GRIPPER_NAME = re.compile(r"grip|finger|jaw|claw|knuckle|thumb", re.IGNORECASE)
# Names of the frame at a tool's working point, the likeliest first.
TIP_NAMES = ("tcp", "grasp", "tool", "ee", "eef", "effector", "tip", "frame", "center", "flange")
SIDES = {"left": re.compile(r"(^|[_/])(left|l)([_/]|$)"), "right": re.compile(r"(^|[_/])(right|r)([_/]|$)")}
SHORTEST_ARM = 3  # joints; shorter branches are heads, wheels and camera mounts


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: ``arm``, ``left_arm``, or ``arm_1`` …
        joints: its own moving joints, base first, without the gripper's.
        gripper: the joint that opens and closes its gripper, or None.
        tip_link: the link at its tool's working point, as given or as likely.
        reach: m, at most, from the first joint to tip_link.
    """

    name: str
    joints: tuple[UrdfJoint, ...]
    gripper: UrdfJoint | None
    tip_link: str
    reach: float

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
    """

    arms: tuple[Arm, ...]
    base_link: str
    left_out: dict[str, str] = field(default_factory=dict)


def find_arms(urdf: Urdf, base_link: str | None = None, tip_links: Sequence[str] = ()) -> Arms:
    """Find the arms of a robot.

    Args:
        urdf: the robot.
        base_link: joints above it are left alone; None takes the whole robot.
        tip_links: one for each arm; none finds every branch of at least three joints, or else the longest.

    Raises:
        ProfileError: a link does not exist or does not lie above the other, no joint moves there, or a joint of an arm
            has no limits.
    """
    grippers = _gripper_joints(urdf)
    chains = _asked_for(urdf, grippers, base_link, tip_links) if tip_links else _branches(urdf, grippers, base_link)
    shared = {joint.name for chain in chains for joint in chain if sum(joint in other for other in chains) > 1}
    own = [tuple(joint for joint in chain if joint.name not in shared) for chain in chains]
    _refuse_unfit(urdf, own, tip_links)
    tips = list(tip_links) or [_likely_tip(urdf, chain[-1]) for chain in own]
    names = _arm_names([(chain[0].name, tip) for chain, tip in zip(own, tips, strict=True)])
    arms = [_arm(urdf, name, chain, tip, grippers) for name, chain, tip in zip(names, own, tips, strict=True)]
    if not tip_links:
        arms.sort(key=lambda arm: arm.name)  # left before right, arm_1 before arm_2
    left_out = _left_out(urdf, arms, grippers, shared)
    return Arms(tuple(arms), base_link or _common_base(urdf, own), left_out)


def _gripper_joints(urdf: Urdf) -> set[str]:
    """Return the joints of grippers, the following ones too: named so, followed by others, or a pair of fingers."""
    likely = {
        joint.name
        for joint in urdf.joints.values()
        if joint.moves
        and (GRIPPER_NAME.search(joint.name) or _is_followed(urdf, joint) or _is_one_of_a_pair(urdf, joint))
    }

    def carries_an_arm(name: str) -> bool:
        below = urdf.below(urdf.joints[name])
        return any(other.moves and other.mimics is None and other.name not in likely for other in below)

    return {name for name in likely if not carries_an_arm(name)}


def _is_followed(urdf: Urdf, joint: UrdfJoint) -> bool:
    return any(other.mimics == joint.name for other in urdf.joints.values())


def _is_one_of_a_pair(urdf: Urdf, joint: UrdfJoint) -> bool:
    def ends_there(finger: UrdfJoint) -> bool:
        return finger.kind == "prismatic" and not any(other.moves for other in urdf.below(finger))

    twins = [other for other in urdf.joints.values() if other.parent == joint.parent and ends_there(other)]
    return ends_there(joint) and len(twins) == 2 and any(above.moves for above in urdf.path(joint.parent))


def _arm_joints(urdf: Urdf, link: str, grippers: set[str], base_link: str | None) -> tuple[UrdfJoint, ...]:
    """Return the moving joints from the base (None: the root) to ``link``, without grippers and followers."""
    path = urdf.path(link)
    above = len(urdf.path(base_link)) if base_link is not None else 0
    return tuple(each for each in path[above:] if each.moves and each.mimics is None and each.name not in grippers)


def _asked_for(
    urdf: Urdf, grippers: set[str], base_link: str | None, tip_links: Sequence[str]
) -> list[tuple[UrdfJoint, ...]]:
    if base_link is not None:
        urdf.ensure_link(base_link, "--base-link")
    for link in tip_links:
        urdf.ensure_link(link, "--tip-link")
        if tip_links.count(link) > 1:
            message = f"tip link {link!r} is given {tip_links.count(link)} times"
            raise ProfileError([Problem(urdf.file, "--tip-link", link, "another link for each arm", message)])
        carriers = [urdf.root, *(joint.child for joint in urdf.path(link))]
        if base_link is not None and base_link not in carriers:
            message = f"base link {base_link!r} does not carry tip link {link!r}"
            raise ProfileError([Problem(urdf.file, "--base-link", base_link, "one of " + ", ".join(carriers), message)])
    return [_arm_joints(urdf, link, grippers, base_link) for link in tip_links]


def _branches(urdf: Urdf, grippers: set[str], base_link: str | None) -> list[tuple[UrdfJoint, ...]]:
    """Return the branches of the tree that are long enough for arms, or the longest one."""
    if base_link is not None:
        urdf.ensure_link(base_link, "--base-link")
    links = [link for link in urdf.links if base_link is None or _carries(urdf, base_link, link)]
    chains = list(dict.fromkeys(_arm_joints(urdf, link, grippers, base_link) for link in links))
    ends = [chain for chain in chains if chain and not any(chain == other[: len(chain)] != other for other in chains)]
    while len(ends) > 1:
        lengths = [
            sum(all(joint not in other for other in ends if other != chain) for joint in chain) for chain in ends
        ]
        if min(lengths) >= SHORTEST_ARM:
            break
        del ends[lengths.index(min(lengths))]
    return ends


def _carries(urdf: Urdf, base_link: str, link: str) -> bool:
    return link == base_link or any(joint.parent == base_link for joint in urdf.path(link))


def _refuse_unfit(urdf: Urdf, chains: Sequence[Sequence[UrdfJoint]], tip_links: Sequence[str]) -> None:
    problems = []
    if not chains:
        problems.append(Problem(urdf.file, "robot", None, "revolute or prismatic joints", "no joint moves"))
    for index, chain in enumerate(chains):
        if not chain:
            tip = tip_links[index] if tip_links else urdf.root
            message = f"no joint of an arm leads to {tip!r} alone"
            problems.append(Problem(urdf.file, "--tip-link", tip, "the link at the end of one arm", message))
        problems += [problem for joint in chain for problem in _unfit(urdf, joint)]
    if problems:
        raise ProfileError(problems)


def _unfit(urdf: Urdf, joint: UrdfJoint) -> list[Problem]:
    expected = 'type "revolute" or "prismatic" with <limit lower="…" upper="…" velocity="…">'
    if joint.kind == "continuous":
        message = f"joint {joint.name!r} is continuous, and a policy's joint needs limits"
        expected += "; edit a copy: what its cables allow, or one turn to either side"
        return [Problem(urdf.file, joint.name, joint.kind, expected, message)]
    if joint.kind not in ("revolute", "prismatic"):
        message = f"joint {joint.name!r} is {joint.kind}, which no command here moves"
        return [Problem(urdf.file, joint.name, joint.kind, expected, message)]
    if joint.lower is None or joint.upper is None:
        return [Problem(urdf.file, joint.name, None, expected, f"joint {joint.name!r} has no limits")]
    if not joint.has_range:
        message = f"joint {joint.name!r} has limits {joint.lower:g} … {joint.upper:g}, between which it cannot move"
        return [Problem(urdf.file, joint.name, [joint.lower, joint.upper], "lower below upper", message)]
    return []


def _likely_tip(urdf: Urdf, last: UrdfJoint) -> str:
    links = urdf.rigid_with(last.child)
    for word in TIP_NAMES:
        for link in links:
            if re.search(rf"(^|[_/]){word}\d*([_/]|$)", link, re.IGNORECASE):
                return link
    return last.child


def _arm_names(hints: Sequence[tuple[str, str]]) -> list[str]:
    """Return names for arms by the names of their first joint and tip."""
    if len(hints) == 1:
        return ["arm"]
    sides = [[side for side, word in SIDES.items() if any(word.search(text) for text in hint)] for hint in hints]
    if sorted(sides) == [["left"], ["right"]]:
        return [f"{side}_arm" for (side,) in sides]
    return [f"arm_{index + 1}" for index in range(len(hints))]


def _arm(urdf: Urdf, name: str, chain: tuple[UrdfJoint, ...], tip: str, grippers: set[str]) -> Arm:
    fingers = [joint for joint in urdf.below(chain[-1]) if joint.name in grippers and joint.mimics is None]
    usable = [joint for joint in fingers if joint.kind in ("revolute", "prismatic") and joint.has_range]
    usable.sort(key=lambda joint: not _is_followed(urdf, joint))
    path = urdf.path(tip)
    reach = sum(joint.length + _travel(joint) for joint in path[path.index(chain[0]) + 1 :])
    return Arm(name, chain, usable[0] if usable else None, tip, reach)


def _travel(joint: UrdfJoint) -> float:
    return max(abs(joint.lower or 0.0), abs(joint.upper or 0.0)) if joint.kind == "prismatic" else 0.0


def _common_base(urdf: Urdf, chains: Sequence[Sequence[UrdfJoint]]) -> str:
    if len(chains) == 1:
        return chains[0][0].parent
    paths = [[urdf.root, *(joint.child for joint in urdf.path(chain[0].parent))] for chain in chains]
    return [link for link in paths[0] if all(link in path for path in paths)][-1]


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
        elif joint.name in grippers:
            reasons[joint.name] = "a finger beside the one that is commanded" if joint.has_range else "has no range"
        else:
            reasons[joint.name] = "not of these arms"
    return reasons
