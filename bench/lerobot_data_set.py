# SPDX-License-Identifier: Apache-2.0
"""LeRobot reads a data set and trains on it; run by its own interpreter, 0.4.4 or 0.6.1.

PYTHON bench/lerobot_data_set.py read FOLDER FILE.npz    # states, actions, tasks, and one picture in seven
PYTHON bench/lerobot_data_set.py train FOLDER RUN        # a small ACT, two steps
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torchvision

EVERY = 7  # frames of which one's pictures are kept
STEPS = 2


class VideoReader:
    """What LeRobot 0.4.4 asks torchvision for, which newer ones no longer have: frames of a video by PyAV."""

    def __init__(self, path: str, stream: str) -> None:
        del stream
        self.container = av.open(path)
        self._frames = self.container.decode(video=0)

    def seek(self, time: float, keyframes_only: bool = False) -> VideoReader:
        del keyframes_only
        self.container.seek(int(time * 1e6), backward=True)
        self._frames = self.container.decode(video=0)
        return self

    def __iter__(self) -> VideoReader:
        return self

    def __next__(self) -> dict[str, Any]:
        frame = next(self._frames)
        picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
        return {"data": picture, "pts": float(frame.pts * frame.time_base)}


def read(folder: str, file: str) -> None:
    """Write what LeRobot gives of every frame."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    fps = json.loads(Path(folder, "meta/info.json").read_text())["fps"]
    ahead = {"action": [step / fps for step in range(4)]}
    data = LeRobotDataset("us/ours", root=folder, video_backend="pyav", delta_timestamps=ahead)
    rows = [data[index] for index in range(len(data))]
    found = {
        "states": np.stack([row["observation.state"].numpy() for row in rows]),
        "actions": np.stack([row["action"][0].numpy() for row in rows]),
        "tasks": np.array([row["task"] for row in rows]),
        "episodes": np.array([int(row["episode_index"]) for row in rows]),
    }
    for key in data.meta.camera_keys:
        found[key] = np.stack([row[key].numpy() for row in rows[::EVERY]])
    np.savez(file, **found)


def train(folder: str, run: str) -> None:
    """Train on it, by LeRobot's own command."""
    from lerobot.scripts.lerobot_train import main

    small = ("chunk_size=8", "n_action_steps=8", "dim_model=32", "dim_feedforward=32", "n_heads=2")
    sys.argv[1:] = [
        "--dataset.repo_id=us/ours",
        f"--dataset.root={folder}",
        "--dataset.video_backend=pyav",
        "--policy.type=act",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--policy.pretrained_backbone_weights=null",
        *(f"--policy.{setting}" for setting in small),
        f"--steps={STEPS}",
        "--batch_size=2",
        "--num_workers=0",
        "--save_checkpoint=false",
        f"--output_dir={run}",
    ]
    main()


if __name__ == "__main__":
    if not hasattr(torchvision.io, "VideoReader"):
        torchvision.io.VideoReader = VideoReader
        torchvision.set_video_backend = lambda name: None
    {"read": read, "train": train}[sys.argv[1]](*sys.argv[2:4])
