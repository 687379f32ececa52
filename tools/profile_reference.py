# SPDX-License-Identifier: Apache-2.0
"""The reference page of a profile's settings, written from the schema: docs/reference/profile.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.parameters import parameter_type
from xvla_ros.robots.profile.validation import allowed_text, choices, is_changeable, settings, type_text

_HEAD = """# Settings of a robot's profile

Written from the schema by `python tools/profile_reference.py docs/reference/profile.md`; change
`xvla_ros/robots/profile/schema.py`, not this page.

A profile is a ROS 2 parameters file. Settings stand under the robot's name, and every one is a parameter of the node
`/xvla`: `waypoint_dt` of the robot `so101_bimanual` is `so101_bimanual.policy.waypoint_dt`. `<camera>`, `<joint>`,
`<tool>` and `<group>` are names you choose.

```yaml
/**:
  ros__parameters:
    so101_bimanual:
      schema_version: 1
      policy: {action_mode: so101_bimanual, domain_id: 19, …}
```

One file may hold several robots, and several files merge. Equal arms share a profile:
`arm_a: {like: so101, namespace: /a}` has every setting of the shipped `so101`, and its topics begin with `/a`.
`xvla check --robot FILE` lists everything that is wrong with one, each with file, key, value and what is allowed.
Settings marked *settable* can be set while the node is not active and count from its next activation; the others are
fixed when it starts."""

_TAIL = """
## What must agree

- `cameras.slots`, `joints.policy_order`, `commands.groups` and `tools.order` list exactly the declared names, each
  once.
- The camera of the first slot is required. No two cameras, and no two command groups, share a topic.
- In joint modes `policy_order` has as many joints as the action mode has channels, and each joint is in exactly one
  command group. A gripper channel that is a probability needs `scale` and `offset` that take `lower` … `upper` to
  0 … 1.
- The gripper interfaces command a group of one joint; a group that commands a tool has no interface of its own, and
  needs the interface `pose`. The `frame` of a tool so commanded is no link of its URDF but `base_link`.
- Tool-pose modes need `rot6d`, and one tool for each arm, whose gripper is a joint of `policy_order`.
- In tool-pose modes each joint belongs to one arm or gripper. Those of tools are in command groups; with interface
  `pose` the tools are.
- Joint modes have no `rot6d` and no tools: a workspace box would limit nothing there.
- `lower` is below `upper`, and `open_position` and `closed_position` lie between them; `scale` is not 0;
  `workspace_min` is below `workspace_max`. `home` is within the limits of its joints, `policy_rpy` in -2π … 2π.
- `lead` is below `lookahead`, at least two command periods lie between them, and `lookahead` ends within a chunk.
- Interfaces that carry one setpoint at a time need a `command_rate` of at least one command for each waypoint.
"""


def render() -> str:
    """Return the page as Markdown."""
    sections: dict[str, list[str]] = {}
    for path, field in settings(Profile):
        head, _, rest = path.partition(".")
        sections.setdefault(head if rest else "", []).append(_row(path, field))
    parts = [_HEAD]
    for name, rows in sections.items():
        parts.append(f"\n## {name or 'The robot'}\n")
        parts.append("| setting | type | allowed | default | meaning |\n|---|---|---|---|---|")
        parts.extend(rows)
    return "\n".join(parts) + "\n" + _TAIL


def _row(path: str, field: FieldInfo) -> str:
    allowed = ", ".join(_code(value) for value in choices(field)) or allowed_text(field).removeprefix(
        type_text(field)
    ).lstrip(" ,")
    default = "required" if field.is_required() else _code(field.get_default(call_default_factory=True))
    live = " *settable*" if is_changeable(field) else ""
    return f"| `{path}` | {parameter_type(field)} | {allowed} | {default} | {field.description}{live} |"


def _code(value: Any) -> str:
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)}`"


def main(target: str) -> None:
    """Write the page to ``target``."""
    Path(target).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
