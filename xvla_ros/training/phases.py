"""How the rate of each group goes over the steps: a plain function of the step, so that a resumed run goes on exactly.

    soft prompts, action rows   ╱‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾╲___
    policy, vision, language    ________╱‾‾‾‾‾‾‾‾‾‾‾‾‾╲___
                                warm-up  ramp  joint, cosine

Source: X-VLA (arXiv 2510.10274), the second phase; the first phase is the case without a prompt warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from xvla_ros.training.config import Optimizer, Schedule
from xvla_ros.training.optim import ACTION_ROWS, GROUPS, OF_DOMAINS, POLICY, SOFT_PROMPTS, VLM

PROMPT_WARMUP, RAMP, JOINT = "prompt warm-up", "ramp", "joint"


def phase(schedule: Schedule, step: int) -> str:
    """Name the phase that ``step`` (from 0) belongs to."""
    if step < schedule.prompt_warmup:
        return PROMPT_WARMUP
    return RAMP if step < schedule.prompt_warmup + schedule.ramp else JOINT


def active_groups(schedule: Schedule, step: int) -> Collection[str]:
    """Name the groups that move in ``step``."""
    return OF_DOMAINS if phase(schedule, step) == PROMPT_WARMUP else GROUPS


def factor(schedule: Schedule, group: str, step: int, steps: int) -> float:
    """The part of its own rate, 0..1, at which ``group`` moves in ``step`` of ``steps``."""
    if group not in active_groups(schedule, step):
        return 0.0
    if group == SOFT_PROMPTS:
        rise = _rise(step, schedule.soft_prompt_warmup, schedule.soft_prompt_warmup_scale)
    elif group == ACTION_ROWS:
        rise = _rise(step, schedule.row_warmup, 0.0)
    else:
        rise = _rise(step - schedule.prompt_warmup, schedule.ramp, 0.0)
    return rise * _decay(schedule, step, steps)


def rate(optimizer: Optimizer, schedule: Schedule, group: str, step: int, steps: int) -> float:
    """Learning rate of ``group`` in ``step`` of ``steps``."""
    scale = {SOFT_PROMPTS: optimizer.soft_prompt_scale, ACTION_ROWS: 1.0, POLICY: 1.0, VLM: optimizer.vlm_scale}
    return optimizer.learning_rate * scale[group] * factor(schedule, group, step, steps)


def _rise(step: int, length: int, low: float) -> float:
    """Straight from ``low`` to 1; the first step is above ``low``, the last of ``length`` at 1."""
    return 1.0 if step + 1 >= length else low + (1.0 - low) * (step + 1) / length


def _decay(schedule: Schedule, step: int, steps: int) -> float:
    start = schedule.prompt_warmup + schedule.ramp
    if schedule.decay == "constant" or step < start or steps <= start:
        return 1.0
    done = (step - start) / max(1, steps - start)
    return schedule.final_scale + (1.0 - schedule.final_scale) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
