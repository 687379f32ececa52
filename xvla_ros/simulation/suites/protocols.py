# SPDX-License-Identifier: Apache-2.0
"""How a benchmark is put to X-VLA: every choice that a number stands on; of LIBERO as those who published one made it.

They differ in more than the rate that they report, so a result names its protocol and holds all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, get_args, get_type_hints

import yaml

from xvla_ros.errors import SetupError, did_you_mean

PUBLISHED_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")


def _steps(**steps: int) -> Mapping[str, int]:
    return MappingProxyType({f"libero_{name}": count for name, count in steps.items()})


@dataclass(frozen=True)
class SuiteProtocol:
    """The choices of one evaluation, in any simulator.

    Attributes:
        name, by: which, and whose.
        episodes: of each task.
        steps: suite → control steps after which an episode has failed; a varied suite has those of its original.
        env_seed: of what no init state holds.
        pixels: rows of the simulator's pictures.
        image_pipeline: how they become the network's: ``squash`` (PIL bicubic) or ``letterbox`` (bilinear).
        domain_id: row of the soft prompts; None takes the checkpoint's own, or the robot's.
        denoising_steps: of the flow.
        execute: waypoints of a chunk that are carried out; None takes the checkpoint's.
        reported: suite → success rate that was published with it.
        rate: control steps in a second.
    """

    rate: ClassVar[float]

    name: str
    by: str
    episodes: int
    steps: Mapping[str, int]
    env_seed: int
    pixels: int
    image_pipeline: Literal["squash", "letterbox"]
    domain_id: int | None
    denoising_steps: int
    execute: int | None
    reported: Mapping[str, float]

    def steps_of(self, suite: str) -> int:
        """Return after how many steps an episode of ``suite`` has failed."""
        return self.steps[original_of(suite)]

    def seed_of(self, episode: int) -> int:
        """Return the simulator's seed for an episode."""
        return self.env_seed + episode

    def to_mapping(self) -> dict[str, Any]:
        """Return all of it as plain data, as a report holds it."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    def changed(self, overrides: Sequence[str]) -> Self:
        """Return it with settings changed, ``key=value`` with the value in YAML; ``steps=300`` holds for every suite.

        Raises:
            SetupError: an override that sets nothing, an unknown key, or a value of another kind.
        """
        protocol, kinds = self, get_type_hints(type(self))
        known = [each.name for each in fields(self) if each.name not in ("name", "by", "reported")]
        for override in overrides:
            key, equals, text = override.partition("=")
            if not equals or key not in known:
                raise SetupError(
                    f"{override!r} is not a setting of a protocol{did_you_mean(key, known)}; expected key=value "
                    f"with one of {', '.join(known)}"
                )
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise SetupError(f"{override!r} is not YAML: {error}") from None
            steps: dict[str, Any] = dict.fromkeys(self.steps, value)
            protocol = replace(protocol, **{key: _of_kind(key, value, kinds[key], steps)})
        if not overrides:
            return protocol
        # nobody published a number with this
        return replace(protocol, name=f"{self.name}, changed", reported=MappingProxyType({}))


@dataclass(frozen=True)
class EvaluationProtocol(SuiteProtocol):
    """The choices of an evaluation on LIBERO. The defaults are those of X-VLA's own client.

    Attributes:
        settle_steps: steps without motion after a reset, before the first picture.
        seeded: seed of what no init state holds: of ``episode`` k it is ``env_seed + k``, or of a ``task`` it is
            ``env_seed``, given once.
        fresh_scene: build the scene anew for each episode.
        spare_resets: resets before the first episode of a scene.
        turned: cameras whose picture is turned by 180 degrees before the policy sees it, in the simulator's names.
        state_position: of the grip site, by the arm's ``controller`` or by the simulator's ``observation``.
        state_after: what the policy is told of the arm after its first chunk: where it was ``measured``, or the last
            waypoint that was ``commanded``.
        rot6d: layout of rotations.
        domain_id: as of every protocol; None takes 3 where the checkpoint names none.
        close_above: the gripper closes where its channel is above, and opens else.
    """

    rate: ClassVar[float] = 20.0

    name: str = "xvla"
    by: str = "X-VLA's own client"
    episodes: int = 50
    steps: Mapping[str, int] = field(
        default_factory=lambda: _steps(spatial=800, object=800, goal=800, **{"10": 900, "90": 800})
    )
    settle_steps: int = 10
    env_seed: int = 142
    seeded: Literal["episode", "task"] = "episode"
    fresh_scene: bool = True
    spare_resets: int = 0
    pixels: int = 256
    image_pipeline: Literal["squash", "letterbox"] = "squash"
    turned: tuple[str, ...] = ("agentview",)
    state_position: Literal["controller", "observation"] = "controller"
    state_after: Literal["measured", "commanded"] = "commanded"
    rot6d: Literal["columns", "interleaved"] = "columns"
    domain_id: int | None = 3
    denoising_steps: int = 10
    execute: int | None = 30
    close_above: float = 0.5
    reported: Mapping[str, float] = field(
        default_factory=lambda: MappingProxyType(
            {"libero_spatial": 0.982, "libero_object": 0.986, "libero_goal": 0.978, "libero_10": 0.976}
        )
    )

    def seed_of(self, episode: int) -> int:
        """Return the simulator's seed for an episode."""
        return self.env_seed + (episode if self.seeded == "episode" else 0)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _of_kind(key: str, value: Any, kind: Any, steps: Mapping[str, Any]) -> Any:
    if key == "steps":
        if type(value) is int and value > 0:
            return MappingProxyType(dict(steps))
        raise SetupError(f"steps is {value!r}, expected a whole number above 0, for every suite")
    if key == "turned":
        if isinstance(value, list) and set(value) <= set(CAMERAS):
            return tuple(value)
        raise SetupError(f"turned is {value!r}, expected a list of {', '.join(CAMERAS)}")
    allowed = get_args(kind)
    if allowed and all(isinstance(each, str) for each in allowed):
        if value in allowed:
            return value
        raise SetupError(f"{key} is {value!r}, expected {' or '.join(allowed)}")
    kinds = tuple(allowed) or (kind,)
    if float in kinds and type(value) is int:
        value = float(value)
    if type(value) in kinds and not (type(value) is int and value < 0):
        return value
    names = " or ".join("nothing" if each is type(None) else each.__name__ for each in kinds)
    raise SetupError(f"{key} is {value!r}, expected {names}" + (", not below 0" if int in kinds else ""))


CAMERAS = ("agentview", "robot0_eye_in_hand")

XVLA = EvaluationProtocol()
LEROBOT = replace(
    XVLA,
    name="lerobot",
    by="lerobot-eval of LeRobot 0.6.1 with env.control_mode=absolute",
    episodes=10,
    steps=_steps(spatial=280, object=280, goal=300, **{"10": 520, "90": 400}),
    env_seed=1000,
    fresh_scene=False,
    spare_resets=1,
    pixels=360,
    image_pipeline="letterbox",
    state_position="observation",
    state_after="measured",
    domain_id=None,
    execute=None,
    reported=MappingProxyType({"mean": 0.93}),
)
HARNESS = replace(
    XVLA,
    name="harness",
    by="the harness of allenai that reproduced X-VLA's numbers",
    steps=_steps(spatial=220, object=280, goal=300, **{"10": 520, "90": 400}),
    env_seed=7,
    seeded="task",
    fresh_scene=False,
    reported=MappingProxyType(
        {"libero_spatial": 0.978, "libero_object": 0.986, "libero_goal": 0.98, "libero_10": 0.952}
    ),
)
PROTOCOLS = {each.name: each for each in (XVLA, LEROBOT, HARNESS)}


def original_of(suite: str) -> str:
    """Return the published suite that ``suite`` is, or is a variation of."""
    return next((name for name in PUBLISHED_SUITES if suite == name or suite.startswith(f"{name}_")), suite)
