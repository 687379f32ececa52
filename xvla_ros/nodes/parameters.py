# SPDX-License-Identifier: Apache-2.0
"""Profiles as node parameters: shipped values, overridden by files and the command line, declared with descriptors.

Nodes without descriptors read what they were given by ``given_parameters``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import rclpy
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from xvla_ros.errors import ProfileError
from xvla_ros.robots.profile import Profile, load_profile
from xvla_ros.robots.profile.parameters import ParameterSpec, parameters, profile_of_parameters

_TYPES = {
    "bool": Parameter.Type.BOOL,
    "integer": Parameter.Type.INTEGER,
    "double": Parameter.Type.DOUBLE,
    "string": Parameter.Type.STRING,
    "string_array": Parameter.Type.STRING_ARRAY,
    "integer_array": Parameter.Type.INTEGER_ARRAY,
    "double_array": Parameter.Type.DOUBLE_ARRAY,
}


def given_parameters(name: str) -> dict[str, Any]:
    """Return what parameter files and the command line give the node ``name``, before it is made; needs rclpy.init."""
    reader = rclpy.create_node(name, automatically_declare_parameters_from_overrides=True)
    values = _values_under(reader, "")
    reader.destroy_node()
    return values


def _values_under(node: Node, prefix: str) -> dict[str, Any]:
    """Values of the declared parameters under ``prefix``, by the rest of their names."""
    found: Mapping[str, Any] = node.get_parameters_by_prefix(prefix)  # Parameter, not the values that rclpy says
    return {name: parameter.value for name, parameter in found.items()}


def read_profile(node: Node, robot: str) -> Profile:
    """Return a robot's profile: the shipped one if there is one, with the node's parameters over it, all declared.

    Raises:
        ProfileError: there is neither a shipped profile nor a parameter of that robot, or naming all that is wrong.
    """
    values = _values(node, robot)
    if values is None:
        profile = load_profile(robot)[robot]
    else:
        profile = profile_of_parameters(robot, values, partial(_values, node))
    for spec in parameters(profile):
        _declare(node, spec)
    return profile


def _values(node: Node, robot: str) -> dict[str, Any] | None:
    """Return everything that the node knows of a robot, None where it is given nothing."""
    given = _given(node, robot)
    return {**_shipped(robot, given), **given} if given else None


def _given(node: Node, robot: str) -> dict[str, Any]:
    """Return what files, the command line and later settings give for a robot, by full name."""
    # rclpy has no public way to list overrides that are not declared, and a profile's keys are not known before
    overrides = {name: given.value for name, given in node._parameter_overrides.items() if name.startswith(f"{robot}.")}
    declared = {f"{robot}.{name}": value for name, value in _values_under(node, robot).items()}
    return {name: value for name, value in {**overrides, **declared}.items() if value is not None}


def _shipped(robot: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the shipped values to fill in; none where a whole profile is given, or one with ``like``."""
    if f"{robot}.schema_version" in given or given.get(f"{robot}.like"):
        return {}
    try:
        return {spec.name: spec.value for spec in parameters(load_profile(robot)[robot])}
    except ProfileError:
        return {}


def _declare(node: Node, spec: ParameterSpec) -> None:
    if node.has_parameter(spec.name):
        return
    kind = _TYPES[spec.type]
    descriptor = ParameterDescriptor(
        name=spec.name,
        type=kind.value,
        description=spec.description,
        additional_constraints=spec.constraints,
        read_only=spec.read_only,
    )
    if spec.floating_range is not None:
        low, high = spec.floating_range
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    if spec.integer_range is not None:
        lowest, highest = spec.integer_range
        descriptor.integer_range = [IntegerRange(from_value=lowest, to_value=highest)]
    # an empty list has no type of its own; the overrides are already in the value
    value = kind if spec.value == [] else spec.value
    node.declare_parameter(spec.name, value, descriptor, ignore_override=True)
