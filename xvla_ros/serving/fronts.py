# SPDX-License-Identifier: Apache-2.0
"""The protocols that are served: messages in, questions out, and answers back into messages.

``POST /act`` is that of X-VLA's authors, whose evaluation clients speak it; openpi's WebSocket is what many robots run
already; ``protocol`` is ours.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import RequestError
from xvla_ros.serving import protocol
from xvla_ros.serving.protocol import MESSAGE, OBSERVATION, ROBOT
from xvla_ros.serving.queue import QueuedChunk
from xvla_ros.serving.service import IMAGES, DrivableRobot, PolicyService, UncheckedObservation

DEADLINE_MS = protocol.LONGEST_WAIT_S * 1e3


# POST /act


def act_question(service: PolicyService, body: bytes) -> UncheckedObservation:
    """Return the question of a body of ``POST /act``.

    The robot is that of ``domain_id``; ``image0`` is its first view.

    Raises:
        RequestError: it is none.
    """
    message = _json(body, "the body", protocol.MAX_ENTRIES_IN_ALL)
    if not isinstance(message, dict):
        raise RequestError(MESSAGE, "the body is not a JSON object")
    given = {name: message[name] for name in IMAGES if message.get(name) is not None}
    domain = protocol.whole(message.get("domain_id"), "domain_id", 0, 65535)
    robot = service.of_domain(domain, given)
    named = dict(zip(IMAGES, robot.embodiment.slots, strict=False))
    views = f"domain {domain} is {robot.embodiment.robot!r}; expected {', '.join(map(' = '.join, named.items()))}"
    if unknown := sorted(set(given) - set(named)):
        raise RequestError(OBSERVATION, f"{', '.join(unknown)} is no view of its robot: {views}")
    if missing := [name for name, slot in named.items() if slot in robot.required and name not in given]:
        raise RequestError(OBSERVATION, f"no {', '.join(missing)}: {views}")
    steps = message.get("steps")
    return UncheckedObservation(
        robot,
        0,
        {named[name]: _json_array(value, name) for name, value in given.items()},
        _numbers(_json_array(message.get("proprio"), "proprio"), "proprio"),
        protocol.text(message.get("language_instruction"), "language_instruction"),
        steps=None if steps is None else protocol.whole(steps, "steps", 1, protocol.MAX_STEPS),
        seed=_seed(message.get("seed")),
    )


def act_answer(answer: QueuedChunk) -> dict[str, Any]:
    """Return the JSON object that answers ``POST /act``."""
    return {"action": answer.chunk.actions.tolist()}


def _json(data: bytes | str, what: str, most: int) -> Any:
    """Return what a JSON text says, of at most so many entries of lists and objects, which are counted before."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    entries = sum(raw.count(mark) for mark in b",[{")
    if entries > most:
        raise RequestError(MESSAGE, f"{what} has {entries} entries of lists and objects; expected {most} at most")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(MESSAGE, f"{what} is not JSON: {error}"[:200]) from None


def _json_array(value: Any, what: str) -> NDArray[Any]:
    """Return an array as ``json_numpy`` writes it, its object itself or in a text; a flat list will do too."""
    if isinstance(value, str):
        value = _json(value, what, protocol.MAX_ENTRIES)
    if isinstance(value, list) and len(value) <= protocol.MAX_WIDTH:
        return np.array([protocol.number(each, what, -np.inf, np.inf) for each in value])
    if not isinstance(value, dict) or not isinstance(value.get("__numpy__"), str):
        raise RequestError(MESSAGE, f"{what} is not what json_numpy writes: an object of __numpy__, dtype and shape")
    try:
        data = base64.b64decode(value["__numpy__"], validate=True)
    except ValueError as error:
        raise RequestError(MESSAGE, f"{what} is not base64: {error}") from None
    return protocol.of_buffer(data, value.get("dtype"), value.get("shape"), what, dtypes=protocol.NUMBERS, shape=())


def _numbers(values: NDArray[Any], what: str) -> NDArray[np.float32]:
    """Return a state: one row of numbers, as float32."""
    if values.ndim == 2 and len(values) == 1:
        values = values[0]
    if values.ndim != 1 or len(values) > protocol.MAX_WIDTH:
        raise RequestError(OBSERVATION, f"{what} has shape {list(values.shape)}; expected one number per channel")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _seed(value: Any) -> int | None:
    return None if value is None else protocol.whole(value, "seed", 0, (1 << 64) - 1)


# openpi


def openpi_metadata(service: PolicyService) -> bytes:
    """Return what is sent to an openpi client when it connects."""
    return protocol.pack(service.metadata())


def openpi_question(service: PolicyService, message: Mapping[Any, Any]) -> UncheckedObservation:
    """Return the question of an openpi observation.

    Views go by the names of the robot's slots, by themselves, under ``observation/`` or in a map ``images``; the state
    is ``state``, the instruction ``prompt``. ``robot`` or ``domain_id`` say which robot, where the server has several.

    Raises:
        RequestError: it is none.
    """
    entries = {str(key).removeprefix("observation/"): value for key, value in message.items() if isinstance(key, str)}
    images = entries.pop("images", None)
    if isinstance(images, dict) and b"__ndarray__" not in images:
        entries |= {str(key): value for key, value in images.items()}
    name = protocol.text(entries.get("robot", ""), "robot")
    if entries.get("domain_id") is not None:
        domain = protocol.whole(_scalar(entries["domain_id"]), "domain_id", 0, 65535)
        robot = service.of_domain(domain, entries, name)
    else:
        robot = service.named(name)
    slots = robot.embodiment.slots
    if unknown := sorted(key for key, value in entries.items() if key not in slots and _is_picture(value)):
        raise RequestError(
            OBSERVATION,
            f"{', '.join(unknown)[:200]}: robot {robot.embodiment.robot!r} has no such view; expected "
            f"{', '.join(slots)}",
        )
    views = {
        slot: protocol.array(entries[slot], slot, dtypes=protocol.PICTURES, keys="openpi")
        for slot in slots
        if slot in entries
    }
    steps = entries.get("steps")
    return UncheckedObservation(
        robot,
        0,
        views,
        _numbers(protocol.array(entries.get("state"), "state", keys="openpi"), "state"),
        protocol.text(entries.get("prompt"), "prompt"),
        steps=None if steps is None else protocol.whole(_scalar(steps), "steps", 1, protocol.MAX_STEPS),
        seed=_seed(_scalar(entries.get("seed"))),
    )


def _is_picture(value: Any) -> bool:
    """Say whether a value is an array of openpi's with the form of a picture."""
    if not isinstance(value, dict) or value.get(b"dtype") not in (*protocol.PICTURES, b"|u1"):
        return False
    shape = value.get(b"shape")
    return isinstance(shape, list) and len(shape) == 3


def _scalar(value: Any) -> Any:
    """Return a number of NumPy's as it is packed by openpi, as a plain one."""
    return value.get(b"data") if isinstance(value, dict) and b"__npgeneric__" in value else value


def openpi_answer(answer: QueuedChunk, server_ms: float) -> bytes:
    """Return the action dictionary that an openpi client expects."""
    actions = np.ascontiguousarray(answer.chunk.actions)
    packed: bytes = msgpack.packb(
        {
            "actions": {
                b"__ndarray__": True, b"data": actions.tobytes(), b"dtype": actions.dtype.str, b"shape": actions.shape,
            },
            "server_timing": {
                "infer_ms": answer.chunk.inference_ms, "queue_ms": answer.queue_ms, "total_ms": server_ms,
            },
        }
    )  # fmt: skip
    return packed


# ours


@dataclass
class NativeSession:
    """What a client of ours has said of itself: its robots by name."""

    robots: dict[str, DrivableRobot]

    def robot(self, service: PolicyService, name: str) -> DrivableRobot:
        """Return a robot that the client has said, or one known to the server."""
        return self.robots.get(name) or service.named(name)


def native_hello(service: PolicyService, message: Mapping[str, Any]) -> tuple[NativeSession, dict[str, Any]]:
    """Return the session that a hello opens, and the welcome.

    Raises:
        RequestError: another version, or a robot that the policy cannot drive.
    """
    if message.get("type") != "hello":
        raise RequestError(MESSAGE, f"the first message is {str(message.get('type'))[:40]!r}; expected 'hello'")
    if message.get("protocol") != protocol.VERSION:
        raise RequestError(
            protocol.VERSION_DIFFERS,
            f"the client uses protocol version {str(message.get('protocol'))[:40]}; expected {protocol.VERSION}: "
            "install the same xvla_ros on both machines",
        )
    said = message.get("robots", [])
    if not isinstance(said, list) or len(said) > protocol.MAX_ROBOTS:
        raise RequestError(ROBOT, f"robots is not a list of at most {protocol.MAX_ROBOTS}")
    robots = dict(_admitted(service, each) for each in said)
    welcome = {
        "type": "welcome",
        **service.metadata(),
        "admitted": {name: robot.described(trained=service.is_trained(robot)) for name, robot in robots.items()},
    }
    return NativeSession(robots), welcome


def _admitted(service: PolicyService, said: Any) -> tuple[str, DrivableRobot]:
    if not isinstance(said, dict):
        raise RequestError(ROBOT, "a robot is not a map with name and profile, or with embodiment")
    if "profile" in said:
        name = protocol.text(said.get("name"), "name")
        return name, service.admit_profile(name, said["profile"])
    embodiment = protocol.embodiment_of(said.get("embodiment"))
    return embodiment.robot, service.admit(embodiment)


def native_questions(
    service: PolicyService, session: NativeSession, message: Mapping[str, Any]
) -> tuple[int, float, Iterator[Callable[[], UncheckedObservation]]]:
    """Return the id of an ask, its deadline in s, and its questions, still to be read.

    Raises:
        RequestError: it is no ask.
    """
    if message.get("type") != "ask":
        raise RequestError(MESSAGE, f"a message of type {str(message.get('type'))[:40]!r}; expected 'ask'")
    number = protocol.whole(message.get("id"), "id", 0, 1 << 53)
    deadline = protocol.number(message.get("deadline_ms", DEADLINE_MS), "deadline_ms", 0.0, DEADLINE_MS) / 1e3
    seen = message.get("observations")
    if not isinstance(seen, list) or not 0 < len(seen) <= protocol.MAX_ROBOTS:
        raise RequestError(MESSAGE, f"observations is not a list of 1 … {protocol.MAX_ROBOTS}")
    seed = _seed(message.get("seed"))
    return number, deadline, ((lambda each=each: _native_question(service, session, each, seed)) for each in seen)


def _native_question(
    service: PolicyService, session: NativeSession, seen: Any, seed: int | None
) -> UncheckedObservation:
    if not isinstance(seen, dict):
        raise RequestError(MESSAGE, "an observation is not a map")
    robot = session.robot(service, protocol.text(seen.get("robot"), "robot"))
    views = seen.get("views")
    if (
        not isinstance(views, dict)
        or len(views) > protocol.MAX_VIEWS
        or not all(isinstance(each, str) for each in views)
    ):
        raise RequestError(MESSAGE, f"views is not a map from at most {protocol.MAX_VIEWS} names to images")
    steps = seen.get("steps")
    return UncheckedObservation(
        robot,
        protocol.whole(seen.get("stamp"), "stamp", 0, (1 << 63) - 1),
        views,
        _numbers(protocol.array(seen.get("state"), "state"), "state"),
        protocol.text(seen.get("instruction"), "instruction"),
        protocol.prefix_of(seen.get("prefix")),
        None if steps is None else protocol.whole(steps, "steps", 1, protocol.MAX_STEPS),
        seed,
    )


def native_answer(number: int, answers: list[QueuedChunk], server_ms: float, load: Mapping[str, Any]) -> bytes:
    """Return the chunks that answer an ask, with remarks on their instructions where there are any."""
    remarks = list(dict.fromkeys(remark for each in answers for remark in each.remarks))
    return protocol.pack(
        {
            "type": "chunks",
            "id": number,
            "chunks": [protocol.chunk_fields(each.chunk) for each in answers],
            "timing": {"server_ms": server_ms, "queue_ms": max(each.queue_ms for each in answers)},
            "load": load,
            **({"remarks": remarks} if remarks else {}),
        }
    )


def native_error(number: int | None, error: RequestError) -> bytes:
    """Return the error that answers a hello or an ask."""
    return protocol.pack({"type": "error", "id": number, "reason": error.reason, "detail": error.detail})
