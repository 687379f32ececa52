# SPDX-License-Identifier: Apache-2.0
"""What it costs to ask a policy server rather than a policy of the own process.

    python bench/serving.py [--rounds 200] [--checkpoint FOLDER] [--device cpu] [--json FILE]

The server is a process of its own on this machine. ``socket``: the time of an ask around a policy that answers at once,
with three views of 256x256: as JPEG that a camera gave, as JPEG made here, and raw. ``clients``: the time until each of
so many clients that ask at once has its chunk of the real policy, pictures as a camera gave them. ``engine``: of the
same policy in this process, with so many observations in one batch: what a server without any overhead would take. As
the machine may be busy, ratios are told too. ``error``: of a picture with smooth colours and edges
that goes as JPEG of the quality that is sent, in levels of 255.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import results
from numpy.typing import NDArray

from xvla_ros.robots import load_robot
from xvla_ros.serving import Client, protocol
from xvla_ros.types import Observation

ROBOT = "so101_bimanual"
INSTRUCTION = "touch the red cube"
SIZE = 256
CLIENTS = (1, 2, 4, 8)
WARM = 10
PAYS = 2.5  # times one observation that a batch of eight takes at most where it pays


class Server:
    """A server in a process of its own; ``at_once``: whose policy answers without computing."""

    def __init__(self, options: argparse.Namespace, *, at_once: bool) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", "--device", options.device]
        command += ["--checkpoint", options.checkpoint] * bool(options.checkpoint) + ["--at-once"] * at_once
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = next(line for line in self._process.stdout if line.startswith("serving")).split()[3].rstrip(";")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def serve(options: argparse.Namespace) -> int:
    """Be the server."""
    from xvla_ros.commands.serve import Serve
    from xvla_ros.model.policy import Policy
    from xvla_ros.serving import server

    server.RATE = 1e9
    if options.at_once:
        answers: dict[str, Any] = {}
        inner = Policy.predict

        def predict(self: Policy, observations: Any, **settings: Any) -> Any:
            for seen in observations:
                if seen.embodiment.robot not in answers:
                    answers[seen.embodiment.robot] = inner(self, [seen])[0]
            return [
                replace(answers[seen.embodiment.robot], stamp=seen.stamp, instruction=seen.instruction)
                for seen in observations
            ]

        Policy.predict = predict  # type: ignore[method-assign, assignment]
    checkpoint = options.checkpoint or None
    return Serve(port=0, robots=ROBOT, checkpoint=checkpoint, device=options.device).run()


def picture(level: int) -> NDArray[np.uint8]:
    """Smooth colours with edges and a little noise, as a camera sees them."""
    rng = np.random.default_rng(level)
    across = np.linspace(0, 255, SIZE)
    made = np.stack([np.add.outer(across, across * part) / 2 for part in (0.3, 0.6, 1.0)], axis=-1)
    cv2.rectangle(made, (60, 80), (150, 190), (200, 30, 40), -1)
    cv2.circle(made, (180, 90), 40, (30, 60, 220), -1)
    return np.clip(made + rng.normal(0, 2, made.shape), 0, 255).astype(np.uint8)


def socket_rows(url: str, rounds: int) -> list[dict[str, Any]]:
    """Time asks around a policy that answers at once."""
    pictures = {slot: picture(i) for i, slot in enumerate(load_robot(ROBOT).cameras.slots)}
    given = {slot: protocol.encode_picture(each) for slot, each in pictures.items()}
    state = np.zeros(12, np.float32)
    rows = []
    for name, views, quality in (
        ("socket, JPEG as given", given, protocol.JPEG_QUALITY),
        ("socket, JPEG made here", pictures, protocol.JPEG_QUALITY),
        ("socket, raw", pictures, None),
    ):
        took = []
        with Client(url, robot=ROBOT, quality=quality) as client:
            for number in range(WARM + rounds):
                begun = time.perf_counter()
                client.ask(views, state, INSTRUCTION)
                if number >= WARM:
                    took.append((time.perf_counter() - begun) * 1e3)
            size = client.sent_bytes / (WARM + rounds)
        p50, p95, p99 = np.percentile(took, (50, 95, 99)).tolist()
        rows.append({"name": name, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "kB": size / 1e3})
    return rows


def client_rows(url: str, rounds: int) -> list[dict[str, Any]]:
    """Time clients that ask the real policy at once."""
    slots = load_robot(ROBOT).cameras.slots
    pictures = {slot: bytes(protocol.encode_picture(picture(i))) for i, slot in enumerate(slots)}
    rows = []
    for count in CLIENTS:
        clients = [Client(url, robot=ROBOT, timeout=60) for _ in range(count)]
        took: list[float] = []
        start = threading.Barrier(count)

        def ask(client: Client, start: threading.Barrier = start, took: list[float] = took) -> None:
            for number in range(rounds + 1):
                start.wait()
                begun = time.perf_counter()
                client.ask(pictures, np.zeros(12, np.float32), INSTRUCTION)
                if number:
                    took.append((time.perf_counter() - begun) * 1e3)

        threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
        p50, p95, p99 = np.percentile(took, (50, 95, 99)).tolist()
        rows.append({"name": f"clients, {count} at once", "p50_ms": p50, "p95_ms": p95, "p99_ms": p99})
    return rows


def engine_rows(options: argparse.Namespace, rounds: int) -> list[dict[str, Any]]:
    """Time the policy itself with batches of as many observations as there were clients."""
    from xvla_ros.commands.serve import Serve

    robot = load_robot(ROBOT)
    policy = Serve(checkpoint=options.checkpoint or None, device=options.device, robots=ROBOT).policy({ROBOT: robot})
    images = {slot: picture(i) for i, slot in enumerate(robot.cameras.slots)}
    rows = []
    for count in CLIENTS:
        seen = [
            Observation(robot.embodiment(), stamp, images, np.zeros(12, np.float32), INSTRUCTION)
            for stamp in range(count)
        ]
        took = []
        for number in range(rounds + 1):
            begun = time.perf_counter()
            policy.predict(seen)
            if number:
                took.append((time.perf_counter() - begun) * 1e3)
        p50, p95, p99 = np.percentile(took, (50, 95, 99)).tolist()
        rows.append({"name": f"engine, batch of {count}", "p50_ms": p50, "p95_ms": p95, "p99_ms": p99})
    return rows


def main() -> int:
    """Measure, print the table, write the JSON; exit code 1 where a promise does not hold."""
    parser = results.parser(__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=200, help="asks of each kind; a tenth of it of the real policy")
    parser.add_argument("--checkpoint", default="", help="folder or hub id (default: the shipped policy)")
    parser.add_argument("--device", default="cpu", help="of the policy")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--at-once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options)
    with Server(options, at_once=True) as server:
        rows = socket_rows(server.url, options.rounds)
    with Server(options, at_once=False) as server:
        served = client_rows(server.url, max(options.rounds // 10, 3))
    engine = engine_rows(options, max(options.rounds // 10, 3))
    for kind in (served, engine):
        for row in kind:
            row["times one"] = row["p50_ms"] / kind[0]["p50_ms"]
    sent = picture(0)
    received = protocol.decode_picture(protocol.encode_picture(sent), "it")
    error = np.abs(received.astype(int) - sent)
    rows += served + engine
    rows.append({"name": f"error, JPEG {protocol.JPEG_QUALITY}", "mean": float(error.mean()), "max": int(error.max())})
    promises = [results.Promise("socket, JPEG as given, p50 ms", rows[0]["p50_ms"], 3.0)]
    promises.append(
        results.Promise(
            "eight clients at once, times the engine with a batch of eight",
            served[-1]["p50_ms"] / engine[-1]["p50_ms"],
            1.25,
        )
    )
    if engine[-1]["times one"] <= PAYS:
        promises.append(results.Promise("eight clients at once, times one", served[-1]["times one"], 3.0))
    return results.finish(rows, promises, options.json)


if __name__ == "__main__":
    sys.exit(main())
