# SPDX-License-Identifier: Apache-2.0
"""How many training samples a second come out of recordings, the first time and from the cache.

    python bench/samples.py [--seconds 20] [--json FILE]

Records a pair of arms with three 640x480 JPEG cameras at 30 Hz to a temporary bag, opens it (decoding and resizing
every picture once), opens it again, and draws: plain, augmented, and as tensors of the network. Times are those of the
processor in this one process, so that other work on the machine does not count; training prepares samples in several.

What a step needs: the published network sees three views of 224x224; forward and backward of one sample are about
3 · (3 · 162 + 31 + 165) GF = 2.0 TF, of which an H100 does 200 a second at 40 % of its bfloat16 peak.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import results

SIZE, RATE, NEED = (480, 640), 30.0, 200.0
NETWORK = (224, 224)
DRAWS, WAYPOINTS = 400, 30
START = 1_700_000_000_000_000_000


def write_bag(path: Path, seconds: float) -> Any:
    """Record cameras, joints and commands; return the profile."""
    from xvla_ros.recordings import cdr
    from xvla_ros.recordings.bag_writer import BagWriter
    from xvla_ros.robots.profile import Profile, load_profile, profile_document

    settings = load_profile("so101_bimanual")["so101_bimanual"].to_mapping()
    settings["instruction"] = "put the cube in the bowl"
    for slot in settings["cameras"]["slots"]:
        settings["cameras"][slot]["transport"] = "compressed"
    profile = Profile.from_mapping("so101_bimanual", settings)
    messages = []
    for number, slot in enumerate(profile.cameras.slots):
        topic = profile.cameras.by_name[slot].topic
        for frame in range(int(seconds * RATE)):
            stamp = START + round(frame / RATE * 1e9)
            picture = cdr.compressed_image(stamp, _picture(frame, number))
            messages.append((stamp, topic, cdr.COMPRESSED_IMAGE, picture))
    for group in profile.commands.groups:
        joints = profile.commands.by_name[group].joints
        names = [profile.joints.by_name[joint].name for joint in joints]
        topic = profile.joints.by_name[joints[0]].topic
        for tick in range(int(seconds * 50)):
            at = tick / 50
            stamp = START + round(at * 1e9)
            messages.append((stamp, topic, cdr.JOINT_STATE, cdr.joint_state(stamp, names, _joints(at))))
            if tick % 2 == 0:
                path_ahead = np.stack([_joints(at + 0.05 * k) for k in range(1, 11)])
                command = cdr.joint_trajectory(0, names, np.arange(1, 11) * 50_000_000, path_ahead)
                messages.append((stamp, profile.commands.by_name[group].topic, cdr.JOINT_TRAJECTORY, command))
    with BagWriter(path, profile_document([profile]), stamp_ns=START) as bag:
        for stamp, topic, kind, data in sorted(messages, key=lambda message: message[0]):
            bag.write(topic, kind, stamp, data)
    return profile


def _joints(seconds: float) -> np.ndarray:
    return 0.6 * np.sin(seconds + np.arange(6))


def _picture(frame: int, camera: int) -> np.ndarray:
    """A scene with edges and noise, so that it costs what a camera's picture costs."""
    height, width = SIZE
    rows, columns = np.mgrid[0:height, 0:width]
    scene = np.stack([rows * 255 // height, columns * 255 // width, ((rows + columns + 9 * frame) // 40 % 2) * 180], -1)
    noise = np.random.default_rng([frame, camera]).integers(0, 12, (height, width, 1))
    return (scene + noise).clip(0, 255).astype(np.uint8)


def timed(name: str, count: int, action: Callable[[], object]) -> dict[str, Any]:
    """One row of the table."""
    wall, used = time.monotonic(), time.process_time()
    action()
    wall, used = time.monotonic() - wall, time.process_time() - used
    return {
        "name": name,
        "samples": count,
        "samples/s of processor": count / used,
        "samples/s": count / wall,
        "ms of processor": used / count * 1e3,
    }


def measure(folder: Path, seconds: float) -> list[dict[str, Any]]:
    """Write the bag and take every row."""
    import torch

    from xvla_ros.model.inputs.processor import Processor
    from xvla_ros.model.random_policy import random_policy
    from xvla_ros.training.config import Augmentation, DatasetSettings
    from xvla_ros.training.data.datasets import open_datasets
    from xvla_ros.training.data.samples import Samples

    torch.set_num_threads(1)
    bag = folder / "bag.mcap"
    print("recording …", flush=True)
    profile = write_bag(bag, seconds)
    plain, colours = Augmentation(), Augmentation(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02, shift=0.02)
    opened: dict[str, Samples] = {}

    def open_with(name: str, augmentation: Augmentation) -> None:
        opened[name] = open_datasets(
            [DatasetSettings(paths=(str(bag),))],
            waypoints=WAYPOINTS,
            image_size=NETWORK,
            cache=folder / "cache",
            augmentation=augmentation,
        )

    count = int(seconds * RATE)
    rows = [
        timed("bag to cache, first time", count, lambda: open_with("plain", plain)),
        timed("cache opened again", count, lambda: open_with("coloured", colours)),
    ]
    robot = profile.embodiment()
    zero, one = {robot.robot: [0.0] * 12}, {robot.robot: [1.0] * 12}
    policy = random_policy([robot], state_mean=zero, state_std=one, action_mean=zero, action_std=one, size="small")
    config = replace(policy.network.config, image_size=NETWORK, max_len_seq=512)
    processor = Processor(config, policy.processor.tokenizer)
    drawn = [opened["plain"].draw(index) for index in range(DRAWS)]
    for name, source in (("drawn from the cache", "plain"), ("drawn and augmented", "coloured")):
        rows.append(timed(name, DRAWS, lambda source=source: [opened[source].draw(i) for i in range(DRAWS)]))
    rows.append(
        timed(
            "made into tensors",
            DRAWS,
            lambda: [
                processor.batch([sample.observation() for sample in drawn[i : i + 16]]) for i in range(0, DRAWS, 16)
            ],
        )
    )
    return rows


def main() -> int:
    parser = results.parser(__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of the recording (default 20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.seconds)
    by_name = {row["name"]: row["ms of processor"] for row in rows}
    whole = 1e3 / (by_name["drawn and augmented"] + by_name["made into tensors"])
    promises = [
        results.Promise(
            "samples a second of one core, drawn, augmented and made into tensors, over what an H100 takes",
            whole / NEED,
            1.0,
            at_most=False,
        ),
        results.Promise(
            "bag to cache, first time, in times of the recording",
            rows[0]["samples/s of processor"] / RATE,
            1.0,
            at_most=False,
        ),
    ]
    return results.finish(rows, promises, options.json)


if __name__ == "__main__":
    sys.exit(main())
