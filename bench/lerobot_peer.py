# SPDX-License-Identifier: Apache-2.0
"""Our end of the pipe to LeRobot: same checkpoint, same frames, same noise, its own interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.errors import XvlaError
from xvla_ros.types import Observation

PYTHON_VARIABLE = "XVLA_LEROBOT_PYTHON"
SERVER = Path(__file__).with_name("lerobot_server.py")
HOW_TO_INSTALL = f"""\
LeRobot needs another transformers than we do, so it lives in an environment of its own:
  python3 -m venv PEER && PEER/bin/pip install torch==2.13.0
  PEER/bin/pip install --no-deps lerobot==0.4.4 torchvision==0.28.0
  PEER/bin/pip install transformers==4.57.6 datasets==4.1.1 gymnasium==1.4.0 draccus==0.10.0 jsonlines deepdiff \\
    accelerate av diffusers einops imageio opencv-python-headless cmake pynput pyserial wandb termcolor
or, on Python 3.12:
  python3.12 -m venv PEER && PEER/bin/pip install torch==2.13.0
  PEER/bin/pip install --no-deps lerobot==0.6.1 torchvision==0.28.0
  PEER/bin/pip install transformers==5.5.4 "datasets<5,>=4.8" "pandas<3" jsonlines gymnasium draccus==0.11.6 "av<16" \\
    accelerate deepdiff "einops<0.9" "Pillow<13" opencv-python-headless termcolor tqdm requests
then name its interpreter: export {PYTHON_VARIABLE}=PEER/bin/python"""


class PeerError(XvlaError, RuntimeError):
    """LeRobot is not there, or did not answer; the message says what to do or what it said."""


@dataclass(frozen=True)
class PeerAnswer:
    """What LeRobot answered.

    Attributes:
        actions: float32 [B, T, width], in the policy's units.
        seconds: from frames to actions, processors included.
        processor_seconds: the same of all its processors together.
        network_seconds: from prepared tensors to raw actions.
    """

    actions: NDArray[np.float32]
    seconds: float
    processor_seconds: float
    network_seconds: float


class LeRobotPeer:
    """A process that has a checkpoint loaded in LeRobot; it does nothing while it is not asked.

    Args:
        folder: of the checkpoint, as ``checkpoint.save`` writes it.
        python: interpreter with lerobot 0.4.4 or 0.6.1; empty takes that of the environment variable.
        device: as torch names it.
        threads: of torch.

    Raises:
        PeerError: if there is no such interpreter or it cannot load the checkpoint.
    """

    def __init__(self, folder: Path, python: str = "", *, device: str = "cpu", threads: int = 1) -> None:
        command = [_interpreter(python), str(SERVER), str(folder), device, str(threads)]
        # our own packages would be found before its
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._folder = tempfile.TemporaryDirectory(prefix="xvla-peer-")
        self._errors = Path(self._folder.name) / "errors.txt"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
        try:
            said = self._read()
            self.parameters, self.version = int(said["parameters"]), str(said["version"])
        except BaseException:
            self.close()
            raise

    def look(self, observations: Sequence[Observation]) -> None:
        """Say what the next answers are about. Robots must have the same cameras, all present."""
        first = observations[0]
        images = {
            f"observation.images.{slot}": np.stack([each.images[slot] for each in observations])
            for slot in first.embodiment.slots
        }
        path = self._path("inputs.npz")
        np.savez(
            path, state=np.stack([each.state for each in observations]),
            instruction=np.array([each.instruction for each in observations]), **images,
        )  # fmt: skip
        self._ask("look", inputs=path)

    def answer(self, noise: ArrayLike, steps: int) -> PeerAnswer:
        """Answer what was looked at, from noise float32 [B, T, D]."""
        given, found = self._path("noise.npy"), self._path("actions.npy")
        np.save(given, np.asarray(noise, dtype=np.float32))
        said = self._ask("answer", noise=given, steps=steps, actions=found)
        return PeerAnswer(np.load(found), **said)

    def train(self, target: ArrayLike, save_to: Path) -> None:
        """Train a few steps towards chunks [B, T, width] and save with LeRobot's own code."""
        given = self._path("target.npy")
        np.save(given, np.asarray(target, dtype=np.float32))
        self._ask("train", target=given, save_to=str(save_to))

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> LeRobotPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _path(self, name: str) -> str:
        return str(Path(self._folder.name) / name)

    def _ask(self, what: str, **fields: Any) -> dict[str, Any]:
        if self._process.stdin is None:
            raise PeerError("LeRobot's process has no pipe")
        try:
            self._process.stdin.write(json.dumps({"do": what, **fields}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise self._ended()
        said: dict[str, Any] = json.loads(line)
        return said

    def _ended(self) -> PeerError:
        self._process.wait()
        said = self._errors.read_text(errors="replace").strip()
        if "No module named" in said or "lerobot is not installed" in said:
            return PeerError(f"LeRobot cannot start: {said.splitlines()[-1]}\n{HOW_TO_INSTALL}")
        return PeerError(f"LeRobot ended with exit code {self._process.returncode}:\n{said}")


def _interpreter(named: str) -> str:
    python = named or os.environ.get(PYTHON_VARIABLE, "")
    if not python:
        raise PeerError(f"no interpreter with LeRobot is named, neither by --peer-python nor by {PYTHON_VARIABLE}\n"
                        f"{HOW_TO_INSTALL}")  # fmt: skip
    if not Path(python).is_file():
        raise PeerError(f"{python} is not there, expected a Python interpreter with LeRobot\n{HOW_TO_INSTALL}")
    return python
