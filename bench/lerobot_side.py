"""LeRobot's half of lerobot_parity.py; runs in an environment that has lerobot 0.4.4, and knows nothing of xvla_ros.

    python lerobot_side.py FOLDER INPUTS.npz ANSWER.npz [SAVE_TO]

Loads the checkpoint, and, with SAVE_TO, trains it for a few steps with LeRobot's own loss and saves it there. Then
answers the inputs.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import torch

STEPS, RATE = 3, 1e-3


# Lives as long as its definitions shall.
OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def prepare_imports() -> None:
    """Make X-VLA importable alone: its package imports every policy's dependencies, torchvision its compiled ops."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    warnings.filterwarnings("ignore")
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    spec = importlib.util.find_spec("lerobot")
    if spec is None or spec.origin is None:
        sys.exit("lerobot is not installed in this environment")
    package = types.ModuleType("lerobot.policies")
    package.__path__ = [str(Path(spec.origin).parent / "policies")]
    sys.modules["lerobot.policies"] = package


def main(folder: str, inputs: str, answer: str, save_to: str | None) -> None:
    prepare_imports()
    import lerobot.policies.xvla.processor_xvla  # noqa: F401  registers its steps
    from lerobot.policies.xvla.modeling_xvla import XVLAPolicy
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

    given = np.load(inputs)
    policy = XVLAPolicy.from_pretrained(folder)
    before = PolicyProcessorPipeline.from_pretrained(
        folder, "policy_preprocessor.json", overrides={"tokenizer_processor": {"tokenizer_name": folder}}
    )
    after = PolicyProcessorPipeline.from_pretrained(
        folder, "policy_postprocessor.json", to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )  # fmt: skip
    batch = {"observation.state": torch.from_numpy(given["state"]), "task": str(given["instruction"])}
    for key in given.files:
        if key.startswith("observation.images."):
            batch[key] = torch.from_numpy(given[key]).permute(2, 0, 1).float() / 255
    batch = before(batch)
    if save_to is not None:
        train(policy, batch, given["target"])
        policy.save_pretrained(save_to)
        before.save_pretrained(save_to, config_filename="policy_preprocessor.json")
        after.save_pretrained(save_to, config_filename="policy_postprocessor.json")
    noise, drawn = torch.from_numpy(given["noise"]), torch.randn
    # LeRobot ignores the noise it is given.
    torch.randn = lambda *size, **named: noise.clone() if size == tuple(noise.shape) else drawn(*size, **named)
    np.savez(answer, actions=after(policy.predict_action_chunk(batch)).numpy()[0])


def train(policy: torch.nn.Module, batch: dict[str, torch.Tensor], target: np.ndarray) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE)
    policy.train()
    for _ in range(STEPS):
        loss, _ = policy({**batch, "action": torch.from_numpy(target)[None]})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main(*sys.argv[1:4], sys.argv[4] if len(sys.argv) > 4 else None)
