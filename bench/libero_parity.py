# SPDX-License-Identifier: Apache-2.0
"""LIBERO here and in LeRobot 0.4.4: the same pictures, the same state, the same actions, step by step.

    python bench/libero_parity.py [--peer PYTHON] [--libero PYTHON] [--goldens DIR] [--tasks SUITE/N,…] [--json FILE]
    python bench/libero_parity.py --checkpoint DIR …

PYTHON of --peer is the interpreter of an environment with lerobot==0.4.4 (else XVLA_LEROBOT_PYTHON), that of --libero
is the one of `make libero` (else as `xvla evaluate` finds it), both of the same Python release. The network is the one
of the golden vectors (DIR, else XVLA_GOLDENS, else shared/goldens in or above the repository), twice: in the files that
LeRobot publishes, and as this package saves it. LeRobot runs its own `rollout`, as lerobot-eval does; its actions are
carried out here too, and at each of its questions our policy is asked with its noise. Each carrying out its own actions
would drift apart: a random network is chaotic in its pictures.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import results

TASKS = "libero_object/0,libero_spatial/2,libero_goal/7"
STEPS, PIXELS = 40, 256
GOLDENS_VARIABLE = "XVLA_GOLDENS"
MODE, WIDTH = "ee6d", 20
# of the tasks above and those like them
WORDS = (
    "pick up the alphabet soup cream cheese salad dressing tomato sauce butter milk ketchup and place it in basket "
    "black bowl from table center on plate between ramekin next to turn stove open drawer of cabinet put wine bottle"
)
POSITION_LIMIT, ROTATION_LIMIT = 1e-5, 1e-5  # m, rad


def find_goldens(named: str = "") -> Path | None:
    """Return the folder of golden vectors: the one named, that of the environment, or the shared one; None without."""
    repository = Path(__file__).resolve().parents[1]
    named = named or os.environ.get(GOLDENS_VARIABLE, "")
    folders = [Path(named)] if named else [each / "shared" / "goldens" for each in (repository, repository.parent)]
    return next((each for each in folders if (each / MODE / "model.safetensors").is_file()), None)


def golden(goldens: Path, folder: Path) -> tuple[Path, Path]:
    """Save the network of the golden vectors with words for LIBERO's tasks and statistics that change nothing.

    Returns:
        It as this package saves it; and its own two files with processors as LeRobot's published checkpoint for LIBERO
        has them, which leave pictures to the environment.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors

    from xvla_ros.evaluation.suites.drivers import ROBOT, embodiment_of
    from xvla_ros.model import checkpoint
    from xvla_ros.model.checkpoint.dialects import read_config
    from xvla_ros.model.checkpoint.pipelines import copy_for_lerobot_eval
    from xvla_ros.model.checkpoint.record import RobotRecord
    from xvla_ros.model.checkpoint.weights import load_network
    from xvla_ros.model.inputs.normalisers import Statistics, mean_std
    from xvla_ros.model.inputs.processor import Processor
    from xvla_ros.model.inputs.words import SPECIAL_TOKENS, Tokenizer
    from xvla_ros.model.policy import Policy
    from xvla_ros.simulation.suites.protocols import LEROBOT

    config = read_config(goldens / MODE / "config.json")
    network = load_network(goldens / MODE, config)
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*SPECIAL_TOKENS, *WORDS.split()]))}
    backend = Backend(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, vocabulary[token]) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    unchanged = Statistics(mean_std(np.zeros(WIDTH), np.ones(WIDTH)), mean_std(np.zeros(WIDTH), np.ones(WIDTH)))
    embodiment = replace(embodiment_of(LEROBOT), image_pipeline=network.config.image_pipeline)
    tokenizer = Tokenizer(backend, network.config.tokenizer_max_length)
    processor = Processor(network.config, tokenizer, {ROBOT: unchanged}, default=unchanged)
    policy = Policy(network, processor, robots={ROBOT: RobotRecord(embodiment, unchanged)})
    saved, published = folder / "saved", folder / "published"
    checkpoint.save(policy, saved)
    copy_for_lerobot_eval(saved, published)
    for name in ("config.json", "model.safetensors"):
        (published / name).unlink()
        shutil.copyfile(goldens / MODE / name, published / name)
    for ours in published.glob("xvla_ros*"):
        ours.unlink()
    return saved, published


def theirs(peer: str, libero: Path, checkpoint: Path, suite: str, task: int, seed: int, work: Path) -> dict[str, Any]:
    """Let LeRobot run the task; return what it saw, drew and did."""
    ask = "import sysconfig, sys; print(sysconfig.get_paths()['purelib'], *sys.version_info[:2])"
    said = [subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.split()
            for python in (peer, str(libero))]  # fmt: skip
    if said[0][1:] != said[1][1:]:
        raise SystemExit(f"LeRobot runs in Python {'.'.join(said[0][1:])} and LIBERO in {'.'.join(said[1][1:])}; "
                         "build both with one Python")  # fmt: skip
    result = work / "theirs.npz"
    given = [checkpoint, suite, task, seed, STEPS, PIXELS, said[1][0], result]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "MUJOCO_GL": "egl", "LP_NUM_THREADS": "0", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
    }  # fmt: skip
    script = Path(__file__).with_name("libero_peer.py")
    done = subprocess.run([peer, script, *map(str, given)], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"LeRobot ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    with np.load(result) as arrays:
        return dict(arrays)


def compare(peer: str, libero: Path, checkpoint: Path, suite: str, task: int, work: Path) -> dict[str, Any]:
    """Run one task in both; a row of the table."""
    from xvla_ros.evaluation.suites.drivers import PolicyDriver, executed, load_suite_policy
    from xvla_ros.model.checkpoint.pipelines import copy_for_lerobot_eval
    from xvla_ros.robots.rotations import axis_angle_to_matrix, matrix_to_axis_angle
    from xvla_ros.simulation.suites.libero import LiberoArena
    from xvla_ros.simulation.suites.protocols import LEROBOT
    from xvla_ros.simulation.suites.suite import Beginning

    copied = work / f"{checkpoint.name}-{suite}-{task}"
    copy_for_lerobot_eval(checkpoint, copied)
    seed = LEROBOT.seed_of(0)
    peers = theirs(peer, libero, copied, suite, task, seed, work)
    protocol = replace(LEROBOT, pixels=PIXELS)
    policy, embodiment = load_suite_policy(str(checkpoint), protocol, dtype="float32")
    noise = iter(peers["noise"])
    asked: list[Any] = []

    def predict(observations: list[Any], prefixes: list[Any]) -> list[Any]:
        asked.extend(observations)
        return policy.predict(observations, noise=next(noise)[None], prefix=prefixes)

    driver = PolicyDriver(predict, embodiment, protocol, executed(protocol, policy))
    arena = LiberoArena(suite, protocol, str(libero))
    found, pictures = [], True
    try:
        sight = arena.begin(Beginning(task, 0, 0, seed))
        driver.begin(arena.tasks[task], 0)
        for index in range(len(peers["noise"])):
            step = len(found)
            pictures = pictures and np.array_equal(sight.images["agentview"], peers["image"][index])
            pictures = pictures and np.array_equal(sight.images["robot0_eye_in_hand"], peers["image2"][index])
            found.extend(driver.actions(sight, step)[: STEPS - step])
            sight = arena.act(peers["actions"][step : len(found)]).sight
    finally:
        arena.close()
    states = np.stack([policy.processor.state(embodiment.robot, each.state) for each in asked])
    ours, other = np.array(found, np.float64), peers["actions"].astype(np.float64)
    turns = axis_angle_to_matrix(ours[:, 3:6]) @ np.swapaxes(axis_angle_to_matrix(other[:, 3:6]), 1, 2)
    return {
        "checkpoint": checkpoint.name,
        "task": f"{suite}/{task}",
        "steps": len(ours),
        "chunks": len(asked),
        "pictures equal": pictures,
        "state differs by": float(np.abs(states - peers["state"]).max()),
        "position m": float(np.abs(ours[:, :3] - other[:, :3]).max()),
        "rotation rad": float(np.linalg.norm(matrix_to_axis_angle(turns), axis=1).max()),
        "gripper flips": int((ours[:, 6] != other[:, 6]).sum()),
    }


def main() -> int:
    parser = results.parser(__doc__)
    parser.add_argument("--peer", default="", metavar="PYTHON", help="interpreter with lerobot==0.4.4")
    parser.add_argument("--libero", default="", metavar="PYTHON", help="LIBERO's interpreter")
    parser.add_argument("--goldens", default="", metavar="DIR", help="folder of golden vectors, with ee6d/")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a checkpoint for LIBERO instead")
    parser.add_argument("--tasks", default=TASKS, metavar="SUITE/N,…")
    options = parser.parse_args()
    from lerobot_peer import HOW_TO_INSTALL, PYTHON_VARIABLE

    from xvla_ros.simulation.suites.libero import find_interpreter

    peer = options.peer or os.environ.get(PYTHON_VARIABLE, "")
    if not peer:
        raise SystemExit(HOW_TO_INSTALL)
    goldens = find_goldens(options.goldens)
    if goldens is None and not options.checkpoint:
        raise SystemExit(
            f"no golden vectors with {MODE}/model.safetensors; name them with --goldens, or a --checkpoint"
        )
    libero = find_interpreter(options.libero)
    rows = []
    with tempfile.TemporaryDirectory() as work:
        checkpoints = (options.checkpoint,) if goldens is None or options.checkpoint else golden(goldens, Path(work))
        for each in options.tasks.split(","):
            suite, _, task = each.partition("/")
            rows += [compare(peer, libero, checkpoint, suite, int(task), Path(work)) for checkpoint in checkpoints]
    promises = [
        results.Promise("tasks whose pictures differ", sum(not row["pictures equal"] for row in rows), 0),
        results.Promise("state", max(row["state differs by"] for row in rows), 0),
        results.Promise("position, m", max(row["position m"] for row in rows), POSITION_LIMIT),
        results.Promise("rotation, rad", max(row["rotation rad"] for row in rows), ROTATION_LIMIT),
        results.Promise("gripper flips", sum(row["gripper flips"] for row in rows), 0),
    ]
    return results.finish(rows, promises, options.json)


if __name__ == "__main__":
    sys.exit(main())
