# SPDX-License-Identifier: Apache-2.0
"""How fast recordings are replayed without the model, and how much memory an hour of them takes.

    python bench/replay.py [--minutes 10] [--hours 1] [--json FILE]

A pair of arms with three 640x480 JPEG cameras at 30 Hz, joints at 50 Hz, and commands is replayed with ``--every 10
--baseline``: read, checked, built and measured as with a policy, which is left out. Only the pictures of the frames
that are used are decoded. ``--hours 0`` leaves the long bag out; its pictures are small, so that it fits on a
disk: what could pile up is how many messages there are.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import results
import samples

EVERY, LEAST_SPEED = 10, 10.0
MOST_GROWTH = 60.0  # MB; joints and what was followed of the commands are held as numbers, the pictures are not
PICTURES = 12  # different ones of each camera
JOINT_RATE, COMMAND_RATE = 50, 10


def write_bag(path: Path, seconds: float, shrink: int = 1) -> None:
    """Write a bag as long as wanted, message by message; ``shrink`` takes every so many pixels of its pictures."""
    from xvla_ros.recordings import cdr
    from xvla_ros.recordings.bag_writer import BagWriter
    from xvla_ros.robots.profile import Profile, load_profile, profile_document

    settings = load_profile("so101_bimanual")["so101_bimanual"].to_mapping()
    settings["instruction"] = "put the cube in the bowl"
    for slot in settings["cameras"]["slots"]:
        settings["cameras"][slot]["transport"] = "compressed"
    profile = Profile.from_mapping("so101_bimanual", settings)
    encoded = {
        slot: [
            cdr.compressed_image(0, samples._picture(number, index)[::shrink, ::shrink]) for number in range(PICTURES)
        ]
        for index, slot in enumerate(profile.cameras.slots)
    }
    groups = {name: profile.commands.by_name[name] for name in profile.commands.groups}
    with BagWriter(path, profile_document([profile]), stamp_ns=samples.START) as bag:
        for frame in range(int(seconds * samples.RATE)):
            begin, end = frame / samples.RATE, (frame + 1) / samples.RATE
            for tick in range(int(np.ceil(begin * JOINT_RATE)), int(np.ceil(end * JOINT_RATE))):
                _write_joints(bag, profile, groups, tick)
            stamp = samples.START + round(begin * 1e9)
            for slot in profile.cameras.slots:
                bag.write(
                    profile.cameras.by_name[slot].topic,
                    cdr.COMPRESSED_IMAGE,
                    stamp,
                    _stamped(encoded[slot][frame % PICTURES], stamp),
                )


def _write_joints(bag: Any, profile: Any, groups: dict[str, Any], tick: int) -> None:
    from xvla_ros.recordings import cdr

    at = tick / JOINT_RATE
    stamp = samples.START + round(at * 1e9)
    for group in groups.values():
        names = [profile.joints.by_name[joint].name for joint in group.joints]
        topic = profile.joints.by_name[group.joints[0]].topic
        bag.write(topic, cdr.JOINT_STATE, stamp, cdr.joint_state(stamp, names, samples._joints(at)))
        if tick % (JOINT_RATE // COMMAND_RATE) == 0:
            ahead = np.stack([samples._joints(at + 0.05 * k) for k in range(1, 11)])
            message = cdr.joint_trajectory(0, names, np.arange(1, 11) * 50_000_000, ahead)
            bag.write(group.topic, cdr.JOINT_TRAJECTORY, stamp, message)


def _stamped(message: bytes, stamp: int) -> bytes:
    """A message with another stamp: the two words behind the encapsulation (CDR, little endian)."""
    words = np.array([stamp // 10**9, stamp % 10**9], dtype="<u4").tobytes()
    return message[:4] + words + message[12:]


def replayed(bag: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """Replay in a process of its own and watch its memory: one row of the table."""
    command = [
        sys.executable,
        "-m",
        "xvla_ros",
        "replay",
        str(bag),
        "--baseline",
        "--every",
        str(EVERY),
        "--output",
        str(folder),
    ]
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    memory: list[tuple[float, float]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            try:
                memory.append((time.monotonic() - begun, watched.memory_info().rss / 1e6))
            except psutil.NoSuchProcess:
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    _, status, used = _wait(process)
    ended.set()
    watcher.join()
    if status:
        raise SystemExit(f"the replay of {bag} failed with exit code {status}")
    wall = time.monotonic() - begun
    return {
        "name": f"{seconds / 60:.0f} minutes",
        "MB of bag": bag.stat().st_size / 1e6,
        "s": wall,
        "s of processor": used,
        "times real time": seconds / wall,
        "times real time by processor": seconds / used,
        "MB at most": max(value for _, value in memory),
    }


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int, float]:
    import os

    pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return pid, process.returncode, usage.ru_utime + usage.ru_stime


def main() -> int:
    parser = results.parser(__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of the first bag (default 10)")
    parser.add_argument("--hours", type=float, default=1.0, help="of the long bag (default 1; 0 leaves it out)")
    parser.add_argument("--folder", type=Path, help="for the bags (default: a temporary one)")
    options = parser.parse_args()
    rows, promises = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, seconds, shrink in (
            ("real", options.minutes * 60, 1),
            ("tenth", options.hours * 360, 10),
            ("long", options.hours * 3600, 10),
        ):
            if not seconds:
                continue
            bag = Path(folder) / f"{name}.mcap"
            print(f"writing {seconds / 60:.0f} minutes …", flush=True)
            write_bag(bag, seconds, shrink)
            rows.append(replayed(bag, Path(folder) / name, seconds))
            bag.unlink()
    if options.minutes:
        # time of the processor, so that other work on the machine does not count
        promises.append(
            results.Promise(
                f"replay of {rows[0]['name']} without the model, in times of real time, by time of the processor",
                rows[0]["times real time by processor"],
                LEAST_SPEED,
                at_most=False,
            )
        )
    if options.hours:
        growth = rows[-1]["MB at most"] - rows[-2]["MB at most"]
        promises.append(results.Promise("MB that an hour takes more than six minutes of it", growth, MOST_GROWTH))
    return results.finish(rows, promises, options.json)


if __name__ == "__main__":
    sys.exit(main())
