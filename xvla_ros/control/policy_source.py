# SPDX-License-Identifier: Apache-2.0
"""Which policy a node runs: a checkpoint by name, or the one that comes with the package."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xvla_ros.errors import CheckpointError, KinematicsError, Problem, ProfileError, SetupError
from xvla_ros.model.action_specs import ACTION_SPECS, ActionSpec
from xvla_ros.model.checkpoint.record import RECORD_FILE, RobotRecord, read_record
from xvla_ros.model.imports import kept_for_good
from xvla_ros.resources import policy_dir
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.joints import JointLimits, to_policy
from xvla_ros.robots.kinematics import RobotDescription
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Joint
from xvla_ros.robots.tool_pose import CHANNELS, GRIPPER, POSITION, ROTATION
from xvla_ros.robots.tools import tool_arms
from xvla_ros.types import Embodiment, Floats

SHIPPED = "the shipped policy of xvla_ros"
ANOTHER = "or another policy, named by --checkpoint or policy.checkpoint"
AUTO, TORCH = "auto", "torch"  # engines that need no export
SAME_SCALE = 0.01  # share by which a calibrated joint's scale may differ
TIME_TOLERANCE = 0.02  # share by which times may differ: a profile rounds 1/30 s to 0.0333
CALIBRATION = 0.1  # share of a joint's range by which its zero may


def shipped_policy(profiles: Iterable[Profile]) -> Path | None:
    """Return the folder of the policy that comes with the package.

    None where the package has none, or one that was not trained for the domain of every given robot.

    Raises:
        CheckpointError: what lies there cannot be read.
        ProfileError: it was trained for these domains, but with another action mode, other joints, other views or in
            other units than a profile has; it says which, and what to do.
    """
    folder, robots = policy_dir(), list(profiles)
    if folder is None:
        return None
    record = read_record(folder)
    if not all(profile.policy.domain_id in (record.training.trained_domains or ()) for profile in robots):
        return None
    _refuse_misfits(robots, record.robots, folder / RECORD_FILE)
    return folder


def _refuse_misfits(
    profiles: Iterable[Profile], records: Mapping[str, RobotRecord], file: Path, checkpoint: str = ""
) -> None:
    problems = [
        problem
        for profile in profiles
        for problem in misfits(profile, known_as(profile, records.values()), file, checkpoint)
    ]
    if problems:
        raise ProfileError(problems)


def known_as(profile: Profile, robots: Iterable[RobotRecord]) -> RobotRecord | None:
    """Return the record with the robot's name, else one with its domain: another profile of the same arms."""
    there = list(robots)
    by_name = (each for each in there if each.embodiment.robot == profile.name)
    by_domain = (each for each in there if each.embodiment.domain_id == profile.policy.domain_id)
    return next(by_name, None) or next(by_domain, None)


def decode_alike(one: ActionSpec, other: ActionSpec) -> bool:
    """Say whether every channel means the same in two action modes."""
    same = (one.roles, one.gripper, one.gripper_is_probability, one.is_relative)
    return same == (other.roles, other.gripper, other.gripper_is_probability, other.is_relative)


def _modes_alike(one: str, other: str) -> bool:
    known = one in ACTION_SPECS and other in ACTION_SPECS
    return one == other or (known and decode_alike(ACTION_SPECS[one], ACTION_SPECS[other]))


def misfits(profile: Profile, record: RobotRecord | None, file: Path, checkpoint: str = "") -> Iterator[Problem]:
    """Yield how a robot differs from the one that a policy was trained on.

    That is its action mode, joints, units, views, timing, image pipeline, rotations and domain.

    Args:
        profile: of the robot.
        record: what the policy remembers of it, see ``known_as``; None where it does not know it.
        file: where that stands, for messages.
        checkpoint: how the user named the policy; empty is the one that comes with the package, which must know the
            robot and its units.
    """
    which = f"the checkpoint {checkpoint}" if checkpoint else SHIPPED

    def problem(key: str, value: object, expected: object, message: str) -> Problem:
        where = str(profile.source or "")
        return Problem(where, f"{profile.name}.{key}", value, f"{expected}, {another}", f"{which} {message}")

    another = ANOTHER
    if record is None or not record.profile:
        if not checkpoint:
            message = "does not record the units that it was trained with"
            yield problem("policy.domain_id", profile.policy.domain_id, f"a profile of it in {file}", message)
            return
        if record is None:
            return
    robot = record.embodiment.robot
    if robot != profile.name and checkpoint:
        another += f", or another domain_id: {profile.policy.domain_id} belongs to {robot}"
    own = replace(profile.embodiment(), slots=profile.cameras.views)
    if _modes_alike(own.action_mode, record.embodiment.action_mode):
        yield from _other_joints(profile, record, file, problem)
    yield from otherwise_used(own, record.embodiment, problem)


def otherwise_used(
    own: Embodiment, trained: Embodiment, problem: Callable[[str, object, object, str], Problem]
) -> Iterator[Problem]:
    """Yield how a robot uses a policy otherwise than in training: mode, views, timing, images, rotations, domain.

    Args:
        own: of the robot; its slots are the names that the policy has for its views.
        trained: as the policy remembers it, see ``known_as``.
        problem: makes one of a key of the profile, the value found, the one expected, and what the policy was.
    """
    mode = trained.action_mode
    if not _modes_alike(own.action_mode, mode):
        message = f"was trained for action mode {mode}, whose channels have another meaning"
        yield problem("policy.action_mode", own.action_mode, mode, message)
        return
    if own.slots != trained.slots:
        message = "was trained with other views, or in another order"
        yield problem("cameras.slots", list(own.slots), list(trained.slots), message)
    for key in ("waypoint_dt", "first_waypoint_offset"):
        ours, theirs = getattr(own, key), getattr(trained, key)
        if abs(ours - theirs) > TIME_TOLERANCE * max(ours, theirs):
            message = f"was trained with {key} {theirs:g} s: the motion would have the wrong timing"
            yield problem(f"policy.{key}", ours, theirs, message)
    if own.image_pipeline != trained.image_pipeline:
        message = f"was trained with the image pipeline {trained.image_pipeline}"
        yield problem("policy.image_pipeline", own.image_pipeline, trained.image_pipeline, message)
    spec = ACTION_SPECS.get(own.action_mode)
    if spec is not None and spec.is_end_effector and own.rot6d != trained.rot6d:
        message = f"was trained with rot6d {trained.rot6d}"
        yield problem("policy.rot6d", own.rot6d, trained.rot6d, message)
    if trained.robot == own.robot and own.domain_id != trained.domain_id:
        message = f"has the soft prompt of {own.robot} at domain {trained.domain_id}"
        yield problem("policy.domain_id", own.domain_id, trained.domain_id, message)


def same_numbers(profile: Profile, record: RobotRecord) -> bool:
    """Say whether a profile's channels are the joints, in the units, that the policy was trained on."""
    return not list(_other_joints(profile, record, Path(), lambda *of: Problem("", *of)))


def _other_joints(
    profile: Profile, record: RobotRecord, file: Path, problem: Callable[[str, object, object, str], Problem]
) -> Iterator[Problem]:
    names, width = profile.joints.policy_order, record.embodiment.action_width
    if not record.profile:
        if width is not None and width != profile.state_width:
            message = f"was trained for {width} channels"
            yield problem("joints.policy_order", profile.state_width, width, message)
        return
    trained = Profile.from_mapping(record.embodiment.robot, record.profile, file=str(file))
    if names != trained.joints.policy_order:
        message = "was trained for other joints, or in another order"
        yield problem("joints.policy_order", list(names), list(trained.joints.policy_order), message)
        return
    pairs = zip(names, profile.joints.ordered, trained.joints.ordered, strict=True)
    others = [(name, own, theirs) for name, own, theirs in pairs if not _same_units(own, theirs)]
    if others and not profile.action_spec.is_end_effector:
        first, own, theirs = others[0]
        message = (
            f"was trained with other units for {', '.join(name for name, *_ in others)}: the profile has "
            f"{_units(own)} for the first"
        )
        yield problem(f"joints.{first}", _units(own), _units(theirs), message)


def misplaced_views(profile: Profile, names: Sequence[str]) -> Problem | None:
    """Return where the views of a profile would go into places that a checkpoint has for others of these names.

    Args:
        profile: of the robot.
        names: of the checkpoint's views, in their order; empty where it does not name them.
    """
    views = profile.cameras.views
    unknown = [slot for slot in profile.cameras.slots if profile.cameras.by_name[slot].view not in ("", *names)]
    moved = [name for place, name in enumerate(views) if name in names and names.index(name) != place]
    if not names or not (unknown or moved):
        return None
    place, value, expected = "cameras.slots", list(views), f"views in the order {', '.join(names)}"
    message = f"the checkpoint has {', '.join(moved)} at other places: each view would be mistaken for another"
    if unknown:
        camera = profile.cameras.by_name[unknown[0]]
        place, value, expected = f"cameras.{unknown[0]}.view", [camera.view], "one of " + ", ".join(names)
        message = f"the checkpoint has no view {camera.view!r}"
    return Problem(str(profile.source or ""), f"{profile.name}.{place}", value, expected, message)


def _same_units(own: Joint, theirs: Joint) -> bool:
    room = CALIBRATION * abs(theirs.scale) * (theirs.upper - theirs.lower)
    return abs(own.scale - theirs.scale) <= SAME_SCALE * abs(theirs.scale) and abs(own.offset - theirs.offset) <= room


def _units(joint: Joint) -> str:
    offset = f" {'-' if joint.offset < 0 else '+'} {abs(joint.offset):g}" if joint.offset else ""
    return f"position · {joint.scale:g}{offset}"


if TYPE_CHECKING:
    from xvla_ros.model.policy import Policy


NO_DESCRIPTIONS: Mapping[str, RobotDescription | None] = {}
RANDOM_SPREAD = 0.25  # standard deviation of an untrained policy's actions, in ranges of motion
RANDOM_WAY, RANDOM_TURN = 0.02, 0.05  # the same of tool poses: m about home, and of the rotation's numbers


def load_policy(
    profiles: Profile | Mapping[str, Profile],
    checkpoint: str = "",
    *,
    device: str = "cpu",
    dtype: str = "",
    seed: int = 0,
    descriptions: Mapping[str, RobotDescription | None] = NO_DESCRIPTIONS,
    engine: str = "",
    log: Callable[[str], object] | None = None,
    for_good: bool = False,
) -> Policy:
    """Load the policy for some robots, check that it can serve each, and choose the fastest way to run it.

    Args:
        profiles: the robot, or several by name.
        checkpoint: folder or hub id; empty takes the one the profiles agree on; where they name none, the policy that
            comes with the package, if it was trained for all of them; else random weights: the same classes,
            untrained, which ``Policy.is_trained`` tells.
        device: as torch names it.
        dtype: what it computes in (``float32``, ``bfloat16``, ``int8`` on the CPU); empty takes the fastest here, see
            ``precision.choose``.
        seed: of random weights.
        descriptions: what ``robot_description`` said of each robot; where nothing, the URDFs of its profile count.
            Random weights keep tools about home, which takes kinematics.
        engine: what runs the network (``torch``, ``onnxruntime``, ``openvino``, ``auto``), see ``engines.on_engine``;
            empty is the profiles' ``policy.engine``. What was exported computes in float32, and so an empty dtype.
        log: takes lines that say how the policy runs, what it computes in among them.
        for_good: the process needs the policy until it ends, so that what is imported for it is never collected again,
            see ``kept_for_good``.

    Raises:
        SetupError: the profiles name different checkpoints or engines, the policy does not fit a robot, there is no
            such device, or the engine cannot be had.
        CheckpointError: naming what is wrong with the checkpoint.
        ProfileError: the policy was trained with another action mode, other joints, other views or in other units than
            a profile has, see ``misfits`` and ``misplaced_views``.
    """
    if isinstance(profiles, Profile):
        profiles = {profiles.name: profiles}
    name, revision = (checkpoint, "") if checkpoint else _agreed(profiles)
    engine = engine or _agreed_engine(profiles)
    if engine not in (AUTO, TORCH):
        dtype = dtype or "float32"
    ensure_device(device)
    guided = any(each.smoothing.method == "guided" for each in profiles.values())  # needs gradients, which graphs lack
    how = {"late": engine != TORCH and not guided, "for_good": for_good}
    if name:
        policy = _load(name, revision, device, dtype, profiles.values(), **how)
    else:
        shipped = _shipped(profiles, device, dtype, **how)
        if shipped is None and for_good:
            _keep_imports()
        policy = shipped or _untrained(profiles, device, dtype, seed, descriptions)
    for profile in profiles.values():
        _require_fit(policy, profile, profile.name)
    from xvla_ros.model.runtime.engines import on_engine

    if log is not None:
        log(f"the policy {policy.precision}")
    embodiments = [each.embodiment() for each in profiles.values()]
    embodiments = embodiments or [each.embodiment for each in policy.robots.values()]
    return on_engine(policy, engine, {policy.processor.views(each) for each in embodiments}, log=log)


def fit(policy: Policy, profile: Profile) -> str:
    """Return the name by which a loaded policy knows the statistics of a robot, which need not be the profile's.

    A robot that it was not loaded for is refused for the reasons that ``load_policy`` has.

    Raises:
        SetupError: the policy does not fit it.
        ProfileError: the policy was trained in other units or with other views, see ``misfits``, ``misplaced_views``.
    """
    is_shipped, name = policy.source == str(policy_dir()), profile.name
    record = known_as(profile, policy.robots.values())
    misplaced = None if policy.robots else misplaced_views(profile, policy.view_names)
    if misplaced is not None:
        raise ProfileError([misplaced])
    if record is not None:
        checkpoint = "" if is_shipped else policy.source
        _refuse_misfits([profile], policy.robots, Path(policy.source) / RECORD_FILE, checkpoint)
        if name not in policy.robots:
            name = record.embodiment.robot
    _require_fit(policy, profile, name)
    return name


def _require_fit(policy: Policy, profile: Profile, name: str) -> None:
    try:
        policy.check(replace(profile.embodiment(), robot=name))
    except ValueError as error:
        raise SetupError(
            f"checkpoint {policy.source or 'of random weights'} cannot drive {profile.name}: {error}"
        ) from error


def _agreed(profiles: Mapping[str, Profile]) -> tuple[str, str]:
    named = {profile.name: (profile.policy.checkpoint, profile.policy.revision) for profile in profiles.values()}
    if len(set(named.values())) > 1:
        listed = ", ".join(f"{robot}: {name or 'none'}" for robot, (name, _) in named.items())
        raise SetupError(
            f"the profiles name different checkpoints ({listed}), but one node uses one policy; name it with the "
            "parameter checkpoint, or start a node for each"
        )
    return next(iter(named.values()))


def _agreed_engine(profiles: Mapping[str, Profile]) -> str:
    named = {profile.name: profile.policy.engine for profile in profiles.values()}
    engines = set(named.values()) - {AUTO}
    if len(engines) > 1:
        listed = ", ".join(f"{robot}: {name}" for robot, name in named.items())
        raise SetupError(
            f"the profiles name different engines ({listed}), expected one: set policy.engine to the same value in all"
        )
    return engines.pop() if engines else AUTO


def ensure_device(device: str) -> None:
    """Raise a ``SetupError`` where torch cannot use a device."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second where torch was built without that kind of device
        found = str(error).splitlines()[0]
        if device.startswith("cuda") and torch.version.cuda is None:
            found += (
                f": torch {torch.__version__} supports the CPU only; https://pytorch.org/get-started lists other builds"
            )
        raise SetupError(
            f"device is {device!r}: {found}; expected cpu, cuda or another device of this machine"
        ) from error


def _load(
    name: str,
    revision: str,
    device: str,
    dtype: str,
    profiles: Collection[Profile] = (),
    *,
    late: bool = False,
    for_good: bool = False,
) -> Policy:
    """Load a checkpoint; refuse it before its weights are read where it was made for other robots than ``profiles``.

    ``late`` leaves its weights unread where it has graphs that may answer in the network's place.
    """
    from xvla_ros.model.checkpoint import PROFILE_STEPS, build, read_files
    from xvla_ros.model.runtime.engines import exports

    try:
        # a profile states the image pipeline and the domain, so a checkpoint's files need not
        files = read_files(name, revision=revision or None, assume=PROFILE_STEPS)
        robots = files.described.record.robots
        _refuse_misfits(profiles, robots, files.folders.holding(RECORD_FILE) / RECORD_FILE, name)
        misplaced = [misplaced_views(profile, files.described.view_names) for profile in profiles if not robots]
        if problems := [each for each in misplaced if each is not None]:
            raise ProfileError(problems)
        late = late and bool(exports(files.folders.adapter or files.folders.base))
        if for_good:
            _keep_imports(backbone=not late)
        policy = build(files, device=device, dtype=dtype or None, late=late)
    except (CheckpointError, ProfileError):
        raise
    except ValueError as error:
        raise SetupError(str(error)) from error
    for profile in profiles:
        record = known_as(profile, robots.values())
        if record is not None:
            policy.processor.statistics.setdefault(profile.name, record.statistics)
    return policy


def _keep_imports(*, backbone: bool = True) -> None:
    """Import what runs a policy, never to be collected again; an exported engine needs no backbone, the longest."""
    with kept_for_good():
        from xvla_ros.model.network.encoder import import_backbone

        if backbone:
            import_backbone()


def _shipped(profiles: Mapping[str, Profile], device: str, dtype: str, **how: bool) -> Policy | None:
    """Load the policy that comes with the package; it knows other profiles of its robots by their domain."""
    folder = shipped_policy(profiles.values())
    return None if folder is None else _load(str(folder), "", device, dtype, profiles.values(), **how)


def _untrained(
    profiles: Mapping[str, Profile],
    device: str,
    dtype: str,
    seed: int,
    descriptions: Mapping[str, RobotDescription | None],
) -> Policy:
    from xvla_ros.model.random_policy import random_policy

    mean, std = {}, {}
    for name, profile in profiles.items():
        try:
            mean[name], std[name] = _range(profile, descriptions.get(name))
        except KinematicsError as error:
            raise SetupError(str(error)) from error
    try:
        policy = random_policy(
            [profile.embodiment() for profile in profiles.values()],
            state_mean=mean,
            state_std=std,
            action_mean=mean,
            action_std=std,
            seed=seed,
        )
    except ValueError as error:
        raise SetupError(f"random weights cannot drive these robots together: {error}") from error
    policy.network.to(device)
    return _in_dtype(policy, dtype)


def _in_dtype(policy: Policy, dtype: str) -> Policy:
    from xvla_ros.model.runtime.int8 import quantise
    from xvla_ros.model.runtime.precision import DTYPES, INT8, choose

    try:
        policy.precision = choose(policy.network.config, policy.network.device, dtype)
    except ValueError as error:
        raise SetupError(str(error)) from error
    if policy.precision.dtype == INT8:
        return quantise(policy)
    policy.network.cast(DTYPES[policy.precision.dtype])
    return policy


def _range(profile: Profile, description: RobotDescription | None) -> tuple[Floats, Floats]:
    """Mean and standard deviation [P] of actions that keep to a robot's joint ranges, or to its tools' boxes."""
    limits = JointLimits.of(profile)
    middle = (limits.lower + limits.upper) / 2
    arms = tool_arms(profile, description)
    if not arms:
        low, high = to_policy(limits.lower, profile), to_policy(limits.upper, profile)
        return (low + high) / 2, abs(high - low) * RANDOM_SPREAD
    for arm in arms.values():
        middle[arm.columns] = arm.inverse.home
    mean = StateEncoder(profile, arms).state(middle)
    std = np.ones_like(mean)
    for i, arm in enumerate(arms.values()):
        low, high = np.array(arm.tool.workspace_min), np.array(arm.tool.workspace_max)
        ours, spread = mean[i * CHANNELS : (i + 1) * CHANNELS], std[i * CHANNELS : (i + 1) * CHANNELS]
        ours[POSITION] = np.clip(ours[POSITION], low, high)
        spread[POSITION], spread[ROTATION] = RANDOM_WAY, RANDOM_TURN
        gripper = arm.tool.gripper
        ours[GRIPPER] = (gripper.open_value + gripper.closed_value) / 2
        spread[GRIPPER] = abs(gripper.closed_value - gripper.open_value) * RANDOM_SPREAD
    return mean, std
