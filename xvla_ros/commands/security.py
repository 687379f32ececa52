# SPDX-License-Identifier: Apache-2.0
"""``xvla security``: what the nodes of a robot may do on the network, as a policy of SROS 2.

Everything here is worked out from the profile; ``test/nodes/test_security.py`` holds it against the graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from xml.etree import ElementTree

from xvla_ros.commands.options import Command, Option, Robot
from xvla_ros.robots.interfaces import INTERFACES
from xvla_ros.robots.profile import Profile

POLICY, RECORDER, VIEWER, VIEWERS_CAMERAS = "xvla", "xvla_record", "xvla_view", "xvla_view_cameras"
CONTROL = "xvla_view_control"  # enclave of a viewer with --control
VERSION = "0.2.0"  # of the policies of SROS 2
ALL_PUBLISH = ("/rosout", "/parameter_events")
PARAMETERS = (
    "describe_parameters", "get_parameter_types", "get_parameters", "list_parameters", "set_parameters",
    "set_parameters_atomically", "get_type_description",
)  # fmt: skip
LIFECYCLE = ("change_state", "get_state", "get_available_states", "get_available_transitions", "get_transition_graph")


@dataclass(frozen=True)
class NodeRights:
    """What a node may do, by absolute names; actions without their topics and services.

    Attributes:
        node: its name.
        publish, subscribe: topics.
        reply, request: services that it offers, and that it asks.
        execute, call: actions that it offers, and that it asks for.
        enclave: name of its process; the node's name where it is empty.
    """

    node: str
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    reply: tuple[str, ...] = ()
    request: tuple[str, ...] = ()
    execute: tuple[str, ...] = ()
    call: tuple[str, ...] = ()
    enclave: str = ""


@dataclass(frozen=True, kw_only=True)
class Security(Command):
    """Write the least that the nodes of a robot must be allowed to do, as a policy of SROS 2.

    It is for a real robot: no node may listen to /clock, by which anybody could lead an arm. How to make keys of it is
    told in docs/how-to/network.md.

    examples:
      xvla security policy --robot so101_bimanual
      xvla security policy --robot my_arm.yaml --output my_arm.policy.xml
    """

    what: Annotated[Literal["policy"], Option(positional=True), "kind of file to write"]
    robot: Robot = "so101_bimanual"
    output: Annotated[str, Option(metavar="FILE"), "file to write (default: print to the terminal)"] = ""

    def run(self) -> int:
        """Write or print the policy."""
        from xvla_ros.robots import load_robot

        text = policy_document(rights_of(load_robot(self.robot)))
        if self.output:
            path = Path(self.output)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        else:
            print(text, end="")
        return 0


def rights_of(profile: Profile) -> tuple[NodeRights, ...]:
    """Return what the policy node, the recorder and the viewer's two nodes, without and with --control, need."""
    return _of_policy_node(profile), _of_recorder(profile), *_of_viewer(profile), *_of_viewer(profile, control=True)


def policy_document(rights: Iterable[NodeRights]) -> str:
    """Return a policy of SROS 2, an enclave for each process, as XML."""
    root = ElementTree.Element("policy", version=VERSION)
    root.append(ElementTree.Comment(" made by xvla security policy; do not edit "))
    enclaves = ElementTree.SubElement(root, "enclaves")
    processes: dict[str, ElementTree.Element] = {}
    for each in rights:
        process = each.enclave or each.node
        if process not in processes:
            enclave = ElementTree.SubElement(enclaves, "enclave", path=f"/{process}")
            processes[process] = ElementTree.SubElement(enclave, "profiles")
        node = ElementTree.SubElement(processes[process], "profile", ns="/", node=each.node)
        for kind, right, names in (
            ("action", "call", each.call),
            ("action", "execute", each.execute),
            ("service", "reply", each.reply),
            ("service", "request", each.request),
            ("topic", "publish", each.publish),
            ("topic", "subscribe", each.subscribe),
        ):
            if names:
                allowed = ElementTree.SubElement(node, f"{kind}s", {right: "ALLOW"})
                for name in sorted(names):
                    ElementTree.SubElement(allowed, kind).text = name
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _of_policy_node(profile: Profile) -> NodeRights:
    own = f"/{POLICY}/{profile.name}"
    kinds = {name: INTERFACES[profile.commands.interface_of(name)] for name in profile.commands.groups}
    topics = {name: profile.commands.by_name[name].topic for name in profile.commands.groups}
    is_with_tools = profile.action_spec.is_end_effector
    descriptions = {"/robot_description"} | ({_absolute(profile, "robot_description")} if is_with_tools else set())
    shown = (f"{own}/plan",) if is_with_tools or profile.view.order else ()
    return NodeRights(
        POLICY,
        publish=_unique(
            *ALL_PUBLISH, f"/{POLICY}/transition_event", f"{own}/action_chunk", f"{own}/status", *shown, "/diagnostics",
            *(topics[name] for name, kind in kinds.items() if not kind.is_action),
        ),
        subscribe=_unique(f"{own}/instruction", "/estop", *_cameras(profile), *profile.joints.topics, *descriptions),
        reply=_services(POLICY, *LIFECYCLE, "stop", "clear_stop"),
        execute=(f"{own}/run_policy",),
        call=_unique(*(topics[name] for name, kind in kinds.items() if kind.is_action)),
    )  # fmt: skip


def _of_recorder(profile: Profile) -> NodeRights:
    from xvla_ros.recordings.marks import recorded_topics

    heard = [topic.name for topic in recorded_topics(profile, f"/{POLICY}")]
    return NodeRights(RECORDER, publish=ALL_PUBLISH, subscribe=_unique(*heard), reply=_services(RECORDER))


def _of_viewer(profile: Profile, *, control: bool = False) -> tuple[NodeRights, NodeRights]:
    """Return what showing needs; with ``control`` also the instruction, stop and clear, in an enclave of its own."""
    from xvla_ros.recordings.marks import EPISODE_TOPIC

    own, enclave = f"/{POLICY}/{profile.name}", CONTROL if control else VIEWER
    episodes = (f"/sim/{profile.name}/outcome", EPISODE_TOPIC)
    heard = (f"{own}/action_chunk", f"{own}/status", *episodes, *profile.joints.topics)
    viewer = NodeRights(
        VIEWER,
        publish=(*ALL_PUBLISH, f"{own}/instruction") if control else ALL_PUBLISH,
        subscribe=_unique(*heard),
        reply=_services(VIEWER),
        request=(f"/{POLICY}/clear_stop", f"/{POLICY}/stop") if control else (),
        enclave=enclave,
    )
    seen = _unique(*_cameras(profile))
    return viewer, NodeRights(VIEWERS_CAMERAS, ALL_PUBLISH, seen, _services(VIEWERS_CAMERAS), enclave=enclave)


def _cameras(profile: Profile) -> tuple[str, ...]:
    return tuple(profile.cameras.by_name[slot].topic for slot in profile.cameras.slots)


def _services(node: str, *own: str) -> tuple[str, ...]:
    return tuple(f"/{node}/{name}" for name in (*PARAMETERS, *own))


def _absolute(profile: Profile, name: str) -> str:
    return f"/{profile.namespace.strip('/')}/{name}" if profile.namespace else f"/{name}"


def _unique(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name if name.startswith("/") else f"/{name}" for name in names))
