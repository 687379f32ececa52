# SPDX-License-Identifier: Apache-2.0
"""Run in LIBERO's interpreter: an episode's beginning and some actions by LIBERO's own environment, drawing always.

``python libero_reference.py SUITE TASK INIT_STATE SEED PIXELS ACTIONS.npy RESULT.npz``
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

suite, task, init_state, seed, pixels, actions, result = sys.argv[1:]

from libero.libero import benchmark, get_libero_path  # noqa: E402
from libero.libero.envs import OffScreenRenderEnv  # noqa: E402

tasks = benchmark.get_benchmark_dict()[suite]()
chosen = tasks.get_task(int(task))
file = Path(get_libero_path("bddl_files"), chosen.problem_folder, chosen.bddl_file)
env = OffScreenRenderEnv(bddl_file_name=str(file), camera_heights=int(pixels), camera_widths=int(pixels))
env.seed(int(seed))
env.reset()
env.set_init_state(tasks.get_task_init_states(int(task))[int(init_state)])
for _ in range(10):
    seen, *_ = env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
env.robots[0].controller.use_delta = False
found = {"first": seen["agentview_image"], "wrist": seen["robot0_eye_in_hand_image"]}
for action in np.load(actions):
    seen, *_ = env.step(action)
found["last"] = seen["agentview_image"]
found["position"] = seen["robot0_eef_pos"]
found["qpos"] = np.array(env.sim.data.qpos)
np.savez(result, **found)
