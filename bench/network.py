# SPDX-License-Identifier: Apache-2.0
"""A simulated robot whose policy is behind a bad network: ``xvla demo --server`` as without, and through late links.

    python bench/network.py [--duration 120] [--round-trip 80] [--jitter 20] [--loss 2] [--json FILE]

The server runs in a network namespace of its own, reached through two TUN devices between which this program carries
each packet: late by half of the round trip, by up to half of the jitter more or less, so that packets overtake each
other, and ``loss`` percent of them, of each direction, not at all. TCP is the kernel's own and sends again what was
lost, as over a real link. Nothing of this machine's network changes; nothing but Linux, ``unshare`` and ``ip`` is
needed.

``p50``, ``p95``, ``p99``: ms from a question to its answer, as the node counts them; ``inference`` is the part of it in
the policy. ``holds``: for want of an answer; ``reasons`` has the others too, as of a reset that a joint cannot follow.
Both runs are in real time with the same seed: a machine that cannot keep up shows it in ``real_time``.
"""

from __future__ import annotations

import argparse
import fcntl
import heapq
import itertools
import json
import os
import random
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import results

from xvla_ros.control.state import HOLDING
from xvla_ros.evaluation.report.recording import read_recording
from xvla_ros.robots import load_robot

ROBOT = "so101_bimanual"
NEAR, FAR = "10.77.0.1", "10.77.0.2"
PACKET = 2048  # bytes, more than a device's MTU
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
P99_MS = 2000.0  # inference_timeout of the robot: later, and it holds
INSIDE = "XVLA_BENCH_NETWORK"


class LossyLink(threading.Thread):
    """Two TUN devices, and what carries packets between them.

    Attributes:
        delay, jitter: s of one way; the delay of a packet is uniform in ``delay ± jitter``.
        loss: share of packets that are lost.
        counts: ``carried`` and ``lost`` packets.
    """

    def __init__(self) -> None:
        super().__init__(name="link", daemon=True)
        self.near, self.far = _tun("near"), _tun("far")
        self.delay = self.jitter = self.loss = 0.0
        self.counts: Counter[str] = Counter()
        self._rng = random.Random(0)

    def run(self) -> None:
        under_way: list[tuple[float, int, int, bytes]] = []
        number = itertools.count()
        while True:
            wait = max(under_way[0][0] - time.monotonic(), 0.0) if under_way else None
            for device in select.select([self.near, self.far], [], [], wait)[0]:
                try:
                    packet = os.read(device, PACKET)
                except OSError:  # the server's namespace has gone, and its device with it
                    return
                if self._rng.random() < self.loss:
                    self.counts["lost"] += 1
                    continue
                due = time.monotonic() + self.delay + self._rng.uniform(-self.jitter, self.jitter)
                to = self.far if device == self.near else self.near
                heapq.heappush(under_way, (due, next(number), to, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(under_way)
                try:
                    os.write(to, packet)
                    self.counts["carried"] += 1
                except OSError:  # the device is not up yet
                    self.counts["lost"] += 1


def _tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def server(options: argparse.Namespace, link: LossyLink) -> Iterator[str]:
    """A policy server at the far end of a link; yields its address."""
    serve = f"{sys.executable} -m xvla_ros serve --host {FAR} --insecure --device {options.device} --robots {ROBOT}"
    if options.checkpoint:
        serve += f" --checkpoint {options.checkpoint}"
    script = (
        f"ip link set lo up; echo moved; read moved; ip address add {FAR}/24 dev far; ip link set far up; exec {serve}"
    )
    process = subprocess.Popen(
        ["unshare", "--net", "sh", "-ec", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdout.readline()
        _ip("link", "set", "far", "netns", str(process.pid))
        print(file=process.stdin, flush=True)
        _ip("address", "add", f"{NEAR}/24", "dev", "near")
        _ip("link", "set", "near", "up")
        link.start()
        for line in process.stdout:
            if found := re.search(r"on (ws://\S+?);", line):
                threading.Thread(target=process.stdout.read, daemon=True).start()
                yield found[1]
                return
        raise SystemExit(f"the server ended with {process.wait()}")
    finally:
        process.terminate()
        process.wait()


def run(url: str, options: argparse.Namespace, name: str, link: LossyLink, folder: Path) -> dict[str, Any]:
    """Run the demo through a link and return a row of figures."""
    link.counts.clear()
    command = [sys.executable, "-m", "xvla_ros", "demo", "--robot", ROBOT, "--server", url, "--real-time"]
    command += ["--duration", str(options.duration), "--seed", str(options.seed), "--output", str(folder)]
    ended = subprocess.run(command, stdout=sys.stderr, check=False)
    if ended.returncode:
        raise SystemExit(f"xvla demo ended with {ended.returncode}; logs: {folder}")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    recording = read_recording(folder / "run.mcap", load_robot(ROBOT))
    answers, packets = report["answer_ms"], link.counts.total()
    holds = Counter(
        status.reason
        for before, status in itertools.pairwise(recording.statuses)
        if status.state == HOLDING and (before.state, before.reason) != (status.state, status.reason)
    )
    return {
        "name": name,
        "episodes": len(report["episodes"]),
        "succeeded": sum(bool(each["success"]) for each in report["episodes"]),
        "chunks": report["chunks"],
        **{f"{each} ms": answers[each] for each in ("p50", "p95", "p99")},
        "inference p50": report["inference_ms"]["p50"],
        "holds": sum(count for reason, count in holds.items() if reason.startswith("policy_")),
        "reasons": ", ".join(f"{reason} {count}" for reason, count in sorted(holds.items()) if reason) or "none",
        "kB/s": round(int(recording.diagnostics["sent_bytes_per_second"]) / 1e3),
        "packets": packets,
        "lost": link.counts["lost"],
        "real_time": report["real_time_factor"],
    }


def measure(options: argparse.Namespace) -> int:
    """Run the demo twice in this namespace; print the table, write the JSON."""
    _ip("link", "set", "lo", "up", "multicast", "on")
    _ip("route", "add", "multicast", "224.0.0.0/4", "dev", "lo")
    link, kept = LossyLink(), options.output
    scratch = Path(kept or tempfile.mkdtemp(prefix="network_"))
    try:
        with server(options, link) as url:
            rows = [run(url, options, "as it is", link, scratch / "direct")]
            link.delay, link.jitter = options.round_trip / 2e3, options.jitter / 2e3
            link.loss = options.loss / 100
            name = f"{options.round_trip:g} ± {options.jitter:g} ms, {options.loss:g} % lost"
            rows.append(run(url, options, name, link, scratch / "impaired"))
    finally:
        if not kept:
            shutil.rmtree(scratch)
    shares = [row["succeeded"] / max(row["episodes"], 1) for row in rows]
    promises = [
        results.Promise("success through the network, share of that without", shares[1] / max(shares[0], 1e-9), 0.95,
                        at_most=False),
        results.Promise("answers through the network, p99 ms", rows[1]["p99 ms"], P99_MS),
    ]  # fmt: skip
    return results.finish(rows, promises, options.json)


def main() -> int:
    """Enter namespaces of the own and measure there; exit code 1 where a promise does not hold."""
    parser = results.parser(__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--duration", type=float, default=120.0, help="s of each run")
    parser.add_argument("--seed", type=int, default=7, help="of layouts and noise")
    parser.add_argument("--round-trip", type=float, default=80.0, help="ms")
    parser.add_argument("--jitter", type=float, default=20.0, help="ms by which a round trip varies, more or less")
    parser.add_argument("--loss", type=float, default=2.0, help="percent of the packets of each direction")
    parser.add_argument("--checkpoint", default="", help="folder or hub id (default: the shipped policy)")
    parser.add_argument("--device", default="cpu", help="of the policy")
    parser.add_argument("--output", default="", help="folder that keeps films and reports")
    options = parser.parse_args()
    if os.environ.get(INSIDE):
        return measure(options)
    if missing := [name for name in ("unshare", "ip") if shutil.which(name) is None]:
        raise SystemExit(f"needs {', '.join(missing)} (util-linux, iproute2)")
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, *sys.argv]
    return subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
