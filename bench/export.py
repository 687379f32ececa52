# SPDX-License-Identifier: Apache-2.0
"""How long it takes to write a LeRobot data set of a gigabyte of bags.

    python bench/export.py [--megabytes 100] [--jobs 2] [--codecs h264 av1] [--json FILE]

Two kinds of bags, as many of each as make up the megabytes: demonstrations in simulation with three cameras of 256x256
pixels (small pictures: the most work a byte), and a pair of arms with three cameras of 640x480 pixels at 30 Hz, both as
JPEG. What is written is read back: every state and action must be that of the bag to the bit, and of the pictures the
mean difference is given, in levels of 256. The promise counts the time of the processor, in all processes, over two
cores, so that other work on the machine does not count.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import results
import samples

CORES, LIMIT = 2, 300.0  # s a gigabyte, on so many cores
DEMONSTRATIONS, SECONDS = 8, 6.0


def demonstrations(folder: Path) -> list[Path]:
    """Record a few."""
    from xvla_ros.robots.profile import load_robot
    from xvla_ros.simulation.demonstrations import DemoSettings, record_all

    settings = DemoSettings(load_robot("so101_bimanual"), "touch", 0, 2, 20.0, 256, 256, 1.0, 1.0)
    return [found.path for found in record_all(settings, DEMONSTRATIONS, folder, 1) if found is not None]


def pair(folder: Path) -> list[Path]:
    """Record one bag."""
    folder.mkdir()
    samples.write_bag(folder / "pair.mcap", SECONDS)
    return [folder / "pair.mcap"]


def processor() -> float:
    """Return the seconds that this process and those it started took of the processor."""
    told = os.times()
    return told.user + told.system + told.children_user + told.children_system


def copies(bags: list[Path], megabytes: float) -> list[Path]:
    """Return the bags, copied until they are so large."""
    size, found = 0, []
    while size < megabytes * 1e6:
        for bag in bags:
            copy = bag.with_name(f"copy_{len(found):04d}.mcap")
            shutil.copyfile(bag, copy)
            found.append(copy)
            size += copy.stat().st_size
    return found


def compared(folder: Path, bags: list[Path]) -> tuple[int, float]:
    """Return how many frames differ from those of the bags in state or action, and the mean error of pictures."""
    from xvla_ros.recordings.bag_recording import BagRecording
    from xvla_ros.recordings.lerobot_mapping import profile_of_data_set
    from xvla_ros.recordings.lerobot_recording import LeRobotRecording
    from xvla_ros.recordings.recording import Frame

    profile = profile_of_data_set(folder)
    ours = LeRobotRecording(folder, profile)
    survey = ours.survey()
    written = ours.frames(survey)
    differ, errors = 0, []
    for bag in bags:
        recording = BagRecording(bag, profile)
        episodes = recording.survey()
        for frame in recording.frames(episodes):
            if not isinstance(frame, Frame):
                continue
            found = next(written)
            actions = [
                told.episodes[each.episode].path.at([each.stamp]) for told, each in ((episodes, frame), (survey, found))
            ]
            differ += not (np.array_equal(frame.state, found.state) and np.array_equal(*actions))
            errors += [
                float(np.abs(picture.astype(np.float32) - found.images[slot]).mean())
                for slot, picture in frame.images.items()
            ]
    return differ, float(np.mean(errors))


def measure(name: str, bags: list[Path], codec: str, jobs: int, output: Path) -> dict[str, Any]:
    """One row of the table."""
    from xvla_ros.recordings.lerobot_encoding import ExportOptions
    from xvla_ros.recordings.lerobot_export import export

    size, begun, used = sum(bag.stat().st_size for bag in bags), time.monotonic(), processor()
    found = export(bags, output, ExportOptions(codec=codec, jobs=jobs, threads=1), lambda what, done, total: None)
    seconds, used = time.monotonic() - begun, processor() - used
    few = bags[:DEMONSTRATIONS]
    differ, error = compared(output, few)
    written = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    shutil.rmtree(output)
    return {
        "name": f"{name}, {codec}",
        "MB of bags": size / 1e6,
        "pictures": found.frames * len(found.cameras),
        "s": seconds,
        "s of processor": used,
        "s of 2 cores a GB": used / CORES / size * 1e9,
        "ms a picture": used / (found.frames * len(found.cameras)) * 1e3,
        "MB written": written / 1e6,
        "off by": error,
        "frames that differ": differ,
    }


def main() -> int:
    parser = results.parser(__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=100.0, help="of bags of each kind (default 100)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--codecs", nargs="+", default=["h264", "h264-444", "av1"], help="to try (default all)")
    options = parser.parse_args()
    rows, promises = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = (("256x256", demonstrations(folder / "demos")), ("640x480", pair(folder / "pair")))
        for kind, recorded in kinds:
            bags = copies(recorded, options.megabytes)
            rows += [measure(kind, bags, codec, options.jobs, folder / "set") for codec in options.codecs]
            for bag in bags:
                bag.unlink()
    for row in rows:
        promises.append(results.Promise(f"frames that differ, {row['name']}", row["frames that differ"], 0))
        if "h264" in row["name"]:
            told = f"s of two cores a gigabyte of bags, {row['name']}"
            promises.append(results.Promise(told, row["s of 2 cores a GB"], LIMIT))
    return results.finish(rows, promises, options.json)


if __name__ == "__main__":
    sys.exit(main())
