# SPDX-License-Identifier: Apache-2.0
"""LeRobot's X-VLA behind a pipe. Runs in an environment that has lerobot (0.4.4, 0.6.1), and knows nothing of xvla_ros.

    python lerobot_server.py FOLDER DEVICE THREADS

Loads the checkpoint, then reads a request a line from stdin and answers each by a line, both JSON:

    {"do": "look", "inputs": FILE.npz}
        what the next answers are about: images [B, H, W, 3] uint8, state [B, P], instruction [B]
    {"do": "answer", "noise": FILE.npy, "steps": N, "actions": FILE.npy}
        writes the chunks [B, T, width]; says the seconds
    {"do": "train", "target": FILE.npy, "save_to": FOLDER}
        a few steps of LeRobot's own training, saved by its own code
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

STEPS, RATE = 3, 1e-3
IMAGE_PREFIX = "observation.images."

# Lives as long as its definitions shall.
OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def prepare_imports() -> None:
    """Make X-VLA importable alone: its package imports every policy's dependencies, torchvision its compiled ops."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    warnings.filterwarnings("ignore")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # built for CUDA, beside a torch that is not: its operators are never called here
        for name in [each for each in sys.modules if each.startswith("torchvision")]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    spec = importlib.util.find_spec("lerobot")
    if spec is None or spec.origin is None:
        sys.exit("lerobot is not installed in this environment")
    package = types.ModuleType("lerobot.policies")
    package.__path__ = [str(Path(spec.origin).parent / "policies")]
    sys.modules["lerobot.policies"] = package


class Server:
    """A loaded checkpoint with LeRobot's processors around it."""

    def __init__(self, folder: str, device: str) -> None:
        import lerobot.policies.xvla.processor_xvla  # noqa: F401  registers its steps
        from lerobot.policies.xvla.modeling_xvla import XVLAPolicy
        from lerobot.processor import PolicyProcessorPipeline
        from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

        self.device = torch.device(device)
        self.policy = XVLAPolicy.from_pretrained(folder).to(self.device).eval()
        self.before = PolicyProcessorPipeline.from_pretrained(
            folder, "policy_preprocessor.json",
            overrides={"tokenizer_processor": {"tokenizer_name": folder}, "device_processor": {"device": device}},
        )  # fmt: skip
        self.after = PolicyProcessorPipeline.from_pretrained(
            folder, "policy_postprocessor.json", to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        )  # fmt: skip
        self._pair_up()
        self.seen: dict[str, Any] = {}

    def look(self, inputs: str) -> dict[str, Any]:
        given = np.load(inputs)
        self.seen = {key: given[key] for key in given.files}
        return {}

    def answer(self, noise: str, steps: int, actions: str) -> dict[str, Any]:
        start, drawn = torch.from_numpy(np.load(noise)).to(self.device), torch.randn
        self.policy.config.num_denoising_steps = steps

        def given_noise(*size: int, **named: Any) -> torch.Tensor:
            return start.to(named.get("dtype")) if size == tuple(start.shape) else drawn(*size, **named)

        # LeRobot ignores the noise it is given.
        torch.randn = given_noise
        try:
            self._wait()
            begun, spent = time.perf_counter(), time.process_time()
            batch = self.before(self._batch())
            self._wait()
            ready = time.perf_counter()
            raw = self.policy.predict_action_chunk(batch)
            self._wait()
            answered = time.perf_counter()
            found = self.after(raw).float().cpu().numpy()
            ended, all_spent = time.perf_counter(), time.process_time()
        finally:
            torch.randn = drawn
        np.save(actions, found)
        return {
            "seconds": ended - begun, "processor_seconds": all_spent - spent, "network_seconds": answered - ready,
        }  # fmt: skip

    def train(self, target: str, save_to: str) -> dict[str, Any]:
        batch = self.before(self._batch())
        batch["action"] = torch.from_numpy(np.load(target)).to(self.device)
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(self.policy.parameters(), lr=RATE)
        self.policy.train()
        for _ in range(STEPS):
            loss, _ = self.policy(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        self.policy.eval()
        self.policy.save_pretrained(save_to)
        self.before.save_pretrained(save_to, config_filename="policy_preprocessor.json")
        self.after.save_pretrained(save_to, config_filename="policy_postprocessor.json")
        return {}

    def _pair_up(self) -> None:
        """Give the step that adds the state the one that keeps it, as LeRobot's own factory does."""
        keeping = [step for step in self.before.steps if hasattr(step, "get_cached_state")]
        for step in self.after.steps:
            if hasattr(step, "relative_step"):
                step.relative_step = keeping[0]

    def _batch(self) -> dict[str, Any]:
        batch: dict[str, Any] = {"observation.state": torch.from_numpy(self.seen["state"])}
        batch["task"] = [str(each) for each in self.seen["instruction"]]
        for key, value in self.seen.items():
            if key.startswith(IMAGE_PREFIX):
                batch[key] = torch.from_numpy(value).permute(0, 3, 1, 2).float() / 255
        return batch

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main(folder: str, device: str, threads: int) -> None:
    # Whatever a library prints must not reach the pipe.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    prepare_imports()
    server = Server(folder, device)
    parameters = sum(each.numel() for each in server.policy.parameters())
    said = {"parameters": parameters, "version": importlib.metadata.version("lerobot")}
    print(json.dumps(said), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(server, request.pop("do"))(**request)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
