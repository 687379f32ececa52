# SPDX-License-Identifier: Apache-2.0
"""Our checkpoints in LeRobot, and LeRobot's here: equal actions for equal noise.

    python bench/lerobot_parity.py [--peer PYTHON]... [--checkpoint DIR] [--json FILE]

PYTHON is the interpreter of an environment with lerobot==0.4.4 or lerobot==0.6.1, which need another transformers than
ours; it may be given for each of several versions. Without it XVLA_LEROBOT_PYTHON names them, separated by colons, and
without that how to make one is said. DIR is any checkpoint of ``xvla train``; without it, an untrained small one is
made. Each LeRobot loads it and answers; then it trains it for three steps, saves it with its own code and answers
again, and we load that. What we save of that, each LeRobot loads and answers.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import results
from numpy.typing import NDArray

LIMIT = 1e-4  # of the largest action
SEED = 3


def untrained(folder: Path) -> Path:
    """Save a small policy of random weights."""
    from xvla_ros.model import checkpoint
    from xvla_ros.model.random_policy import random_policy
    from xvla_ros.types import Embodiment

    pair = Embodiment("pair", 19, "so101_bimanual_bce", ("front", "left", "right"), 0.0333, 0.0333)
    centre, spread = {"pair": np.linspace(-3, 3, 12)}, {"pair": np.linspace(0.5, 40, 12)}
    policy = random_policy(
        [pair], state_mean=centre, state_std=spread, action_mean=centre, action_std=spread, seed=SEED
    )
    checkpoint.save(policy, folder)
    return folder


def compare(pythons: Sequence[str], folder: Path, work: Path) -> list[dict[str, Any]]:
    """Answer with us and each LeRobot, before and after LeRobot's training; a row of the table for each pair."""
    from lerobot_peer import LeRobotPeer

    from xvla_ros.model import checkpoint
    from xvla_ros.types import Observation

    policy = checkpoint.load(folder)
    record = policy.robots[policy.lerobot or next(iter(policy.robots))]
    config, robot, random = policy.network.config, record.embodiment, np.random.default_rng(SEED)
    mode = policy.action_mode(record.embodiment)
    width = record.statistics.state.width or mode.decoded_width
    # Pictures of the network's own size, which neither program resizes: LeRobot has one way to do it, we have two.
    images = {slot: random.integers(0, 256, (*config.image_size, 3), dtype=np.uint8) for slot in robot.slots}
    state = record.statistics.state.denormalise(random.standard_normal(width)).astype(np.float32)
    seen = Observation(robot, 0, images, state, "put the red cube into the box")
    noise = random.standard_normal((1, config.chunk_size, mode.width), dtype=np.float32)
    target = random.standard_normal((1, config.chunk_size, mode.decoded_width), dtype=np.float32)
    steps = config.num_denoising_steps
    theirs: list[tuple[str, str, Path, NDArray[np.float32]]] = []
    trained: dict[str, Path] = {}
    for python in pythons:
        with LeRobotPeer(folder, python) as peer:
            peer.look([seen])
            theirs.append(("ours", f"LeRobot {peer.version}", folder, peer.answer(noise, steps).actions[0]))
            trained[peer.version] = work / f"by_lerobot_{peer.version}"
            peer.train(target, trained[peer.version])
            saved = f"LeRobot {peer.version}'s"
            theirs.append(
                (saved, f"LeRobot {peer.version}", trained[peer.version], peer.answer(noise, steps).actions[0])
            )
    for writer, made in trained.items():
        again = work / f"again_{writer}"
        checkpoint.save(checkpoint.load(made, dtype="float32", assume=checkpoint.PROFILE_STEPS), again)
        for python in pythons:
            with LeRobotPeer(again, python) as peer:
                peer.look([seen])
                saved = f"LeRobot {writer}'s, saved by us"
                theirs.append((saved, f"LeRobot {peer.version}", made, peer.answer(noise, steps).actions[0]))
    rows = []
    for saved, reader, ours, answer in theirs:
        loaded = checkpoint.load(ours, assume=checkpoint.PROFILE_STEPS)
        found = loaded.predict([seen], noise=noise, steps=steps)[0].actions
        name = f"{saved}, in {reader}"
        if found.shape != answer.shape:
            raise SystemExit(f"{name}: actions have shape {found.shape} here and {answer.shape} in LeRobot")
        largest, difference = float(np.abs(answer).max()), float(np.abs(found - answer).max())
        rows.append({"checkpoint": name, "largest action": largest, "difference": difference,
                     "relative": difference / largest})  # fmt: skip
    return rows


def main() -> int:
    parser = results.parser(__doc__)
    parser.add_argument(
        "--peer", action="append", metavar="PYTHON", help="interpreter with lerobot; may be given again"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="of xvla train (default: an untrained one)")
    options = parser.parse_args()
    peers = options.peer or os.environ.get("XVLA_LEROBOT_PYTHON", "").split(":")
    with tempfile.TemporaryDirectory() as work:
        folder = options.checkpoint or untrained(Path(work) / "untrained")
        rows = compare(peers, folder, Path(work))
    promises = [results.Promise(f"{row['checkpoint']}: relative difference", row["relative"], LIMIT) for row in rows]
    return results.finish(rows, promises, options.json)


if __name__ == "__main__":
    sys.exit(main())
